"""The objective by definition, in float64: what every result is judged by, whatever its library says of it."""

from __future__ import annotations

from typing import Any, TypeAlias

from array_api_compat import array_namespace

from softmax_xp.arrays import to_numpy

Array: TypeAlias = Any

BLOCK_BYTES = 32 << 20


def value_and_grad(X: Array, y: Array, coef: Array, intercept: Array, strength: float) -> tuple[float, Array]:
    """Return the mean cross-entropy + strength / 2 * ||coef||^2 and its gradient in `coef`.

    Parameters
    ----------
    X : array of shape (n_samples, n_features), of NumPy or CuPy
        Converted to float64 a block of rows at a time, so that memory stays bounded. The work is done where it is.
    y : array of shape (n_samples,), integers from 0
    coef : numpy.ndarray of shape (K, n_features)
        With one row, K = 1, there are two classes, and class 0 has the logit 0.
    intercept : numpy.ndarray of shape (K,)
    strength : float
        1 / (C * n_samples) in scikit-learn's terms.
    """
    xp = array_namespace(X)
    y = xp.asarray(y)
    coef, intercept = (xp.asarray(part, dtype=xp.float64) for part in (coef, intercept))
    first = 1 if len(coef) == 1 else 0
    loss, grad = 0.0, xp.zeros_like(coef)
    step = max(1, BLOCK_BYTES // (8 * (X.shape[1] + len(coef) + first)))
    for start in range(0, len(X), step):
        block, labels = X[start : start + step].astype(xp.float64), y[start : start + step]
        at_label = (xp.arange(len(block)), labels)
        z = xp.zeros((len(block), len(coef) + first), dtype=xp.float64)
        z[:, first:] = block @ coef.T + intercept
        z -= z.max(axis=1, keepdims=True)
        expected = z[at_label]
        xp.exp(z, out=z)
        total = z.sum(axis=1)
        loss += float((xp.log(total) - expected).sum())
        z /= total[:, None]
        z[at_label] -= 1.0
        grad += z[:, first:].T @ block
    penalty = 0.5 * strength * float((coef * coef).sum())
    return loss / len(X) + penalty, to_numpy(grad / len(X) + strength * coef)
