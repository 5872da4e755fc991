"""Softmax, cross-entropy and the tutorial's loss as functions of arrays.

Results come back in the namespace, on the device and in the dtype of the arguments, which are not modified.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from softmax_xp._arrays import (
    Array,
    DType,
    accumulation_dtype,
    check_finite,
    check_floating,
    check_integer,
    check_labels,
    check_length,
    check_option,
    check_probabilities,
    check_rank,
    check_real,
    check_weights,
    detached,
    device_of,
    dtype_name,
    is_floating,
    namespace,
    working_dtype,
)
from softmax_xp.backend import Backend, backend_of
from softmax_xp.kernels.workspace import Workspace
from softmax_xp.objective import penalised_mean
from softmax_xp.penalties import L2


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
    backend, axis = _checked_logits(logits, axis)
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
        When `logits` has no such axis, or that axis is empty.
    """
    backend, axis = _checked_logits(logits, axis)
    with backend.context():
        return backend.kernels(logits.dtype).log_softmax(logits, axis)


def cross_entropy(
    logits: Array,
    labels: Array,
    sample_weight: Array | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Array:
    """Return the cross-entropy of logits against labels or target probabilities.

    The loss of a row is sum_k t_k (logsumexp(z) - z_k), where t is the one-hot label or the given
    probabilities, smoothed to (1 - s) t + s / C.

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
        "mean" divides by the sum of the weights of the rows that count.

    Returns
    -------
    array of shape (), or (n_samples,) for "none", in the dtype of `logits`
        Sums over rows are accumulated in float64 where the device has it.

    Raises
    ------
    TypeError
        For an argument of the wrong type or dtype.
    ValueError
        For a shape, label, weight, smoothing or reduction out of its range, and for a mean over no rows.

    See Also
    --------
    cross_entropy_with_grad : the same, with its gradient in the logits, at little more than the same cost.
    """
    backend, logits, targets, weight, label_smoothing = _checked_rows(
        logits, labels, sample_weight, label_smoothing, ignore_index, reduction
    )
    with backend.context(), _quiet(ignore_index, sample_weight):
        losses = backend.kernels(logits.dtype).cross_entropy(logits, targets, weight, label_smoothing)
        return _reduced(losses, reduction, logits.dtype)


def cross_entropy_with_grad(
    logits: Array,
    labels: Array,
    sample_weight: Array | None = None,
    label_smoothing: float = 0.0,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Array, Array]:
    """Return the cross-entropy and its gradient in the logits.

    The gradient of a row is w (softmax(z) - t), divided by the sum of the weights for reduction "mean"; for "none"
    it is that of each row's own loss.

    Parameters
    ----------
    logits : array of shape (n_samples, n_classes), real floating
    labels, sample_weight, label_smoothing, ignore_index, reduction
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
    backend, logits, targets, weight, label_smoothing = _checked_rows(
        logits, labels, sample_weight, label_smoothing, ignore_index, reduction
    )
    with backend.context(), _quiet(ignore_index, sample_weight):
        kernels = backend.kernels(logits.dtype)
        losses, dlogits = kernels.cross_entropy_with_grad(logits, targets, weight, label_smoothing)
        return _reduced(losses, reduction, logits.dtype), dlogits


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
        For shapes that do not match, a label out of range, a negative `reg`, and a NaN or infinity in W or X.
    """
    xp = namespace(X=X, W=W, y=y)
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
    reg = check_real(reg, "reg", low=0.0, high=math.inf, include_high=False)
    check_finite(xp, W, "W")
    workspace = Workspace(None if workers is None else check_integer(workers, "workers", low=1))

    backend = backend_of(X)
    with backend.context(), np.errstate(over="ignore", invalid="ignore"):  # told below, by an error
        out = xp.result_type(W.dtype, X.dtype)
        dtype = working_dtype(xp, out)
        W, X = xp.astype(W, dtype, copy=False), xp.astype(X, dtype, copy=False)
        if W.shape[1] == 1:
            # One column is one class, certain whatever its logit; `linear_sums` would read it as two classes.
            check_finite(xp, X, "X")
            loss, grad = L2(reg).value(W), L2(reg).grad(W)
        else:
            sums = backend.kernels(dtype).linear_sums(W.T, None, X, y, workspace=workspace)
            loss, grad = penalised_mean(sums, X.shape[0], W.T, L2(reg), workspace)
            grad = xp.reshape(grad, (W.shape[1], W.shape[0])).T
        if not math.isfinite(float(detached(loss))):
            check_finite(xp, X, "X")  # after the fact: a pass over X that is free as long as all is well
            raise ValueError(
                f"`X` and `W` must have a product that {dtype_name(dtype)} can hold, got an overflow; "
                f"scale the features, or pass float64."
            )
        return xp.astype(loss, out), xp.astype(grad, out, copy=False)


def _checked_logits(logits: Array, axis: int) -> tuple[Backend, int]:
    """Return the backend of `logits` and the axis counted from the front."""
    xp = namespace(logits=logits)
    check_floating(xp, logits, "logits")
    axis = check_integer(axis, "axis", low=-logits.ndim)
    if axis >= logits.ndim:
        raise ValueError(
            f"`axis` must lie in [{-logits.ndim}, {logits.ndim}) for logits of shape {tuple(logits.shape)}, "
            f"got {axis}; choose the axis of the classes."
        )
    if logits.shape[axis] == 0:
        raise ValueError(
            f"`logits` must have at least one class on axis {axis}, got shape {tuple(logits.shape)}; pass at least one."
        )
    return backend_of(logits, "logits"), axis % logits.ndim


def _checked_rows(
    logits: Array,
    labels: Array,
    sample_weight: Array | None,
    label_smoothing: float,
    ignore_index: int | None,
    reduction: str,
) -> tuple[Backend, Array, Array, Array | None, float]:
    """Check the arguments of a cross-entropy; return them as the kernels take them.

    The weights that are returned make a plain sum of the losses the reduction asked for: those of a mean are
    divided by their sum, and those of ignored rows are zero.
    """
    xp = namespace(logits=logits, labels=labels, sample_weight=sample_weight)
    check_rank(logits, "logits", 2, "(n_samples, n_classes)")
    check_floating(xp, logits, "logits")
    n, n_classes = logits.shape
    check_option(reduction, "reduction", ("mean", "sum", "none"))
    label_smoothing = check_real(label_smoothing, "label_smoothing", low=0.0, high=1.0)
    backend = backend_of(logits, "logits")
    dtype = working_dtype(xp, logits.dtype)
    with backend.context():
        if sample_weight is not None:
            check_weights(xp, sample_weight, n, of="logits")
            sample_weight = backend.asarray(sample_weight, dtype)
        check_length(labels, "labels", n, "logits")
        if labels.ndim == 2 and is_floating(xp, labels.dtype):
            if ignore_index is not None:
                raise ValueError(
                    "`ignore_index` goes with integer labels, got target probabilities; "
                    "give the rows to ignore a sample_weight of 0."
                )
            check_probabilities(xp, labels, n_classes)
            labels = backend.asarray(labels, dtype)
        else:
            check_rank(labels, "labels", 1, "(n_samples,)")
            if not xp.isdtype(labels.dtype, "integral"):
                check_labels(xp, labels, n_classes)  # refuses them
            labels = backend.asarray(labels, xp.int64)
            if ignore_index is not None:
                ignore_index = check_integer(ignore_index, "ignore_index", low=-(2**63))
                counts = labels != ignore_index
                labels = xp.where(counts, labels, xp.zeros_like(labels))
                ones = xp.ones(n, dtype=dtype, device=backend.device)
                sample_weight = xp.where(counts, ones if sample_weight is None else sample_weight, xp.zeros_like(ones))
            check_labels(xp, labels, n_classes)
        if reduction == "mean":
            if sample_weight is None:
                sample_weight = xp.full(n, 1.0 / n, dtype=dtype, device=backend.device)
            else:
                wide = accumulation_dtype(xp, backend.device)
                total = float(xp.sum(sample_weight, dtype=wide))
                if total == 0.0:
                    raise ValueError(
                        f"`labels` must hold a row that counts for reduction='mean', got only ignore_index="
                        f"{ignore_index} or weight 0; skip such a batch, or use reduction='sum'."
                    )
                sample_weight = sample_weight / total
    return backend, logits, labels, sample_weight, label_smoothing


def _quiet(ignore_index: int | None, sample_weight: Array | None) -> AbstractContextManager[Any]:
    """Return the context in which rows that do not count may hold what NumPy would warn of."""
    every_row_counts = ignore_index is None and sample_weight is None
    return nullcontext() if every_row_counts else np.errstate(invalid="ignore")


def _reduced(losses: Array, reduction: str, dtype: DType) -> Array:
    """Return the losses of the rows, or their sum, in `dtype`."""
    xp = namespace(losses=losses)
    if reduction != "none":
        losses = xp.sum(losses, dtype=accumulation_dtype(xp, device_of(losses)))
    return xp.astype(losses, dtype, copy=False)
