"""Files that are written: whole or not at all, and models in files. Nothing here knows a model class."""
