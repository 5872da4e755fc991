"""What a fit is given, as scikit-learn checks it: features of any library, labels, and weights of rows."""

from __future__ import annotations

import math
import re
from typing import Any, cast

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data

from softmax_xp.arrays import (
    Array,
    accumulation_dtype,
    check_dense,
    describe,
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
from softmax_xp.checks import check_finite, check_probabilities, check_rank, check_real, check_weights
from softmax_xp.labels import label_array

# The remedies that scikit-learn's messages about X lack.
REMEDIES = {
    "requires y": "pass a class label for each row as y",
    "minimum of": "pass at least one row and one column",
    "is expecting": "select the features that the model was fitted on",
    "feature names should match": "name the columns as they were when the model was fitted",
    "Reshape your data": "",  # says it all
}
# Dtypes of frames' columns and of arrays, by the beginning of their names, that convert to numbers of no meaning.
NOT_NUMBERS = (
    "binary",
    "bytes",
    "complex",
    "date",
    "duration",
    "large_string",
    "period",
    "record",
    "str",
    "time",
    "void",
)


def checked_features(
    estimator: BaseEstimator, X: Any, dtype: str | None, y: Any = None, *, reset: bool, finite: bool = True
) -> Array:
    """Return X (n, D), real floating: an array of its own library if that is not NumPy, else of NumPy.

    Converted to `dtype`, or if that is None to float32 or float64. Names and number of the features are stored in the
    estimator with `reset`, in a fit, and compared with those of the fit otherwise. X is finite with `finite`; without,
    the caller has to check it.
    """
    check_dense(X, "X")
    _check_numbers(X, "X")
    if not is_array(X) or is_numpy(X):
        dtypes: Any = dtype or [np.float64, np.float32]
        if dtype is None and dtype_name(getattr(X, "dtype", None)) in ("float16", "bfloat16"):
            dtypes = np.float32
        if reset and y is None:
            _by_scikit_learn(estimator, X, y=None)  # refuses it
        X = _by_scikit_learn(estimator, X, reset=reset, dtype=dtypes, ensure_all_finite=False)
        if finite:
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
    if finite:
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


def encoded_targets(y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted classes of `y`, and what a row is to be: its label (n,), or its probabilities (n, C).

    Labels are what `encoded_labels` returns. A matrix of floating numbers with two columns or more has probabilities:
    one row each, one column for each class. The classes are then 0, 1, ...; of a frame, the names of its columns. Rows
    of zeros and a one are labels.
    """
    check_dense(y, "y")
    columns = getattr(y, "columns", None)
    if isinstance(y, type) or not (is_array(y) or columns is not None):
        return encoded_labels(y)
    shape = tuple(y.shape)
    if len(shape) != 2 or shape[1] < 2 or not _has_floating_numbers(y):
        return encoded_labels(y)
    targets = _to_float64(y, "y")
    check_probabilities(namespace(y=targets), targets, targets.shape[1], "y")
    classes = np.arange(targets.shape[1])
    if columns is not None:
        classes, order = np.unique(label_array(list(columns), "the names of y's columns"), return_index=True)
        if len(classes) < targets.shape[1]:
            raise ValueError(f"`y` must have one column for each class, got {list(columns)}; rename them.")
        targets = targets[:, order]
    if ((targets == 0.0) | (targets == 1.0)).all():
        return classes, targets.argmax(axis=1)
    return classes, targets


def _has_floating_numbers(y: Any) -> bool:
    """Return whether a matrix, or each column of a frame, is of floating numbers."""
    dtypes = list(y.dtypes) if hasattr(y, "dtypes") else [getattr(y, "dtype", "")]
    return all(dtype_name(dtype).lower().startswith(("float", "bfloat")) for dtype in dtypes)


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
) -> tuple[np.ndarray, int]:
    """Return the weight of each row, class weights included, as float64 on the host, and a power of two.

    The weight of row i is weight[i] * 2**exponent. The largest of `weight` lies between 1/4 and 1: neither sums nor
    products of weights of any size overflow, and dividing by a power of two is exact.
    """
    mantissas, exponents = np.frexp(checked_weights(sample_weight, len(labels)))
    if class_weight is not None and labels.ndim == 2:
        raise ValueError(
            f"`class_weight` must be None where `y` has probabilities, got {describe(class_weight)}; "
            f"multiply it into sample_weight."
        )
    if class_weight is not None:
        of_class = _class_weights(class_weight, classes, labels, _scaled(mantissas, exponents)[0])
        of_row, more = np.frexp(of_class[labels])
        mantissas, exponents = mantissas * of_row, exponents + more
        if not mantissas.any():
            raise ValueError(
                f"`class_weight` must not be all zero, got {describe(class_weight)} and no row of another class that "
                f"has a weight; give a class with such rows a positive one."
            )
    return _scaled(mantissas, exponents)


def _scaled(mantissas: np.ndarray, exponents: np.ndarray) -> tuple[np.ndarray, int]:
    """Return mantissas * 2**exponents divided by the largest power of two among those that count, and its exponent."""
    largest = int(exponents[mantissas > 0.0].max())
    return np.ldexp(mantissas, exponents - largest), largest


def checked_weights(sample_weight: Any, n: int) -> np.ndarray:
    """Return `sample_weight`, real numbers of any kind and library (n,), or one number or None, as float64."""
    if sample_weight is None:
        return np.ones(n)
    weight = _to_float64(sample_weight, "sample_weight")
    weight = np.full(n, float(weight)) if weight.ndim == 0 else weight
    check_weights(namespace(sample_weight=weight), weight, n)
    return weight


def _class_weights(
    class_weight: dict[Any, float] | str, classes: np.ndarray, labels: np.ndarray, weight: np.ndarray
) -> np.ndarray:
    """Return the weight of each class."""
    if isinstance(class_weight, str):  # "balanced"
        # A class that has only rows of weight 0 gets none: it would be infinite, and nothing is multiplied by it.
        counts = np.bincount(labels, weight, minlength=len(classes))
        of_class = np.zeros(len(classes))
        with np.errstate(over="ignore"):
            of_class[counts > 0] = counts.sum() / len(classes) / counts[counts > 0]
        if not np.isfinite(of_class).all():
            raise ValueError(
                f"`class_weight`='balanced' must give weights that float64 can hold, got none for class "
                f"{classes[np.argmax(of_class)]!r}, whose rows have a weight near 0; give them 0, or more."
            )
        return of_class
    for label, value in class_weight.items():
        number = check_real(value, f"class_weight[{label!r}]", remedy="choose a value such as 1.0")
        if not 0 <= number < math.inf:
            rule = "not be negative" if number < 0 else "be finite"
            raise ValueError(
                f"`class_weight` must {rule}, got {number} for class {label!r}; use 0 to leave a class out."
            )
    try:
        return cast("np.ndarray", compute_class_weight(class_weight, classes=classes, y=classes[labels]))
    except ValueError as error:
        raise ValueError(
            f"`class_weight` must name classes of y: {_one_line(error)}; name each class as it is in y."
        ) from None


def penalty_strength(C: float, weight: np.ndarray, exponent: int) -> float:
    """Return 1 / (C * sum of weights), where row i has the weight weight[i] * 2**exponent; 0 for an infinite C.

    Only the product has to be a number that float64 can hold, whatever C and the weights are.
    """
    if math.inf == C:
        return 0.0
    mantissa, exponent_of_C = math.frexp(float(C))
    total, exponent_of_total = math.frexp(float(weight.sum()))
    exponent += exponent_of_total
    size = f"1e{exponent * math.log10(2.0):.0f}"
    size = f"1e{exponent * math.log10(2.0):.0f}"
    given = f"got C={float(C):g} and weights (`sample_weight`, `class_weight`) that sum to about {size}"
    try:
        product = math.ldexp(mantissa * total, exponent_of_C + exponent)
    except OverflowError:
        raise ValueError(
            f"`C` times the sum of weights must be a number that float64 can hold, {given}; "
            f"lower C, or pass C=inf for no penalty."
        ) from None
    if product == 0.0 or math.isinf(1.0 / product):
        raise ValueError(f"`C` times the sum of weights must have a finite inverse, {given}; raise C or the weights.")
    return 1.0 / product


def _to_float64(x: Any, name: str) -> np.ndarray:
    """Return numbers of any kind and library as float64 on the host."""
    check_dense(x, name)
    try:
        host = to_numpy(x)
        _check_numbers(host, name)
        with np.errstate(over="ignore"):  # check_weights refuses the infinity
            return host.astype(np.float64)
    except OverflowError as error:
        raise ValueError(f"`{name}` must be numbers that float64 can hold: {_one_line(error)}; scale them.") from None
    except (TypeError, ValueError) as error:
        if str(error).startswith(f"`{name}`"):
            raise
        raise type(error)(f"`{name}` must be real numbers: {_one_line(error)}; pass a 1-d array of them.") from None


def _check_numbers(x: Any, name: str) -> None:
    """Raise where the dtype of an array, or of a column of a frame, is of another kind than numbers.

    TypeError; for a complex X, of which scikit-learn's contract asks it, ValueError.
    """
    columns = list(getattr(x, "columns", []))
    dtypes = [dtype_name(dtype) for dtype in (x.dtypes if columns else [getattr(x, "dtype", "")])]
    if name == "X" and any(dtype.startswith("complex") for dtype in dtypes):
        raise ValueError(
            f"Complex data not supported: `{name}` must be real, got complex numbers; pass their real part."
        )
    wrong = [i for i, dtype in enumerate(dtypes) if dtype.lower().startswith(NOT_NUMBERS)]
    if wrong:
        where = f" in columns {', '.join(repr(columns[i]) for i in wrong)}" if columns else ""
        raise TypeError(
            f"`{name}` must hold numbers, got dtype {dtypes[wrong[0]]}{where}; encode or drop what is not a number."
        )


def _by_scikit_learn(estimator: BaseEstimator, X: Any, **options: Any) -> Any:
    """Return X as scikit-learn's validation leaves it, with name and remedy in its messages."""
    try:
        return validate_data(estimator, X, **options)
    except (OverflowError, TypeError, ValueError) as error:
        text = str(error).strip().rstrip(".")
        rule = "`X` must be a matrix of numbers (n_samples, n_features)"
        for part, remedy in REMEDIES.items():
            if part in text:
                text = re.sub(r":\s*array=.*\sReshape", ". Reshape", text, flags=re.DOTALL)
                text = text if re.search(r"\bX\b|feature names", text) else f"{rule}: {text}"
                raise ValueError(f"{text}{'; ' * bool(remedy)}{remedy}.") from None
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{rule}: {_one_line(error)}; encode or drop what is not a number.") from None


def _one_line(error: BaseException) -> str:
    """Return the first line of an error's message, without the full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
