"""CuPy made of NumPy, to test on a machine without a GPU what a program asks of one.

It has two devices, streams, and graphs that replay. It refuses what CuPy refuses: conversion to NumPy that nobody asked
for, arrays of another device, arguments that CuPy's functions do not take. While a graph is recorded it refuses
transfers and CuPy's own products. New memory is full of NaN. `usage` counts launches and transfers. The kernels of
softmax_xp are built for the host, by `cuda_on_host.py`.

It knows nothing of time, of the order of streams, or of the limits of cuBLAS; NumPy's dtypes may differ from CuPy's.
"""

import sys

import numpy as _numpy

from cupy import _functions, cuda as cuda
from cupy._array import ndarray as ndarray
from cupy._device import default_pool as _default_pool, usage as usage
from cupy._functions import (
    array as array,
    asarray as asarray,
    asnumpy as asnumpy,
    copyto as copyto,
    from_dlpack as from_dlpack,
    may_share_memory as may_share_memory,
)
from cupy._kernels import RawModule as RawModule, cublas_functions as _cublas_functions
from softmax_xp.kernels import cublas as _cublas

__version__ = "14.2.0"
_cublas._functions = _cublas_functions  # in place of those of the library that CuPy loads
shares_memory = may_share_memory


def get_default_memory_pool():
    return _default_pool


def get_array_module(*args):
    return sys.modules[__name__] if any(isinstance(x, ndarray) for x in args) else _numpy


def __getattr__(name):
    raise AttributeError(f"the simulated CuPy has no {name!r}")


for _name in ("empty", "zeros", "ones", "full", "arange", "eye", "linspace"):
    globals()[_name] = _functions.creator(_name)
for _name in ("empty_like", "zeros_like", "ones_like", "full_like"):
    globals()[_name] = _functions.creator(_name)
_functions.fill(sys.modules[__name__], globals(), _numpy)
bool_ = _numpy.bool_

from cupy import fft as fft, linalg as linalg  # noqa: E402  # they are filled as this module is
