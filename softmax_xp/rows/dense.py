"""Rows whose features are a matrix in memory: of the host, or of a GPU."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy
from typing import Any

import numpy as np

from softmax_xp.arrays import (
    Array,
    accumulation_dtype,
    block_bytes,
    bytes_of,
    is_numpy,
    namespace,
    row_blocks,
    to_numpy,
)
from softmax_xp.backend import Backend, backend_of
from softmax_xp.kernels.row_pass import PLAIN, RowPass
from softmax_xp.kernels.workspace import Workspace
from softmax_xp.rows import Rows
from softmax_xp.rows.batches import minibatches
from softmax_xp.rows.standardised import StandardisedRows

SCALE_ROWS = 1024  # that the scale of features is taken from. A guess


class DenseRows(Rows):
    """Rows of a matrix. Views of them (`reweighted`, `standardised`, `sample`) share its memory.

    Parameters
    ----------
    X : array of shape (n_rows, n_features), real floating, finite
    sample_weight : array of shape (n_rows,) in the dtype of X, optional
    workers : int, optional
        Threads on a CPU; by default as many as the process may use cores. Results do not depend on it.
    backend : Backend, optional
        That of X, where it is known.
    """

    def __init__(
        self,
        X: Array,
        sample_weight: Array | None = None,
        workers: int | None = None,
        backend: Backend | None = None,
    ) -> None:
        self.backend = backend_of(X) if backend is None else backend
        self.n_rows, self.n_features = X.shape
        self.dtype = X.dtype
        self.nbytes = math.prod(X.shape) * bytes_of(namespace(X=X), X.dtype)
        self.host_workspace = Workspace(workers)
        self.workspace = self.host_workspace if is_numpy(X) else Workspace(1)  # a GPU shares out the work by itself
        self._X = X
        self._factors: dict[str, Array] = {"float32": X}  # X as a factor of products, by their precision
        self._feature_scale: Array | None = None
        self._usual_size: np.ndarray | None = None
        self._weigh(sample_weight)

    def _weigh(self, sample_weight: Array | None) -> None:
        xp, device = self.backend.xp, self.backend.device
        wide = accumulation_dtype(xp, device)
        self.sample_weight = sample_weight
        self.total_weight = float(self.n_rows if sample_weight is None else xp.sum(sample_weight, dtype=wide))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the features and the weights, and how many threads were asked for."""
        return DenseRows, (self._X, self.sample_weight, self.host_workspace.asked)

    def linear_sums(
        self,
        coef: Array,
        intercept: Array | None,
        targets: Array,
        row_pass: RowPass = PLAIN,
        index: Array | None = None,
    ) -> tuple[Array, Array, Array | None]:
        """Return loss and gradient of a linear model, summed over the rows or over those at `index`."""
        kernels, factor, weight = self.backend.kernels(self.dtype), self._factor(row_pass.precision), self.sample_weight
        if index is not None:
            take = self.backend.xp.take
            factor, targets = take(factor, index, axis=0), take(targets, index, axis=0)
            weight = None if weight is None else take(weight, index, axis=0)
        return kernels.linear_sums(coef, intercept, factor, targets, weight, row_pass, self.workspace)

    def hessian_product(
        self,
        coef: Array,
        intercept: Array | None,
        targets: Array,
        direction: Array,
        direction_intercept: Array | None,
        row_pass: RowPass = PLAIN,
    ) -> tuple[Array, Array | None]:
        """Return the Hessian of the sum of the losses times a direction."""
        kernels, at, along = self.backend.kernels(self.dtype), (coef, intercept), (direction, direction_intercept)
        return kernels.linear_hessian_product(
            *at, self._X, targets, *along, self.sample_weight, row_pass, self.workspace
        )

    def part(self, rows: slice) -> Array:
        """Return the features of a slice of the rows: a view."""
        return self._X[rows, :]

    def take(self, index: Array) -> Array:
        """Return the features of the rows at `index`: a copy."""
        return self.backend.xp.take(self._X, index, axis=0)

    def spaced(self, n: int) -> slice:
        """Return the slice of at most n rows that are evenly spaced."""
        return slice(None, None, -(-self.n_rows // n))

    def sample(self, n: int) -> DenseRows:
        """Return at most n rows that are evenly spaced: a view."""
        rows, weight = self.spaced(n), self.sample_weight
        return DenseRows(
            self._X[rows, :], None if weight is None else weight[rows], self.host_workspace.asked, self.backend
        )

    def batches(self, size: int, rng: np.random.Generator) -> Iterator[Array]:
        """Yield the indices of mini-batches without end."""
        return minibatches(self.backend, self.n_rows, size, rng)

    def reweighted(self, sample_weight: Array | None) -> DenseRows:
        """Return the same rows with other weights: a view, which shares what is known of the features."""
        rows = copy(self)
        rows._weigh(sample_weight)
        return rows

    def standardised(self, mean: Array, scale: Array) -> StandardisedRows:
        """Return rows with the features (x - mean) / scale: a view."""
        return StandardisedRows(self, mean, scale)

    def feature_scale(self) -> Array:
        """Return the root mean square of each feature over a thousand rows evenly spaced, (n_features,)."""
        if self._feature_scale is None:
            xp, sample = self.backend.xp, self._few_rows()
            self._feature_scale = xp.sqrt(xp.mean(sample * sample, axis=0))
        return self._feature_scale

    def usual_size(self) -> np.ndarray:
        """Return the median of |x| of each feature over a quarter of these rows, (n_features,), on the host."""
        if self._usual_size is None:
            xp, usual = self.backend.xp, to_numpy(self.feature_scale()).copy()
            sizes = np.sort(np.abs(to_numpy(self._few_rows()[::4, :])), axis=0)  # faster than np.median
            median = sizes[len(sizes) // 2]
            usual[median > 0.0] = median[median > 0.0]
            wide = accumulation_dtype(xp, self.backend.device)
            rare = np.flatnonzero(usual == 0.0)
            if rare.size:
                columns = self.backend.asarray(rare, "int64")
                squares = xp.zeros(rare.size, dtype=wide, device=self.backend.device)
                for rows in row_blocks(self.n_rows, 16 * rare.size, block_bytes(self.backend.device)):
                    block = xp.astype(xp.take(self._X[rows, :], columns, axis=1), wide)
                    squares += xp.sum(block * block, axis=0)
                usual[rare] = to_numpy(xp.sqrt(squares / self.n_rows))
            self._usual_size = usual
        return self._usual_size

    def _few_rows(self) -> Array:
        """Return SCALE_ROWS rows evenly spaced, in the widest floating dtype of the device."""
        xp = self.backend.xp
        few = self._X[self.spaced(SCALE_ROWS), :]
        return xp.astype(few, accumulation_dtype(xp, self.backend.device), copy=False)

    def _factor(self, precision: str) -> Array:
        """Return X as a factor of products of a precision. "bfloat16" may keep a rounded copy of X."""
        if precision not in self._factors:
            self._factors[precision] = self.backend.kernels(self.dtype).factor(self._X, precision)
        return self._factors[precision]
