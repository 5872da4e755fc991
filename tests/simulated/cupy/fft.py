"""What cuFFT does is refused, as where it is not installed."""

import sys

import numpy as np

from cupy import _functions

_functions.fill(sys.modules[__name__], globals(), np.fft, refused=tuple(_functions.NAMES[__name__]))
