"""What all formats share: the request, checks of features and labels, and refusals in one line."""

import gzip
import itertools
import os
import reprlib
import shlex
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from softmax_xp.labels import label_array, text_of

Array: TypeAlias = NDArray[Any]


class DataFileError(ValueError):
    """A file that cannot be used. One line: the file, the rule, the value found, the remedy."""


class Request(NamedTuple):
    """The arguments of `read_table`."""

    target: str | None
    features: list[str] | None
    drop: tuple[str, ...]
    need_target: bool
    header: str
    labels: str
    dtype: str | None
    progress: Callable[[float], object] | None


# Features, labels, and the names of the columns.
Parts: TypeAlias = tuple[Array, Array | None, list[str] | None]


def existing_file(path: str | os.PathLike[str]) -> Path:
    """Return the path of a regular file that can be opened and is not empty."""
    file = Path(path)
    try:
        status = file.stat()
        if stat.S_ISREG(status.st_mode):
            open(file, "rb").close()
    except FileNotFoundError:
        raise refusal(file, "no such file", "check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise refusal(file, f"cannot be opened ({error})", "check the path and its permissions") from error
    if not stat.S_ISREG(status.st_mode):
        found = "a directory" if stat.S_ISDIR(status.st_mode) else "a device or a pipe"
        remedy = "give the path of one data file, or - for standard input"
        raise refusal(file, f"must be a regular file, got {found}", remedy)
    if status.st_size == 0:
        raise refusal(file, "the file is empty (0 bytes)", "write it again")
    return file


def feature_matrix(array: Array, file: Path, what: str) -> Array:
    """Return `array`, which the refusals call `what`, as features: (n, d), in C order, float32 or float64."""
    if array.ndim != 2:
        rule = f"{what} must have shape (n_samples, n_features), got {array.shape}"
        raise refusal(file, rule, "reshape(len(X), -1) flattens a stack, reshape(-1, 1) makes one feature")
    if array.dtype.kind not in "biuf":
        raise refusal(file, f"{what} must hold real numbers, got {array.dtype}", "convert it to float")
    if 0 in array.shape:
        rule = f"{what} must have at least one sample and one feature, got shape {array.shape}"
        raise refusal(file, rule, "check how it was written")
    return np.ascontiguousarray(array, dtype=floating(array.dtype))


def floating(dtype: Any) -> np.dtype[Any]:
    """Return the dtype that features of `dtype` are read to: float32 where that holds them all, else float64."""
    small = np.dtype(dtype).newbyteorder("=") in (np.float16, np.float32, np.uint8)
    return np.dtype(np.float32 if small else np.float64)


MISSING = "no value may be missing"
TEXT = "features must be numbers"


class BadColumn(NamedTuple):
    """A column with values that break a rule: the first of them, with its place, and the number of rows with one."""

    name: str
    first: str
    n_rows: int


def bad_columns(
    file: Path, request: Request, groups: dict[str, list[BadColumn]], droppable: Sequence[str] = ()
) -> DataFileError:
    """Return the refusal that names each column with values that break a rule, and those of them that may be dropped.

    `groups` has the columns by the rule.
    """
    rules = []
    for rule, columns in groups.items():
        counts = ", ".join(f"{column.name!r} {column.n_rows}" for column in columns)
        in_all = f" (rows: {counts})" if sum(column.n_rows for column in columns) > 1 else ""
        rules.append(f"{rule}, got {columns[0].first}{in_all}")
    remedy = "encode or correct such values, or leave out their rows"
    bad = {column.name for columns in groups.values() for column in columns}
    options = " ".join(f"--drop {shlex.quote(name)}" for name in droppable if name in bad)
    if options and request.features is None:
        remedy = f"{remedy}, or leave out the columns (`drop=`): train {options}"
    return refusal(file, ", and ".join(rules), remedy)


def not_finite(value: float, text: str, request: Request) -> tuple[str, str]:
    """Return the rule that a value breaks that is not finite in the requested dtype, and how the file has it."""
    if np.isnan(value):
        return MISSING, text
    if np.isinf(value):
        return "features must be finite", text if "inf" in text.lower() else f"{text}, beyond float64,"
    larger = "use --dtype float64" if request.features is None else "train with --dtype float64"
    return f"features must be finite in {request.dtype} (for larger ones {larger})", text


def all_finite(X: Array, dtype: str) -> bool:
    """Return whether all of `X`, which is not empty, lies within the range of a dtype."""
    limit = float(np.finfo(dtype).max)
    return bool(np.min(X) >= -limit and np.max(X) <= limit)  # false with a NaN


def check_features(
    X: Array, file: Path, request: Request, place: Callable[[int, int], str], names: Sequence[str] = ()
) -> None:
    """Refuse features (n, d) that are not finite in the requested dtype.

    `place` says where the file has the value at a row and a column of `X`; `names` are those of columns, where they
    have some.
    """
    if request.dtype is None or all_finite(X, request.dtype):
        return
    groups: dict[str, list[BadColumn]] = {}
    for column in range(X.shape[1]):
        with np.errstate(over="ignore"):
            rows = np.flatnonzero(~np.isfinite(X[:, column].astype(request.dtype)))
        if rows.size:
            value = X[rows[0], column]
            rule, found = not_finite(value, str(value), request)
            name = names[column] if names else str(column)
            groups.setdefault(rule, []).append(BadColumn(name, f"{found} at {place(int(rows[0]), column)}", rows.size))
    if groups:  # none where rounding takes the largest value down to the limit
        raise bad_columns(file, request, groups, names)


def class_labels(array: Array, file: Path, what: str, request: Request) -> Array:
    """Return `array`, which the refusals call `what`, as class labels: (n,), integers, booleans, whole floats or text.

    Floats need not be whole if the labels are wanted as text or as they are written.
    """
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        rule = f"{what} must have shape (n_samples,), got {array.shape}"
        raise refusal(file, rule, "give one class label for each sample")
    if array.dtype.kind == "S":
        with reading(file, "labels in UTF-8"):
            array = np.char.decode(array, "utf-8")
    if array.dtype.kind not in "biufUO":
        rule = f"{what} must be classes, integers, booleans or text, got {array.dtype}"
        raise refusal(file, rule, "write the classes as text or integers")
    try:
        array = label_array(array, what)
        if array.dtype.kind == "O":  # text, in objects only where NumPy's own text does not hold it
            array = label_array(array.tolist(), what)
    except (TypeError, ValueError) as error:
        rule, _, remedy = str(error).replace("`", "").rstrip(".").partition("; ")
        raise refusal(file, rule, remedy) from error
    if array.dtype.kind == "f" and request.labels == "auto":
        # Above 2**53 neighbouring integers are one float, so that classes may have merged.
        bad = np.flatnonzero((np.trunc(array) != array) | (np.abs(array) > 2**53))
        if bad.size:
            raise not_classes(file, what, str(array[bad[0]]), f"row {bad[0]}")
    return np.array(text_of(array)) if request.labels == "text" and array.dtype.kind in "biuf" else array


def not_classes(file: Path, what: str, found: str, where: str) -> DataFileError:
    """Return the refusal of labels that are fractions."""
    rule = f"{what} must be classes, integers, booleans or text, got {found} at {where}"
    return refusal(file, rule, "name another target, or say --labels text (`labels=`) if such numbers are classes")


def check_size(expected: int, found: int, shape: tuple[int, ...], file: Path, what: str) -> None:
    """Refuse a file whose header claims another number of bytes than there are."""
    if found != expected:
        more = "fewer" if found < expected else "more"
        rule = f"{what} of shape {shape} must take {expected} bytes, got {more}"
        raise refusal(file, rule, "the file is truncated or damaged, fetch or write it again")


def listed(names: Collection[str]) -> str:
    """Return the first few names, for a message."""
    shown = [reprlib.repr(str(name)) for name in itertools.islice(names, 8)]
    return (", ".join(shown) or "none") + (f", ... ({len(names)} in all)" if len(names) > len(shown) else "")


def refusal(file: Path, rule: str, remedy: str) -> DataFileError:
    """Return the error that says what a file breaks, in one line."""
    return DataFileError(" ".join(f"{file}: {rule}; {remedy}".splitlines()))


def unzipped(file: Path) -> BinaryIO:
    """Open `file`, through gzip if it starts as gzip does: downloads lose and gain .gz on their way."""
    with open(file, "rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    return cast("BinaryIO", gzip.open(file)) if packed else open(file, "rb")


@contextmanager
def reading(file: Path, kind: str) -> Iterator[None]:
    """Turn whatever a parser raises on bytes it does not understand into a refusal."""
    try:
        yield
    except (DataFileError, Warning):
        raise
    except Exception as error:  # a dozen types: zlib's, struct's, zipfile's, Arrow's, tokenize's
        found = f"{type(error).__name__}: {error}"
        found = found if len(found) <= 160 else found[:157] + "..."
        rule = f"must be {kind}, got bytes that are not ({found})"
        raise refusal(file, rule, "the file is truncated, damaged or of another kind") from error
