"""The data of a fit: what a fit may ask of its rows, wherever they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from softmax_xp.arrays import Array, DType
from softmax_xp.backend import Backend
from softmax_xp.kernels.row_pass import PLAIN, RowPass
from softmax_xp.kernels.workspace import Workspace


class Rows(Protocol):
    """Features of rows, and how much each row counts.

    Attributes
    ----------
    backend : Backend
        Where passes over the rows are computed, and their results live.
    n_rows, n_features : int
    dtype : dtype of the features
    nbytes : int
        Of the features.
    sample_weight : array of shape (n_rows,) in `dtype`, or None for ones
    total_weight : float
        Sum of the weights.
    workspace : Workspace
        Threads that share out passes over the rows.
    host_workspace : Workspace
        Threads for what NumPy computes beside them.
    """

    backend: Backend
    n_rows: int
    n_features: int
    dtype: DType
    nbytes: int
    sample_weight: Array | None
    total_weight: float
    workspace: Workspace
    host_workspace: Workspace

    def linear_sums(
        self,
        coef: Array,
        intercept: Array | None,
        targets: Array,
        row_pass: RowPass = PLAIN,
        index: Array | None = None,
    ) -> tuple[Array, Array, Array | None]:
        """Return loss and gradient of a linear model, summed over the rows or over those at `index` (m,).

        As `kernels.reference.linear_sums` defines them.
        """

    def hessian_product(
        self,
        coef: Array,
        intercept: Array | None,
        targets: Array,
        direction: Array,
        direction_intercept: Array | None,
        row_pass: RowPass = PLAIN,
    ) -> tuple[Array, Array | None]:
        """Return the Hessian of the sum of the losses times a direction.

        As `kernels.reference.linear_hessian_product` defines it.
        """

    def part(self, rows: slice) -> Array:
        """Return the features of a slice of the rows, (m, n_features)."""

    def take(self, index: Array) -> Array:
        """Return the features of the rows at `index` (m,), (m, n_features)."""

    def spaced(self, n: int) -> slice:
        """Return the slice of at most n rows that are evenly spaced."""

    def sample(self, n: int) -> Rows:
        """Return at most n rows that are evenly spaced."""

    def batches(self, size: int, rng: np.random.Generator) -> Iterator[Array]:
        """Yield the indices of mini-batches without end; each epoch is a new permutation of the rows."""

    def reweighted(self, sample_weight: Array | None) -> Rows:
        """Return the same rows with other weights."""

    def standardised(self, mean: Array, scale: Array) -> Rows:
        """Return rows with the features (x - mean) / scale, for mean and scale of shape (n_features,)."""

    def feature_scale(self) -> Array:
        """Return the root mean square of each feature over a thousand rows evenly spaced, (n_features,)."""

    def usual_size(self) -> np.ndarray:
        """Return the median of |x| of each feature over a quarter of these rows, (n_features,), on the host.

        A few outliers do not change it. A feature whose median is zero has its root mean square instead, over all rows
        if these are all zero.
        """
