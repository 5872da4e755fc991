"""Models in files: safetensors for the arrays, one JSON text for the rest. Nothing in a file is ever executed.

That text begins with the SHA-256 of the file, in hexadecimal: of all of its bytes, with 64 zeros in place of the digest
itself. So a file of which one bit has changed is refused.
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
from softmax_xp._files import whole_file
from softmax_xp.arrays import describe, to_numpy
from softmax_xp.backend import Backend, select_backend
from softmax_xp.estimator import SoftmaxClassifier
from softmax_xp.losses import LOSSES, described
from softmax_xp.models import MLP, Linear
from softmax_xp.solvers import Status

__all__ = ["ModelFileError", "load", "save"]

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
OF_THE_FIT = {"n_iter", "objective", "gradient_norm", "estimated_gap", "converged", "device"}  # there together or not

Model: TypeAlias = SoftmaxClassifier | MLP
Tensors: TypeAlias = dict[str, np.ndarray]


class ModelFileError(ValueError):
    """A file that holds no usable model. One line: the file, the rule, the value found, the remedy."""


def save(model: Model, path: str | os.PathLike[str]) -> None:
    """Write a model to a file that `load` reads on any machine, with or without a GPU.

    The file is in the safetensors format: the arrays, and as metadata one JSON text with everything else.
    It is written beside `path` first and then takes its place, so that an interrupted save leaves an older
    file as it was.

    Parameters
    ----------
    model : SoftmaxClassifier (fitted), Linear or MLP
    path : str or path-like
        By custom it ends in .safetensors.

    Raises
    ------
    sklearn.exceptions.NotFittedError
        For a classifier that has not been fitted.
    TypeError
        For another object, a subclass included, and for class labels that are not numbers, booleans or text.
    ValueError
        For parameters that are not finite.
    OSError
        When the file cannot be written; it names `path`.

    Notes
    -----
    Three parameters of the constructor are kept only in their plain forms. A `solver` that is an optimizer is
    described in the file, under "solver_repr", but comes back as "auto"; a `loss` of one's own, under "loss_repr",
    comes back as "cross_entropy"; a `random_state` that is a generator comes back as None. `callbacks` are left out.
    All four matter to the next fit alone.
    """
    if type(model) is SoftmaxClassifier:
        tensors, record = _classifier_parts(model)
    elif type(model) in (MLP, Linear):
        tensors, record = _network_parts(model)
    else:
        raise TypeError(f"`model` must be a SoftmaxClassifier, Linear or MLP, got {describe(model)}; pass one of them.")
    for name, array in tensors.items():
        if array.dtype.name not in FLOATS.values():
            raise TypeError(f"`{name}` must be float32 or float64, got {array.dtype}; convert it first.")
        if not np.isfinite(array).all():
            raise ValueError(f"`{name}` must be finite, got NaN or infinity; fit the model again.")
    record = {
        DIGEST_KEY: NO_DIGEST,
        "format": FORMAT_VERSION,
        "version": __version__,
        "kind": type(model).__name__,
        **record,
    }
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    content = safetensors_bytes(contiguous, {KEY: json.dumps(record)})
    with whole_file(path, "wb") as stream:
        stream.writelines(_with_digest(content))


def load(path: str | os.PathLike[str], device: str = "auto") -> Any:
    """Read a model that `save` wrote.

    Parameters
    ----------
    path : str or path-like
    device : {"auto", "cpu", "cuda", "cuda:<index>"}, default "auto"
        Where a SoftmaxClassifier computes its predictions of host data, whatever device it was fitted on;
        "auto" is the best usable one. A network computes where its X is.

    Returns
    -------
    SoftmaxClassifier, Linear or MLP
        With NumPy arrays, in the dtype they were saved in.

    Raises
    ------
    DeviceUnavailableError
        When `device` cannot be used.
    FileNotFoundError
        When there is no such file.
    ModelFileError
        When the file is damaged, is no model of this library, or was written by a newer version of it.

    Warns
    -----
    UserWarning
        When the file is of a version that wrote no digest, so that damage to it could not be noticed.
    """
    backend = select_backend(device)
    file = os.fsdecode(path)
    if stat.S_ISFIFO(mode := os.stat(file).st_mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        raise _refusal(file, "must be a regular file", "a device or a pipe", "copy the model to a file and load that")
    open(file, "rb").close()  # a missing or unreadable file raises what it raises everywhere
    with _reading(file), safe_open(file, framework="numpy") as handle:  # checks the header against the file's length
        record, tensors = _record(file, handle), _Tensors(file, handle)
        has_digest = record.count("format", 1) > 1
        if has_digest:
            _check_digest(file, record.text(DIGEST_KEY))
        if record.text("kind") == "SoftmaxClassifier":
            model: Model = _classifier(record, tensors, backend)
        else:
            model = _network(record, tensors)
    if not has_digest:
        message = (
            f"{file} has no digest, as older versions wrote it: damage to it cannot be noticed; save the model again."
        )
        warnings.warn(message, UserWarning, stacklevel=2)
    return model


# --- Models to arrays and JSON ---


def _classifier_parts(model: SoftmaxClassifier) -> tuple[Tensors, dict[str, Any]]:
    coef, intercept = (to_numpy(x) for x in model._coefficients())
    model._check_parameters()  # or `load` would refuse them
    parameters = {name: _plain(value) for name, value in model.get_params(deep=False).items() if name != "callbacks"}
    record: dict[str, Any] = {"parameters": parameters}
    if isinstance(model.class_weight, dict):  # JSON has no keys but text
        parameters["class_weight"] = [[_plain(label), _plain(w)] for label, w in model.class_weight.items()]
    if not isinstance(model.solver, str):
        parameters["solver"], record["solver_repr"] = "auto", repr(model.solver)
    if not isinstance(model.loss, str):
        parameters["loss"], record["loss_repr"] = described(model.loss) or "cross_entropy", repr(model.loss)
    if type(parameters["random_state"]) is not int:
        parameters["random_state"] = None
    parameters["dtype"] = model._dtype_name()
    names = getattr(model._of_features(coef.shape[1]), "feature_names_in_", None)
    record |= {
        "classes": _labels_record(to_numpy(model.classes_)),
        "n_features": coef.shape[1],
        "feature_names": None if names is None else [str(name) for name in names],
    }
    if hasattr(model, "n_iter_"):  # else its attributes were set by hand
        record |= {
            "n_iter": int(model.n_iter_[0]),
            "objective": float(model.objective_),
            "gradient_norm": float(model.gradient_norm_),
            "estimated_gap": None if math.isnan(model.estimated_gap_) else float(model.estimated_gap_),
            "converged": bool(model.converged_),
            "device": str(model.device_),
        }
        if hasattr(model, "status_"):  # else it was loaded from a file without
            record["status"] = str(model.status_)
    dtype = np.result_type(coef, intercept)
    return {"coef": coef.astype(dtype, copy=False), "intercept": intercept.astype(dtype, copy=False)}, record


def _network_parts(model: MLP) -> tuple[Tensors, dict[str, Any]]:
    record: dict[str, Any] = {"sizes": model.sizes, "activation": model.activation, "init": model.init}
    return {name: to_numpy(value) for name, value in model.params.items()}, record


def _plain(value: Any) -> Any:
    """Return a 0-d array or NumPy scalar as Python's own number, and anything else as it is."""
    return to_numpy(value).item() if getattr(value, "ndim", None) == 0 else value


