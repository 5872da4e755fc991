"""The row pass for NumPy in float32 and float64: in place, over blocks of rows that stay in cache.

The same functions as `reference`, with the same arguments and results; no temporary is larger than a block.
Inside, logits are always seen as (rows, classes): of class-major logits that is a transposed view, over whose
rows NumPy reduces a whole vector of them at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from softmax_xp._arrays import row_blocks

# A block of X and its logits should pass from the first product to the second inside the cache. Two MiB is the
# second-level cache of a current core, or its share of the third; smaller blocks lose to the calls around them.
BLOCK_BYTES = 2 << 20
MIN_BLOCK_ROWS = 256


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
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the sums over the rows of X of loss and gradient, for logits = coef @ X.T + intercept."""
    coef = np.asarray(coef, dtype=X.dtype)
    n_rows, n_features = X.shape
    n_coef = coef.shape[0]
    first = 1 if n_coef == 1 else 0  # with one row of coefficients, class 0 has the logit 0
    loss = np.zeros((), dtype=np.float64)
    grad_coef = np.zeros((n_coef, n_features), dtype=X.dtype)
    grad_intercept = np.zeros(n_coef, dtype=X.dtype)
    for rows in _blocks(n_rows, (n_features + n_coef + first) * X.itemsize):
        X_block = X[rows]
        z = np.zeros((n_coef + first, X_block.shape[0]), dtype=X.dtype)  # (C, m): class-major
        np.matmul(coef, X_block.T, out=z[first:])
        if intercept is not None:
            z[first:] += np.asarray(intercept, dtype=X.dtype)[:, None]
        z -= z.max(axis=0)
        losses = np.empty(X_block.shape[0], dtype=X.dtype)
        _row_pass(z.T, targets[rows], _of(weight, rows), smoothing, losses, grad=True)
        loss += losses.sum(dtype=np.float64)
        grad_coef += z[first:] @ X_block
        grad_intercept += z[first:].sum(axis=1)
    return loss, grad_coef, grad_intercept


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
