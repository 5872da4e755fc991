"""The definition of the row pass, in the array API alone. Every other provider proves parity with this page.

For one row with logits z (one per class), target probabilities t and weight w::

    p_k  = exp(z_k) / sum_j exp(z_j)                        softmax
    loss = w * sum_k t_k (logsumexp(z) - z_k)               cross-entropy
    dloss / dz_k = w * (p_k sum_j t_j - t_k)

Another loss phi makes of this, with the effective targets t'_k = t_k slope(log p_k), slope = -phi'::

    loss = w * sum_k t_k phi(log p_k)
    dloss / dz_k = w * (p_k sum_j t'_j - t'_k)

A row of weight 0 has the loss 0 and the gradient 0, whatever its logits: also where they are not finite.

An integer label y stands for t = one_hot(y), and smoothing by s in [0, 1] replaces t by (1 - s) t + s / C. `axis` is
the class axis, so that logits may be row-major
(n, C) or class-major (C, n). Nothing is checked here: arguments arrive checked, and are never modified.

16-bit floats are computed in float32; only what is returned in their shape is rounded to them, and a gradient
entry is therefore formed before it is rounded.
"""

from __future__ import annotations

from collections.abc import Iterator

from softmax_xp.arrays import (
    Array,
    DType,
    Namespace,
    accumulation_dtype,
    block_bytes,
    bytes_of,
    device_of,
    namespace,
    row_blocks,
    working_dtype,
)
from softmax_xp.kernels.row_pass import PLAIN, RowPass
from softmax_xp.kernels.workspace import Workspace

PRECISIONS: tuple[str, ...] = ("float32",)


def matmul(a: Array, b: Array) -> Array:
    """Return the matrix product a @ b, of shapes (m, k) and (k, n)."""
    return a @ b


def factor(X: Array, precision: str) -> Array:
    """Return X (n, D) as a factor of products: there is one precision."""
    return X


def softmax(logits: Array, axis: int = -1) -> Array:
    """Return exp(z) / sum(exp(z)) along `axis`; shape and dtype of `logits`."""
    xp = namespace(logits=logits)
    e = xp.exp(_shifted(xp, logits, axis))
    return xp.astype(e / xp.sum(e, axis=axis, keepdims=True), logits.dtype, copy=False)


def log_softmax(logits: Array, axis: int = -1) -> Array:
    """Return z - logsumexp(z) along `axis`; shape and dtype of `logits`."""
    xp = namespace(logits=logits)
    z = _shifted(xp, logits, axis)
    return xp.astype(z - xp.log(xp.sum(xp.exp(z), axis=axis, keepdims=True)), logits.dtype, copy=False)


def cross_entropy(
    logits: Array, targets: Array, weight: Array | None = None, row_pass: RowPass = PLAIN, axis: int = -1
) -> Array:
    """Return the weighted loss of each row, (n,), in the working dtype.

    `targets` are integer labels (n,), or probabilities of the shape of `logits`; `weight` is (n,).
    """
    xp = namespace(logits=logits)
    z = _shifted(xp, logits, axis)
    s = xp.sum(xp.exp(z), axis=axis)  # (n,)
    if row_pass.is_cross_entropy:
        losses = _row_losses(xp, z, s, targets, row_pass.smoothing, axis)
    else:
        losses, _ = effective(z - xp.expand_dims(xp.log(s), axis=axis), targets, row_pass, axis)
    return losses if weight is None else weighted(losses, weight)


def cross_entropy_with_grad(
    logits: Array, targets: Array, weight: Array | None = None, row_pass: RowPass = PLAIN, axis: int = -1
) -> tuple[Array, Array]:
    """Return the weighted loss of each row, (n,), and its gradient in the logits, of their shape and dtype."""
    xp = namespace(logits=logits)
    z = _shifted(xp, logits, axis)
    e = xp.exp(z)
    s = xp.sum(e, axis=axis)  # (n,)
    p = e / xp.expand_dims(s, axis=axis)
    if row_pass.is_cross_entropy:
        losses = _row_losses(xp, z, s, targets, row_pass.smoothing, axis)
        t = _probabilities(xp, z, targets, row_pass.smoothing, axis)
    else:
        losses, t = effective(z - xp.expand_dims(xp.log(s), axis=axis), targets, row_pass, axis)
    # Labels have total mass 1 by construction; given probabilities have it up to rounding, which counts here.
    certain = row_pass.is_cross_entropy and targets.ndim == 1
    grad = p - t if certain else p * xp.sum(t, axis=axis, keepdims=True) - t
    if weight is not None:
        losses = weighted(losses, weight)
        grad = weighted(grad, xp.expand_dims(weight, axis=axis))
    return losses, xp.astype(grad, logits.dtype, copy=False)


