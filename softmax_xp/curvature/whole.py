"""The whole Hessian over all rows: its inverse by a Cholesky factor, and its diagonal."""

from __future__ import annotations

import numpy as np
from scipy.linalg import get_blas_funcs

from softmax_xp.arrays import MAX_SUMS, Array, DType, row_blocks
from softmax_xp.curvature.estimates import NOTHING, Estimates, Preconditioner
from softmax_xp.curvature.inverses import factorise

RIDGE_OF_WHOLE = 2e-12  # the ridge of the whole Hessian, which makes directions of less curvature look that stiff
NEGLIGIBLE_PAIR = 1e-4  # product of the probabilities of two classes for a row, below which it does not couple them
AGED = 10.0  # factor by which the curvature of one parameter has changed more than its class's, to be known anew


class WholeHessian(Estimates):
    """The whole Hessian of an objective, beside the estimates of it.

    Parameters
    ----------
    objective, max_bytes, known, costs : as for `Estimates`
    """

    def renewed(self, params: Array, preconditioner: Preconditioner | None) -> Preconditioner | None:
        """Return a preconditioner, with the Hessian's own diagonal where the curvature of a parameter has aged.

        A feature whose sum of squares a few rows hold loses its curvature when these rows become certain. An older
        preconditioner then makes its gradient seem negligible, and conjugate gradients would overlook it.

        Parameters
        ----------
        params : array of shape (n_params,)
        preconditioner : callable or None
            What a method of this class has returned last; None for the identity.
        """
        if not self._holds_diagonals():
            return preconditioner
        diagonal = self._diagonal(params)
        if preconditioner is None:
            aged = np.ones_like(diagonal, dtype=bool)
        else:
            change = diagonal / np.maximum(self._diagonal_in_use(), NOTHING * diagonal)
            of_class = change[:, -1:] if self.objective.fit_intercept else np.median(change, axis=1, keepdims=True)
            aged = np.maximum(change, of_class) > AGED * np.minimum(change, of_class)
            if not aged.any():
                return preconditioner
        inverse, kept = self._wide(np.where(aged, 1.0 / diagonal, 0.0)), self._wide(np.where(aged, 0.0, 1.0))
        by_diagonal = self._product(None, lambda rows: rows * inverse)
        if preconditioner is None or aged.all():
            return by_diagonal
        mask = self._product(None, lambda rows: rows * kept)
        return lambda grads: by_diagonal(grads) + mask(preconditioner(mask(grads)))

    def _holds_diagonals(self) -> bool:
        """Return whether a few diagonals of the Hessian fit, with the sums that they are made of."""
        return bool(8 * (MAX_SUMS + 4) * self.objective.coef_shape[0] * self.n_columns <= self.max_bytes)

    def _dtype_of_whole(self) -> DType | None:
        """Return the dtype in which the whole Hessian and its factor fit, or None."""
        n = self.objective.coef_shape[0] * self.n_columns
        return next((np.dtype(t) for t in (np.float64, np.float32) if n * n * t(0).itemsize <= self.max_bytes), None)

    def whole(self, params: Array, negligible: float = 0.0) -> Preconditioner:
        """Return the inverse of the whole Hessian at `params`, from all rows.

        Rows for which the probabilities of two classes have a product of at most `negligible` do not couple them. The
        ridge grows 100-fold until there is a Cholesky factor.
        """
        matrix, per_unit = self._formed_whole(params, negligible)
        ridge = max(RIDGE_OF_WHOLE, 8.0 * float(np.finfo(matrix.dtype).eps))
        diagonal = matrix.reshape(-1)[:: len(matrix) + 1]  # a view
        diagonal += ridge
        while not factorise(matrix.T, self.objective.rows.host_workspace):
            ridge *= 100.0
            matrix[...], _ = self._formed_whole(params, negligible)  # for the moment, two matrices
            diagonal += ridge
        factor = matrix.T  # lower, column by column
        trsv = get_blas_funcs("trsv", (factor,))

        def solve(rows: Array) -> Array:
            out = np.empty_like(rows)
            for row, solution in zip(rows, out, strict=True):  # trsv is faster than trsm for few rows
                scaled = (row.ravel() * per_unit).astype(factor.dtype, copy=False)
                solved = trsv(factor, trsv(factor, scaled, lower=1), lower=1, trans=1)
                solution[...] = (solved * per_unit).reshape(row.shape)
            return out

        return self._product(None, solve)

    def _formed_whole(self, params: Array, negligible: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the upper triangle of the whole Hessian, scaled to a unit diagonal, and the scale factors (n,)."""
        objective, n_columns = self.objective, self.n_columns
        n_coef, n_features = objective.coef_shape
        dtype = self._dtype_of_whole()
        penalty, scale = self._scaled(self._squares())  # of the columns, for all classes
        H = np.zeros((n_coef, n_columns, n_coef, n_columns), dtype=dtype)

        def add(a: int) -> None:
            weight = wp[:, a] * (1.0 - p[:, a])
            H[a, :, a, :] += (Z * weight[:, None]).T @ Z
            likely = np.flatnonzero(p[:, a] > negligible)
            own, of_a, of_b = Z[likely], wp[likely, a], p[likely, :a]
            coupled = of_b * p[likely, a, None] > negligible
            for b in np.flatnonzero(coupled.any(axis=0)):
                rows = np.flatnonzero(coupled[:, b])
                block = own if rows.size == len(own) else own[rows]
                H[b, :, a, :] -= (block * (of_a[rows] * of_b[rows, b])[:, None]).T @ block

        total, of_rows = objective.rows.total_weight, objective.curvature_weight(params)
        for rows, features, probabilities in self._probabilities(objective.rows, params):
            p = np.asarray(probabilities, dtype=dtype)
            if n_coef > 1:  # a sum other than one, by rounding in float32, would make the Hessian indefinite
                p = p / p.sum(axis=1, keepdims=True)
            Z = np.ones((len(p), n_columns), dtype=dtype)
            Z[:, :n_features] = features
            Z /= scale
            wp = p / total if of_rows is None else p * (of_rows[rows] / total)[:, None]
            objective.rows.workspace.map(add, range(n_coef))
        matrix = H.reshape(n_coef * n_columns, -1)
        diagonal = matrix.reshape(-1)[:: len(matrix) + 1]  # a view
        diagonal += np.tile(penalty / scale**2, n_coef)
        unit = np.sqrt(np.maximum(diagonal, NOTHING))
        for rows in row_blocks(len(matrix), matrix.itemsize * len(matrix)):
            matrix[rows, rows.start :] /= unit[rows, None] * unit[rows.start :]
        return matrix, 1.0 / (unit * np.tile(scale, n_coef))
