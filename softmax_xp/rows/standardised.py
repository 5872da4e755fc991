"""Rows whose features are standardised, (x - mean) / scale, without a copy of them.

A linear model of the standardised features with coefficients c and intercept b is one of the features themselves, with
coefficients c / scale and intercept b - (c / scale)' mean. So a pass over these rows is a pass over the others, and its
sums are mapped back: with the sums G of the gradient in the coefficients and g of that in the intercept, the gradient
in c is (G - g mean') / scale.

Where a mean is many times its scale this difference cancels: centre such features first.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from softmax_xp.arrays import Array, accumulation_dtype, dtype_name, to_numpy
from softmax_xp.kernels.row_pass import PLAIN, RowPass
from softmax_xp.rows import Rows


class StandardisedRows(Rows):
    """A view of other rows with the features (x - mean) / scale.

    Parameters
    ----------
    rows : Rows
    mean, scale : arrays of shape (n_features,), where the rows are
        No scale may be zero.
    """

    def __init__(self, rows: Rows, mean: Array, scale: Array) -> None:
        xp = rows.backend.xp
        self.rows = rows
        self.mean, self.scale = (xp.astype(x, rows.dtype, copy=False) for x in (mean, scale))
        self.backend, self.workspace, self.host_workspace = rows.backend, rows.workspace, rows.host_workspace
        self.n_rows, self.n_features, self.dtype, self.nbytes = rows.n_rows, rows.n_features, rows.dtype, rows.nbytes
        self.sample_weight, self.total_weight = rows.sample_weight, rows.total_weight

    def linear_sums(
        self,
        coef: Array,
        intercept: Array | None,
        targets: Array,
        row_pass: RowPass = PLAIN,
        index: Array | None = None,
    ) -> tuple[Array, Array, Array | None]:
        """Return loss and gradient of a linear model, summed over the rows or over those at `index`."""
        loss, grad, slope = self.rows.linear_sums(*self._mapped(coef, intercept), targets, row_pass, index)
        return loss, *self._mapped_back(grad, slope, intercept)

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
        at, along = self._mapped(coef, intercept), self._mapped(direction, direction_intercept)
        product, slope = self.rows.hessian_product(*at, targets, *along, row_pass)
        return self._mapped_back(product, slope, intercept)

    def part(self, rows: slice) -> Array:
        """Return the features of a slice of the rows: a copy."""
        return (self.rows.part(rows) - self.mean) / self.scale

    def take(self, index: Array) -> Array:
        """Return the features of the rows at `index`: a copy."""
        return (self.rows.take(index) - self.mean) / self.scale

    def spaced(self, n: int) -> slice:
        """Return the slice of at most n rows that are evenly spaced."""
        return self.rows.spaced(n)

    def sample(self, n: int) -> StandardisedRows:
        """Return at most n rows that are evenly spaced: a view."""
        return StandardisedRows(self.rows.sample(n), self.mean, self.scale)

    def batches(self, size: int, rng: np.random.Generator) -> Iterator[Array]:
        """Yield the indices of mini-batches without end."""
        return self.rows.batches(size, rng)

    def reweighted(self, sample_weight: Array | None) -> StandardisedRows:
        """Return the same rows with other weights: a view."""
        return StandardisedRows(self.rows.reweighted(sample_weight), self.mean, self.scale)

    def standardised(self, mean: Array, scale: Array) -> StandardisedRows:
        """Return a view of the same rows, standardised once more."""
        return StandardisedRows(self.rows, self.mean + self.scale * mean, self.scale * scale)

    def feature_scale(self) -> Array:
        """Return the root mean square of each feature over a thousand rows evenly spaced, (n_features,)."""
        wide = accumulation_dtype(self.backend.xp, self.backend.device)
        return self.backend.asarray(self._few_sizes()[0], dtype_name(wide))

    def usual_size(self) -> np.ndarray:
        """Return the median of |x| of each feature over these rows, (n_features,), or its root mean square."""
        scale, median = self._few_sizes()
        return np.where(median > 0.0, median, scale)

    def _few_sizes(self) -> tuple[np.ndarray, np.ndarray]:
        few = to_numpy(self.part(self.spaced(1024))).astype(np.float64)
        return np.sqrt((few * few).mean(axis=0)), np.median(np.abs(few), axis=0)

    def _mapped(self, coef: Array, intercept: Array | None) -> tuple[Array, Array]:
        """Return coefficients (K, n_features) and intercept (K,) as those of the features themselves."""
        xp = self.backend.xp
        own = xp.astype(coef, self.dtype, copy=False) / self.scale
        shift = own @ self.mean
        return own, -shift if intercept is None else xp.astype(intercept, self.dtype, copy=False) - shift

    def _mapped_back(self, grad: Array, grad_intercept: Array, intercept: Array | None) -> tuple[Array, Array | None]:
        """Return sums of gradients in the coefficients of the features as those of the standardised features."""
        own = (grad - grad_intercept[:, None] * self.mean) / self.scale
        return own, None if intercept is None else grad_intercept
