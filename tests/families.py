"""Random problems of softmax regression, by family and seed, that are hard in ways that data of users are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Problem:
    """What a fit is given. `y` holds class indices, all of 0 to K - 1."""

    X: np.ndarray
    y: np.ndarray
    C: float = 1.0
    sample_weight: np.ndarray | None = None
    fit_intercept: bool = True
    tol: float = 1e-4


def _labels(rng, Z, n_classes, signal):
    """Labels drawn from a softmax model of the columns of Z, ten of them at most; renumbered so that none is missing."""
    Z = Z[:, :10]
    logits = signal * Z @ rng.normal(size=(Z.shape[1], n_classes)) / Z.shape[1] ** 0.5
    y = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    y[:2] = 0, 1
    return np.unique(y, return_inverse=True)[1]


def _plain(rng, largest=1000):
    n, D = int(np.exp(rng.uniform(np.log(20), np.log(largest)))), int(rng.integers(1, 13))
    Z = rng.normal(size=(n, D))
    y = _labels(rng, Z, int(rng.integers(2, 7)), np.exp(rng.normal()))
    return Problem(
        Z,
        y,
        C=10.0 ** rng.uniform(-2, 2),
        fit_intercept=bool(rng.random() < 0.7),
        tol=float(rng.choice([1e-4, 1e-4, 1e-4, 1e-6, 1e-8])),
    )


def sizes(rng, problem):
    shape = rng.choice(["many rows", "many features", "more features than rows", "many classes"])
    n, D, n_classes = {
        "many rows": (2000, 20, 5),
        "many features": (500, 40, 4),
        "more features than rows": (30, 60, 3),
        "many classes": (600, 10, 30),
    }[shape]
    n, D, n_classes = (int(rng.integers(size // 2, size + 1)) for size in (n, D, n_classes))
    Z = rng.normal(size=(n, D))
    return replace(problem, X=Z, y=_labels(rng, Z, max(n_classes, 2), np.exp(rng.normal())))


def units(rng, problem):
    """One unit for all features, or one a feature; C as it is, or such that the problem is the same."""
    powers = rng.choice([-150, -30, -10, -3, 0, 3, 10, 30, 150], size=problem.X.shape[1])
    if rng.random() < 0.7:
        powers[:] = powers[0]
        if rng.random() < 0.5:
            return replace(problem, X=problem.X * 10.0 ** powers[0], C=problem.C * 10.0 ** (-2.0 * powers[0]))
    return replace(problem, X=problem.X * 10.0**powers)


def outliers(rng, problem):
    """One cell, or three, as a coded missing value is: 1e2 to 1e9."""
    X = problem.X.copy()
    for _ in range(rng.choice([1, 1, 3])):
        X[rng.integers(X.shape[0]), rng.integers(X.shape[1])] = rng.choice([-1, 1]) * 10.0 ** rng.uniform(2, 9)
    return replace(problem, X=X)


def heavy_tails(rng, problem):
    size = problem.X.shape
    X = [
        lambda: rng.pareto(0.5, size),
        lambda: rng.standard_cauchy(size),
        lambda: rng.lognormal(0, 3, size),
        lambda: rng.standard_t(1.5, size),
    ][rng.integers(4)]()
    return replace(problem, X=X, y=_labels(rng, np.arcsinh(X), int(rng.integers(2, 5)), 1.0))


def shifts(rng, problem):
    X = problem.X + np.where(rng.random(problem.X.shape[1]) < 0.7, 10.0 ** rng.uniform(1, 8, problem.X.shape[1]), 0.0)
    if rng.random() < 0.3:
        X = np.hstack([X, np.full((len(X), 1), 10.0 ** rng.integers(-3, 9))])
    return replace(problem, X=X)


def collinearity(rng, problem):
    X = problem.X
    kind = rng.choice(["duplicate", "low rank", "nearly", "polynomial", "one-hot"])
    if kind == "duplicate":
        X = np.hstack([X, X[:, : 1 + X.shape[1] // 2]])
    elif kind == "low rank":
        X = X @ rng.normal(size=(X.shape[1], X.shape[1] + 3))
    elif kind == "nearly":
        X = np.hstack([X, X[:, :1] + 10.0 ** rng.uniform(-8, -2) * rng.normal(size=(len(X), 1))])
    elif kind == "polynomial":
        X = np.hstack([X[:, :2] ** power for power in range(1, 8)])
    else:
        levels = rng.integers(rng.integers(2, 9), size=len(X))
        X = np.hstack([X, (levels[:, None] == np.arange(levels.max() + 1)).astype(float)])
    return replace(problem, X=X)


def separation(rng, problem):
    y = _labels(rng, problem.X, int(rng.integers(2, 6)), 10.0 ** rng.uniform(1, 4))
    return replace(problem, y=y, C=10.0 ** rng.uniform(2, 6))


def weights(rng, problem):
    n = len(problem.X)
    s = np.ones(n)
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
        unit = 10.0 ** rng.choice([-60, -30, -5, 5, 30, 60])
        return replace(
            problem, sample_weight=unit * rng.exponential(size=n), C=problem.C / (unit if rng.random() < 0.7 else 1.0)
        )
    return replace(problem, sample_weight=s)


def imbalance(rng, problem):
    rare = rng.random(len(problem.y)) < 10.0 ** rng.uniform(-3, -1)
    y = np.where(rare, problem.y, 0)
    y[:2] = 0, 1
    return replace(problem, y=np.unique(y, return_inverse=True)[1])


def penalties(rng, problem):
    return replace(problem, C=10.0 ** rng.uniform(-4, 6))


KINDS = {
    kind.__name__: kind
    for kind in (sizes, units, outliers, heavy_tails, shifts, collinearity, separation, weights, imbalance, penalties)
}
FAMILIES = [*KINDS, "mixtures"]


def problem(family, seed):
    """The problem of a family with a seed; a third are float32. A mixture applies two or three kinds, one after the other."""
    rng = np.random.default_rng([seed, *family.encode()])
    single = rng.random() < 1 / 3
    chosen = [family]
    if family == "mixtures":
        chosen = sorted(rng.choice([*KINDS], size=rng.integers(2, 4), replace=False), key=[*KINDS].index)
        chosen = sorted(
            chosen, key=lambda kind: kind in ("units", "outliers", "shifts")
        )  # after what draws X or y anew
    drawn = _plain(rng)
    for kind in chosen:
        drawn = KINDS[kind](rng, drawn)
    if single:
        X = drawn.X.clip(-1e35, 1e35).astype(np.float32)
        drawn = replace(drawn, X=X, tol=max(drawn.tol, 1e-6))
    return drawn


def outlier(exponent, seed):
    """One cell of size 10**exponent in 1000 rows of five normal features; three classes."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(1000, 5))
    y = (X @ rng.normal(size=(5, 3)) + rng.gumbel(size=(1000, 3))).argmax(axis=1)
    X[rng.integers(1000), rng.integers(5)] = 10.0**exponent - 1
    return Problem(X, y)


def heavy(name, seed):
    """A thousand rows of five features of a heavy-tailed distribution; three classes."""
    rng = np.random.default_rng(seed)
    X = {
        "pareto": lambda size: rng.pareto(0.5, size),
        "cauchy": rng.standard_cauchy,
        "lognormal": lambda size: rng.lognormal(0, 3, size),
    }[name]((1000, 5))
    return Problem(X, _labels(rng, np.arcsinh(X), 3, 1.0))
