"""Models in files: safetensors for the arrays, one JSON text for the rest. Nothing in a file is ever executed.

The JSON text begins with the SHA-256 of the file, in hexadecimal: of all of its bytes, with 64 zeros in place of the
digest itself. So a file of which one bit has changed is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save as safetensors_bytes

from softmax_xp import __version__
from softmax_xp.arrays import describe
from softmax_xp.files.whole import whole_file

FORMAT_VERSION = 2  # files of version 1 have no digest
KEY = "softmax_xp"  # of the JSON text in the metadata of the file
DIGEST_KEY = "sha256"
NO_DIGEST = "0" * 64
FLOATS = {"F32": "float32", "F64": "float64"}  # safetensors' names
# How labels may be stored -> what each of them is in JSON.
LABELS: dict[str, type] = {
    "bool": bool,
    **{f"{sign}int{bits}": int for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": float for bits in (16, 32, 64)},
    "str": str,
    "object": str,
}

Arrays: TypeAlias = dict[str, np.ndarray]


def write(path: str | os.PathLike[str], kind: str, arrays: Arrays, fields: dict[str, Any]) -> None:
    """Write a model of a kind: its arrays in float32 or float64, and fields that JSON can hold.

    Raises
    ------
    TypeError, ValueError
        For arrays of another dtype, and for numbers in them that are not finite.
    OSError
        When the file cannot be written; it names `path`.
    """
    for name, array in arrays.items():
        if array.dtype.name not in FLOATS.values():
            raise TypeError(f"`{name}` must be float32 or float64, got {array.dtype}; convert it first.")
        if not np.isfinite(array).all():
            raise ValueError(f"`{name}` must be finite, got NaN or infinity; fit the model again.")
    record = {DIGEST_KEY: NO_DIGEST, "format": FORMAT_VERSION, "version": __version__, "kind": kind, **fields}
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    content = safetensors_bytes(contiguous, {KEY: json.dumps(record)})
    with whole_file(path, "wb") as stream:
        stream.writelines(_with_digest(content))


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[tuple[Fields, StoredArrays]]:
    """Open a file that `write` wrote, for its fields and its arrays.

    Whatever is raised while it is open becomes a ModelFileError; what `softmax_xp.load` raises and warns of.
    """
    file = os.fsdecode(path)
    if stat.S_ISFIFO(mode := os.stat(file).st_mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        raise refusal(file, "must be a regular file", "a device or a pipe", "copy the model to a file and load that")
    open(file, "rb").close()  # a missing or unreadable file raises what it raises everywhere
    with _reading(file), safe_open(file, framework="numpy") as handle:  # checks the header against the file's length
        fields = fields_of(file, handle)
        has_digest = fields.count("format", 1) > 1
        if has_digest:
            _check_digest(file, fields.text(DIGEST_KEY))
        yield fields, StoredArrays(file, handle)
    if not has_digest:
        message = (
            f"{file} has no digest, as older versions wrote it: damage to it cannot be noticed; save the model again."
        )
        warnings.warn(message, UserWarning, stacklevel=4)


class ModelFileError(ValueError):
    """A file that holds no usable model. One line: the file, the rule, the value found, the remedy."""


class Fields:
    """The JSON object of a file, whose fields have the types that are asked for."""

    def __init__(self, file: str, fields: Any, name: str = "") -> None:
        self.file, self.name = file, name
        self.fields: dict[str, Any] = fields
        if not isinstance(fields, dict):
            raise self.refusal("must be an object", fields)

    def refusal(self, rule: str, found: Any, key: str = "") -> ModelFileError:
        """Return the error for one field, or for the whole record."""
        field = ".".join(part for part in (self.name, key) if part) or "the record"
        return refusal(self.file, f"{field} {rule}", describe(found))

    def value(self, key: str, *types: type) -> Any:
        """Return a field that is exactly of one of `types`: True is no int here."""
        if key not in self.fields:
            raise self.refusal("must be there", "nothing", key)
        value = self.fields[key]
        if type(value) not in types:
            raise self.refusal(f"must be {' or '.join(kind.__name__ for kind in types)}", value, key)
        return value

    def text(self, key: str) -> str:
        """Return a text."""
        return str(self.value(key, str))

    def count(self, key: str, low: int) -> int:
        """Return an integer that any array can have as its length, at least `low`."""
        value = self.value(key, int)
        if not low <= value < 2**31:
            raise self.refusal(f"must lie in [{low}, 2**31)", value, key)
        return int(value)

    def items(self, key: str, kind: type) -> list[Any]:
        """Return a list with items of one type."""
        values: list[Any] = self.value(key, list)
        for value in values:
            if type(value) is not kind:
                raise self.refusal(f"must list items of type {kind.__name__}", value, key)
        return values

    def record(self, key: str) -> Fields:
        """Return an object inside of this one."""
        return Fields(self.file, self.value(key, dict), key)


class StoredArrays:
    """The arrays of a file, read when their shapes are as expected."""

    def __init__(self, file: str, handle: Any) -> None:
        self.file, self.handle = file, handle

    def rows(self, name: str) -> int | None:
        """Return the length of the first axis of an array, if there is such an array."""
        shape = self.handle.get_slice(name).get_shape() if name in self.handle.keys() else []  # noqa: SIM118
        return int(shape[0]) if shape else None

    def read(self, shapes: dict[str, tuple[int, ...]]) -> Arrays:
        """Return exactly the arrays named in `shapes`, all of one dtype."""
        names = sorted(self.handle.keys())
        if names != sorted(shapes):
            raise refusal(self.file, f"the arrays must be {', '.join(shapes)}", describe(names))
        for name, shape in shapes.items():
            part = self.handle.get_slice(name)
            if tuple(part.get_shape()) != shape:
                raise refusal(self.file, f"array {name} must have shape {shape}", str(tuple(part.get_shape())))
            if part.get_dtype() not in FLOATS:
                raise refusal(self.file, f"array {name} must be float32 or float64", part.get_dtype())
        tensors = {name: self.handle.get_tensor(name) for name in shapes}
        dtypes = sorted({array.dtype.name for array in tensors.values()})
        if len(dtypes) > 1:
            raise refusal(self.file, "all arrays must have one dtype", " and ".join(dtypes))
        for name, array in tensors.items():
            if not np.isfinite(array).all():
                raise refusal(self.file, f"array {name} must be finite", "NaN or infinity")
        return tensors


def fields_of(file: str, handle: Any) -> Fields:
    """Return the fields of an open file, of a format that this version reads."""
    text = (handle.metadata() or {}).get(KEY)
    if text is None:
        remedy = "give a file that softmax_xp.save wrote"
        raise refusal(file, f"the metadata must have the key {KEY!r}", "none", remedy)
    record = Fields(file, json.loads(text))
    version = record.count("format", 1)
    if version > FORMAT_VERSION:
        found = f"format {version}, written by {describe(record.fields.get('version'))}"
        remedy = "upgrade: pip install -U softmax-xp"
        raise refusal(file, f"softmax_xp {__version__} reads format {FORMAT_VERSION}", found, remedy)
    return record


def _check_digest(file: str, digest: str) -> None:
    """Raise ModelFileError unless `digest` is that of the file."""
    with open(file, "rb") as stream:
        start = stream.read(8)
        header, entry = start + stream.read(*struct.unpack("<Q", start)), _digest_entry(digest)
        if header.count(entry) != 1:
            raise refusal(file, f"the record must begin with {DIGEST_KEY}", describe(digest))
        found = hashlib.sha256(header.replace(entry, _digest_entry(NO_DIGEST)))
        while chunk := stream.read(1 << 20):
            found.update(chunk)
    if found.hexdigest() != digest:
        raise refusal(file, f"its bytes must have the SHA-256 {digest}", found.hexdigest())


def _with_digest(content: bytes) -> tuple[bytes, memoryview]:
    """Return the two parts of a file with NO_DIGEST, header and arrays, with its digest instead."""
    length = 8 + struct.unpack("<Q", content[:8])[0]
    header, arrays = content[:length], memoryview(content)[length:]
    digest = hashlib.sha256(header)
    digest.update(arrays)
    return header.replace(_digest_entry(NO_DIGEST), _digest_entry(digest.hexdigest())), arrays


def _digest_entry(digest: str) -> bytes:
    """Return the bytes in a header from the key of the record to the digest; in a text, quotes would be escaped."""
    return f'"{KEY}":"{{\\"{DIGEST_KEY}\\": \\"{digest}\\"'.encode()


def labels(record: Fields) -> np.ndarray:
    """Return the class labels of a record, in their dtype and ascending."""
    dtype = record.text("dtype")
    if dtype not in LABELS:
        raise record.refusal(f"must be one of {', '.join(LABELS)}", dtype, "dtype")
    values = record.items("values", LABELS[dtype])
    if len(values) < 2 or not all(a < b for a, b in pairwise(values)):  # a NaN is not less than any
        raise record.refusal("must be two or more, in ascending order", values, "values")
    classes = np.array(values, dtype=dtype)
    if classes.tolist() != values:
        raise record.refusal(f"must be exact in {dtype}", values, "values")
    return classes


def labels_record(classes: np.ndarray) -> dict[str, Any]:
    """Return class labels as JSON can hold them; raise TypeError for those that it cannot."""
    dtype, values = "str" if classes.dtype.kind == "U" else classes.dtype.name, classes.tolist()
    bad = [v for v in values if dtype not in LABELS or not isinstance(v, LABELS[dtype]) or not _in_json(v)]
    if bad:
        raise TypeError(
            f"class labels must be finite numbers, booleans or text to be saved, got {describe(bad[0])} of dtype "
            f"{classes.dtype}; fit with such labels."
        )
    return {"dtype": dtype, "values": values}


def _in_json(label: Any) -> bool:
    """Return whether JSON gives a label back: not infinity, nor two surrogates, which it joins."""
    if isinstance(label, str):
        return re.search("[\ud800-\udbff][\udc00-\udfff]", label) is None
    return math.isfinite(label)


@contextmanager
def _reading(file: str) -> Iterator[None]:
    """Turn whatever a parser raises on bytes it does not understand into a refusal."""
    try:
        yield
    except (ModelFileError, MemoryError):
        raise
    except Exception as error:  # safetensors', json's and UTF-8's
        found = f"{type(error).__name__}: {error}"
        found = found if len(found) <= 160 else found[:157] + "..."
        raise refusal(file, "must be a model that softmax_xp.save wrote", found) from error


def refusal(
    file: str, rule: str, found: str, remedy: str = "the file is damaged or no model; save it again"
) -> ModelFileError:
    """Return the error for a file: the rule, what was found instead, and what helps."""
    return ModelFileError(" ".join(f"{file}: {rule}, got {found}; {remedy}".splitlines()))
