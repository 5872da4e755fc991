"""Softmax, cross-entropy and the tutorial's loss as functions of arrays.

Results come back in the namespace, on the device and in the dtype of the arguments, which are not modified.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from softmax_xp.arrays import (
    Array,
    DType,
    Namespace,
    accumulation_dtype,
    all_finite,
    checked_arrays,
    detached,
    device_of,
    dtype_name,
    is_integral,
    range_of,
    to_numpy,
    working_dtype,
)
from softmax_xp.backend import Backend, backend_of
from softmax_xp.checks import (
    are_probabilities,
    check_finite,
    check_floating,
    check_held,
    check_integer,
    check_labels,
    check_length,
    check_option,
    check_probabilities,
    check_rank,
    check_real,
    check_weights,
    scaled_weights,
)
from softmax_xp.kernels.row_pass import RowPass
from softmax_xp.kernels.workspace import Workspace
from softmax_xp.losses import Loss, checked_loss
from softmax_xp.objective import penalised_mean
from softmax_xp.penalties import Penalty


def softmax(logits: Array, axis: int = -1) -> Array:
    """Return the softmax, exp(z) / sum(exp(z)), along an axis.

    Parameters
    ----------
    logits : array of any shape, real floating
    axis : int, default -1
        The axis of the classes.

    Returns
    -------
    array of the shape and dtype of `logits`
        Finite for every finite input; 16-bit floats are computed in float32.

    Raises
    ------
    TypeError
        When `logits` is not a real floating array.
    ValueError
        When `logits` has no such axis, or that axis is empty.

    See Also
    --------
    log_softmax : its logarithm, which is finite where the softmax itself underflows.
    """
    backend, logits, axis = _checked_logits(logits, axis)
    with backend.context(), np.errstate(over="ignore"):  # the difference of two logits may be -inf: p is 0 there
        return backend.kernels(logits.dtype).softmax(logits, axis)


def log_softmax(logits: Array, axis: int = -1) -> Array:
    """Return the logarithm of the softmax, z - logsumexp(z), along an axis.

    Never formed as log(softmax(z)), which is -inf where the true value is merely large.

    Parameters
    ----------
    logits : array of any shape, real floating
    axis : int, default -1
        The axis of the classes.

    Returns
    -------
    array of the shape and dtype of `logits`
        Finite for every finite input; 16-bit floats are computed in float32.

    Raises
    ------
    TypeError
        When `logits` is not a real floating array.
    ValueError
        When `logits` has no such axis, or that axis is empty, and when two finite logits differ by more than their
        dtype can hold.
    """
    backend, logits, axis = _checked_logits(logits, axis)
    xp = backend.xp
    with backend.context(), np.errstate(over="ignore"):  # told below, by an error
        out = backend.kernels(logits.dtype).log_softmax(logits, axis)
        if not all_finite(xp, out):
            # Rows with a NaN or +inf among their logits have one as their maximum; a logit of -inf is -inf.
            sound = xp.logical_and(xp.isfinite(xp.max(logits, axis=axis, keepdims=True)), xp.isfinite(logits))
            if bool(xp.any(xp.logical_and(sound, xp.logical_not(xp.isfinite(out))))):
                raise _overflow(logits.dtype)
        return out


def cross_entropy(
    logits: Array,
    labels: Array,
    sample_weight: Array | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    reduction: str = "mean",
    loss: str | Loss = "cross_entropy",
) -> Array:
    """Return the cross-entropy, or another loss, of logits against labels or target probabilities.

    The loss of a row is sum_k t_k (logsumexp(z) - z_k), where t is the one-hot label or the given
    probabilities, smoothed to (1 - s) t + s / C. Another `loss` takes phi(log p_k) in place of
    logsumexp(z) - z_k = -log p_k: see `softmax_xp.losses`.

    Parameters
    ----------
    logits : array of shape (n_samples, n_classes), real floating
    labels : array of shape (n_samples,), integers in [0, n_classes); or of shape (n_samples, n_classes),
        floating: target probabilities, each row summing to 1
    sample_weight : array of shape (n_samples,), optional
        Not negative, not all zero.
    label_smoothing : float in [0, 1], default 0.0
        The share s of each target that is spread evenly over all classes (Szegedy et al., 2016,
        doi:10.1109/CVPR.2016.308).
    ignore_index : int, optional
        Rows with this label count for nothing, whatever their logits hold. It may lie outside [0, n_classes).
    reduction : {"mean", "sum", "none"}, default "mean"
        "mean" divides by the sum of the weights of the rows that count: only the ratios of the weights matter, and
        they may have any size, and a wider dtype than `logits`.
    loss : {"cross_entropy", "gce", "sce", "focal"} or an instance of a loss, default "cross_entropy"
        Generalised cross-entropy ("gce") and symmetric cross-entropy ("sce") bear wrong labels better; a focal loss
        counts rows less that are classified well. Instances have parameters: `GeneralizedCrossEntropy(q=0.5)`,
        `SymmetricCrossEntropy`, `Focal`.

    Returns
    -------
    array of shape (), or (n_samples,) for "none", in the dtype of `logits`
        Sums over rows are accumulated in float64 where the device has it.

    Raises
    ------
    TypeError
        For an argument of the wrong type or dtype.
    ValueError
        For a shape, label, weight, smoothing or reduction out of its range, for a mean over no rows, and for a loss
        or weights ("sum", "none") that the dtype of `logits` cannot hold.

    See Also
    --------
    cross_entropy_with_grad : the same, with its gradient in the logits, at little more than the same cost.
    """
    backend, logits, targets, weight, row_pass = _checked_rows(
        logits, labels, sample_weight, label_smoothing, ignore_index, reduction, loss
    )
    with backend.context(), _quiet(ignore_index, sample_weight):
        losses = backend.kernels(logits.dtype).cross_entropy(logits, targets, weight, row_pass)
        return _reduced(backend, losses, reduction, logits, targets, weight, row_pass)


def cross_entropy_with_grad(
    logits: Array,
    labels: Array,
    sample_weight: Array | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    reduction: str = "mean",
    loss: str | Loss = "cross_entropy",
) -> tuple[Array, Array]:
    """Return the cross-entropy, or another loss, and its gradient in the logits.

    The gradient of a row is w (p sum_k t'_k - t'), with p = softmax(z) and the effective targets t', which are t for
    cross-entropy. For reduction "mean" it is divided by the sum of the weights; for "none" it is that of each row's own
    loss.

    Parameters
    ----------
    logits : array of shape (n_samples, n_classes), real floating
    labels, sample_weight, label_smoothing, ignore_index, reduction, loss
        As for `cross_entropy`.

    Returns
    -------
    loss : as `cross_entropy` returns it
    dlogits : array of the shape and dtype of `logits`

    Raises
    ------
    TypeError, ValueError
        As `cross_entropy` does.
    """
    backend, logits, targets, weight, row_pass = _checked_rows(
        logits, labels, sample_weight, label_smoothing, ignore_index, reduction, loss
    )
    with backend.context(), _quiet(ignore_index, sample_weight):
        kernels = backend.kernels(logits.dtype)
        losses, dlogits = kernels.cross_entropy_with_grad(logits, targets, weight, row_pass)
        return _reduced(backend, losses, reduction, logits, targets, weight, row_pass), dlogits


def softmax_loss(W: Array, X: Array, y: Array, reg: float, workers: int | None = None) -> tuple[Array, Array]:
    """Return the regularised softmax loss of a linear classifier, and its gradient.

    loss = mean_i cross_entropy(X_i W, y_i) + reg / 2 * sum(W ** 2), after the assignment
    `softmax_loss_vectorized` of Stanford's course CS231n.

    Parameters
    ----------
    W : array of shape (n_features, n_classes), real floating
    X : array of shape (n_samples, n_features), real floating
    y : array of shape (n_samples,), integers in [0, n_classes)
    reg : float, not negative
        Strength of the L2 penalty; a 0-d array will do.
    workers : int, optional
        Threads on a CPU; by default as many as the process may use cores. The result does not depend on it.

    Returns
    -------
    loss : array of shape ()
    dW : array of shape (n_features, n_classes)
        Both in the common dtype of W and X, in their namespace and on their device.

    Raises
    ------
    TypeError
        For an argument of the wrong type or dtype.
    ValueError
        For shapes that do not match, a label out of range, a negative `reg`, a NaN or infinity in W or X, and a
        result that the dtype cannot hold.
    """
    xp, X, W, y = checked_arrays(X=X, W=W, y=y)
    check_rank(W, "W", 2, "(n_features, n_classes)")
    check_rank(X, "X", 2, "(n_samples, n_features)")
    check_floating(xp, W, "W")
    check_floating(xp, X, "X")
    if W.shape[0] != X.shape[1]:
        raise ValueError(
            f"`W` must have one row per column of `X` ({X.shape[1]}), got shape {tuple(W.shape)}; "
            f"transpose W, or select the features it was made for."
        )
    check_rank(y, "y", 1, "(n_samples,)")
    check_length(y, "y", X.shape[0], "X")
    y = check_labels(xp, y, W.shape[1], "y")
    remedy = "choose a value such as 1e-4, or 0 for no penalty"
    reg = check_real(reg, "reg", low=0.0, high=math.inf, include_high=False, remedy=remedy)
    check_finite(xp, W, "W")
    remedy = "choose a value such as 4, or None for all cores"
    workspace = Workspace(None if workers is None else check_integer(workers, "workers", low=1, remedy=remedy))

    backend = backend_of(X)
    with backend.context(), np.errstate(over="ignore", invalid="ignore"):  # told below, by an error
        out = xp.result_type(W.dtype, X.dtype)
        dtype = working_dtype(xp, out)
        check_held(xp, reg, "reg", dtype)
        W, X = xp.astype(W, dtype, copy=False), xp.astype(X, dtype, copy=False)
        if W.shape[1] == 1:
            # One column is one class, certain whatever its logit; `linear_sums` would read it as two classes.
            check_finite(xp, X, "X")
            loss, grad = xp.zeros((), dtype=dtype, device=backend.device), xp.zeros_like(W)
            total_loss, total_grad = loss + Penalty(reg).value(W), Penalty(reg).grad(W)
        else:
            sums = backend.kernels(dtype).linear_sums(W.T, None, X, y, workspace=workspace)
            total_loss, total_grad = penalised_mean(sums, X.shape[0], W.T, Penalty(reg), workspace)
            total_grad = xp.reshape(total_grad, (W.shape[1], W.shape[0])).T
        total_loss, total_grad = xp.astype(total_loss, out), xp.astype(total_grad, out, copy=False)
        if all(all_finite(xp, x) for x in (total_loss, total_grad)):
            return total_loss, total_grad
        # Only now: a pass over X that is free as long as all is well.
        check_finite(xp, X, "X")
        if W.shape[1] > 1:
            loss, grad = _scaled_mean(backend, W, X, y, workspace)
        wider = "" if dtype_name(out) == "float64" else ", or pass float64"
        if not all(all_finite(xp, xp.astype(x, out)) for x in (loss, grad)):
            raise ValueError(
                f"`X` and `W` must have a product that {dtype_name(out)} can hold, got an overflow; "
                f"scale the features{wider}."
            )
        total_loss = xp.astype(loss + Penalty(reg).value(W), out)
        total_grad = xp.astype(grad + Penalty(reg).grad(W), out, copy=False)
        if not all(all_finite(xp, x) for x in (total_loss, total_grad)):
            raise ValueError(
                f"`reg` must give a loss and a gradient that {dtype_name(out)} can hold, got an overflow with "
                f"reg={reg:g}; lower reg, scale W and X{wider}."
            )
        return total_loss, total_grad


def _scaled_mean(backend: Backend, W: Array, X: Array, y: Array, workspace: Workspace) -> tuple[Array, Array]:
    """Return the mean loss and its gradient in W, finite wherever the logits and their differences are.

    A column of X and the row of W that it is multiplied with get the same range by a power of two, which the logits
    do not notice. Each row counts 1 / n or a little less, so that the sum over rows is at most the largest of them.
    """
    xp, dtype, n_rows = backend.xp, X.dtype, X.shape[0]
    of_X = np.frexp(to_numpy(xp.max(xp.abs(X), axis=0)).astype(np.float64))[1]  # (n_features,)
    of_W = np.frexp(to_numpy(xp.max(xp.abs(detached(W)), axis=1)).astype(np.float64))[1]
    limit = math.frexp(range_of(xp, dtype)[1])[1] - 2  # of the exponents whose power of two has an inverse
    exponents = np.clip((of_W - of_X) // 2, -limit, limit)
    up = backend.asarray(np.ldexp(1.0, exponents), dtype_name(dtype))
    down = backend.asarray(np.ldexp(1.0, -exponents), dtype_name(dtype))
    share = 2.0 ** -math.ceil(math.log2(n_rows))
    weight = xp.full(n_rows, share, dtype=dtype, device=backend.device)
    sums = backend.kernels(dtype).linear_sums((W * down[:, None]).T, None, X * up, y, weight, workspace=workspace)
    total = n_rows * share
    return sums[0] / total, sums[1].T / total * down[:, None]


def _checked_logits(logits: Array, axis: int) -> tuple[Backend, Array, int]:
    """Return the backend of `logits`, these, and the axis counted from the front."""
    xp, logits = checked_arrays(logits=logits)
    check_floating(xp, logits, "logits")
    if logits.ndim == 0:
        raise ValueError("`axis` must be an axis of `logits`, got logits of no axis; pass them with one of classes.")
    axis = check_integer(axis, "axis", low=-logits.ndim, remedy="choose the axis of the classes")
    if axis >= logits.ndim:
        raise ValueError(
            f"`axis` must lie in [{-logits.ndim}, {logits.ndim}) for logits of shape {tuple(logits.shape)}, "
            f"got {axis}; choose the axis of the classes."
        )
    if logits.shape[axis] == 0:
        raise ValueError(
            f"`logits` must have at least one class on axis {axis}, got shape {tuple(logits.shape)}; pass at least one."
        )
    return backend_of(logits, "logits"), logits, axis % logits.ndim


def _checked_rows(
    logits: Array,
    labels: Array,
    sample_weight: Array | None,
    label_smoothing: float,
    ignore_index: int | None,
    reduction: str,
    loss: str | Loss,
) -> tuple[Backend, Array, Array, Array | None, RowPass]:
    """Check the arguments of a cross-entropy; return them as the kernels take them.

    The weights that are returned make a plain sum of the losses the reduction asked for: those of a mean are
    divided by their sum, and those of ignored rows are zero.
    """
    xp, logits, labels, sample_weight = checked_arrays(
        optional=("sample_weight",), logits=logits, labels=labels, sample_weight=sample_weight
    )
    check_rank(logits, "logits", 2, "(n_samples, n_classes)")
    check_floating(xp, logits, "logits")
    n, n_classes = logits.shape
    check_option(reduction, "reduction", ("mean", "sum", "none"))
    loss = checked_loss(loss)
    label_smoothing = check_real(
        label_smoothing, "label_smoothing", low=0.0, high=1.0, remedy="choose a value such as 0.1, or 0 for none"
    )
    backend = backend_of(logits, "logits")
    dtype = working_dtype(xp, logits.dtype)
    with backend.context():
        if sample_weight is not None:
            check_weights(xp, sample_weight, n, of="logits")
        probabilities = are_probabilities(xp, labels, n_classes)
        check_length(labels, "labels", n, "logits")
        if probabilities:
            if ignore_index is not None:
                raise ValueError(
                    "`ignore_index` goes with integer labels, got target probabilities; "
                    "give the rows to ignore a sample_weight of 0."
                )
            check_probabilities(xp, labels, n_classes)
            labels = backend.asarray(labels, dtype)
        else:
            if not is_integral(xp, labels.dtype):
                check_labels(xp, labels, n_classes)  # refuses them
            labels = backend.asarray(labels, xp.int64)
            if ignore_index is not None:
                remedy = "choose an index that marks the rows to leave out, such as -100"
                ignore_index = check_integer(ignore_index, "ignore_index", low=-(2**63), remedy=remedy)
                counts = labels != ignore_index
                labels = xp.where(counts, labels, xp.zeros_like(labels))
                if sample_weight is None:
                    sample_weight = xp.ones(n, dtype=dtype, device=backend.device)
                sample_weight = xp.where(counts, sample_weight, xp.zeros_like(sample_weight))
            check_labels(xp, labels, n_classes)
        if reduction != "mean":
            if sample_weight is not None:
                _check_held_weights(xp, sample_weight, logits.dtype, reduction)
                sample_weight = xp.astype(sample_weight, dtype, copy=False)
        elif sample_weight is None:
            sample_weight = xp.full(n, 1.0 / n, dtype=dtype, device=backend.device)
        elif not bool(xp.any(sample_weight > 0.0)):
            raise ValueError(
                f"`labels` must hold a row that counts for reduction='mean', got only ignore_index="
                f"{ignore_index} or weight 0; skip such a batch, or use reduction='sum'."
            )
        else:
            sample_weight, _ = scaled_weights(xp, sample_weight)
            sample_weight = xp.astype(sample_weight / xp.sum(sample_weight), dtype, copy=False)
    return backend, logits, labels, sample_weight, RowPass(loss, label_smoothing)


def _check_held_weights(xp: Namespace, weights: Array, dtype: DType, reduction: str) -> None:
    """Raise ValueError unless the dtype of the logits can hold what weights make of losses of size one.

    For a sum that is decided by the largest weight, without a reduction by each.
    """
    weights = detached(weights)
    greatest = float(xp.max(weights))
    if greatest == 0.0:  # no row counts, and the sum is zero
        return
    least = greatest
    if reduction == "none":
        least = float(xp.min(xp.where(weights > 0.0, weights, xp.zeros_like(weights) + greatest)))
    smallest, largest = range_of(xp, working_dtype(xp, dtype))[0], range_of(xp, dtype)[1]
    if least < smallest or greatest > largest:
        raise ValueError(
            f"`sample_weight` must lie in [{smallest:.3g}, {largest:.3g}] for reduction={reduction!r} of "
            f"{dtype_name(dtype)} logits, got {least if least < smallest else greatest}; use reduction='mean', which "
            f"takes weights of any size, or scale them."
        )


def _quiet(ignore_index: int | None, sample_weight: Array | None) -> AbstractContextManager[Any]:
    """Return the context in which rows that do not count may hold what NumPy would warn of.

    An overflow is told by `_reduced`.
    """
    every_row_counts = ignore_index is None and sample_weight is None
    return np.errstate(over="ignore", invalid=None if every_row_counts else "ignore")


def _reduced(
    backend: Backend,
    losses: Array,
    reduction: str,
    logits: Array,
    targets: Array,
    weight: Array | None,
    row_pass: RowPass,
) -> Array:
    """Return the losses of the rows, or their sum, in the dtype of the logits.

    Raise ValueError where that cannot hold a loss. What is not finite for another reason is returned: a row with NaN
    or infinite logits, or with the label of a class whose logit is -inf.
    """
    xp, dtype = backend.xp, logits.dtype
    of_rows = losses
    if reduction != "none":
        losses = xp.sum(losses, dtype=accumulation_dtype(xp, device_of(losses)))
    losses = xp.astype(losses, dtype, copy=False)
    if all_finite(xp, losses):
        return losses
    # The losses of smaller logits are finite where only the range of the dtype has been too small.
    logits = xp.astype(detached(logits), working_dtype(xp, dtype), copy=False) * 2.0**-8
    counts = None if weight is None else xp.astype(weight != 0.0, logits.dtype)
    small = backend.kernels(logits.dtype).cross_entropy(logits, targets, counts, row_pass)
    of_rows = detached(losses if reduction == "none" else of_rows)
    lost, sound = xp.logical_not(xp.isfinite(of_rows)), xp.isfinite(small)
    overflows = xp.any(xp.logical_and(lost, sound))
    if bool(overflows) if reduction == "none" else bool(xp.all(xp.logical_or(sound, xp.logical_not(lost)))):
        raise _overflow(dtype, "`logits`" if weight is None or reduction == "mean" else "`logits` and `sample_weight`")
    return losses


def _overflow(dtype: DType, subject: str = "`logits`") -> ValueError:
    """Return the error for losses that the dtype of the logits cannot hold."""
    wider = "" if dtype_name(dtype) == "float64" else ", or pass float64"
    return ValueError(
        f"{subject} must have losses that {dtype_name(dtype)} can hold, got an overflow; scale them down{wider}."
    )
