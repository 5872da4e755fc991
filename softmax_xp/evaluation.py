"""How well a classifier predicts: accuracy, log-loss, scores of each class, and the confusion of classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_fscore_support

from softmax_xp.arrays import row_blocks

SCORES = ("precision", "recall", "f1")


def scores(model: Any, X: Any, true: np.ndarray) -> dict[str, Any]:
    """Return the scores of a classifier on rows whose classes are known.

    Parameters
    ----------
    model : SoftmaxClassifier
        Fitted, with its results in NumPy.
    X : array of shape (n_samples, n_features)
    true : numpy.ndarray of shape (n_samples,)
        The index of each row's class in `model.classes_`.

    Returns
    -------
    dict
        "accuracy"; "log_loss", the mean of -log p of the true class, in nats; "classes", for each class its label, the
        SCORES and the number of its rows ("support"); "confusion", the number of rows of each pair of a true and a
        predicted class that occurs. Scores without a denominator are 0.
    """
    classes = model.classes_
    predicted = np.searchsorted(classes, model.predict(X))  # (n,)
    loss = 0.0
    for rows in row_blocks(len(true), len(classes) * 8):
        log_proba = model.predict_log_proba(X[rows])  # (m, K)
        loss -= float(np.sum(log_proba[np.arange(len(log_proba)), true[rows]], dtype=np.float64))
    of_classes = precision_recall_fscore_support(true, predicted, labels=np.arange(len(classes)), zero_division=0.0)
    pairs, counts = np.unique(np.stack([true, predicted]), axis=1, return_counts=True)
    labels = classes.tolist()
    return {
        "accuracy": float(np.mean(true == predicted)),
        "log_loss": loss / len(true),
        "classes": [
            dict(zip(("label", *SCORES, "support"), row, strict=True))
            for row in zip(labels, *(score.tolist() for score in of_classes), strict=True)
        ],
        "confusion": [
            {"true": labels[i], "predicted": labels[j], "rows": n}
            for i, j, n in zip(*pairs.tolist(), counts.tolist(), strict=True)
        ],
    }
