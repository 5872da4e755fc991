"""Benchmarks of softmax_xp against other libraries: `python -m benchmarks --help`."""