def _labels_record(classes: np.ndarray) -> dict[str, Any]:
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


# --- Arrays and JSON to models; every claim of the file is checked before it is used ---


class _Record:
    """The JSON object of a file, whose fields have the types that are asked for."""

    def __init__(self, file: str, fields: Any, name: str = "") -> None:
        self.file, self.name = file, name
        self.fields: dict[str, Any] = fields
        if not isinstance(fields, dict):
            raise self.refusal("must be an object", fields)

    def refusal(self, rule: str, found: Any, key: str = "") -> ModelFileError:
        """Return the error for one field, or for the whole record."""
        field = ".".join(part for part in (self.name, key) if part) or "the record"
        return _refusal(self.file, f"{field} {rule}", describe(found))

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

    def record(self, key: str) -> _Record:
        """Return an object inside of this one."""
        return _Record(self.file, self.value(key, dict), key)


class _Tensors:
    """The arrays of a file, read when their shapes are as expected."""

    def __init__(self, file: str, handle: Any) -> None:
        self.file, self.handle = file, handle

    def rows(self, name: str) -> int | None:
        """Return the length of the first axis of an array, if there is such an array."""
        shape = self.handle.get_slice(name).get_shape() if name in self.handle.keys() else []  # noqa: SIM118
        return int(shape[0]) if shape else None

    def read(self, shapes: dict[str, tuple[int, ...]]) -> Tensors:
        """Return exactly the arrays named in `shapes`, all of one dtype."""
        names = sorted(self.handle.keys())
        if names != sorted(shapes):
            raise _refusal(self.file, f"the arrays must be {', '.join(shapes)}", describe(names))
        for name, shape in shapes.items():
            part = self.handle.get_slice(name)
            if tuple(part.get_shape()) != shape:
                raise _refusal(self.file, f"array {name} must have shape {shape}", str(tuple(part.get_shape())))
            if part.get_dtype() not in FLOATS:
                raise _refusal(self.file, f"array {name} must be float32 or float64", part.get_dtype())
        tensors = {name: self.handle.get_tensor(name) for name in shapes}
        dtypes = sorted({array.dtype.name for array in tensors.values()})
        if len(dtypes) > 1:
            raise _refusal(self.file, "all arrays must have one dtype", " and ".join(dtypes))
        for name, array in tensors.items():
            if not np.isfinite(array).all():
                raise _refusal(self.file, f"array {name} must be finite", "NaN or infinity")
        return tensors


