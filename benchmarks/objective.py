"""The objective by definition, in float64: what every result is judged by, whatever its library says of it."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

BLOCK_BYTES = 32 << 20


def value_and_grad(X: Array, y: Array, coef: Array, intercept: Array, strength: float) -> tuple[float, Array]:
    """Return the mean cross-entropy + strength / 2 * ||coef||^2 and its gradient in `coef`.

    Parameters
    ----------
    X : array of shape (n_samples, n_features)
        Converted to float64 a block of rows at a time, so that memory stays bounded.
    y : array of shape (n_samples,), integers from 0
    coef : array of shape (K, n_features)
        With one row, K = 1, there are two classes, and class 0 has the logit 0.
    intercept : array of shape (K,)
    strength : float
        1 / (C * n_samples) in scikit-learn's terms.
    """
    coef, intercept = np.asarray(coef, dtype=np.float64), np.asarray(intercept, dtype=np.float64)
    first = 1 if len(coef) == 1 else 0
    loss, grad = 0.0, np.zeros_like(coef)
    step = max(1, BLOCK_BYTES // (8 * (X.shape[1] + len(coef) + first)))
    for start in range(0, len(X), step):
        block, labels = X[start : start + step].astype(np.float64), y[start : start + step]
        at_label = (np.arange(len(block)), labels)
        z = np.zeros((len(block), len(coef) + first))
        z[:, first:] = block @ coef.T + intercept
        z -= z.max(axis=1, keepdims=True)
        expected = z[at_label]
        np.exp(z, out=z)
        total = z.sum(axis=1)
        loss += float((np.log(total) - expected).sum())
        z /= total[:, None]
        z[at_label] -= 1.0
        grad += z[:, first:].T @ block
    return loss / len(X) + 0.5 * strength * float((coef * coef).sum()), grad / len(X) + strength * coef
