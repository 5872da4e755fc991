"""Matrix products by cuBLAS, in a precision that the caller chooses, written or added to a given array.

CuPy's own `matmul` has one precision for the whole process and needs another pass to add. It cannot be recorded in a
CUDA graph, although cuBLAS allows that: `setStream` of `cupy_backends.cuda.libs.cublas` raises NotImplementedError
(CuPy 14.2).
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from softmax_xp.arrays import Array, dtype_name

# Values of cuBLAS's enums: cudaDataType of arrays, cublasComputeType_t of sums, and those of operations and algorithms.
# uint16 holds the bits of bfloat16, for which CuPy has no dtype of its own.
TYPES = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14, "uint16": 14}
COMPUTE_TYPES = {"32F": 68, "64F": 70, "32F_FAST_TF32": 77}
AS_IT_IS, TRANSPOSED = 0, 1
DEFAULT_ALGORITHM = -1
# Of memory that products may use besides their own, as cuBLAS's documentation recommends for compute capability 9.0. It
# takes such memory from CUDA by itself otherwise, and a graph would do so at each launch.
WORKSPACE_BYTES = 32 << 20

_given = threading.local()  # the workspace of the products of this thread, as long as there is one


class Layout(NamedTuple):
    """How a matrix lies in memory: column by column or row by row, and the leading dimension in numbers."""

    by_columns: bool
    step: int


def layout_of(x: Array) -> Layout | None:
    """Return the layout of a matrix, or None where neither its rows nor its columns are contiguous and in order."""
    for by_columns, (count, length) in ((False, x.shape), (True, x.shape[::-1])):
        between, within = x.strides[::-1] if by_columns else x.strides
        step = length if count == 1 else between // x.itemsize
        if (within == x.itemsize or length == 1) and step >= length:
            return Layout(by_columns, step)
    return None


def matmul(a: Array, b: Array, out: Array, *, tf32: bool = False, add: bool = False) -> None:
    """Write a @ b to `out`, or add it to `out`.

    Sums are float32, or float64 if `out` is. A factor may be stored row by row or column by column. If neither its rows
    nor its columns are contiguous, it is copied first.

    Parameters
    ----------
    a : array of shape (m, k), its dtype a key of TYPES; uint16 has the bits of bfloat16
    b : array of shape (k, n), of the dtype of `a`
    out : array of shape (m, n), of the dtype of `a`, or float32 for factors of 16 bits; its rows are contiguous
    tf32 : bool
        Whether float32 factors may be rounded to TF32, with 10 bits of fraction, for tensor cores.
    add : bool

    Raises
    ------
    ValueError
        For shapes that do not match, or an `out` whose rows are not contiguous.
    RuntimeError
        When cuBLAS fails; the message has its status.
    """
    if a.shape[1] != b.shape[0] or out.shape != (a.shape[0], b.shape[1]):
        raise ValueError(f"shapes must be (m, k), (k, n) and (m, n), got {a.shape}, {b.shape} and {out.shape}.")
    (a, layout_a), (b, layout_b), layout_out = _in_pieces(a), _in_pieces(b), layout_of(out)
    if layout_out is None or layout_out.by_columns:
        raise ValueError(f"`out` must have its rows in one piece, got strides {out.strides}; pass a C-ordered array.")
    (m, k), n = a.shape, b.shape[1]
    scalar = np.float64 if dtype_name(out.dtype) == "float64" else np.float32
    alpha, beta = np.ones((), dtype=scalar), np.full((), add, dtype=scalar)
    compute = {"float64": "64F"}.get(dtype_name(out.dtype), "32F_FAST_TF32" if tf32 else "32F")
    # cuBLAS stores matrices by columns: it computes the transpose, out.T = b.T @ a.T.
    _gemm(compute, n, m, k, alpha, b, layout_b, a, layout_a, beta, out, layout_out)


@contextmanager
def workspace(memory: Array) -> Iterator[None]:
    """Let products that this thread makes meanwhile use given memory, an array of bytes, which must outlive them."""
    _given.memory = memory
    try:
        yield
    finally:
        _given.memory = None


def address(x: Array | None) -> int:
    """Return the address of an array in the memory of its device; 0 for None."""
    return 0 if x is None else int(x.data.ptr)


def _gemm(
    compute: str,
    m: int,
    n: int,
    k: int,
    alpha: np.ndarray,
    a: Array,
    layout_a: Layout,
    b: Array,
    layout_b: Layout,
    beta: np.ndarray,
    out: Array,
    layout_out: Layout,
) -> None:
    """Call cublasGemmEx for out (m, n) = alpha a (m, k) @ b (k, n) + beta out, with matrices stored by columns.

    It runs, or is recorded, on the current stream. The rows of the layouts are columns here.
    """
    set_stream, set_workspace, gemm = _functions()
    handle, stream = _handle_and_stream()

    def operand(x: Array, layout: Layout) -> tuple[int, int, int]:
        return address(x), TYPES[dtype_name(x.dtype)], layout.step

    _check("cublasSetStream", set_stream(handle, stream))  # this also takes a workspace away
    if (memory := getattr(_given, "memory", None)) is not None:
        _check("cublasSetWorkspace", set_workspace(handle, address(memory), memory.nbytes))
    status = gemm(
        handle,
        *(TRANSPOSED if layout.by_columns else AS_IT_IS for layout in (layout_a, layout_b)),
        *(m, n, k, alpha.ctypes.data),
        *(*operand(a, layout_a), *operand(b, layout_b)),
        *(beta.ctypes.data, *operand(out, layout_out)),
        *(COMPUTE_TYPES[compute], DEFAULT_ALGORITHM),
    )
    _check("cublasGemmEx", status)


@cache
def _functions() -> tuple[Any, Any, Any]:
    """Return cublasSetStream, cublasSetWorkspace, and cublasGemmEx with 64-bit sizes, of the cuBLAS of CuPy."""
    wrapper = import_module("cupy_backends.cuda.libs").cublas  # this makes CuPy find and load cuBLAS
    if os.name == "nt":
        path = import_module("cuda.pathfinder").load_nvidia_dynamic_lib("cublas").abs_path  # as CuPy finds it
    else:
        path = wrapper.__file__  # it links cuBLAS, so that a symbol looked up in it is found there
    library = ctypes.CDLL(path)
    set_stream, set_workspace = library.cublasSetStream_v2, library.cublasSetWorkspace_v2
    gemm = library.cublasGemmEx_64
    pointer, number, size = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    matrix = (pointer, number, size)  # address, type, and step
    set_stream.argtypes = (pointer, pointer)
    set_workspace.argtypes = (pointer, pointer, ctypes.c_size_t)
    gemm.argtypes = (
        pointer,
        number,
        number,
        size,
        size,
        size,
        pointer,
        *matrix,
        *matrix,
        pointer,
        *matrix,
        number,
        number,
    )
    set_stream.restype = set_workspace.restype = gemm.restype = number
    return set_stream, set_workspace, gemm


def _handle_and_stream() -> tuple[int, int]:
    """Return CuPy's cuBLAS handle for this thread and the current device, and the current stream."""
    cuda: Any = import_module("cupy").cuda
    return cuda.device.get_cublas_handle(), cuda.get_current_stream().ptr


def _check(function: str, status: int) -> None:
    if status:
        raise RuntimeError(f"{function} of cuBLAS failed with status {status} (cublasStatus_t).")


def _in_pieces(x: Array) -> tuple[Array, Layout]:
    """Return a matrix, or a copy of it, whose rows or columns are contiguous, and its layout."""
    layout = layout_of(x)
    return (x.copy(), Layout(False, x.shape[1])) if layout is None else (x, layout)