def effective(log_p: Array, targets: Array, row_pass: RowPass, axis: int) -> tuple[Array, Array]:
    """Return the loss of each row, (n,), and its effective targets t'_k = t_k slope(log p_k), like `log_p`."""
    xp = namespace(log_p=log_p)
    t = _probabilities(xp, log_p, targets, row_pass.smoothing, axis)
    counts, zero = t > 0, xp.zeros_like(t)  # a class of probability 0 costs nothing, also where its log_p is -inf
    losses = xp.sum(xp.where(counts, t * row_pass.loss.value(log_p), zero), axis=axis)
    return losses, xp.where(counts, t * row_pass.loss.slope(log_p), zero)


def curved(log_p: Array, u: Array, targets: Array, row_pass: RowPass, axis: int) -> Array:
    """Return the Hessian of the loss of each row in its logits, times directions `u`; all like `log_p`.

    With v = u - p'u it is p v for cross-entropy, and for other losses T (p o v) - p sum_k b_k v_k + b o v, where T is
    the sum of the effective targets and b_k = t_k bend(log p_k).
    """
    xp = namespace(log_p=log_p)
    p = xp.exp(log_p)
    v = u - xp.sum(p * u, axis=axis, keepdims=True)
    if row_pass.is_cross_entropy:
        return p * v
    _, pull = effective(log_p, targets, row_pass, axis)
    t = _probabilities(xp, log_p, targets, row_pass.smoothing, axis)
    bent = xp.where(t > 0, t * row_pass.loss.bend(log_p), xp.zeros_like(t)) * v
    mass = xp.sum(pull, axis=axis, keepdims=True)
    return p * (mass * v - xp.sum(bent, axis=axis, keepdims=True)) + bent


def weighted(x: Array, weight: Array) -> Array:
    """Return x times weight, and zero where that is zero."""
    xp = namespace(x=x)
    return xp.where(weight == 0.0, xp.zeros_like(x), x * weight)


