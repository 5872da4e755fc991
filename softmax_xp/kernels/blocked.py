"""The row pass for NumPy in float32 and float64: in place, over blocks of rows that stay in cache.

The same functions as `reference`, with the same arguments and results. A temporary is as large as a block of rows, or,
for products with X, as lanes of LANE_BYTES or a superblock are. Inside, logits are always seen as (rows, classes): of
class-major logits that is a transposed view, over whose rows NumPy reduces a whole vector of them at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import pairwise, product
from typing import Any, TypeAlias

import numpy as np
from numpy.lib import introspect
from numpy.lib.stride_tricks import as_strided

from softmax_xp.arrays import row_blocks
from softmax_xp.kernels import reference
from softmax_xp.kernels.row_pass import PLAIN, RowPass
from softmax_xp.kernels.workspace import Workspace, blas_architectures
from softmax_xp.losses import Loss

PRECISIONS: tuple[str, ...] = ("float32",)

# A block of X and its logits should pass from the first product to the second inside the cache: 4 MiB is a core's
# share of a current third-level cache. Smaller blocks lose to the calls around them: at (D, C) = (64, 10) blocks of
# 16384 rows take two thirds of the time of blocks of 4096; at (784, 10) those of 1024 rows, of 512 or of 2048.
BLOCK_BYTES = 4 << 20
# Where the gradient of a block is more than a second-level cache holds, its addition costs more, and fewer, larger
# blocks pay: their products take longer than X takes to be read twice.
LARGE_GRADIENT_BYTES, LARGE_BLOCK_BYTES = 1 << 20, 12 << 20
MIN_BLOCK_ROWS = 256
# Threads wait for each other between NumPy's calls, of which a block takes some forty. Blocks are therefore enlarged
# until they have BLOCK_WORK multiplications, but to no more than MAX_GROWN_BYTES of X and logits, and MAX_LOGIT_BYTES
# of logits. Each thread allocates memory for the logits of one block. Two blocks are better than one of twice the size.
# On 2 cores of an Intel Xeon, in float32, an evaluation at (N, D, C) = (20000, 64, 10) took 7.2 ms with blocks of 2^20
# multiplications and 2.5 ms with blocks of 2^23. At (10000, 256, 20) it took 4.6 ms with 2^23 and 3.7 ms with 2^24.
BLOCK_WORK, MAX_GROWN_BYTES, MAX_LOGIT_BYTES = 1 << 24, 8 << 20, 3 << 20
ROUND = 64  # blocks are a multiple of so many rows: whole vectors, from aligned addresses
# Sums of their own, for tasks of few coefficients: enough tasks for any machine, in little memory.
MIN_LANES, MAX_LANES = 16, 64
LANE_BYTES = 32 << 20
FLOAT32_COLUMNS = 4  # that OpenBLAS multiplies at a time; 12 classes take less time than 10
# OpenBLAS copies both matrices of a product first, which with few classes takes longer than the multiplications. For
# processors with AVX-512 it has kernels that do without, for products of up to so many multiplications: there, pieces
# of a block take down to half of its time. With more classes their logits, which such a product can only write row by
# row, take as long to be transposed; with fewer rows a piece, so do the additions between pieces.
WITHOUT_COPIES = frozenset({"SkylakeX", "Cooperlake", "SapphireRapids"})
PIECE_WORK = 1_000_000
PIECE_ROUND = 16
MIN_PIECE_ROWS = 32
MAX_PIECE_CLASSES = 24
PIECES_BYTES = 1 << 20  # of products that wait to be added: they stay in the second-level cache
# With many coefficients each block costs a pass over the gradient, so that it must have rows enough to pay for it. A
# product is cut into tiles, each of which BLAS packs anew: smaller ones lose to that, larger ones are too few. Tasks of
# the row pass that stay in the second-level cache lose to the calls in them.
SUPERBLOCK_BYTES = 16 << 20
MIN_SUPERBLOCK_ROWS = 512
SUPERBLOCK_ROWS_PER_FEATURE = 2
TILE_ROWS, TILE_CLASSES = 1024, 2048
MIN_TILES = 8  # of a product: enough for some workers
TASK_BYTES = 1 << 20  # of logits in one task of the row pass
# Up to so many classes, logits are class-major: NumPy then goes over them in long loops, one class at a time. Above,
# a row is long enough.
MAX_CLASS_MAJOR = 1024
# Exponentials of logits up to this size, sums of them, and the inverses of these are factors that overflow nothing.
MODEST_LOGIT = 32.0
# Arithmetic on subnormal numbers takes ten times as long or more. A confident model has such probabilities in float32.
# Probabilities below ABOVE_SUBNORMAL times the least normal number are too small to change a sum, and become zero.
# Larger ones remain normal numbers when they are multiplied with the weights of rows.
ABOVE_SUBNORMAL = 1e8
# Reading the logits of many classes from main memory takes time, so that only one row in ROWS_PER_CHECK is searched for
# logits of such probabilities. A subnormal number that is overlooked costs time, and does not change the result.
ROWS_PER_CHECK = 8


Map: TypeAlias = tuple[np.ndarray, np.ndarray | None]  # coef and intercept
# Takes the logits (m, C) of each map, what writes the first of them anew, their rows, and where to write the losses of
# these; returns what each row of the first logits, as they are then, is still to be multiplied with (m,), or None for
# ones.
OfBlock: TypeAlias = Callable[[list[np.ndarray], Callable[[], None], slice, np.ndarray], np.ndarray | None]


def factor(X: np.ndarray, precision: str) -> np.ndarray:
    """Return X: there is one precision."""
    return X


def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the matrix product a @ b, of shapes (m, k) and (k, n)."""
    product: np.ndarray = a @ b
    return product


