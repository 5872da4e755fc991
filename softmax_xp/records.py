"""What a file holds of each model, and a model from it; every claim of a file is checked before it is used."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from softmax_xp import __version__
from softmax_xp.arrays import describe, to_numpy
from softmax_xp.backend import Backend
from softmax_xp.files.model import Arrays, Fields, StoredArrays, labels, labels_record, refusal
from softmax_xp.losses import LOSSES, described
from softmax_xp.models import MLP, Linear
from softmax_xp.solvers import Status

OF_THE_FIT = {"n_iter", "objective", "gradient_norm", "estimated_gap", "converged", "device"}  # there together or not


def loaded(make_classifier: Callable[..., Any], fields: Fields, arrays: StoredArrays, backend: Backend) -> Any:
    """Return the model of an open file; `make_classifier` is the class SoftmaxClassifier."""
    if fields.text("kind") == "SoftmaxClassifier":
        return _classifier(make_classifier, fields, arrays, backend)
    return _network(fields, arrays)


def not_a_model(model: Any) -> TypeError:
    """Return the error for an object that no file can hold."""
    return TypeError(f"`model` must be a SoftmaxClassifier, Linear or MLP, got {describe(model)}; pass one of them.")


def classifier_parts(model: Any) -> tuple[Arrays, dict[str, Any]]:
    """Return the arrays of a fitted SoftmaxClassifier, and what else a file holds of it."""
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
        "classes": labels_record(to_numpy(model.classes_)),
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


def network_parts(model: MLP) -> tuple[Arrays, dict[str, Any]]:
    """Return the arrays of a network, and what else a file holds of it."""
    record: dict[str, Any] = {"sizes": model.sizes, "activation": model.activation, "init": model.init}
    return {name: to_numpy(value) for name, value in model.params.items()}, record


def _plain(value: Any) -> Any:
    """Return a 0-d array or NumPy scalar as Python's own number, and anything else as it is."""
    return to_numpy(value).item() if getattr(value, "ndim", None) == 0 else value


def _classifier(make: Callable[..., Any], record: Fields, tensors: StoredArrays, backend: Backend) -> Any:
    model = make(**_parameters(record.record("parameters"), make().get_params()))
    try:
        model._check_parameters()
    except (TypeError, ValueError) as error:
        raise refusal(record.file, "the parameters must be valid", str(error).rstrip(".")) from error
    classes = labels(record.record("classes"))
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


def _parameters(record: Fields, known: dict[str, Any]) -> dict[str, Any]:
    unknown = sorted(set(record.fields) - set(known) | set(record.fields) & {"callbacks"})
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


def _network(record: Fields, tensors: StoredArrays) -> MLP:
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
