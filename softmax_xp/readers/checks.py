"""What every format owes: a request as it is asked, matrices and labels as they are answered, refusals in one line."""

import itertools
import os
import reprlib
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]


class DataFileError(ValueError):
    """A file that cannot be used. One line: the file, the rule, the value found, the remedy."""


class Request(NamedTuple):
    """What the caller asks of a file."""

    target: str | None
    features: list[str] | None
    drop: tuple[str, ...]
    need_target: bool


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
        raise refusal(file, f"must be a regular file, got {found}", "give the path of one data file")
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


def class_labels(array: Array, file: Path, what: str) -> Array:
    """Return `array`, which the refusals call `what`, as class labels: (n,), integers or text."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        rule = f"{what} must have shape (n_samples,), got {array.shape}"
        raise refusal(file, rule, "give one class label for each sample")
    if array.dtype.kind == "f":
        # Above 2**53 neighbouring integers are one float, so classes might have merged.
        bad = np.flatnonzero(~((np.trunc(array) == array) & (np.abs(array) <= 2**53)))
        if bad.size:
            rule = f"{what} must be classes, integers or text, got {array[bad[0]]} at row {bad[0]}"
            raise refusal(file, rule, "encode the classes as integers")
        return array.astype(np.int64)
    if array.dtype.kind == "b":
        return array.astype(np.int64)
    if array.dtype.kind == "S":
        with reading(file, "labels in UTF-8"):
            return np.char.decode(array, "utf-8")
    if array.dtype.kind not in "iuU":
        rule = f"{what} must be classes, integers or text, got {array.dtype}"
        raise refusal(file, rule, "encode the classes as integers")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


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


@contextmanager
def reading(file: Path, kind: str) -> Iterator[None]:
    """Turn whatever a parser raises on bytes it does not understand into a refusal."""
    try:
        yield
    except DataFileError:
        raise
    except Exception as error:  # a dozen types: zlib's, struct's, zipfile's, Arrow's, tokenize's
        found = f"{type(error).__name__}: {error}"
        found = found if len(found) <= 160 else found[:157] + "..."
        rule = f"must be {kind}, got bytes that are not ({found})"
        raise refusal(file, rule, "the file is truncated, damaged or of another kind") from error