def linear_sums(
    coef: Array,
    intercept: Array | None,
    X: Array,
    targets: Array,
    weight: Array | None = None,
    row_pass: RowPass = PLAIN,
    workspace: Workspace | None = None,
) -> tuple[Array, Array, Array | None]:
    """Return the sums over the rows of X of loss and gradient, for logits = coef @ X.T + intercept.

    Parameters
    ----------
    coef : array of shape (C, D), or (1, D) for two classes: then class 0 has the logit 0 (and targets, when
        they are probabilities, still have two columns)
    intercept : array of shape (C,) or (1,), or None
    X : array of shape (n, D)
    targets : integer labels (n,), or probabilities (n, C)
    weight : array of shape (n,), or None for ones
    row_pass : RowPass
    workspace : Workspace, optional
        Threads and buffers, for a provider that has a use for them.

    Returns
    -------
    loss : 0-d array in the widest floating dtype of the device
    grad_coef : array of the shape of `coef`, in the working dtype
    grad_intercept : array of shape (C,) or (1,), in the working dtype; None without `intercept`
    """
    xp = namespace(X=X)
    dtype = working_dtype(xp, X.dtype)
    coef, intercept = _in(xp, dtype, coef, intercept)
    wide = accumulation_dtype(xp, device_of(X))
    loss, grad_coef = xp.zeros((), dtype=wide, device=device_of(X)), xp.zeros_like(coef)
    grad_intercept = None if intercept is None else xp.zeros_like(intercept)
    for rows, X_block, logits in _logit_blocks(xp, coef, intercept, X):
        t = targets[rows] if targets.ndim == 1 else targets[rows, :].T
        losses, dlogits = cross_entropy_with_grad(logits, t, None if weight is None else weight[rows], row_pass, 0)
        dlogits = dlogits[-coef.shape[0] :, :]
        loss = loss + xp.sum(losses, dtype=wide)
        grad_coef = grad_coef + dlogits @ X_block
        grad_intercept = None if grad_intercept is None else grad_intercept + xp.sum(dlogits, axis=1)
    return loss, grad_coef, grad_intercept


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

    With u = direction @ x + direction_intercept, a row adds the outer product of r and x to the part of the
    coefficients, and r to that of the intercept, where r is the Hessian in its logits times u: see `curved`. For
    cross-entropy targets have no part in it.

    Parameters
    ----------
    coef, intercept, X, targets, weight, row_pass, workspace : as for `linear_sums`
    direction, direction_intercept : arrays of the shapes of `coef` and `intercept`

    Returns
    -------
    product : array of the shape of `coef`, in the working dtype
    product_intercept : array of shape (C,) or (1,), in the working dtype; None without `intercept`
    """
    xp = namespace(X=X)
    dtype = working_dtype(xp, X.dtype)
    coef, intercept = _in(xp, dtype, coef, intercept)
    direction, direction_intercept = _in(xp, dtype, direction, direction_intercept)
    product = xp.zeros_like(coef)
    product_intercept = None if intercept is None else xp.zeros_like(intercept)
    along = _logit_blocks(xp, direction, direction_intercept, X)
    for (rows, X_block, logits), (_, _, u) in zip(_logit_blocks(xp, coef, intercept, X), along, strict=True):
        t = targets[rows] if targets.ndim == 1 else targets[rows, :].T
        r = curved(log_softmax(logits, 0), u, t, row_pass, 0)[-coef.shape[0] :, :]  # (C, m)
        r = r if weight is None else weighted(r, weight[rows])
        product = product + r @ X_block
        product_intercept = None if product_intercept is None else product_intercept + xp.sum(r, axis=1)
    return product, product_intercept


def _logit_blocks(
    xp: Namespace, coef: Array, intercept: Array | None, X: Array
) -> Iterator[tuple[slice, Array, Array]]:
    """Yield rows, X there and their logits, class-major (C, m), so that coef and X are read as they lie."""
    single = coef.shape[0] == 1
    for rows in row_blocks(X.shape[0], (coef.shape[0] + single) * bytes_of(xp, coef.dtype), block_bytes(device_of(X))):
        X_block = xp.astype(X[rows, :], coef.dtype, copy=False)
        logits = coef @ X_block.T
        if intercept is not None:
            logits = logits + intercept[:, None]
        if single:
            logits = xp.concat([xp.zeros_like(logits), logits], axis=0)
        yield rows, X_block, logits


def _in(xp: Namespace, dtype: DType, coef: Array, intercept: Array | None) -> tuple[Array, Array | None]:
    """Return both in `dtype`."""
    return (
        xp.astype(coef, dtype, copy=False),
        None if intercept is None else xp.astype(intercept, dtype, copy=False),
    )


def _shifted(xp: Namespace, logits: Array, axis: int) -> Array:
    """Return z - max(z) in the working dtype: the same softmax, and no exp of it overflows."""
    z = xp.astype(logits, working_dtype(xp, logits.dtype), copy=False)
    return z - xp.max(z, axis=axis, keepdims=True)


def _row_losses(xp: Namespace, z: Array, s: Array, targets: Array, smoothing: float, axis: int) -> Array:
    """Return sum_k t_k (log(s) - z_k) for each row, where s = sum(exp(z))."""
    if targets.ndim == 1:
        index = xp.expand_dims(xp.astype(targets, xp.int64, copy=False), axis=axis)  # some libraries index by no other
        true = xp.squeeze(xp.take_along_axis(z, index, axis=axis), axis=axis)
        if smoothing == 0.0:
            return xp.log(s) - true
        return xp.log(s) - (1.0 - smoothing) * true - smoothing * xp.mean(z, axis=axis)
    t = _probabilities(xp, z, targets, smoothing, axis)
    # A class of probability 0 costs nothing, also where its logit is -inf.
    z = xp.where(t > 0, z, xp.zeros_like(z))
    return xp.log(s) * xp.sum(t, axis=axis) - xp.sum(t * z, axis=axis)


def _probabilities(xp: Namespace, z: Array, targets: Array, smoothing: float, axis: int) -> Array:
    """Return the smoothed target probabilities in the shape and dtype of `z`."""
    n_classes = z.shape[axis]
    if targets.ndim == 1:
        targets = xp.astype(targets, xp.int64, copy=False)  # int8 labels may belong to 300 classes
        classes = xp.arange(n_classes, dtype=xp.int64, device=device_of(targets))
        across = classes[None, :] if axis in (1, -1) else classes[:, None]
        targets = across == xp.expand_dims(targets, axis=axis)
    t = xp.astype(targets, z.dtype)
    return t if smoothing == 0.0 else (1.0 - smoothing) * t + smoothing / n_classes
