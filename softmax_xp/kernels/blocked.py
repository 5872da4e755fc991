"""The row pass for NumPy in float32 and float64: in place, over blocks of rows that stay in cache.

The same functions as `reference`, with the same arguments and results; no temporary is larger than a block.
Inside, logits are always seen as (rows, classes): of class-major logits that is a transposed view, over whose
rows NumPy reduces a whole vector of them at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeAlias

import numpy as np

from softmax_xp._arrays import row_blocks
from softmax_xp.kernels.workspace import Workspace

# A block of X and its logits should pass from the first product to the second inside the cache: 4 MiB is a core's
# share of a current third-level cache. Smaller blocks lose to the calls around them: at (D, C) = (64, 10) blocks of
# 16384 rows take two thirds of the time of blocks of 4096; at (784, 10) those of 1024 rows, of 512 or of 2048.
BLOCK_BYTES = 4 << 20
MIN_BLOCK_ROWS = 256
MIN_BLOCK_WORK = 1 << 20  # multiplications, so that handing a block to a thread costs little of its time
# Sums of their own, for tasks of few coefficients: enough tasks for any machine, and few megabytes.
MIN_LANES, MAX_LANES = 16, 64
LANE_BYTES = 8 << 20
# With many coefficients each block costs a pass over the gradient, so that it must have rows enough to pay for it.
SUPERBLOCK_BYTES = 8 << 20
MIN_SUPERBLOCK_ROWS = 512
TASK_ROWS = 256
PASS_BYTES = 1 << 20  # of logits, that stay in the second-level cache from one step of the row pass to the next


Map: TypeAlias = tuple[np.ndarray, np.ndarray | None]  # coef and intercept
# Takes the logits (m, C) of each map, their rows, and where to write the losses of these.
RowPass: TypeAlias = Callable[[list[np.ndarray], slice, np.ndarray], None]


def softmax(logits: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return exp(z) / sum(exp(z)) along `axis`."""
    z: np.ndarray = logits - logits.max(axis=axis, keepdims=True)
    np.exp(z, out=z)
    z /= z.sum(axis=axis, keepdims=True)
    return z