def _record(file: str, handle: Any) -> _Record:
    text = (handle.metadata() or {}).get(KEY)
    if text is None:
        remedy = "give a file that softmax_xp.save wrote"
        raise _refusal(file, f"the metadata must have the key {KEY!r}", "none", remedy)
    record = _Record(file, json.loads(text))
    version = record.count("format", 1)
    if version > FORMAT_VERSION:
        found = f"format {version}, written by {describe(record.fields.get('version'))}"
        remedy = "upgrade: pip install -U softmax-xp"
        raise _refusal(file, f"softmax_xp {__version__} reads format {FORMAT_VERSION}", found, remedy)
    return record


def _check_digest(file: str, digest: str) -> None:
    """Raise ModelFileError unless `digest` is that of the file."""
    with open(file, "rb") as stream:
        start = stream.read(8)
        header, entry = start + stream.read(*struct.unpack("<Q", start)), _digest_entry(digest)
        if header.count(entry) != 1:
            raise _refusal(file, f"the record must begin with {DIGEST_KEY}", describe(digest))
        found = hashlib.sha256(header.replace(entry, _digest_entry(NO_DIGEST)))
        while chunk := stream.read(1 << 20):
            found.update(chunk)
    if found.hexdigest() != digest:
        raise _refusal(file, f"its bytes must have the SHA-256 {digest}", found.hexdigest())


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


