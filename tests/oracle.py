"""What the package has to compute, by loops over Python floats. Imports nothing from softmax_xp.

Arguments are NumPy arrays or nested sequences; results are float64 NumPy arrays. Sums are exact (math.fsum).
"""

from __future__ import annotations

import math
from operator import mul

import numpy as np


def log_softmax_row(z):
    """The logarithm of the softmax of one row of logits."""
    z = np.asarray(z, dtype=np.float64).tolist()
    top = max(z)
    lse = top + math.log(math.fsum(math.exp(x - top) for x in z))
    return [x - lse for x in z]


def softmax(logits):
    """Softmax of each row, (n, C)."""
    return np.array([[math.exp(x) for x in log_softmax_row(z)] for z in logits])


def log_softmax(logits):
    """Log-softmax of each row, (n, C)."""
    return np.array([log_softmax_row(z) for z in logits])


def target_row(target, n_classes, smoothing=0.0):
    """The smoothed target probabilities of one row, from an integer label or from probabilities."""
    if np.ndim(target) == 0:
        t = [1.0 if k == int(target) else 0.0 for k in range(n_classes)]
    else:
        t = np.asarray(target, dtype=np.float64).tolist()
    return [(1.0 - smoothing) * x + smoothing / n_classes for x in t]


def phi(loss, log_p):
    """What the true class costs at its log-probability, and the derivative of that by its probability, times p.

    `loss` is None for cross-entropy, or ("gce", q), ("sce", alpha, beta, log_zero) or ("focal", gamma).
    """
    name, *parameters = loss or ("cross_entropy",)
    p, rest = math.exp(log_p), -math.expm1(log_p)
    if name == "cross_entropy":
        return -log_p, -1.0
    if name == "gce":
        (q,) = parameters
        return (1.0 - p**q) / q, -(p**q)
    if name == "sce":
        alpha, beta, log_zero = parameters
        return alpha * -log_p + beta * -log_zero * rest, -alpha + beta * log_zero * p
    (g,) = parameters
    if g == 0.0:
        return -log_p, -1.0
    if rest == 0.0:
        return 0.0, 0.0
    return -(rest**g) * log_p, g * p * rest ** (g - 1.0) * log_p - rest**g


def cross_entropy_rows(logits, targets, smoothing=0.0, loss=None):
    """The loss of each row, (n,), and its gradient in the logits, (n, C)."""
    losses, grads = [], []
    for z, target in zip(logits, targets, strict=True):
        log_p = log_softmax_row(z)
        t = target_row(target, len(log_p), smoothing)
        costs, slopes = zip(
            *(phi(loss, l_k) if t_k > 0.0 else (0.0, 0.0) for t_k, l_k in zip(t, log_p, strict=True)), strict=True
        )
        losses.append(math.fsum(t_k * cost for t_k, cost in zip(t, costs, strict=True)))
        pulls = [-t_k * slope for t_k, slope in zip(t, slopes, strict=True)]
        mass = math.fsum(pulls)
        grads.append([math.exp(l_k) * mass - pull for pull, l_k in zip(pulls, log_p, strict=True)])
    return np.array(losses), np.array(grads)


def cross_entropy(logits, targets, sample_weight=None, smoothing=0.0, ignore_index=None, reduction="mean", loss=None):
    """Loss and gradient in the logits, as softmax_xp.cross_entropy_with_grad defines them."""
    logits = np.asarray(logits, dtype=np.float64)
    n = len(logits)
    weight = [1.0] * n if sample_weight is None else [float(w) for w in sample_weight]
    if ignore_index is not None:
        weight = [0.0 if int(t) == ignore_index else w for t, w in zip(targets, weight, strict=True)]
        targets = [0 if int(t) == ignore_index else int(t) for t in targets]
        logits = np.array([z if w else np.zeros_like(z) for z, w in zip(logits, weight, strict=True)])
    if reduction == "mean":
        total = math.fsum(weight)
        weight = [w / total for w in weight]
    losses, grads = cross_entropy_rows(logits, targets, smoothing, loss)
    losses = [w * row for w, row in zip(weight, losses, strict=True)]
    grads = np.array(weight)[:, None] * grads
    return (np.array(losses) if reduction == "none" else math.fsum(losses)), grads


def product(A, B):
    """The matrix product, each entry an exact sum of the rounded products."""
    rows, columns = np.asarray(A, dtype=np.float64).tolist(), np.asarray(B, dtype=np.float64).T.tolist()
    return np.array([[math.fsum(map(mul, row, column)) for column in columns] for row in rows])


def softmax_loss(W, X, y, reg):
    """The tutorial's loss and gradient dW (D, C)."""
    W, X = np.asarray(W, dtype=np.float64), np.asarray(X, dtype=np.float64)
    loss, dlogits = cross_entropy(product(X, W), y)
    squares = math.fsum(float(w) ** 2 for w in W.ravel())
    return loss + 0.5 * float(reg) * squares, product(X.T, dlogits) + float(reg) * W


def linear_sums(coef, intercept, X, targets, weight=None, smoothing=0.0, loss=None):
    """Sums over rows of loss, d loss / d coef and d loss / d intercept; one row of coef means two classes."""
    coef, X = np.asarray(coef, dtype=np.float64), np.asarray(X, dtype=np.float64)
    logits = product(X, coef.T)
    if intercept is not None:
        logits = logits + np.asarray(intercept, dtype=np.float64)
    single = len(coef) == 1
    if single:
        logits = np.hstack([np.zeros_like(logits), logits])
    loss, dlogits = cross_entropy(logits, targets, weight, smoothing, reduction="sum", loss=loss)
    if single:
        dlogits = dlogits[:, 1:]
    return loss, product(dlogits.T, X), np.array([math.fsum(column) for column in dlogits.T])


def central_difference(function, x, step=1e-5):
    """The gradient of a scalar function at `x`, by differences over two steps of fourth order."""
    x = np.array(x, dtype=np.float64)
    grad = np.empty_like(x)
    for i in np.ndindex(x.shape):
        h = step * max(1.0, abs(x[i]))
        values = []
        for k in (-2, -1, 1, 2):
            moved = x.copy()
            moved[i] += k * h
            values.append(float(function(moved)))
        grad[i] = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h)
    return grad


def directional_difference(function, x, direction, step=1e-3):
    """The derivative of an array-valued function at `x` along `direction`, by differences of fourth order."""
    below, low, high, above = (np.asarray(function(x + k * step * direction)) for k in (-2, -1, 1, 2))
    return (below - 8 * low + 8 * high - above) / (12 * step)
