"""The command softmax-xp. This package is empty, so that signals are handled before anything large is loaded."""
