"""The row pass for CuPy, by the kernels in `cross_entropy.cu`, of which `launches` chooses the variant.

The same functions as `reference`, with the same arguments and results. Logits are formed for a block of rows at a
time, row-major, and turned into their gradient by one launch between the two matrix products: in place, or rounded to
bfloat16 in memory of its own, where products take that.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.resources import files
from typing import Any

import numpy as np

from softmax_xp.arrays import (
    Array,
    DType,
    accumulation_dtype,
    block_bytes,
    bytes_of,
    device_of,
    dtype_name,
    namespace,
    row_blocks,
    working_dtype,
)
from softmax_xp.kernels import cublas, reference
from softmax_xp.kernels.launches import BLOCK, PACK_BYTES, STATIC_BYTES, TYPES, launch_of, sums_launch, widest_pack
from softmax_xp.kernels.row_pass import PLAIN, PRECISIONS as PRECISIONS, RowPass
from softmax_xp.kernels.workspace import Workspace

OPTIONS = ("--std=c++17",)
# Each block of rows costs a pass over the gradient, which with fewer rows takes a share of the time of its products.
MIN_BLOCK_ROWS = 2048
# The gradient's product sums over the rows of a block. Where classes and features are few that sum is all that can be
# shared out among the processors, and where it is very long cuBLAS may have no good kernel. Not measured on a GPU.
MAX_BLOCK_ROWS = 1 << 20
FREE_SHARE = 4  # of the memory that is free a block takes at most one in so many parts
ROUNDED_SHARE = 2  # and so does a copy of X in a lower precision


def source() -> str:
    """Return the CUDA C++ of the kernels."""
    return files(__package__).joinpath("cross_entropy.cu").read_text(encoding="utf-8")


def matmul(a: Array, b: Array) -> Array:
    """Return the matrix product a @ b, of shapes (m, k) and (k, n); it may be recorded as a graph."""
    xp = namespace(a=a, b=b)
    dtype = xp.result_type(a.dtype, b.dtype)
    out = xp.empty((a.shape[0], b.shape[1]), dtype=dtype)
    if a.size == 0 or b.size == 0:
        return xp.zeros_like(out)
    cublas.matmul(xp.astype(a, dtype, copy=False), xp.astype(b, dtype, copy=False), out)
    return out


def softmax(logits: Array, axis: int = -1) -> Array:
    """Return exp(z) / sum(exp(z)) along `axis`."""
    return _along(logits, axis, "SOFTMAX")


def log_softmax(logits: Array, axis: int = -1) -> Array:
    """Return z - logsumexp(z) along `axis`."""
    return _along(logits, axis, "LOG_SOFTMAX")


def cross_entropy(
    logits: Array,
    targets: Array,
    weight: Array | None = None,
    row_pass: RowPass = PLAIN,
    axis: int = -1,
) -> Array:
    """Return the weighted loss of each row, (n,)."""
    z, losses = _rows_first(logits, axis), _losses(logits, axis)
    if row_pass.is_cross_entropy:
        _run("LOSS", z, z, _rows_first(targets, axis), weight, None, row_pass.smoothing, losses)
        return losses
    losses, _, _ = _effective(z, _rows_first(targets, axis), None, row_pass)
    return losses if weight is None else reference.weighted(losses, weight)


def cross_entropy_with_grad(
    logits: Array,
    targets: Array,
    weight: Array | None = None,
    row_pass: RowPass = PLAIN,
    axis: int = -1,
) -> tuple[Array, Array]:
    """Return the weighted loss of each row, (n,), and its gradient in the logits."""
    z, losses = _rows_first(logits, axis), _losses(logits, axis)
    grad = _gradient(z, None, _rows_first(targets, axis), weight, None, row_pass, losses)
    return losses, _rows_first(grad, axis)


def _gradient(
    z: Array,
    out: Array | None,
    targets: Array,
    weight: Array | None,
    bias: Array | None,
    row_pass: RowPass,
    losses: Array,
) -> Array:
    """Write the losses of logits `z` (m, C) to `losses`, and return their gradient: in `out`, or in a new array.

    For another loss than cross-entropy it is that of cross-entropy with the effective targets, by another launch.
    """
    if row_pass.is_cross_entropy:
        return _run("GRADIENT", z, out, targets, weight, bias, row_pass.smoothing, losses)
    losses[...], targets, slopes = _effective(z, targets, bias, row_pass)
    if weight is not None:
        losses[...] = reference.weighted(losses, weight)
        weight = weight if slopes is None else reference.weighted(slopes, weight)
    return _run("GRADIENT", z, out, targets, slopes if weight is None else weight, bias)


def _effective(z: Array, targets: Array, bias: Array | None, row_pass: RowPass) -> tuple[Array, Array, Array | None]:
    """Return the losses of the rows of logits `z` (m, C), their effective targets, and factors (m,) of these or None.

    The effective targets of labels without smoothing are these labels, times slope(log p) of each.
    """
    if targets.ndim == 1 and row_pass.smoothing == 0.0:
        losses = _losses(z, 1)
        _run("LOSS", z, z, targets, None, bias, 0.0, losses)
        return row_pass.loss.value(-losses), targets, row_pass.loss.slope(-losses)
    return *reference.effective(_log_p(z, bias), targets, row_pass, 1), None


def _log_p(z: Array, bias: Array | None) -> Array:
    """Return the log-probabilities of logits `z` (m, C), in the dtype that these are computed in."""
    xp, real = namespace(z=z), _real(z)
    class_major = _is_class_major(z)
    out = xp.empty(z.shape[::-1] if class_major else z.shape, dtype=getattr(xp, real))
    return _run("LOG_SOFTMAX", z, out.T if class_major else out, bias=bias)


def factor(X: Array, precision: str) -> Array:
    """Return X (n, D) as `linear_sums` may take it in this precision: for "bfloat16" the bits of its rounded numbers.

    They take half the memory, and the time to read it, that float32 takes; where there is not enough for them as well,
    X is returned, of which each evaluation then rounds a block at a time.
    """
    rounded = precision == "bfloat16" and 2 * X.size <= _free_bytes() // ROUNDED_SHARE
    return bfloat16_bits(X) if rounded else X


def linear_sums(
    coef: Array,
    intercept: Array | None,
    X: Array,
    targets: Array,
    weight: Array | None = None,
    row_pass: RowPass = PLAIN,
    workspace: Workspace | None = None,
) -> tuple[Array, Array, Array | None]:
    """Return the sums over the rows of X of loss and gradient, for logits = coef @ X.T + intercept."""
    xp, wide = namespace(X=X), accumulation_dtype(namespace(X=X), device_of(X))
    blocks = _Blocks([(coef, intercept)], X, row_pass.precision)
    losses, bias = xp.empty(X.shape[0], dtype=blocks.dtype), blocks.bias(intercept)
    for rows, (logits,), out in blocks:
        _gradient(logits, out, targets[rows], _of(weight, rows), bias, row_pass, losses[rows])
        blocks.add(out)
    return xp.sum(losses, dtype=wide), blocks.grad_coef, blocks.grad_intercept


def linear_hessian_product(
    coef: Array,
    intercept: Array | None,
    X: Array,
    targets: Array,
    direction: Array,
    direction_intercept: Array | None,
    weight: Array | None = None,
    row_pass: RowPass = PLAIN,
    workspace: Workspace | None = None,
) -> tuple[Array, Array | None]:
    """Return the Hessian of the sum of the losses, at `coef` and `intercept`, times a direction.

    For another loss than cross-entropy, array operations between the products follow the definition.
    """
    blocks = _Blocks([(coef, intercept), (direction, direction_intercept)], X, row_pass.precision)
    bias, bias_along = blocks.bias(intercept), blocks.bias(direction_intercept)
    for rows, (logits, along), out in blocks:
        if bias_along is not None:
            along += bias_along
        own = _of(weight, rows)
        if row_pass.is_cross_entropy:
            _run("HESSIAN", logits, out, along, own, bias)
        else:
            r = reference.curved(_log_p(logits, bias), along, targets[rows], row_pass, 1)
            out[...] = r if own is None else reference.weighted(r, own[:, None])
        blocks.add(out)
    return blocks.grad_coef, blocks.grad_intercept


class _Blocks:
    """Blocks of rows: their logits in memory that is used again, and the sums of what a pass makes of these.

    Iterated over, it yields the rows of a block; X there times each map, (m, C), or for two classes (m, 2); and memory
    for what becomes of the first of these, as a factor of products: its own, or that of numbers of 16 bits.

    Parameters
    ----------
    maps : list of coefficients (K, D) and intercepts (K,), of which the shape of the first alone is used
    X : array of shape (n, D), or what `factor` has made of one
    precision : str
        Of the factors of products.
    """

    def __init__(self, maps: list[tuple[Array, Array | None]], X: Array, precision: str) -> None:
        xp = namespace(X=X)
        self.X = X
        self.dtype = xp.float32 if X.dtype == xp.uint16 else working_dtype(xp, X.dtype)
        self.precision = precision
        self.of_factors = xp.uint16 if self.precision == "bfloat16" else self.dtype
        self.coefs = [self._factor(coef) for coef, _ in maps]
        (coef, intercept), *_ = maps
        self.n_classes = max(coef.shape[0], 2)
        self.grad_coef = xp.zeros(coef.shape, dtype=self.dtype)
        self.grad_intercept = None if intercept is None else xp.zeros(intercept.shape, dtype=self.dtype)

    def __iter__(self) -> Iterator[tuple[slice, list[Array], Array]]:
        xp, (n_rows, n_features), rounded = namespace(X=self.X), self.X.shape, self.of_factors != self.dtype
        row_bytes = len(self.coefs) * self.n_classes * bytes_of(xp, self.dtype) + 2 * rounded * self.n_classes
        if self.X.dtype != self.of_factors:
            row_bytes += n_features * (2 if rounded else bytes_of(xp, self.dtype))
        blocks = list(row_blocks(n_rows, row_bytes, _block_bytes(n_rows, row_bytes, self.X)))
        height = blocks[0].stop if blocks else 0
        buffers = [xp.empty((height, self.n_classes), dtype=self.dtype) for _ in self.coefs]
        out = xp.empty(buffers[0].shape, dtype=self.of_factors) if rounded else buffers[0]
        for rows in blocks:
            n = rows.stop - rows.start
            self.X_block = self._factor(self.X[rows, :])
            logits = [buffer[:n] for buffer in buffers]
            for coef, z in zip(self.coefs, logits, strict=True):
                z[:, : self.n_classes - coef.shape[0]] = 0.0  # of two classes the first has the logit 0
                self._multiply(self.X_block, coef.T, z[:, -coef.shape[0] :], add=False)
            yield rows, logits, out[:n]

    def add(self, dlogits: Array) -> None:
        """Add the gradient in the logits of the last block (m, C): times X, and alone."""
        dlogits = dlogits[:, -self.grad_coef.shape[0] :]
        self._multiply(dlogits.T, self.X_block, self.grad_coef, add=True)
        if self.grad_intercept is not None:
            _add_rows(dlogits, self.grad_intercept)

    def bias(self, intercept: Array | None) -> Array | None:
        """Return what is added to the columns of logits, of two classes 0 to the first; None without an intercept."""
        if intercept is None:
            return None
        xp = namespace(X=self.X)
        bias = xp.astype(intercept, self.dtype, copy=False)
        return bias if len(bias) > 1 else xp.concat([xp.zeros_like(bias), bias])

    def _multiply(self, a: Array, b: Array, out: Array, add: bool) -> None:
        cublas.matmul(a, b, out, tf32=self.precision == "tf32", add=add)

    def _factor(self, x: Array) -> Array:
        """Return `x` (m, n) as a factor of products: in the dtype of logits, or its bits as bfloat16."""
        if x.dtype == self.of_factors:
            return x
        x = namespace(x=x).astype(x, self.dtype, copy=False)
        return x if self.of_factors == self.dtype else bfloat16_bits(x)


def _add_rows(x: Array, sums: Array) -> None:
    """Add the sum of the rows of x (n, m), or of its bits as bfloat16, to `sums` (m,)."""
    xp, (n_rows, n_columns) = namespace(x=x), x.shape
    if n_rows == 0:
        return
    launch, of_part = sums_launch(n_rows, n_columns, dtype_name(x.dtype), _widest_pack(n_columns, [x]))
    last = n_rows <= of_part
    to = sums if last else xp.empty((-(-n_rows // of_part), n_columns), dtype=sums.dtype)
    arguments = (_pointer(x), _step(x, 0), _pointer(to), np.int64(n_rows), np.int32(n_columns), np.int64(of_part))
    _kernel(launch.kernel, x)((launch.grid,), (launch.block,), (*arguments, np.int32(last)))
    if not last:
        _add_rows(to, sums)


def _block_bytes(n_rows: int, row_bytes: int, X: Array) -> int:
    """Return how large a block of rows should be: as the device likes it, of rows enough but not too many, and free."""
    usual = block_bytes(device_of(X))
    wanted = min(max(usual, min(n_rows, MIN_BLOCK_ROWS) * row_bytes), MAX_BLOCK_ROWS * row_bytes)
    small = n_rows * row_bytes <= usual // 16  # not worth the question
    return wanted if small else min(wanted, _free_bytes() // FREE_SHARE)


def _free_bytes() -> int:
    """Return how much memory of the current device is free, or held ready by CuPy."""
    cupy: Any = import_module("cupy")
    return int(cupy.cuda.Device().mem_info[0]) + int(cupy.get_default_memory_pool().free_bytes())


def bfloat16_bits(x: Array) -> Array:
    """Return float32 numbers (m, n) rounded to bfloat16, as their bits in uint16."""
    xp = namespace(x=x)
    x = xp.asarray(x, order="C")
    out = xp.empty(x.shape, dtype=xp.uint16)
    if x.size == 0:
        return out
    pack = PACK_BYTES // x.itemsize if _starts_a_pack(x) else 1
    grid = (-(-x.size // (BLOCK * pack)),)
    _kernel(f"round_to_bfloat16<{pack}>", x)(grid, (BLOCK,), (_pointer(x), _pointer(out), np.int64(x.size)))
    return out


def _along(logits: Array, axis: int, row_pass: str) -> Array:
    """Return what a pass without targets makes of logits of any rank."""
    xp = namespace(logits=logits)
    axis %= logits.ndim
    if logits.ndim == 2:
        return _rows_first(_run(row_pass, _rows_first(logits, axis), None), axis)
    last = xp.moveaxis(logits, axis, -1)
    rows = xp.reshape(last, (-1, last.shape[-1]))
    return xp.moveaxis(xp.reshape(_run(row_pass, rows, None), last.shape), -1, axis)


def _run(
    row_pass: str,
    z: Array,
    out: Array | None,
    targets: Array | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    smoothing: float = 0.0,
    losses: Array | None = None,
) -> Array:
    """Launch a pass over logits `z`, seen as (rows, classes), and return what it writes: `out`, or a new array."""
    xp, real = namespace(z=z), _real(z)
    n_rows, n_classes = z.shape
    class_major = _is_class_major(z)
    if not (class_major or _steps(z, 1)):
        z = xp.asarray(z, copy=True, order="C")
    if out is None:
        out = xp.empty((n_classes, n_rows), dtype=z.dtype).T if class_major else xp.empty(z.shape, dtype=z.dtype)
    if targets is not None and targets.ndim == 2 and not _steps(targets, 0 if class_major else 1):
        targets = (xp.asarray(targets.T, copy=True, order="C").T) if class_major else xp.asarray(targets, order="C")
    kind = "NONE" if targets is None else "LABELS" if targets.ndim == 1 else "PROBABILITIES"
    if kind == "LABELS":
        targets = _vector(targets, xp.int64)
    elif targets is not None:
        targets = xp.astype(targets, getattr(xp, real), copy=False)
    weight, bias = _vector(weight, getattr(xp, real)), _vector(bias, getattr(xp, real))
    bias = bias if bias is None or _starts_a_pack(bias) else xp.asarray(bias, copy=True)
    if n_rows == 0:
        return out
    matrices = [x for x in (z, out, targets) if x is not None and x.ndim == 2]
    starts = all(map(_starts_a_pack, matrices))
    launch = launch_of(
        n_rows,
        n_classes,
        dtype_name(z.dtype),
        row_pass,
        kind,
        class_major=class_major,
        pack=_widest_pack(n_classes, matrices),
        dense=starts and (n_rows == 1 or all(x.strides[0] == n_classes * x.itemsize for x in (z, out))),
        written=dtype_name(out.dtype),
        shared_bytes=_shared_bytes(z),
    )
    across = 1 if class_major else 0
    arguments = (
        *(_pointer(z), _step(z, across), _pointer(bias), _pointer(targets), _step(targets, across), _pointer(weight)),
        getattr(np, real)(smoothing),
        *(_pointer(out), _step(out, across), _pointer(losses), np.int64(n_rows), np.int32(n_classes)),
        np.int32(launch.kept),
    )
    _kernel(launch.kernel, z)((launch.grid,), (launch.block,), arguments, shared_mem=launch.shared)
    return out


def _kernel(name: str, like: Array) -> Any:
    """Return the compiled kernel for the device of `like`."""
    return _compiled(name, device_of(like).id)


@cache
def _compiled(name: str, device: int) -> Any:
    """Return a kernel for the current device; CuPy keeps on disk what it has compiled."""
    cupy: Any = import_module("cupy")
    module = cupy.RawModule(code=source(), options=OPTIONS, name_expressions=(name,))
    kernel = module.get_function(name)
    if name.startswith("row_major"):
        kernel.max_dynamic_shared_size_bytes = _most_shared_bytes(device) - STATIC_BYTES
    return kernel


def _shared_bytes(like: Array) -> int:
    """Return how much shared memory a block may take on the device of `like`."""
    return _most_shared_bytes(device_of(like).id)


@cache
def _most_shared_bytes(device: int) -> int:
    return int(import_module("cupy").cuda.Device(device).attributes["MaxSharedMemoryPerBlockOptin"])


def _pointer(x: Array | None) -> np.uint64:
    return np.uint64(cublas.address(x))


def _step(x: Array | None, axis: int) -> np.int64:
    """Return how many numbers lie between two neighbours of a matrix along an axis; 0 without a matrix."""
    return np.int64(0 if x is None or x.ndim == 1 else x.strides[axis] // x.itemsize)


def _widest_pack(n_columns: int, matrices: list[Array]) -> int:
    return widest_pack(n_columns, ((cublas.address(x), x.strides[0], x.itemsize) for x in matrices))


def _starts_a_pack(x: Array) -> bool:
    """Return whether `x` begins where a pack may."""
    return cublas.address(x) % PACK_BYTES == 0


def _steps(x: Array, axis: int) -> bool:
    """Return whether the entries of `x` along an axis lie side by side."""
    return bool(x.strides[axis] == x.itemsize or x.shape[axis] == 1)


def _is_class_major(z: Array) -> bool:
    """Return whether the rows of `z` (m, C), but not its classes, lie side by side."""
    return not _steps(z, 1) and _steps(z, 0)


def _vector(x: Array | None, dtype: DType) -> Array | None:
    """Return a vector in a dtype whose entries have nothing between them."""
    if x is None:
        return None
    xp = namespace(x=x)
    x = xp.astype(x, dtype, copy=False)
    return x if _steps(x, 0) else xp.asarray(x, copy=True)


def _losses(logits: Array, axis: int) -> Array:
    """Return memory for the loss of each row."""
    xp = namespace(logits=logits)
    return xp.empty(_rows_first(logits, axis).shape[0], dtype=getattr(xp, _real(logits)))


def _real(logits: Array) -> str:
    """Return the dtype that logits are computed in."""
    return "float64" if TYPES[dtype_name(logits.dtype)][1] == "double" else "float32"


def _rows_first(x: Array, axis: int) -> Array:
    """Return `x` with its rows on the first axis; labels have no other."""
    return x.T if x.ndim == 2 and axis in (0, -2) else x


def _of(weight: Array | None, rows: slice) -> Array | None:
    return None if weight is None else weight[rows]
