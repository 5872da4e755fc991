"""Data for the command: read files, divide rows, and match features and labels with those of a model."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# NumPy and scikit-learn are imported where they are used, so that --help answers at once.
if TYPE_CHECKING:
    import numpy as np

    from softmax_xp import SoftmaxClassifier
    from softmax_xp.readers import Table


def files_of(data: Path | None, target: str | None) -> list[Path]:
    """Return the file, and that with its labels where there is one."""
    from softmax_xp.readers import labels_file

    if data is None:
        return []
    labels = labels_file(data, target)
    return [data] if labels is None else [data, labels]


def training_table(data: Path | None, target: str | None, drop: Sequence[str], **options: Any) -> Table:
    """Return the table in a file without the columns `drop`, or scikit-learn's digits; `options` of `read_table`."""
    from softmax_xp.readers import Table, read_table

    if data is not None:
        return read_table(data, target=target, drop=drop, **options)
    if target is not None or drop:
        option = "--drop" if target is None else "--target"
        raise ValueError(f"{option} goes with a file of data, got none; name the file before it")
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    return Table(X / 16.0, y, None, "scikit-learn's digits")


def split(table: Table, holdout: float, seed: int) -> tuple[Any, Any, Any, Any]:
    """Return X, y for training and X, y held out, drawn class by class where every class has rows for both.

    The only row of a class is never held out.
    """
    import numpy as np
    from sklearn.model_selection import train_test_split

    X: Any = table.X
    y: Any = table.y
    if holdout == 0.0:
        return X, y, X[:0], y[:0]
    classes, inverse, counts = np.unique(y, return_inverse=True, return_counts=True)
    lone = np.flatnonzero(counts[inverse] == 1)
    rows = np.flatnonzero(counts[inverse] > 1)
    n_test = math.ceil(holdout * len(rows))
    if n_test in (0, len(rows)):
        raise ValueError(
            f"{table.source}: --holdout must leave rows to train and to test on, got {holdout} of {len(rows)} rows "
            f"(the only row of a class is never held out); lower it, or use --holdout 0"
        )
    by_class = int(np.sum(counts > 1)) <= min(n_test, len(rows) - n_test)
    kept, held = train_test_split(rows, test_size=n_test, stratify=y[rows] if by_class else None, random_state=seed)
    kept = np.concatenate([kept, lone])
    unlearned = np.setdiff1d(classes, y[kept]).tolist()
    if unlearned:
        raise ValueError(
            f"{table.source}: --holdout must leave rows of each class to train on, got none of {_listed(unlearned)}; "
            f"lower it, use --holdout 0, or give a file to --test"
        )
    return X[kept], y[kept], X[held], y[held]


def test_rows(test: Path, target: str | None, trained: Table, **options: Any) -> tuple[Any, Any]:
    """Return X, y of a file, with the features and the labels of the table that was trained on."""
    import numpy as np

    from softmax_xp.readers import read_table

    if target is not None and trained.feature_names is None and os.path.isfile(target):
        target = None  # the file with the labels of the other file; this one's is found by its name
    table = read_table(test, target=target, features=trained.feature_names, **options | {"labels": "written"})
    classes: Any = np.unique(np.asarray(trained.y))
    return table.X, classes[class_indices(table, classes)]


def model_and_table(
    model: Path, data: Path, device: str, target: str | None = None, need_target: bool = True, **options: Any
) -> tuple[SoftmaxClassifier, Table]:
    """Return the model in a file, and the table in another one with the features that the model takes."""
    from softmax_xp import SoftmaxClassifier
    from softmax_xp.readers import read_table

    classifier = SoftmaxClassifier.load(model, device=device)
    names = getattr(classifier, "feature_names_in_", None)
    options |= {"labels": "written", "dtype": classifier.dtype or "float64"}
    table = read_table(data, target=target, features=names, need_target=need_target, **options)
    if table.X.shape[1] != classifier.n_features_in_:
        raise ValueError(
            f"{table.source}: the model takes {classifier.n_features_in_} features, got {table.X.shape[1]}; "
            f"name the column with the labels by --target, or give data like that of train"
        )
    return classifier, table


def class_indices(table: Table, classes: np.ndarray) -> np.ndarray:
    """Return the index of each row's label in `classes`, which may be of another type: see `labels.class_indices`."""
    import numpy as np

    from softmax_xp import labels

    found, inverse = np.unique(np.asarray(table.y), return_inverse=True)
    indices = labels.class_indices(found, classes)
    unseen = [label for label, index in zip(found.tolist(), indices, strict=True) if index is None]
    if unseen:
        raise ValueError(
            f"{table.source}: labels must be among those trained on, {_listed(classes.tolist())}, "
            f"got {_listed(unseen)}; leave out such rows, or train with them"
        )
    return np.array(indices, dtype=np.intp)[inverse]


def _listed(labels: Sequence[object]) -> str:
    shown = ", ".join(repr(label) for label in labels[:8])
    return shown if len(labels) <= 8 else f"{shown}, ... ({len(labels)} in all)"
