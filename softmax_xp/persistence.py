"""Save models to files, and load them."""

from __future__ import annotations

import os
from typing import Any

from softmax_xp.backend import select_backend
from softmax_xp.estimator import SoftmaxClassifier
from softmax_xp.files.model import ModelFileError, opened, write
from softmax_xp.models import MLP, Linear
from softmax_xp.records import classifier_parts, loaded, network_parts, not_a_model

__all__ = ["ModelFileError", "load", "save"]


def save(model: SoftmaxClassifier | MLP, path: str | os.PathLike[str]) -> None:
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
        parts = classifier_parts(model)
    elif type(model) in (MLP, Linear):
        parts = network_parts(model)
    else:
        raise not_a_model(model)
    write(path, type(model).__name__, *parts)


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
    with opened(path) as (fields, arrays):
        return loaded(SoftmaxClassifier, fields, arrays, backend)
