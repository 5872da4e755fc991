"""Class labels: as NumPy arrays in which distinct labels stay distinct, from text, and matched with known classes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from numbers import Integral
from typing import Any, TypeAlias

import numpy as np
from sklearn.utils import column_or_1d

from softmax_xp.arrays import check_dense, is_array, to_numpy

Label: TypeAlias = bool | int | float | str

BOOLEANS = {"true": True, "false": False}  # as text, in any case
# What a label may be as an object of Python.
KINDS: dict[str, tuple[type, ...]] = {
    "boolean": (bool, np.bool_),
    "integer": (Integral,),
    "float": (float, np.floating),
    "text": (str,),
}


def label_array(y: Any, name: str = "y") -> np.ndarray:
    """Return class labels as a NumPy array in which distinct labels are distinct.

    =============================================  ==================================================
    y                                              dtype
    =============================================  ==================================================
    array of numbers or booleans, of any library   that of `y`, in the byte order of this machine
    pandas, polars, Arrow: numbers and booleans    that of `y` as NumPy names it (Int64: int64)
    array of objects or pandas, with text          object, as scikit-learn has it
    NumPy, polars, lists, with text                str; object if a text ends with a null character
    list or array of objects, without text         bool, int64, uint64 or float64
    =============================================  ==================================================

    Parameters
    ----------
    y : array, series, frame of one column, or list of shape (n_samples,)
    name : str
        What messages call `y`.

    Returns
    -------
    ndarray of shape (n_samples,)

    Raises
    ------
    TypeError
        For labels of several types, such as 1 and "1", and for types that are no labels: bytes, complex, objects.
    ValueError
        For missing labels, for integers beyond 64 bits, and for another shape.
    """
    check_dense(y, name)
    array, was_list = _converted(y, name)
    if array.ndim != 1 and (array.ndim != 2 or array.shape[1] != 1):
        rule = (
            f"`{name}` must be one class label a row, got an array of shape {array.shape} where a 1d array is expected"
        )
        raise ValueError(f"{rule}; pass shape (n_samples,).")
    array = column_or_1d(array, warn=True)
    if array.dtype.kind == "O":
        array = _of_one_type(array, name, as_str=was_list)
    if array.dtype.kind not in "biufUOmM":
        raise _not_labels(name, "bytes" if array.dtype.kind == "S" else f"dtype {array.dtype}")
    if array.dtype.kind in "fmM":
        bad = np.flatnonzero(~np.isfinite(array))
        if bad.size:
            raise _missing(name, int(bad[0]), "NaN" if np.isnan(array[bad[0]]) else "infinity")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _converted(y: Any, name: str) -> tuple[np.ndarray, bool]:
    """Return `y` as an array, and whether it is a list of Python's objects, or text that may be one.

    A list is read as objects: NumPy makes text of [1, "1"], and one float of two large integers.
    """
    try:
        if is_array(y):
            array = to_numpy(y)
        elif hasattr(y, "__array__"):
            array = np.asarray(y)
            if array.dtype.kind == "U":  # which cannot end with a null character
                return np.asarray(y, dtype=object), True
        else:
            return np.asarray(y, dtype=object), True
        return (array.astype(object), False) if array.dtype.kind == "T" else (array, False)
    except Exception as error:  # polars has exceptions of its own
        reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        raise TypeError(
            f"`{name}` must be one class label a row, got {type(y).__name__} ({reason}); pass a list of labels."
        ) from error


def _of_one_type(objects: np.ndarray, name: str, as_str: bool) -> np.ndarray:
    """Return Python's objects (n,) in the dtype of their one type; text as objects, or as str with `as_str`."""
    # A list may hold arrays of rank 0, such as torch's scalars.
    values = [x.item() if getattr(x, "ndim", None) == 0 and not np.isscalar(x) else x for x in objects.tolist()]
    first: dict[str, int] = {}  # kind -> the first row that has it
    kinds = {kind: _kind(kind) for kind in set(map(type, values))}
    for row, value in enumerate(values):
        kind = kinds[type(value)]
        if kind == "missing" or (kind == "float" and math.isnan(value)):
            raise _missing(name, row, "NaN" if kind == "float" else repr(value))
        first.setdefault(kind, row)
    if first.keys() == {"integer", "float"}:
        array = np.asarray(values)
        if array.dtype.kind == "f" and array.tolist() == values:  # no integer is rounded
            return array
    if len(first) > 1:
        found = " and ".join(f"{kind} {values[row]!r} at row {row}" for kind, row in list(first.items())[:2])
        raise TypeError(
            f"`{name}` must be class labels of one type, got {found}; "
            f"pass one type, for example text: [str(label) for label in {name}]."
        )
    if not first:
        return np.asarray(values)
    kind = next(iter(first))
    if kind == "text":
        return np.array(values) if as_str and not any(text.endswith("\0") for text in values) else objects
    if kind == "integer":
        return _integers(values, name)
    if kind in KINDS:
        return np.asarray(values)
    raise _not_labels(name, kind)


