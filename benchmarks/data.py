"""Data sets: real ones from files that are already on the machine, and synthetic ones of known difficulty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits, load_iris

from benchmarks.objective import Array
from softmax_xp.readers import read_table

FASHION = Path("/usr/share/datasets/fashion-mnist")
INSTALL_FASHION = "not found: apt-get install dataset-fashion-mnist, or --fashion-dir with the four IDX files"


class Name(StrEnum):
    """What --data takes."""

    FASHION = "fashion-mnist"
    DIGITS = "digits"
    ISOTROPIC = "isotropic"
    ISOTROPIC_C100 = "isotropic-C100"
    DECAYING = "decaying"
    BADLY_SCALED = "badly-scaled"
    IRIS = "iris"


class DataMissingError(Exception):
    """A data set that is not on this machine; the message says how to get it."""


@dataclass(frozen=True)
class Dataset:
    """Rows, their labels as integers from 0, and the inverse strength C of the penalty they are fitted with."""

    name: str
    X: Array
    y: Array
    C: float = 1.0

    @property
    def n_classes(self) -> int:
        """The number of classes."""
        return int(self.y.max()) + 1

    @property
    def strength(self) -> float:
        """The factor of ||coef||^2 / 2 in the mean objective."""
        return 1.0 / (self.C * len(self.X))

    @property
    def title(self) -> str:
        """Name and shape."""
        return f"{self.name} ({len(self.X)} x {self.X.shape[1]}, {self.n_classes} classes, C={self.C:g})"


def load(name: Name, dtype: str, fashion: Path = FASHION, quick: bool = False) -> Dataset:
    """Return a data set; `quick` makes it small. Raises DataMissingError where it is not on this machine."""
    rng = np.random.default_rng(0)
    C = 100.0 if name is Name.ISOTROPIC_C100 else 1.0
    makers: dict[Name, Callable[[], tuple[Array, Array]]] = {
        Name.FASHION: lambda: _fashion(fashion, "train", 1000 if quick else None),
        Name.DIGITS: lambda: _rows(load_digits(return_X_y=True), 500 if quick else None),
        Name.ISOTROPIC: lambda: isotropic(rng, *((1000, 32, 5) if quick else (20000, 256, 20))),
        Name.ISOTROPIC_C100: lambda: isotropic(rng, *((1000, 32, 5) if quick else (20000, 256, 20))),
        Name.DECAYING: lambda: decaying(rng, *((1000, 32, 5) if quick else (20000, 256, 20))),
        Name.BADLY_SCALED: lambda: badly_scaled(rng, *((1000, 20, 5) if quick else (4000, 60, 5))),
        Name.IRIS: lambda: load_iris(return_X_y=True),
    }
    X, y = makers[name]()
    return Dataset(name.value, np.ascontiguousarray(X, dtype=dtype), y, C)


def train_and_test(name: Name, dtype: str, n_rows: int, fashion: Path = FASHION) -> tuple[Dataset, Dataset]:
    """Return at most `n_rows` training rows of Fashion-MNIST or digits, and rows held out from them."""
    if name is Name.FASHION:
        parts = [_fashion(fashion, "train", n_rows), _fashion(fashion, "t10k", None)]
    else:
        X, y = load_digits(return_X_y=True)
        n_rows = min(n_rows, len(X) // 2)
        parts = [(X[:n_rows], y[:n_rows]), (X[len(X) // 2 :], y[len(X) // 2 :])]
    train, test = (Dataset(name.value, np.ascontiguousarray(X, dtype=dtype), y) for X, y in parts)
    return train, test


def isotropic(rng: np.random.Generator, n: int, d: int, n_classes: int) -> tuple[Array, Array]:
    """Return independent standard normal features: the Hessian is well conditioned, as for whitened embeddings."""
    X = rng.standard_normal((n, d))
    return X, _labels(rng, X, n_classes)


def decaying(rng: np.random.Generator, n: int, d: int, n_classes: int) -> tuple[Array, Array]:
    """Return features with standard deviations 1/k along random axes, five strong common factors and a mean.

    This is what embeddings of deep networks look like.
    """
    axes, _ = np.linalg.qr(rng.standard_normal((d, d)))
    X = (rng.standard_normal((n, d)) / np.arange(1, d + 1)) @ axes.T
    X += rng.standard_normal((n, 5)) @ rng.standard_normal((5, d))
    y = _labels(rng, X, n_classes)
    return X + 2.0 * rng.standard_normal(d), y


def badly_scaled(rng: np.random.Generator, n: int, d: int, n_classes: int) -> tuple[Array, Array]:
    """Return features in units from 1e-3 to 1e3, with means of the size of their units."""
    X = rng.standard_normal((n, d))
    y = _labels(rng, X, n_classes)
    return (X + rng.standard_normal(d)) * 10.0 ** rng.uniform(-3, 3, d), y


def _labels(rng: np.random.Generator, X: Array, n_classes: int) -> Array:
    """Draw labels from a softmax model whose logits have standard deviation 3, so that the classes overlap."""
    logits = X @ rng.standard_normal((X.shape[1], n_classes))
    logits *= 3.0 / logits.std()
    y = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return np.unique(y, return_inverse=True)[1]


def _fashion(folder: Path, part: str, n_rows: int | None) -> tuple[Array, Array]:
    """Return the pixels / 255 and the labels of "train" or "t10k"."""
    for suffix in (".gz", ""):
        path = folder / f"{part}-images-idx3-ubyte{suffix}"
        if path.exists():
            table = read_table(path)
            return _rows((table.X, table.y), n_rows)
    raise DataMissingError(INSTALL_FASHION)


def _rows(parts: tuple[Any, Any], n_rows: int | None) -> tuple[Array, Array]:
    return parts[0][:n_rows], np.asarray(parts[1][:n_rows])