def _classifier(record: _Record, tensors: _Tensors, backend: Backend) -> SoftmaxClassifier:
    model = SoftmaxClassifier(**_parameters(record.record("parameters")))
    try:
        model._check_parameters()
    except (TypeError, ValueError) as error:
        raise _refusal(record.file, "the parameters must be valid", str(error).rstrip(".")) from error
    classes = _labels(record.record("classes"))
    n_features = record.count("n_features", 1)
    n_rows = 1 if len(classes) == 2 and tensors.rows("coef") == 1 else len(classes)
    arrays = tensors.read({"coef": (n_rows, n_features), "intercept": (n_rows,)})
    if record.value("feature_names", list, type(None)) is not None:
        names = record.items("feature_names", str)
        if len(names) != n_features:
            raise record.refusal(f"must have {n_features} names", len(names), "feature_names")
        model.feature_names_in_ = np.array(names, dtype=object)
    model.coef_, model.intercept_ = arrays["coef"], arrays["intercept"]
    model.classes_ = classes
    model.n_features_in_ = n_features
    model.device_ = model._host_device = backend.name
    if OF_THE_FIT.isdisjoint(record.fields):  # the attributes were set by hand
        return model
    model.n_iter_ = np.array([record.count("n_iter", 0)], dtype=np.int32)
    model.objective_ = record.value("objective", float)
    model.gradient_norm_ = record.value("gradient_norm", float)
    gap = record.value("estimated_gap", float, type(None))
    model.estimated_gap_ = math.nan if gap is None else gap
    model.converged_ = record.value("converged", bool)
    if "status" in record.fields:  # files of earlier versions have none
        status = record.text("status")
        if status not in list(Status):
            raise record.refusal(f"must be one of {', '.join(Status)}", status, "status")
        model.status_ = Status(status)
    record.text("device")  # of the fit: for readers of the file
    return model


def _parameters(record: _Record) -> dict[str, Any]:
    unknown = sorted(set(record.fields) - set(SoftmaxClassifier().get_params()) | set(record.fields) & {"callbacks"})
    if unknown:  # a missing one, that an older version did not have yet, takes its default
        raise record.refusal(f"must be what softmax_xp {__version__} knows", unknown)
    record.text("solver")
    record.text("device")
    record.value("fit_intercept", bool)
    record.value("warm_start", bool)
    record.value("random_state", int, type(None))
    parameters = dict(record.fields)
    pairs = record.value("class_weight", str, list, type(None))
    if isinstance(pairs, list):
        parameters["class_weight"] = {label: float(weight) for label, weight in pairs}
    if "loss" in parameters and isinstance(loss := record.value("loss", str, dict), dict):
        kind = LOSSES.get(str(loss.get("name")))
        if kind is None:
            raise record.refusal(f"must have one of {', '.join(LOSSES)} as its name", loss, "loss")
        try:
            parameters["loss"] = kind(**{name: number for name, number in loss.items() if name != "name"})
        except (TypeError, ValueError) as error:
            raise record.refusal("must have the parameters of that loss", str(error), "loss") from error
    return parameters


def _labels(record: _Record) -> np.ndarray:
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


def _network(record: _Record, tensors: _Tensors) -> MLP:
    kind, sizes = record.text("kind"), record.items("sizes", int)
    if kind not in ("Linear", "MLP"):
        raise record.refusal("must be SoftmaxClassifier, Linear or MLP", kind, "kind")
    if len(sizes) < 2 or min(sizes) < 1 or (kind == "Linear" and len(sizes) > 2):
        raise record.refusal("must be the width of each layer", sizes, "sizes")
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, shape in enumerate(pairwise(sizes), start=1):
        number = "" if kind == "Linear" else layer
        shapes |= {f"W{number}": shape, f"b{number}": shape[1:]}
    params = tensors.read(shapes)
    activation, init = record.text("activation"), record.text("init")
    model = Linear(*sizes) if kind == "Linear" else MLP(sizes, activation, init)
    model.params = dict(params)
    return model


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
        raise _refusal(file, "must be a model that softmax_xp.save wrote", found) from error


def _refusal(
    file: str, rule: str, found: str, remedy: str = "the file is damaged or no model; save it again"
) -> ModelFileError:
    return ModelFileError(" ".join(f"{file}: {rule}, got {found}; {remedy}".splitlines()))
