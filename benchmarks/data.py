"""Data sets: real ones from files that are already on the machine, and synthetic ones of known difficulty."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits, load_iris

from benchmarks.measure import CPU, Device
from benchmarks.objective import Array
from softmax_xp.arrays import Namespace, block_bytes, row_blocks, to_numpy
from softmax_xp.readers import read_table

FASHION = Path("/usr/share/datasets/fashion-mnist")
SEPARATION, RELABELLED = 7.0, 0.1  # of embeddings
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
    """Rows, their labels as integers from 0, the inverse strength C of the penalty, and the device they are on."""

    name: str
    X: Array
    y: Array
    C: float = 1.0
    device: Device = CPU

    def on(self, device: Device) -> Dataset:
        """Return the same data on a device."""
        if device == self.device:
            return self
        asarray = device.backend.asarray
        return replace(self, X=asarray(self.X), y=asarray(self.y), device=device)

    def few(self) -> Dataset:
        """Return 200 rows, and those of their classes alone: what to warm up on."""
        rows = np.random.default_rng(0).permutation(len(self.X))[:200]
        asarray = self.device.backend.asarray
        labels = np.unique(to_numpy(self.y)[rows], return_inverse=True)[1]
        return replace(self, X=self.X[asarray(rows)], y=asarray(labels))

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
        """Name, shape and device."""
        where = "" if self.device == CPU else f", {self.device.name}"
        return f"{self.name} ({len(self.X)} x {self.X.shape[1]}, {self.n_classes} classes, C={self.C:g}{where})"


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


def embeddings(device: Device, n: int, d: int, n_classes: int) -> tuple[Array, Array]:
    """Return float32 features as a deep network has them of labelled images, made on `device`, a block at a time.

    Class means and noise share a spectrum: standard deviations k^-1/2 along random axes. With respect to the noise two
    means are SEPARATION apart. RELABELLED of the labels are drawn anew, so that no hyperplanes separate the classes.
    """
    backend, xp = device.backend, device.backend.xp
    axes, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((d, d)))
    colour = backend.asarray((axes / np.sqrt(np.arange(1, d + 1))).T.astype(np.float32))
    means = standard_normal(xp, 1, 0, n_classes * d).reshape(n_classes, d) * (SEPARATION / (2.0 * d) ** 0.5)
    true, drawn = (xp.astype(_bits(xp, seed, 0, n) >> np.uint64(33), xp.int64) % n_classes for seed in (2, 3))
    y = xp.where(_bits(xp, 4, 0, n) < np.uint64(RELABELLED * 2**64), drawn, true)
    X = xp.empty((n, d), dtype=xp.float32)
    for rows in row_blocks(n, 8 * d, block_bytes(backend.device)):
        noise = standard_normal(xp, 5, rows.start * d, (rows.stop - rows.start) * d).reshape(-1, d)
        X[rows] = (noise + means[true[rows]]) @ colour
    return X, y


def standard_normal(xp: Namespace, seed: int, start: int, n: int) -> Array:
    """Return normal numbers in float32, from the index `start` on: the same in NumPy and CuPy, but for rounding.

    By Box and Muller (1958, doi:10.1214/aoms/1177706645).
    """
    bits = _bits(xp, seed, start, n)
    share = (xp.astype(bits >> np.uint64(40), xp.float32) + 0.5) * 2.0**-24
    angle = xp.astype(bits & np.uint64(2**24 - 1), xp.float32) * (2.0**-23 * np.pi)
    return xp.sqrt(-2.0 * xp.log(share)) * xp.cos(angle)


def _bits(xp: Namespace, seed: int, start: int, n: int) -> Array:
    """Return 64 random bits each: SplitMix64 (Steele et al., 2014, doi:10.1145/2660193.2660195), by index."""
    z = (xp.arange(n, dtype=xp.uint64) + np.uint64((seed << 40) + start)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


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
