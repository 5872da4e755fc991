"""Matrix products by cuBLAS: in the precision that the caller names, and into memory that is there, added if asked.

CuPy's own `matmul` takes its precision from the process, and adds by a pass of its own.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from softmax_xp._arrays import Array, dtype_name

# Of arrays, as cuBLAS calls their types; uint16 holds the bits of bfloat16, for which the library has no dtype.
TYPES = {"float32": "CUDA_R_32F", "float64": "CUDA_R_64F", "uint16": "CUDA_R_16BF"}


class Layout(NamedTuple):
    """How a matrix lies in memory: whether column by column, and how many numbers from one to the next."""

    by_columns: bool
    step: int


def layout_of(x: Array) -> Layout | None:
    """Return the layout of a matrix, or None where neither rows nor columns lie in a piece, one after another."""
    for by_columns, (count, length) in ((False, x.shape), (True, x.shape[::-1])):
        between, within = x.strides[::-1] if by_columns else x.strides
        step = length if count == 1 else between // x.itemsize
        if (within == x.itemsize or length == 1) and step >= length:
            return Layout(by_columns, step)
    return None


def matmul(a: Array, b: Array, out: Array, *, tf32: bool = False, add: bool = False) -> None:
    """Write a @ b to `out`, or add it there.

    Sums are made in float32, or in float64 where `out` is.

    Parameters
    ----------
    a : array of shape (m, k), float32, float64, or uint16 with the bits of bfloat16
    b : array of shape (k, n), of the dtype of `a`
    out : array of shape (m, n), float64 for float64 and float32 for the others, its rows in one piece
    tf32 : bool
        Whether float32 factors may be rounded to ten bits behind the point, as tensor cores take them.
    add : bool
    """
    (a, layout_a), (b, layout_b), layout_out = _in_pieces(a), _in_pieces(b), layout_of(out)
    if layout_out is None or layout_out.by_columns:
        raise ValueError(f"`out` must have its rows in one piece, got strides {out.strides}; pass a C-ordered array.")
    (m, k), n = a.shape, b.shape[1]
    scalar = np.float64 if dtype_name(out.dtype) == "float64" else np.float32
    alpha, beta = np.ones((), dtype=scalar), np.full((), add, dtype=scalar)
    compute = {"float64": "64F"}.get(dtype_name(out.dtype), "32F_FAST_TF32" if tf32 else "32F")
    # cuBLAS goes by columns: to it `out` is the transpose, and so are the factors, in the other order.
    _gemm(compute, n, m, k, alpha, b, layout_b, a, layout_a, beta, out, layout_out)


def address(x: Array | None) -> int:
    """Return where an array begins in the memory of its device; 0 for None."""
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
    """Call cublasGemmEx for out (m, n) = alpha a (m, k) @ b (k, n) + beta out, matrices that go by columns.

    What the layouts call rows are columns here.
    """
    cublas: Any = import_module("cupy_backends.cuda.libs.cublas")
    runtime: Any = import_module("cupy_backends.cuda.api.runtime")

    def operand(x: Array) -> tuple[int, int]:
        return address(x), getattr(runtime, TYPES[dtype_name(x.dtype)])

    cublas.gemmEx(
        import_module("cupy").cuda.device.get_cublas_handle(),
        *(cublas.CUBLAS_OP_T if layout.by_columns else cublas.CUBLAS_OP_N for layout in (layout_a, layout_b)),
        *(m, n, k, alpha.ctypes.data),
        *(*operand(a), layout_a.step, *operand(b), layout_b.step),
        *(beta.ctypes.data, *operand(out), layout_out.step),
        getattr(cublas, f"CUBLAS_COMPUTE_{compute}"),
        cublas.CUBLAS_GEMM_DEFAULT,
    )


def _in_pieces(x: Array) -> tuple[Array, Layout]:
    """Return a matrix, or a copy of it, whose rows or columns lie in one piece each, and its layout."""
    layout = layout_of(x)
    return (x.copy(), Layout(False, x.shape[1])) if layout is None else (x, layout)
