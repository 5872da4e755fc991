"""What a fit is given, as scikit-learn checks it: features of any library, labels, and weights of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from softmax_xp._arrays import (
    Array,
    accumulation_dtype,
    check_finite,
    check_rank,
    check_weights,
    detached,
    device_context,
    device_of,
    dtype_name,
    is_array,
    is_floating,
    is_numpy,
    namespace,
    to_numpy,
    working_dtype,
)
from softmax_xp.labels import label_array

# What scikit-learn's messages about X leave to be said.
REMEDIES = {
    "minimum of": "pass at least one row and one column",
    "is expecting": "select the features that the model was fitted on",
    "feature names should match": "name the columns as they were when the model was fitted",
}


def checked_features(estimator: BaseEstimator, X: Any, dtype: str | None, y: Any = None, *, reset: bool) -> Array:
    """Return X (n, D), real floating and finite: an array of its own library if that is not NumPy, else of NumPy.

    Converted to `dtype`, or if that is None to float32 or float64. Names and number of the features are stored in the
    estimator with `reset`, in a fit, and compared with those of the fit otherwise.
    """
    if not is_array(X) or is_numpy(X):
        dtypes: Any = dtype or [np.float64, np.float32]
        if dtype is None and dtype_name(getattr(X, "dtype", None)) in ("float16", "bfloat16"):
            dtypes = np.float32
        if reset and y is None:
            validate_data(estimator, X, None)  # refuses it
        X = _by_scikit_learn(estimator, X, reset=reset, dtype=dtypes, ensure_all_finite=False)
        check_finite(namespace(X=X), X, "X")
        return X
    X, xp = detached(X), namespace(X=X)
    check_rank(X, "X", 2, "(n_samples, n_features)")
    _by_scikit_learn(estimator, X, reset=reset, skip_check_array=True)  # counts the features
    if not (is_floating(xp, X.dtype) or xp.isdtype(X.dtype, ("integral", "bool"))):
        raise TypeError(
            f"`X` must have a real dtype, got {dtype_name(X.dtype)}; convert it first, for example to float32."
        )
    with device_context(device_of(X)):
        if dtype is not None:
            X = xp.astype(X, getattr(xp, dtype), copy=False)
        elif not is_floating(xp, X.dtype):
            X = xp.astype(X, accumulation_dtype(xp, device_of(X)))
        else:
            X = xp.astype(X, working_dtype(xp, X.dtype), copy=False)
    check_finite(xp, X, "X")
    return X


def encoded_labels(y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted classes in `y`, in the dtype of `label_array`, and each row's index among them, on the host."""
    y = label_array(y)
    found = _counted(y)
    if found is None or 2 * len(found[0]) > len(y):  # else scikit-learn has no objection
        try:
            check_classification_targets(y)
        except ValueError as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise ValueError(
                f"`y` must be one class label a row, got other numbers: {reason}; pass integers or text."
            ) from error
    classes, labels = np.unique(y, return_inverse=True) if found is None else found
    if len(classes) < 2:
        one = f"one class: {classes[0]}" if len(classes) else "none"
        raise ValueError(f"`y` must hold at least two classes, got {one}; add rows of another class.")
    return classes, labels.astype(np.int64, copy=False)


def _counted(y: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return what numpy.unique makes of integers (n,), in one pass where it sorts; None where they lie far apart."""
    if y.dtype.kind not in "biu" or not len(y):
        return None
    low, high = int(y.min()), int(y.max())
    if high - low >= max(len(y), 1 << 16):
        return None
    wide = y if y.dtype == np.uint64 else y.astype(np.int64, copy=False)
    above = (wide - wide.dtype.type(low)).astype(np.int64, copy=False)
    present = np.bincount(above) > 0
    classes = np.flatnonzero(present).astype(wide.dtype) + wide.dtype.type(low)
    return classes.astype(y.dtype), (np.cumsum(present) - 1)[above]


def row_weights(
    sample_weight: Any, class_weight: dict[Any, float] | str | None, classes: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Return the weight of each row, class weights included, as float64 on the host."""
    if sample_weight is None:
        weight = np.ones(len(labels))
    else:
        weight = to_numpy(sample_weight).astype(np.float64)
        weight = np.full(len(labels), float(weight)) if weight.ndim == 0 else weight.copy()
        check_weights(namespace(sample_weight=weight), weight, len(labels))
    if class_weight is not None:
        of_class = compute_class_weight(class_weight, classes=classes, y=classes[labels], sample_weight=weight)
        weight *= of_class[labels]
        check_weights(namespace(weight=weight), weight, len(labels), "class_weight")
    return weight


def _by_scikit_learn(estimator: BaseEstimator, X: Any, **options: Any) -> Any:
    """Return X as scikit-learn's validation leaves it, with a remedy in its messages."""
    try:
        return validate_data(estimator, X, **options)
    except ValueError as error:
        for part, remedy in REMEDIES.items():
            if part in str(error):
                raise ValueError(f"{str(error).strip().rstrip('.')}; {remedy}.") from None
        raise
