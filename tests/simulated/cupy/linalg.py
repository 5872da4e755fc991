"""What cuSOLVER does is refused, as where it is not installed."""

import sys

import numpy as np

from cupy import _functions

_functions.fill(
    sys.modules[__name__],
    globals(),
    np.linalg,
    refused=tuple(name for name in _functions.NAMES[__name__] if name not in ("norm", "LinAlgError")),
)
