"""Random problems of softmax regression, by family and seed, that are hard in the ways in which data of users are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations_with_replacement

import numpy as np


@dataclass(frozen=True)
class Problem:
    """What a fit is given. `y` holds class indices, all of 0 to K - 1; a fit to float32 gets X in float32."""

    X: np.ndarray
    y: np.ndarray
    C: float = 1.0
    sample_weight: np.ndarray | None = None
    fit_intercept: bool = True
    tol: float = 1e-4
    dtype: str = "float64"


def _labels(rng, Z, n_classes, signal):
    """Labels drawn from a softmax model of the first ten columns of Z; renumbered so that no class is missing."""
    Z = Z[:, :10]
    logits = signal * Z @ rng.normal(size=(Z.shape[1], n_classes)) / Z.shape[1] ** 0.5
    y = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    y[:2] = 0, 1
    return np.unique(y, return_inverse=True)[1]


def _plain(rng):
    n, D = int(np.exp(rng.uniform(np.log(20), np.log(1000)))), int(rng.integers(1, 13))
    Z = rng.normal(size=(n, D))
    dtype = str(rng.choice(["float64", "float64", "float32"]))
    return Problem(
        Z,
        _labels(rng, Z, int(rng.integers(2, 7)), np.exp(rng.normal())),
        C=10.0 ** rng.uniform(-2, 2),
        fit_intercept=bool(rng.random() < 0.7),
        tol=float(rng.choice([1e-4, 1e-4, 1e-4, 1e-6, 1e-8 if dtype == "float64" else 1e-6])),
        dtype=dtype,
    )


def sizes(rng, problem):
    """Many rows, features or classes, and more features than rows."""
    n, D, n_classes = [(2000, 20, 5), (500, 40, 4), (30, 60, 3), (300, 8, 30)][rng.integers(4)]
    n, D, n_classes = (int(rng.integers(size // 2, size + 1)) for size in (n, D, n_classes))
    Z = rng.normal(size=(n, D))
    return replace(problem, X=Z, y=_labels(rng, Z, max(n_classes, 2), np.exp(rng.normal())))


def units(rng, problem):
    """One unit for all features, or one a feature; C as it is, or such that the problem is the same."""
    powers = [-150, -30, -10, -3, 0, 3, 10, 30, 150] if problem.dtype == "float64" else [-30, -10, -3, 0, 3, 10, 30]
    kind = rng.choice(["one", "one, C as well", "each", "each, modest"])
    if kind.startswith("each"):
        chosen = rng.choice(powers if kind == "each" else [-3, -2, -1, 0, 1, 2, 3], size=problem.X.shape[1])
        return replace(problem, X=problem.X * 10.0**chosen)
    power = float(rng.choice(powers))
    return replace(problem, X=problem.X * 10.0**power, C=problem.C * (1.0 if kind == "one" else 10.0 ** (-2 * power)))


def outliers(rng, problem):
    """One cell, or three, as a coded missing value is: 1e2 to 1e9."""
    X = problem.X.copy()
    for _ in range(rng.choice([1, 1, 3])):
        X[rng.integers(X.shape[0]), rng.integers(X.shape[1])] = rng.choice([-1, 1]) * 10.0 ** rng.uniform(2, 9)
    return replace(problem, X=X)


HEAVY_TAILS = {
    "pareto": lambda rng, size: rng.pareto(0.5, size),
    "cauchy": lambda rng, size: rng.standard_cauchy(size),
    "lognormal": lambda rng, size: rng.lognormal(0, 3, size),
    "t": lambda rng, size: rng.standard_t(1.5, size),
}


def heavy_tails(rng, problem):
    """Features of which few entries are many times as large as the others."""
    X = HEAVY_TAILS[rng.choice([*HEAVY_TAILS])](rng, problem.X.shape)
    return replace(problem, X=X, y=_labels(rng, np.arcsinh(X), int(rng.integers(2, 5)), 1.0))


def shifts(rng, problem):
    """Features far from zero, by 10 to 1e8 times their spread, and constant ones."""
    D = problem.X.shape[1]
    X = problem.X + np.where(rng.random(D) < 0.7, 10.0 ** rng.uniform(1, 8, D), 0.0)
    if rng.random() < 0.3:
        X = np.hstack([X, np.full((len(X), 1), 10.0 ** rng.integers(-3, 9))])
    return replace(problem, X=X)


def collinearity(rng, problem):
    """Features that depend on one another, exactly or nearly."""
    X = problem.X
    kind = rng.choice(["duplicate", "low rank", "nearly", "powers", "monomials", "one-hot"])
    if kind == "duplicate":
        X = np.hstack([X, X[:, : 1 + X.shape[1] // 2]])
    elif kind == "low rank":
        X = X @ rng.normal(size=(X.shape[1], X.shape[1] + 3))
    elif kind == "nearly":
        X = np.hstack([X, X[:, :1] + 10.0 ** rng.uniform(-8, -2) * rng.normal(size=(len(X), 1))])
    elif kind == "powers":
        X = np.hstack([X[:, :2].clip(-9, 9) ** power for power in range(1, 8)])
    elif kind == "monomials":  # of unit vectors: those of lower degree depend on those of higher
        X = np.hstack([X, np.ones((len(X), 1))])[:, :3]
        X = X / np.sqrt((X**2).sum(axis=1, keepdims=True))
        degrees = (combinations_with_replacement(X.T, degree) for degree in range(1, 5))
        X = np.stack([np.prod(factors, axis=0) for degree in degrees for factors in degree], axis=1)
    else:
        sets = (rng.integers(rng.integers(2, 9), size=len(X)) for _ in range(rng.integers(1, 4)))
        X = np.hstack([X, *((levels[:, None] == np.arange(levels.max() + 1)).astype(float) for levels in sets)])
    return replace(problem, X=X)


def separation(rng, problem):
    """Classes that a plane divides, or all but few rows, with little penalty."""
    y = _labels(rng, problem.X, int(rng.integers(2, 6)), 10.0 ** rng.uniform(1, 4))
    return replace(problem, y=y, C=10.0 ** rng.uniform(2, 6))


def weights(rng, problem):
    """Weights of rows: of many sizes, in other units, and zeros."""
    n = len(problem.X)
    s, C = np.ones(n), problem.C
    kind = rng.choice(["exponential", "one huge", "one tiny", "integers", "zeros", "units"])
    if kind == "exponential":
        s = rng.exponential(size=n)
    elif kind == "one huge":
        s[rng.integers(n)] = 10.0 ** rng.uniform(2, 12)
    elif kind == "one tiny":
        s[rng.integers(n)] = 10.0 ** rng.uniform(-60, -2)
    elif kind == "integers":
        s = rng.integers(1, 20, size=n).astype(float)
    elif kind == "zeros":
        s = (rng.random(n) < 0.3).astype(float)
        s[:2] = 1.0
    else:
        unit = 10.0 ** rng.choice([-60.0, -30.0, -5.0, 5.0, 30.0, 60.0])
        s, C = unit * rng.exponential(size=n), C if rng.random() < 0.3 else C / unit
    return replace(problem, sample_weight=s, C=C)


def imbalance(rng, problem):
    """One class that has nearly all rows."""
    y = np.where(rng.random(len(problem.y)) < 10.0 ** rng.uniform(-3, -1), problem.y, 0)
    y[:2] = 0, 1
    return replace(problem, y=np.unique(y, return_inverse=True)[1])


def penalties(rng, problem):
    """C from 1e-4 to 1e6."""
    return replace(problem, C=10.0 ** rng.uniform(-4, 6))


# Those that draw X or y anew come first, so that a mixture keeps what the others do.
KINDS = [sizes, heavy_tails, separation, imbalance, penalties, weights, collinearity, units, outliers, shifts]
FAMILIES = [*(kind.__name__ for kind in KINDS), "mixtures"]


def problem(family, seed):
    """The problem of a family with a seed. A mixture applies two or three kinds, one after the other."""
    rng = np.random.default_rng([seed, *family.encode()])
    chosen = [kind for kind in KINDS if kind.__name__ == family]
    if family == "mixtures":
        chosen = [KINDS[i] for i in sorted(rng.choice(len(KINDS), size=rng.integers(2, 4), replace=False))]
    drawn = _plain(rng)
    for kind in chosen:
        drawn = kind(rng, drawn)
    largest = 1e35 if drawn.dtype == "float32" else 1e250  # heavy tails to a power, in other units
    return replace(drawn, X=drawn.X.clip(-largest, largest).astype(drawn.dtype))


def outlier(exponent, seed):
    """One cell of 10**exponent - 1 in a thousand rows of five normal features; three classes."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(1000, 5))
    y = _labels(rng, X, 3, 5**0.5)
    X[rng.integers(1000), rng.integers(5)] = 10.0**exponent - 1
    return Problem(X, y)


def heavy_tailed(name, seed):
    """A thousand rows of five features of one of HEAVY_TAILS; three classes."""
    rng = np.random.default_rng(seed)
    X = HEAVY_TAILS[name](rng, (1000, 5))
    return Problem(X, _labels(rng, np.arcsinh(X), 3, 1.0))