def log_softmax(logits: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return z - logsumexp(z) along `axis`."""
    z: np.ndarray = logits - logits.max(axis=axis, keepdims=True)
    z -= np.log(np.exp(z).sum(axis=axis, keepdims=True))
    return z


def cross_entropy(
    logits: np.ndarray,
    targets: np.ndarray,
    weight: np.ndarray | None = None,
    smoothing: float = 0.0,
    axis: int = -1,
) -> np.ndarray:
    """Return the weighted loss of each row, (n,)."""
    logits, targets = _rows_first(logits, axis), _rows_first(targets, axis)
    losses = np.empty(logits.shape[0], dtype=logits.dtype)
    for rows in _blocks(len(logits), logits.shape[1] * logits.itemsize):
        z = logits[rows] - logits[rows].max(axis=1, keepdims=True)
        _row_pass(z, targets[rows], _of(weight, rows), smoothing, losses[rows], grad=False)
    return losses


def cross_entropy_with_grad(
    logits: np.ndarray,
    targets: np.ndarray,
    weight: np.ndarray | None = None,
    smoothing: float = 0.0,
    axis: int = -1,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted loss of each row, (n,), and its gradient in the logits."""
    grad = np.empty_like(logits)
    logits, targets, z = _rows_first(logits, axis), _rows_first(targets, axis), _rows_first(grad, axis)
    losses = np.empty(logits.shape[0], dtype=logits.dtype)
    for rows in _blocks(len(logits), logits.shape[1] * logits.itemsize):
        np.subtract(logits[rows], logits[rows].max(axis=1, keepdims=True), out=z[rows])
        _row_pass(z[rows], targets[rows], _of(weight, rows), smoothing, losses[rows], grad=True)
    return losses, grad


def linear_sums(
    coef: np.ndarray,
    intercept: np.ndarray | None,
    X: np.ndarray,
    targets: np.ndarray,
    weight: np.ndarray | None = None,
    smoothing: float = 0.0,
    workspace: Workspace | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return the sums over the rows of X of loss and gradient, for logits = coef @ X.T + intercept."""
    if coef.shape[0] == 2:  # two classes differ by one logit, and their gradients by the sign
        intercept = None if intercept is None else intercept[1:] - intercept[:1]
        loss, grad, slope = linear_sums(coef[1:] - coef[:1], intercept, X, targets, weight, smoothing, workspace)
        return loss, np.concatenate([-grad, grad]), None if slope is None else np.concatenate([-slope, slope])

    def row_pass(logits: list[np.ndarray], rows: slice, losses: np.ndarray) -> None:
        _row_pass(logits[0], targets[rows], _of(weight, rows), smoothing, losses, grad=True)

    return _sums([(coef, intercept)], X, row_pass, workspace or Workspace())


def linear_hessian_product(
    coef: np.ndarray,
    intercept: np.ndarray | None,
    X: np.ndarray,
    direction: np.ndarray,
    direction_intercept: np.ndarray | None,
    weight: np.ndarray | None = None,
    workspace: Workspace | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the Hessian of the sum of the losses, at `coef` and `intercept`, times a direction."""

    def row_pass(logits: list[np.ndarray], rows: slice, losses: np.ndarray) -> None:
        p, u = logits
        np.exp(p, out=p)
        p /= p.sum(axis=1, keepdims=True)
        u -= np.einsum("ij,ij->i", p, u)[:, None]
        p *= u
        if weight is not None:
            p *= weight[rows, None]
        losses[:] = 0

    maps = [(coef, intercept), (direction, direction_intercept)]
    return _sums(maps, X, row_pass, workspace or Workspace())[1:]


def _sums(
    maps: Sequence[Map],
    X: np.ndarray,
    row_pass: RowPass,
    workspace: Workspace,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return the sum of the losses, and the product with X, of what `row_pass` makes of the logits of `maps`.

    `row_pass` gets the logits of each map, (m, C), those of the first shifted to a maximum of 0 in each row; it
    writes the losses of the rows, and turns the first logits into what X is to be multiplied with, and what is summed
    for the intercept where there is one. The blocks and the order in which they are added depend on the shapes alone,
    and so does every bit of the result.
    """
    maps = [(np.asarray(c, dtype=X.dtype), None if b is None else np.asarray(b, dtype=X.dtype)) for c, b in maps]
    n_coef, n_features = maps[0][0].shape
    if n_coef * n_features * X.itemsize * MIN_LANES <= LANE_BYTES:
        return _sums_by_lanes(maps, X, row_pass, workspace)
    return _sums_by_superblocks(maps, X, row_pass, workspace)


def _sums_by_lanes(
    maps: Sequence[Map],
    X: np.ndarray,
    row_pass: RowPass,
    workspace: Workspace,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Few coefficients: each task does both products of its rows while these are in cache, into sums of its own."""
    n_rows, n_features = X.shape
    n_coef = maps[0][0].shape[0]
    first = 1 if n_coef == 1 else 0  # with one row of coefficients, class 0 has the logit 0
    row_bytes = (n_features + len(maps) * (n_coef + first)) * X.itemsize
    step = min(max(BLOCK_BYTES // row_bytes, MIN_BLOCK_ROWS), -(-n_rows // MIN_LANES))
    step = max(step, MIN_BLOCK_WORK // (n_features * n_coef), 1)
    step += -step % 64 if step > 64 else 0
    blocks = [slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]
    n_lanes = min(len(blocks), MAX_LANES, LANE_BYTES // (n_coef * n_features * X.itemsize))
    loss = np.zeros(n_lanes)
    grad_coef = workspace.buffer("grad_coef", (n_lanes, n_coef, n_features), X.dtype, shared=True)
    grad_intercept = None if maps[0][1] is None else np.zeros((n_lanes, n_coef), dtype=X.dtype)

    def lane(k: int) -> None:
        own = blocks[len(blocks) * k // n_lanes : len(blocks) * (k + 1) // n_lanes]
        for rows in own:
            X_block = X[rows]
            losses = workspace.buffer("losses", (len(X_block),), X.dtype)
            logits = []
            for i, (coef, intercept) in enumerate(maps):
                z = workspace.buffer(f"logits {i}", (n_coef + first, len(X_block)), X.dtype)  # (C, m): class-major
                z[:first] = 0
                np.matmul(coef, X_block.T, out=z[first:])
                if intercept is not None:
                    z[first:] += intercept[:, None]
                logits.append(z.T)
            z = logits[0].T
            z -= z.max(axis=0)
            row_pass(logits, rows, losses)
            loss[k] += losses.sum(dtype=np.float64)
            product = grad_coef[k] if rows is own[0] else workspace.buffer("product", grad_coef[k].shape, X.dtype)
            np.matmul(z[first:], X_block, out=product)
            if rows is not own[0]:
                grad_coef[k] += product
            if grad_intercept is not None:
                grad_intercept[k] += z[first:].sum(axis=1)

    workspace.map(lane, range(n_lanes))
    return loss.sum(), grad_coef.sum(axis=0), None if grad_intercept is None else grad_intercept.sum(axis=0)


def _sums_by_superblocks(
    maps: Sequence[Map],
    X: np.ndarray,
    row_pass: RowPass,
    workspace: Workspace,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Many coefficients: the tasks share out the rows of a block, and then the classes (or features) of its product.

    So there is one gradient, whatever the number of workers, and each part of it is added to by one task.
    """
    n_rows, n_features = X.shape
    n_coef = maps[0][0].shape[0]
    first = 1 if n_coef == 1 else 0
    height = n_coef + first
    step = min(n_rows, max(SUPERBLOCK_BYTES // (len(maps) * height * X.itemsize), MIN_SUPERBLOCK_ROWS))
    pass_rows = max(16, PASS_BYTES // (height * X.itemsize))
    losses = workspace.buffer("losses", (step,), X.dtype, shared=True)
    logits = [workspace.buffer(f"logits {i}", (step, height), X.dtype, shared=True) for i in range(len(maps))]  # (m, C)
    loss = np.zeros(())
    grad_coef = np.zeros((n_coef, n_features), dtype=X.dtype)
    grad_intercept = None if maps[0][1] is None else np.zeros(n_coef, dtype=X.dtype)
    slopes = np.empty((-(-step // TASK_ROWS), n_coef), dtype=X.dtype)
    across = 0 if n_coef >= n_features else 1
    width = 256 if grad_coef.shape[across] < 4096 else 512
    parts = [slice(at, at + width) for at in range(0, grad_coef.shape[across], width)]

    def row_task(start: int) -> None:
        stop = min(start + TASK_ROWS, n_rows, start - start % step + step)
        at = start % step  # where these rows are in the block
        for (coef, intercept), z in zip(maps, logits, strict=True):
            own = z[at : at + stop - start]
            own[:, :first] = 0
            np.matmul(X[start:stop], coef.T, out=own[:, first:])
            if intercept is not None:
                own[:, first:] += intercept
        slopes[at // TASK_ROWS] = 0
        for begin in range(start, stop, pass_rows):
            rows = slice(begin, min(begin + pass_rows, stop))
            some = slice(begin % step, begin % step + rows.stop - rows.start)
            z = logits[0][some]
            z -= z.max(axis=1, keepdims=True)
            row_pass([z[some] for z in logits], rows, losses[some])
            if maps[0][1] is not None:
                slopes[at // TASK_ROWS] += z[:, first:].sum(axis=0)

    for start in range(0, n_rows, step):
        X_block = X[start : start + step]
        dlogits = logits[0][: len(X_block), first:].T  # (K, m)
        tasks = range(start, start + len(X_block), TASK_ROWS)
        workspace.map(row_task, tasks)
        loss += losses[: len(X_block)].sum(dtype=np.float64)
        if grad_intercept is not None:
            grad_intercept += slopes[: len(tasks)].sum(axis=0)
        workspace.map(partial(_add_part, grad_coef, dlogits, X_block, across, workspace), parts)
    return loss, grad_coef, grad_intercept


def _add_part(
    grad_coef: np.ndarray, dlogits: np.ndarray, X: np.ndarray, across: int, workspace: Workspace, part: slice
) -> None:
    """Add dlogits @ X to `grad_coef`, in a part of its classes (across 0) or of its features (across 1)."""
    own, left, right = (grad_coef[part], dlogits[part], X) if across == 0 else (grad_coef[:, part], dlogits, X[:, part])
    own += np.matmul(left, right, out=workspace.buffer("product", own.shape, X.dtype))


def _row_pass(
    z: np.ndarray,
    targets: np.ndarray,
    weight: np.ndarray | None,
    smoothing: float,
    losses: np.ndarray,
    *,
    grad: bool,
) -> None:
    """Write the losses of one block of shifted logits `z` (m, C), and turn `z` into their gradient if `grad`."""
    m, n_classes = z.shape
    labelled = targets.ndim == 1
    mass: np.ndarray | float = 1.0
    if labelled:
        at_label = (np.arange(m), targets)
        expected = (1.0 - smoothing) * z[at_label]  # sum_k t_k z_k, (m,)
        if smoothing:
            expected += smoothing * z.mean(axis=1)
    else:
        t = ((1.0 - smoothing) * targets + smoothing / n_classes).astype(z.dtype, copy=False)
        mass = t.sum(axis=1)
        expected = (t * np.where(t > 0, z, 0)).sum(axis=1)  # probability 0 costs nothing, also at logit -inf
    np.exp(z, out=z)
    s = z.sum(axis=1)
    np.subtract(np.log(s) * mass, expected, out=losses)
    if grad:
        z *= (mass / s)[:, None]
        if not labelled:
            z -= t
        else:
            if smoothing:
                z -= smoothing / n_classes
            z[at_label] -= 1.0 - smoothing
        if weight is not None:
            z *= weight[:, None]
    if weight is not None:
        losses *= weight


def _blocks(n_rows: int, row_bytes: int) -> Iterator[slice]:
    """Yield slices of rows that stay in cache."""
    return row_blocks(n_rows, row_bytes, max(BLOCK_BYTES, MIN_BLOCK_ROWS * row_bytes))


def _rows_first(x: np.ndarray, axis: int) -> np.ndarray:
    """Return `x` with its rows on the first axis; labels have no other."""
    return x.T if x.ndim == 2 and axis in (0, -2) else x


def _of(weight: np.ndarray | None, rows: slice) -> np.ndarray | None:
    return None if weight is None else weight[rows]