def _not_labels(name: str, found: str) -> TypeError:
    remedy = "decode them first, for example with numpy.char.decode" if found == "bytes" else "pass integers or text"
    return TypeError(f"`{name}` must be one class label a row, an integer, boolean or text, got {found}; {remedy}.")


def _missing(name: str, row: int, found: str) -> ValueError:
    return ValueError(
        f"`{name}` must be one class label a row, and row {row} has {found}; pass a label there, or drop such rows."
    )


def _kind(cls: type) -> str:
    if cls is type(None) or cls.__name__ in ("NAType", "NaTType"):  # the last two are of pandas
        return "missing"
    return next((kind for kind, types in KINDS.items() if issubclass(cls, types)), cls.__name__)


def _integers(values: Sequence[int], name: str) -> np.ndarray:
    """Return integers of Python or NumPy in the dtype that NumPy finds, if that is one of integers, or in 64 bits."""
    array = np.asarray(values)
    if array.dtype.kind in "iu":
        return array
    for dtype in (np.int64, np.uint64):
        if np.iinfo(dtype).min <= min(values) and max(values) <= np.iinfo(dtype).max:
            return np.array([int(value) for value in values], dtype=dtype)
    raise ValueError(
        f"`{name}` must be integers that int64 or uint64 can hold, got {min(values)} to {max(values)}; "
        f"pass text: [str(label) for label in {name}]."
    )


# --- Text ---


def value_of(text: str) -> Label | None:
    """Return the boolean (in any case) or the finite number that is written as `text`; None for "01" or "1e2"."""
    value = _read_as(text)
    return value if isinstance(value, bool) or str(value) == text else None


def _read_as(text: str) -> Label | None:
    """Return the boolean or the finite number that `text` can be read as: 1 for "01"."""
    if text.lower() in BOOLEANS:
        return BOOLEANS[text.lower()]
    for read in (int, float):
        try:
            value = read(text)
        except ValueError:
            continue
        return value if isinstance(value, int) or math.isfinite(value) else None
    return None


def text_of(labels: np.ndarray) -> list[str]:
    """Return labels as text, each as Python writes it; float32(0.1) is 0.1, not the float64 that is nearest to it."""
    if labels.dtype.kind == "f":
        return [str(float(text)) for text in labels.astype(str).tolist()]
    return [str(label) for label in labels.tolist()]


def labels_from_text(texts: Sequence[str]) -> np.ndarray:
    """Return distinct texts as numbers if each is a number exactly as that is written, else as text.

    All are integers of 64 bits, or all are floats, and no two of them are equal ("0.0" and "-0.0").
    """
    values = [value_of(text) for text in texts]
    types = set(map(type, values))
    if len(set(values)) == len(texts):
        if types == {int}:
            try:
                return _integers([int(value) for value in values if value is not None], "labels")
            except ValueError:  # no dtype holds them all
                pass
        elif types == {float}:
            return np.array(values, dtype=np.float64)
    return _of_one_type(np.array(texts, dtype=object), "labels", as_str=True)


def class_indices(labels: np.ndarray, classes: np.ndarray) -> list[int | None]:
    """Return for each of the distinct `labels` its index in `classes`, which may be of another type, or None.

    Text is matched with text, and numbers and booleans with numbers and booleans. A text and a number match if the text
    is how the number is written, and if no other text is the same number: 1 is none of the classes "1" and "01".
    """
    known = {label: index for index, label in enumerate(classes.tolist())}
    are_text, classes_are_text = labels.dtype.kind in "UO", classes.dtype.kind in "UO"
    if are_text == classes_are_text:
        return [known.get(label) for label in labels.tolist()]
    if are_text:
        texts: list[str] = labels.tolist()
        values = [value_of(text) for text in texts]
        found = [None if value is None else known.get(value) for value in values]
        count = Counter(found)  # of texts that are equal as numbers, only the one written as the class matches
        return [
            index if index is None or count[index] == 1 or str(classes[index]) == text else None
            for index, text in zip(found, texts, strict=True)
        ]
    read_as: dict[Label | None, list[int]] = {}
    for text, index in known.items():
        read_as.setdefault(_read_as(text), []).append(index)
    matches = [read_as.get(_read_as(text), []) for text in text_of(labels)]
    return [match[0] if len(match) == 1 and value_of(classes[match[0]]) is not None else None for match in matches]
