"""The coordinates that a linear classifier is fitted in.

Three changes of coordinates leave the objective as it is, and make the arithmetic possible, exact or cheap:

- Without a penalty, features whose squares the arithmetic cannot hold are multiplied by a power of two. A penalty
  depends on the unit: with one, features that small have no effect, and features that large are an error.
- Features far from zero are centred. Their products with the coefficients nearly cancel with the intercept, which takes
  the digits that float32, or a factored Hessian, has. The intercept is not penalised, so that it takes up the shift.
  Without an intercept the features are reflected instead, so that one of them has all of the mean, and the others none.
- Features whose span has far fewer dimensions than there are features are expressed in an orthonormal basis of it. The
  L2 penalty does not change, and the coefficients of the optimum lie in that span.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.linalg import lapack, qr

from softmax_xp.arrays import (
    Array,
    accumulation_dtype,
    block_bytes,
    device_of,
    dtype_name,
    is_numpy,
    namespace,
    row_blocks,
    to_numpy,
)

SAMPLE = 512  # rows, evenly spaced, that the features' medians are taken from
FAR = 100.0  # ratio of a feature's median to its interquartile range, from which the feature is far from zero
# The least and the largest size of a feature whose squares, and sums of squares, its dtype holds.
MODEST = {"float32": (1e-20, 1e20), "float64": (1e-140, 1e140)}
FEW_DIMENSIONS = 0.75  # share of the number of features up to which a basis of their span pays
INDEPENDENT = 1e-10  # share of a feature's square that other features do not explain, from which it is independent
NEGLIGIBLE_GAIN = 1e-12  # share of the loss that a dropped direction could gain
ROUNDING = 1e-13  # size of a dropped direction, relative to the features, that is rounding of float64 for certain


@dataclass(frozen=True)
class Coordinates:
    """A feature vector x becomes (x * unit - centre) @ basis + shift.

    Attributes
    ----------
    unit : numpy.ndarray of shape (D,) or None
        float64, powers of two. None where all are one.
    centre : numpy.ndarray of shape (D,) or None
        float64; zero for features near zero. None where no feature is far from zero.
    basis : numpy.ndarray of shape (D, r) or None
        float64, with orthonormal columns. None for the features themselves.
    shift : numpy.ndarray of shape (D,) or None
        float64, the centre in the basis, where there is no intercept to take it up.
    far : bool
        Whether a feature is far from zero, centred or not.
    """

    unit: np.ndarray | None = None
    centre: np.ndarray | None = None
    basis: np.ndarray | None = None
    shift: np.ndarray | None = None
    far: bool = False

    def applied(self, X: Array, dtype: str) -> Array:
        """Return the rows of X (n, D) in these coordinates, in the namespace of X and in `dtype`.

        Differences are formed in the dtype of X, or in float64 where there are units or a basis.
        """
        xp, device = namespace(X=X), device_of(X)
        to = getattr(xp, dtype)
        if self.unit is None and self.centre is None and self.basis is None:
            return xp.astype(X, to, copy=False)
        work = X.dtype if self.basis is None and self.unit is None else accumulation_dtype(xp, device)
        unit, centre, basis, shift = (
            None if x is None else xp.asarray(x, dtype=work, device=device)
            for x in (self.unit, self.centre, self.basis, self.shift)
        )
        out = xp.empty((X.shape[0], X.shape[1] if basis is None else basis.shape[1]), dtype=to, device=device)
        for rows in row_blocks(X.shape[0], 8 * X.shape[1], block_bytes(device)):
            block = xp.astype(X[rows, :], work, copy=False)
            block = block if unit is None else block * unit
            block = block if centre is None else block - centre
            block = block if basis is None else block @ basis
            out[rows, :] = xp.astype(block if shift is None else block + shift, to, copy=False)
        return out

    def features(self, coef: np.ndarray, intercept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return coefficients (K, r) and intercepts (K,) of these coordinates as those of the features, in float64."""
        coef = coef if self.basis is None else coef @ self.basis.T
        if self.centre is not None and self.shift is None:
            intercept = intercept - coef @ self.centre
        return coef if self.unit is None else coef * self.unit, intercept

    def inverse(self, coef: np.ndarray, intercept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return coefficients (K, D) and intercepts (K,) of the features as those of these coordinates, in float64."""
        coef = coef if self.unit is None else coef / self.unit
        if self.centre is not None and self.shift is None:
            intercept = intercept + coef @ self.centre
        return coef if self.basis is None else coef @ self.basis, intercept


def coordinates(X: Array, strength: float, fit_intercept: bool) -> Coordinates:
    """Return the coordinates to fit the rows of X in.

    Parameters
    ----------
    X : array of shape (n, D), real floating, finite
    strength : float
        Of the L2 penalty. It says which directions of the features are too small to count.
    fit_intercept : bool
    """
    unit = _unit(X) if strength == 0.0 else None
    if unit is not None:
        X = Coordinates(unit=unit).applied(X, dtype_name(X.dtype))
    sample = to_numpy(X[:: -(-X.shape[0] // SAMPLE), :]).astype(np.float64)
    far, centre = far_from_zero(sample), None
    if far.any():
        centre = np.where(far, np.median(sample, axis=0), 0.0).astype(dtype_name(X.dtype)).astype(np.float64)
        if not fit_intercept:
            reflection = _reflection(centre)
            return Coordinates(unit=unit, centre=centre, basis=reflection, shift=centre @ reflection, far=True)
    basis = _basis(X, centre, strength) if is_numpy(X) else None
    return Coordinates(unit=unit, centre=centre, basis=basis, far=bool(far.any()))


def _unit(X: Array) -> np.ndarray | None:
    """Return the power of two that brings each feature outside of MODEST to about one, (D,), or None if none is."""
    xp, largest = namespace(X=X), np.zeros(X.shape[1])
    for rows in row_blocks(X.shape[0], 16 * X.shape[1], block_bytes(device_of(X))):
        largest = np.maximum(largest, to_numpy(xp.max(xp.abs(X[rows, :]), axis=0)))
    low, high = MODEST[dtype_name(X.dtype)]
    other = (largest > 0.0) & ((largest < low) | (largest > high))
    if not other.any():
        return None
    exponent = np.minimum(-np.frexp(largest)[1], 1000)  # a power of two that float64 holds
    return np.where(other, np.ldexp(1.0, exponent), 1.0)


def far_from_zero(sample: np.ndarray) -> np.ndarray:
    """Return for each column whether its median is more than FAR times its interquartile range, (D,).

    A few outliers do not change these. A column whose interquartile range is zero is judged by its standard deviation.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = sample / np.maximum(np.abs(sample).max(axis=0), np.finfo(float).tiny)
        scaled.sort(axis=0)  # faster than np.quantile
        low, median, high = (scaled[(len(scaled) - 1) * quarter // 4] for quarter in (1, 2, 3))
        varies = np.where(high > low, high - low, scaled.std(axis=0))
        far: np.ndarray = (varies > 0.0) & (np.abs(median) > FAR * varies)
    return far


def _reflection(centre: np.ndarray) -> np.ndarray:
    """Return the orthogonal matrix (D, D) that takes `centre` to a multiple of the first unit vector."""
    v = centre / np.abs(centre).max()
    v /= np.sqrt(v @ v)
    v[0] += math.copysign(1.0, v[0])
    reflection: np.ndarray = np.eye(len(v)) - np.outer(v, v) * (2.0 / (v @ v))
    return reflection


def _rank(gram: np.ndarray) -> int:
    """Return how many of the vectors with these inner products are independent of the others."""
    sizes = np.sqrt(np.maximum(np.diagonal(gram), np.finfo(float).tiny))
    rank: int = lapack.dpstrf(gram / sizes / sizes[:, None], tol=INDEPENDENT, lower=0)[2]
    return rank


def _basis(X: np.ndarray, centre: np.ndarray | None, strength: float) -> np.ndarray | None:
    """Return an orthonormal basis (D, r) of the span of the rows, or None where r is not much smaller than D.

    Without a penalty, None where r = D: any dependence would make the Hessian singular. A column counts as dependent
    when the others leave so little of it that no coefficient of use could rest on it.
    """
    n, n_features = X.shape
    if n < n_features:
        return None
    most = int(FEW_DIMENSIONS * n_features) if strength > 0.0 else n_features - 1
    rows = X[:: max(1, n // (2 * n_features)), :].astype(np.float64)
    rows = rows if centre is None else rows - centre
    scale = np.abs(rows).max(axis=0)
    scale[scale == 0.0] = 1.0
    rows = rows / scale
    size = np.sqrt((rows**2).sum(axis=0))
    size[size == 0.0] = 1.0
    rows, scale = rows / size, scale * (size / math.sqrt(len(rows)))  # now the root mean square of each column
    few = rows[: most + 1]
    if _rank(few @ few.T) == len(few):  # a third of the cost of the Gram matrix below
        return None
    if _rank(rows.T @ rows) > most:
        return None
    # The squares in the Gram matrix have lost half of the digits, so that the columns decide. The penalty leaves a
    # direction dropped by this tolerance less than NEGLIGIBLE_GAIN of the loss to gain.
    tol = max(ROUNDING, min(INDEPENDENT**0.5, (NEGLIGIBLE_GAIN * strength) ** 0.5 / float(scale.max())))
    triangle, pivots = qr(rows, mode="r", pivoting=True)
    rank = int((np.abs(np.diagonal(triangle)) > tol).sum())
    if not 0 < rank <= most:
        return None
    span = np.empty((rank, n_features))
    span[:, pivots] = triangle[:rank]
    basis: np.ndarray = qr((span * scale).T, mode="economic")[0]
    found = Coordinates(centre=centre, basis=basis)
    for block in row_blocks(n, 8 * n_features):  # rows that the sample has missed may have a direction of their own
        own = X[block].astype(np.float64) - (0.0 if centre is None else centre)
        if not (np.abs(own - found.applied(X[block], "float64") @ basis.T) <= 10.0 * tol * scale).all():
            return None
    return basis