def softmax(logits: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return exp(z) / sum(exp(z)) along `axis`."""
    z: np.ndarray = logits - logits.max(axis=axis, keepdims=True)
    np.exp(z, out=z)
    z /= z.sum(axis=axis, keepdims=True)
    return z


def log_softmax(logits: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return z - logsumexp(z) along `axis`."""
    z: np.ndarray = logits - logits.max(axis=axis, keepdims=True)
    e = z.copy()
    _exp(e)
    z -= np.log(e.sum(axis=axis, keepdims=True))
    return z


def cross_entropy(
    logits: np.ndarray,
    targets: np.ndarray,
    weight: np.ndarray | None = None,
    row_pass: RowPass = PLAIN,
    axis: int = -1,
) -> np.ndarray:
    """Return the weighted loss of each row, (n,)."""
    logits, targets = _rows_first(logits, axis), _rows_first(targets, axis)
    losses = np.empty(logits.shape[0], dtype=logits.dtype)
    for rows in _blocks(len(logits), logits.shape[1] * logits.itemsize):
        z = logits[rows].copy(order="K")
        restore = partial(np.copyto, z, logits[rows])
        own = _of(weight, rows)
        if row_pass.is_cross_entropy:
            _row_losses(z, restore, targets[rows], own, row_pass.smoothing, losses[rows])
        else:
            _robust_pass(z, restore, targets[rows], own, row_pass, losses[rows])
    return _without_ignored(losses, weight)


def cross_entropy_with_grad(
    logits: np.ndarray,
    targets: np.ndarray,
    weight: np.ndarray | None = None,
    row_pass: RowPass = PLAIN,
    axis: int = -1,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted loss of each row, (n,), and its gradient in the logits."""
    grad = np.empty_like(logits)
    logits, targets, z = _rows_first(logits, axis), _rows_first(targets, axis), _rows_first(grad, axis)
    losses = np.empty(logits.shape[0], dtype=logits.dtype)
    for rows in _blocks(len(logits), logits.shape[1] * logits.itemsize):
        own, restore = _of(weight, rows), partial(np.copyto, z[rows], logits[rows])
        restore()
        _scale(z[rows], _row_pass(z[rows], restore, targets[rows], own, row_pass, losses[rows]))
    _without_ignored(z, weight)
    return _without_ignored(losses, weight), grad


def _without_ignored(x: np.ndarray, weight: np.ndarray | None) -> np.ndarray:
    """Return `x`, with zeros in the rows of weight 0."""
    if weight is not None:
        x[weight == 0.0] = 0.0
    return x


def linear_sums(
    coef: np.ndarray,
    intercept: np.ndarray | None,
    X: np.ndarray,
    targets: np.ndarray,
    weight: np.ndarray | None = None,
    row_pass: RowPass = PLAIN,
    workspace: Workspace | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return the sums over the rows of X of loss and gradient, for logits = coef @ X.T + intercept.

    The gradient may lie in memory of the workspace, until the next evaluation in it.
    """
    if coef.shape[0] == 2:  # two classes differ by one logit, and their gradients by the sign
        intercept = None if intercept is None else intercept[1:] - intercept[:1]
        loss, grad, slope = linear_sums(coef[1:] - coef[:1], intercept, X, targets, weight, row_pass, workspace)
        return loss, np.concatenate([-grad, grad]), None if slope is None else np.concatenate([-slope, slope])

    def of_block(
        logits: list[np.ndarray], form: Callable[[], None], rows: slice, losses: np.ndarray
    ) -> np.ndarray | None:
        own = _of(weight, rows)
        z = _without_ignored(logits[0], own)
        if z.shape[1] == 1:
            return _logistic_pass(z[:, 0], targets[rows], own, row_pass, losses)

        def restore() -> None:
            form()
            _without_ignored(z, own)

        return _row_pass(z, restore, targets[rows], own, row_pass, losses)

    return _sums([(coef, intercept)], X, of_block, workspace or Workspace())


def linear_hessian_product(
    coef: np.ndarray,
    intercept: np.ndarray | None,
    X: np.ndarray,
    targets: np.ndarray,
    direction: np.ndarray,
    direction_intercept: np.ndarray | None,
    weight: np.ndarray | None = None,
    row_pass: RowPass = PLAIN,
    workspace: Workspace | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the Hessian of the sum of the losses, at `coef` and `intercept`, times a direction.

    It may lie in memory of the workspace, until the next evaluation in it.
    """

    def of_block(
        logits: list[np.ndarray], form: Callable[[], None], rows: slice, losses: np.ndarray
    ) -> np.ndarray | None:
        own, losses[:] = _of(weight, rows), 0
        z, u = (_without_ignored(x, own) for x in logits)
        if not row_pass.is_cross_entropy:
            _robust_curvature(z, u, targets[rows], row_pass)
            return own
        if z.shape[1] == 1:  # p (1 - p) u
            _exp(np.negative(np.abs(z, out=z), out=z))
            z /= (1.0 + z) ** 2
            z *= u
            return own
        z -= z.max(axis=1, keepdims=True)
        _exp(z)
        s = _over_classes(z)
        u -= (np.einsum("ij,ij->i", z, u) / s)[:, None]
        z *= u
        return 1.0 / s if own is None else own / s

    maps = [(coef, intercept), (direction, direction_intercept)]
    return _sums(maps, X, of_block, workspace or Workspace())[1:]


def _sums(
    maps: Sequence[Map],
    X: np.ndarray,
    of_block: OfBlock,
    workspace: Workspace,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return the sum of the losses, and the product with X, of what `of_block` makes of the logits of `maps`.

    `of_block` gets the logits of each map, (m, C), one column for two classes; it writes the losses of the rows, and
    turns the first logits into what X is to be multiplied with, and what is summed for the intercept where there is
    one, but for a factor of each row: that is given to the logits or to X, whichever has fewer columns. The blocks and
    the order in which they are added depend on the shapes alone, and so does every bit of the result.
    """
    few = maps[0][0].size * X.itemsize * MIN_LANES <= LANE_BYTES
    maps = [
        (_cast(coef, f"coef {i}", X.dtype, workspace), None if b is None else np.asarray(b, dtype=X.dtype))
        for i, (coef, b) in enumerate(maps)
    ]
    return (_sums_by_lanes if few else _sums_by_superblocks)(maps, X, of_block, workspace)


def _sums_by_lanes(
    maps: Sequence[Map],
    X: np.ndarray,
    of_block: OfBlock,
    workspace: Workspace,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Few coefficients: each task does both products of its rows while these are in cache, into sums of its own."""
    n_rows, n_features = X.shape
    n_coef = maps[0][0].shape[0]
    class_major = n_coef <= MAX_CLASS_MAJOR
    # Rows of zeros, whose products are zero, where they make the multiplication of all rows faster.
    height = n_coef + (-n_coef % FLOAT32_COLUMNS if n_coef > 1 and X.itemsize == 4 else 0)
    padded = [coef if height == n_coef else _padded(coef, height) for coef, _ in maps]
    logit_bytes = len(maps) * n_coef * X.itemsize
    row_bytes = n_features * X.itemsize + logit_bytes
    large = n_coef * n_features * X.itemsize > LARGE_GRADIENT_BYTES
    step = (LARGE_BLOCK_BYTES if large else BLOCK_BYTES) // row_bytes
    step = min(max(step, MIN_BLOCK_ROWS), -(-n_rows // MIN_LANES))
    grown = BLOCK_WORK // (n_features * n_coef)
    grown = min(grown, max(grown // 2, -(-n_rows // 2)), MAX_GROWN_BYTES // row_bytes, MAX_LOGIT_BYTES // logit_bytes)
    step = max(step, grown, 1)
    piece = _piece_rows(min(step, n_rows), n_features, height)
    if piece is not None:
        step = min(step, piece * max(1, PIECES_BYTES // (height * n_features * X.itemsize)))
    n_lanes = min(-(-n_rows // step), MAX_LANES, LANE_BYTES // (n_coef * n_features * X.itemsize))
    unit = piece or (ROUND if step > ROUND else 1)
    blocks = _parts(n_rows, -(-n_rows // (step * n_lanes)) * n_lanes, unit)
    n_lanes = min(n_lanes, len(blocks))
    transposed = [np.ascontiguousarray(coef.T) if piece else coef.T for coef in padded]
    loss = np.zeros(n_lanes)
    grad_coef = workspace.buffer("grad_coef", (n_lanes, height, n_features), X.dtype, shared=True)
    grad_intercept = None if maps[0][1] is None else np.zeros((n_lanes, n_coef), dtype=X.dtype)

    def multiply(X_block: np.ndarray, products: list[np.ndarray], i: int) -> None:
        _multiply(X_block, transposed[i], piece, products[i], workspace)
        if (intercept := maps[i][1]) is not None:
            products[i][:, :n_coef] += intercept

    def lane(k: int) -> None:
        own = blocks[k::n_lanes]
        for rows in own:
            X_block = X[rows]
            losses = workspace.buffer("losses", (len(X_block),), X.dtype)
            shape = (height, len(X_block)) if class_major else (len(X_block), height)
            buffers = [workspace.buffer(f"logits {i}", shape, X.dtype) for i in range(len(maps))]
            products = [z.T if class_major else z for z in buffers]
            logits = [z[:, :n_coef] for z in products]
            form = partial(multiply, X_block, products)
            for i in range(len(maps)):
                form(i)
            scale = of_block(logits, partial(form, 0), rows, losses)
            loss[k] += losses.sum(dtype=np.float64)
            if grad_intercept is not None:
                grad_intercept[k] += _over_rows(logits[0], scale)
            if scale is not None and n_features < n_coef:
                scaled = workspace.buffer("scaled X", X_block.shape, X.dtype)
                X_block = np.multiply(X_block, scale[:, None], out=scaled)
            else:
                _scale(logits[0], scale)
            if rows is own[0]:
                _multiply_back(products[0].T, X_block, piece, grad_coef[k], workspace)
            else:
                product = workspace.buffer("gradient", (height, n_features), X.dtype)
                _multiply_back(products[0].T, X_block, piece, product, workspace)
                grad_coef[k] += product

    workspace.map(lane, range(n_lanes))
    total = workspace.buffer("sum of grad_coef", (n_coef, n_features), X.dtype, shared=True)

    def add_lanes(part: slice) -> None:
        grad_coef[:, part].sum(axis=0, out=total[part])

    workspace.map(add_lanes, _parts(n_coef, -(-grad_coef.nbytes // BLOCK_BYTES)))
    return loss.sum(), total, None if grad_intercept is None else grad_intercept.sum(axis=0)


def _piece_rows(n_rows: int, n_features: int, n_coef: int) -> int | None:
    """Return how many rows at a time a product of `n_rows` should take, or None where it is best done whole."""
    rows = PIECE_WORK // (n_features * n_coef) // PIECE_ROUND * PIECE_ROUND
    suits = 1 < n_coef <= MAX_PIECE_CLASSES and MIN_PIECE_ROWS <= rows < n_rows
    return rows if suits and WITHOUT_COPIES & blas_architectures() else None


def _multiply(X: np.ndarray, coef: np.ndarray, piece: int | None, out: np.ndarray, workspace: Workspace) -> None:
    """Write X (m, D) @ coef (D, K) to `out`, by products of `piece` rows."""
    if piece is None:
        np.matmul(X, coef, out=out)
        return
    product = workspace.buffer("product", out.shape, out.dtype)
    for rows, logits in zip(_pieces(X, piece), _pieces(product, piece), strict=True):
        np.matmul(rows, coef, out=logits)
    out[...] = product


def _multiply_back(
    dlogits: np.ndarray, X: np.ndarray, piece: int | None, out: np.ndarray, workspace: Workspace
) -> None:
    """Write dlogits (K, m) @ X (m, D), the sum of products of `piece` rows, to `out`."""
    if piece is None:
        np.matmul(dlogits, X, out=out)
        return
    products = workspace.buffer("products", (-(-len(X) // piece), *out.shape), out.dtype)
    done = 0
    for slopes, rows in zip(_pieces(dlogits.T, piece), _pieces(X, piece), strict=True):
        np.matmul(slopes.transpose(0, 2, 1), rows, out=products[done : done + len(rows)])
        done += len(rows)
    products.sum(axis=0, out=out)


def _pieces(x: np.ndarray, piece: int) -> list[np.ndarray]:
    """Return views of x (m, n) as (k, piece, n), and of the rows that are left as (1, m - k piece, n)."""
    m = len(x) - len(x) % piece
    return [part for part in (x[:m].reshape(-1, piece, x.shape[1]), x[None, m:]) if part.size]


def _sums_by_superblocks(
    maps: Sequence[Map],
    X: np.ndarray,
    of_block: OfBlock,
    workspace: Workspace,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Many coefficients: the tasks share out the tiles of a product, the rows of a block, the tiles of the other one.

    So there is one gradient, whatever the number of workers, and each part of it is added to by one task.
    """
    n_rows, n_features = X.shape
    n_coef = maps[0][0].shape[0]
    row_bytes = len(maps) * n_coef * X.itemsize
    step = max(SUPERBLOCK_BYTES // row_bytes, SUPERBLOCK_ROWS_PER_FEATURE * n_features, MIN_SUPERBLOCK_ROWS)
    blocks = _parts(n_rows, n_rows // step)  # none with fewer rows, if there are more
    height = blocks[0].stop
    logits = [workspace.buffer(f"logits {i}", (height, n_coef), X.dtype, shared=True) for i in range(len(maps))]
    losses = workspace.buffer("losses", (height,), X.dtype, shared=True)
    loss = np.zeros(())
    grad_coef = workspace.buffer("grad_coef", (n_coef, n_features), X.dtype, shared=True)
    grad_intercept = None if maps[0][1] is None else np.zeros(n_coef, dtype=X.dtype)
    scaled = workspace.buffer("scaled X", (height, n_features), X.dtype, shared=True) if n_features < n_coef else None
    across = 0 if n_coef >= n_features else 1

    def form(i: int, block: slice, rows: slice, classes: slice) -> None:
        coef, intercept = maps[i]
        own = logits[i][rows, classes]
        np.matmul(X[block][rows], coef[classes].T, out=own)
        if intercept is not None:
            own += intercept[classes]

    def multiply(block: slice, tile: tuple[slice, slice]) -> None:
        for i in range(len(maps)):
            form(i, block, *tile)

    def pass_over(block: slice, slopes: np.ndarray, task: tuple[int, slice]) -> None:
        k, rows = task
        own = slice(block.start + rows.start, block.start + rows.stop)
        scale = of_block([z[rows] for z in logits], partial(form, 0, block, rows, slice(None)), own, losses[rows])
        if grad_intercept is not None:
            slopes[k] = _over_rows(logits[0][rows], scale)
        if scaled is None:
            _scale(logits[0][rows], scale)
        else:
            np.multiply(X[own], 1.0 if scale is None else scale[:, None], out=scaled[rows])

    def multiply_back(block: slice, part: slice) -> None:
        m = block.stop - block.start
        dlogits, X_block = logits[0][:m].T, X[block] if scaled is None else scaled[:m]
        if across == 0:
            own, dlogits = grad_coef[part], dlogits[part]
        else:
            own, X_block = grad_coef[:, part], X_block[:, part]
        if block is blocks[0]:
            np.matmul(dlogits, X_block, out=own)
        else:
            own += np.matmul(dlogits, X_block, out=workspace.buffer("product", own.shape, X.dtype))

    for block in blocks:
        m = block.stop - block.start
        tall = -(-m // TILE_ROWS)
        wide = max(-(-n_coef // TILE_CLASSES), -(-MIN_TILES // tall))
        workspace.map(partial(multiply, block), product(_parts(m, tall), _parts(n_coef, wide)))
        tasks = _parts(m, -(-m * row_bytes // TASK_BYTES))
        slopes = np.empty((len(tasks), n_coef), dtype=X.dtype)
        workspace.map(partial(pass_over, block, slopes), enumerate(tasks))
        loss += losses[:m].sum(dtype=np.float64)
        if grad_intercept is not None:
            grad_intercept += slopes.sum(axis=0)
        length = grad_coef.shape[across]
        workspace.map(partial(multiply_back, block), _parts(length, max(-(-length // TILE_CLASSES), MIN_TILES)))
    return loss, grad_coef, grad_intercept


def _cast(coef: np.ndarray, name: str, dtype: np.dtype, workspace: Workspace) -> np.ndarray:
    """Return coefficients in the dtype of X, in memory of the workspace where that takes a copy."""
    if coef.dtype == dtype:
        return coef
    own = workspace.buffer(name, coef.shape, dtype, shared=True)

    def copy(part: slice) -> None:
        own[part] = coef[part]

    workspace.map(copy, _parts(len(coef), -(-own.nbytes // BLOCK_BYTES)))
    return own


def _padded(coef: np.ndarray, height: int) -> np.ndarray:
    """Return coefficients with rows of zeros after them, `height` in all."""
    rows = np.zeros((height, coef.shape[1]), dtype=coef.dtype)
    rows[: len(coef)] = coef
    return rows


def _parts(n: int, n_parts: int, unit: int = 1) -> list[slice]:
    """Return range(n) in so many slices, or fewer, of nearly the same length, each but the last a multiple of unit.

    The longest come first, so that a buffer which holds one holds those that come after it.
    """
    units = -(-n // unit)
    n_parts = max(1, min(n_parts, units))
    length, longer = divmod(units, n_parts)
    ends = [min(n, unit * (length * i + min(i, longer))) for i in range(n_parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(ends)]


def _row_losses(
    z: np.ndarray,
    restore: Callable[[], None],
    targets: np.ndarray,
    weight: np.ndarray | None,
    smoothing: float,
    losses: np.ndarray,
) -> tuple[np.ndarray, Any]:
    """Write the losses of one block of logits `z` (m, C), and turn `z` into exp(z - shift) with a shift of each row.

    That is the largest logit, or zero for a block of labels in which logits are modest. `restore` writes the logits
    anew. At a label, z becomes zero.

    Returns the sums over the exponentials (m,), and as targets either the probabilities, or for labels the `_entries`
    of z there and the sums (m,) over the other classes. These are added alone: the exponential at the label may be so
    much larger that the sum of all holds nothing of the others, which are loss and gradient.
    """
    if targets.ndim == 1:
        labels = _entries(z, targets)
        sums = _modest_row_losses(z, restore, labels, smoothing, losses)
        s, others = _shifted_row_losses(z, labels, smoothing, losses) if sums is None else sums
        t: Any = (*labels, others)
    else:
        t = ((1.0 - smoothing) * targets + smoothing / z.shape[1]).astype(z.dtype, copy=False)
        z -= z.max(axis=1, keepdims=True)
        expected = (t * np.where(t > 0, z, 0)).sum(axis=1)  # probability 0 costs nothing, also at logit -inf
        _exp(z)
        s = _over_classes(z)
        np.subtract(np.log(s) * t.sum(axis=1), expected, out=losses)
    if weight is not None:
        losses *= weight
    return s, t


def _shifted_row_losses(
    z: np.ndarray, labels: tuple[np.ndarray, np.ndarray], smoothing: float, losses: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the losses for labels, whose `_entries` of z are given. Return both sums (m,) of `_row_losses`."""
    memory, at_label = labels
    z -= z.max(axis=1, keepdims=True)
    label = memory[at_label]
    excess = smoothing * (label - z.mean(axis=1)) if smoothing else 0.0
    _exp(z)
    of_label, others = np.exp(label), _sum_beside(z, labels)
    s = others + of_label
    likely = label > -1.0
    np.subtract(np.log(s), label, out=losses)
    losses[likely] = _log1p(others[likely] / of_label[likely])
    losses += excess
    return s, others


def _modest_row_losses(
    z: np.ndarray,
    restore: Callable[[], None],
    labels: tuple[np.ndarray, np.ndarray],
    smoothing: float,
    losses: np.ndarray,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Do the same as `_shifted_row_losses` without subtracting the row maximum, which spares two passes over `z`.

    Returns None, with `z` restored, if a logit is too large or too small for it.
    """
    memory, at_label = labels
    label = memory[at_label]
    searched = z[::ROWS_PER_CHECK] if z.flags.c_contiguous else z
    if not (np.abs(label) < MODEST_LOGIT).all() or searched.min(initial=0.0) < _least_logit(z.dtype) + MODEST_LOGIT:
        return None
    excess = smoothing * (label - z.mean(axis=1)) if smoothing else 0.0
    with np.errstate(over="ignore", invalid="ignore"):
        np.exp(z, out=z)
        of_label, others = np.exp(label), _sum_beside(z, labels)
        s = others + of_label
    if not (s < np.exp(MODEST_LOGIT)).all():
        restore()
        return None
    np.divide(others, of_label, out=losses)
    _log1p(losses, out=losses)
    losses += excess
    return s, others


def _sum_beside(z: np.ndarray, labels: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Set z (m, C) to zero at the labels, and return the sums over the other classes (m,)."""
    memory, at_label = labels
    memory[at_label] = 0.0
    return _over_classes(z)


def _log1p(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Return log(1 + x) to full relative precision for x >= 0.

    NumPy's own function takes as long as its logarithm with AVX-512, and ten times as long without. There it is the
    logarithm of the rounded u = 1 + x, and the rounding error of u to first order.
    """
    if _has_fast_log1p():
        fast: np.ndarray = np.log1p(x, out=out)
        return fast
    u = 1.0 + x
    rest = np.subtract(u, 1.0)
    np.subtract(x, rest, out=rest)
    rest /= u
    return np.add(np.log(u, out=u), rest, out=out)


@cache
def _has_fast_log1p() -> bool:
    """Return whether NumPy computes log1p on this processor by vector instructions."""
    loops = introspect.opt_func_info("^log1p$").get("log1p", {})
    return any(loop["current"].startswith(("AVX512", "X86_V4")) for loop in loops.values())


def _row_pass(
    z: np.ndarray,
    restore: Callable[[], None],
    targets: np.ndarray,
    weight: np.ndarray | None,
    row_pass: RowPass,
    losses: np.ndarray,
) -> np.ndarray | None:
    """Write the losses of one block of logits `z` (m, C), and turn `z`, as in `_row_losses`, into their gradient.

    Returns the factor that each row of the gradient still lacks (m,), or None for ones.
    """
    if not row_pass.is_cross_entropy:
        return _robust_pass(z, restore, targets, weight, row_pass, losses)
    smoothing = row_pass.smoothing
    s, t = _row_losses(z, restore, targets, weight, smoothing, losses)
    if targets.ndim == 2:
        z *= (t.sum(axis=1) / s)[:, None]
        z -= t
        return weight
    memory, at_label, others = t
    if smoothing:
        z -= (s * (smoothing / z.shape[1]))[:, None]
        others = others - (smoothing - smoothing / z.shape[1]) * s
    memory[at_label] = -others
    return 1.0 / s if weight is None else weight / s


def _robust_pass(
    z: np.ndarray,
    restore: Callable[[], None],
    targets: np.ndarray,
    weight: np.ndarray | None,
    row_pass: RowPass,
    losses: np.ndarray,
) -> np.ndarray | None:
    """Do the same for another loss: the gradient is that of cross-entropy with the effective targets.

    For labels without smoothing that is one factor for each row, slope(log p) of its label.
    """
    loss = row_pass.loss
    if targets.ndim == 1 and row_pass.smoothing == 0.0:
        factor = _times(_row_pass(z, restore, targets, None, PLAIN, losses), _slopes(loss, losses))
    else:
        log_p, t = _log_p(z), _smoothed(targets, row_pass.smoothing, z)  # the first is z
        counts = t > 0  # probability 0 costs nothing, also at logit -inf
        t_slope = np.where(counts, t * loss.slope(log_p), 0)
        np.sum(np.where(counts, t * loss.value(log_p), 0), axis=1, out=losses)
        _exp(z)
        z *= t_slope.sum(axis=1, keepdims=True)
        z -= t_slope
        factor = None
    if weight is not None:
        losses *= weight
    return _times(factor, weight)


def _slopes(loss: Loss, losses: np.ndarray) -> np.ndarray:
    """Turn the cross-entropies of labels (m,) into their losses, and return the slopes there (m,)."""
    log_p = np.negative(losses)
    losses[:] = loss.value(log_p)
    slopes: np.ndarray = loss.slope(log_p)
    return slopes


def _times(a: np.ndarray | None, b: np.ndarray | None) -> np.ndarray | None:
    """Return the product of two factors of rows (m,), of which None stands for ones."""
    if a is None or b is None:
        return b if a is None else a
    product: np.ndarray = a * b
    return product


def _robust_curvature(z: np.ndarray, u: np.ndarray, targets: np.ndarray, row_pass: RowPass) -> None:
    """Turn logits z (m, C) into the Hessian of the losses times directions `u`, as `reference.curved` defines it.

    One column stands for two classes, of which class 0 has the logit 0.
    """
    single = z.shape[1] == 1
    logits, along = (np.column_stack([np.zeros_like(x), x]) if single else x for x in (z, u))
    r = reference.curved(_log_p(logits.copy()), along, targets, row_pass, 1)
    z[...] = r[:, 1:] if single else r


def _log_p(z: np.ndarray) -> np.ndarray:
    """Turn logits z (m, C) into log-probabilities, and return them."""
    z -= z.max(axis=1, keepdims=True)
    e = z.copy()
    _exp(e)
    z -= np.log(_over_classes(e))[:, None]
    return z


def _smoothed(targets: np.ndarray, smoothing: float, like: np.ndarray) -> np.ndarray:
    """Return target probabilities (m, C) of labels or of probabilities, smoothed, in the dtype of `like` (m, C)."""
    t: np.ndarray
    if targets.ndim == 1:
        t = np.full(like.shape, smoothing / like.shape[1], dtype=like.dtype)
        t[np.arange(len(t)), targets] += 1.0 - smoothing
    else:
        t = ((1.0 - smoothing) * targets + smoothing / like.shape[1]).astype(like.dtype, copy=False)
    return t


def _logistic_pass(
    z: np.ndarray, targets: np.ndarray, weight: np.ndarray | None, row_pass: RowPass, losses: np.ndarray
) -> np.ndarray | None:
    """Do the same for two classes and the logit `z` (m,) of class 1, where class 0 has the logit 0."""
    smoothing = row_pass.smoothing
    if not row_pass.is_cross_entropy:
        if targets.ndim == 1 and smoothing == 0.0:
            factor = _times(_logistic_pass(z, targets, None, PLAIN, losses), _slopes(row_pass.loss, losses))
            if weight is not None:
                losses *= weight
            return _times(factor, weight)
        both = np.column_stack([np.zeros_like(z), z])
        factor = _robust_pass(both, lambda: None, targets, weight, row_pass, losses)
        z[...] = both[:, 1]
        return factor
    t = targets.astype(z.dtype)
    if smoothing:
        t *= 1.0 - smoothing
        t += smoothing / 2
    mass = None
    if t.ndim == 2:
        t, mass = t[:, 1], t.sum(axis=1)
    top = np.maximum(z, np.zeros_like(z))  # with the number 0 NumPy takes four times as long
    np.multiply(t, z, out=losses)
    z -= top
    _exp(z)
    np.subtract(top if mass is None else mass * top, losses, out=losses)
    other = np.negative(top, out=top)
    _exp(other)
    s = np.minimum(z, other)  # the other one of them is 1
    _log1p(s, out=s)
    losses += s if mass is None else mass * s
    np.add(z, other, out=s)
    z *= 1.0 - t if mass is None else mass - t
    other *= t
    z -= other
    z /= s
    if weight is not None:
        losses *= weight
    return weight


def _exp(z: np.ndarray) -> None:
    """Replace each logit by its exponential, or by zero if the logit is less than `_least_logit`."""
    least = _least_logit(z.dtype)
    if z.min(initial=0.0) < least:
        kept = z >= least
        np.maximum(z, least, out=z)
        np.exp(z, out=z)
        z *= kept
    else:
        np.exp(z, out=z)


@cache
def _least_logit(dtype: np.dtype) -> Any:
    """Return the logarithm of ABOVE_SUBNORMAL times the least normal number of `dtype`."""
    return dtype.type(np.log(ABOVE_SUBNORMAL) + np.log(np.finfo(dtype).tiny))


def _over_classes(z: np.ndarray) -> np.ndarray:
    """Return the sum of each row of z (m, C): as a product, which takes a third of the time of NumPy's sum."""
    total: np.ndarray = z @ np.ones(z.shape[1], dtype=z.dtype)
    return total


def _over_rows(z: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
    """Return the sum of each column of z (m, C), each row times its scale, in the same way."""
    total: np.ndarray = (np.ones(len(z), dtype=z.dtype) if scale is None else scale) @ z
    return total


def _scale(z: np.ndarray, scale: np.ndarray | None) -> None:
    """Multiply each row of z (m, C) with its scale."""
    if scale is not None:
        z *= scale[:, None]


def _entries(z: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the memory of `z` (m, C) as a vector, and where in it row i has its entry `columns[i]`.

    One index into a vector is several times faster than two into a matrix.
    """
    row, column = z.strides[0] // z.itemsize, z.strides[1] // z.itemsize
    size = (z.shape[0] - 1) * row + (z.shape[1] - 1) * column + 1
    memory = as_strided(z, (max(size, 0),), (z.itemsize,))
    return memory, np.arange(z.shape[0]) * row + columns.astype(np.int64, copy=False) * column


def _blocks(n_rows: int, row_bytes: int) -> Iterator[slice]:
    """Yield slices of rows that stay in cache."""
    return row_blocks(n_rows, row_bytes, max(BLOCK_BYTES, MIN_BLOCK_ROWS * row_bytes))


def _rows_first(x: np.ndarray, axis: int) -> np.ndarray:
    """Return `x` with its rows on the first axis; labels have no other."""
    return x.T if x.ndim == 2 and axis in (0, -2) else x


def _of(weight: np.ndarray | None, rows: slice) -> np.ndarray | None:
    return None if weight is None else weight[rows]
