"""What is known of the curvature of a LinearObjective: estimates of its inverse Hessian, and what they cost.

With A the features and a column of ones for the intercept, the Hessian of the mean cross-entropy is

    H = mean_i (diag(p_i) - p_i p_i') (x) a_i a_i'  <=  1/2 (I - 11'/C) (x) A'A / n

where p_i are the probabilities of row i (Boehning, 1992, doi:10.1007/BF00048682; 1/4 A'A / n for two classes). The
bound on the right holds everywhere and knows the scales, means and correlations of the features. The blocks on the
diagonal of the left, one for each class, also know where the probabilities have come near 0 or 1, but only close to
where they were formed. Both are made from a sample of the rows, evenly spaced, and inverted on the host in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from softmax_xp._arrays import Array, accumulation_dtype, to_numpy
from softmax_xp.objective import LinearObjective

# Maps a gradient (n_params,) to an estimate of the inverse Hessian times it.
Preconditioner: TypeAlias = Callable[[Array], Array]

MIN_ROWS = 4096  # sampled rows: at least this many, and so many for each feature
ROWS_PER_FEATURE = 12
MAX_BYTES = 1 << 30  # of matrices kept
RIDGE = 1e-10  # of a matrix scaled to a unit diagonal: keeps its factor finite where features repeat each other
FLOOR = 1e-3  # least share of the bound's shape in a class block: the iterate moves, and with it the block

FREE = 1e7  # multiplications that are over before anyone notices, and so are not counted
CHEAP = 10.0  # evaluations that the bound may cost before anything is known of the problem
LOOK_EVERY = 15  # iterations after which progress is judged; twice as many after each change from the second on
SHARE_SAVED = 0.5  # of the iterations still to come, that a better preconditioner is taken to save


class Curvature:
    """The preconditioners of one objective, and when to change from one to the next.

    The bound comes first where it is cheap. Then, every so often, the rate at which the gradient's norm falls
    tells how many evaluations are still to come; where a preconditioner costs less than the share of them that it
    is taken to save, it is made at the point reached: the class blocks, or else the bound.

    Parameters
    ----------
    objective : LinearObjective
    tol : float
        The gradient's norm at which the solve will end.
    """

    def __init__(self, objective: LinearObjective, tol: float) -> None:
        self.objective = objective
        self.tol = tol
        self._bound: Preconditioner | None = None
        self._n_changes = 0
        self._last_look = 1, math.inf  # step, and the gradient's norm after it
        self._rate_before = -math.inf  # of the fall of its logarithm, a step
        self._wait = float(LOOK_EVERY)
        n_rows, n_features = objective.X.shape
        self.n_columns = n_features + objective.fit_intercept
        n_sampled = min(n_rows, max(MIN_ROWS, ROWS_PER_FEATURE * self.n_columns))
        self.stride = -(-n_rows // n_sampled)
        self.n_sampled = -(-n_rows // self.stride)
        self._gram_matrix: np.ndarray | None = None

    def first(self) -> Preconditioner | None:
        """Return the preconditioner to start with, or None."""
        if self.cost(1) > CHEAP:
            return None
        self._bound = self.bound()
        return self._bound

    def after(self, n_iter: int, gradient_norm: float, params: Array) -> Preconditioner | None:
        """Return a preconditioner to go on with from `params`, or None to keep the one in use."""
        since, norm_then = self._last_look
        if n_iter > 1 and n_iter - since < self._wait:
            return None
        self._last_look = n_iter, gradient_norm
        if n_iter == 1:
            return None
        rate = math.log(norm_then / gradient_norm) / (n_iter - since)
        if self._n_changes and rate <= self._rate_before:  # the last change brought nothing: let the pairs work
            self._wait *= 2.0
            self._rate_before = rate
            return None
        self._rate_before = rate
        to_come = math.log(gradient_norm / self.tol) / rate if rate > 0.0 else math.inf
        chosen = None
        if self.cost(self.objective.coef_shape[0]) < SHARE_SAVED * to_come:
            chosen = self.class_blocks(params)
        elif self._bound is None and self.cost(1) < SHARE_SAVED * to_come:
            chosen = self._bound = self.bound()
        if chosen is not None:
            self._n_changes += 1
            self._wait = LOOK_EVERY * 2.0 ** max(0, self._n_changes - 2)
        return chosen

    def cost(self, n_matrices: int) -> float:
        """Return what forming and inverting so many matrices costs, in evaluations of value and gradient.

        By counting multiplications: m D^2 / 2 + D^3 for each matrix, and 2 n D K for an evaluation. Infinite where
        the matrices would not fit, and nothing where the problem is small.
        """
        n_coef, n_features = self.objective.coef_shape
        if 8 * n_matrices * self.n_columns**2 > MAX_BYTES:
            return float("inf")
        work = n_matrices * (self.n_sampled * self.n_columns**2 / 2 + self.n_columns**3)
        return 0.0 if work < FREE else float(work / (2.0 * self.objective.X.shape[0] * n_features * n_coef))

    def bound(self) -> Preconditioner:
        """Return the inverse of the bound: one matrix for all classes."""
        factor = 0.25 if self.objective.coef_shape[0] == 1 else 0.5
        return self._product(self._inverse(factor * self._gram())[None])

    def class_blocks(self, params: Array) -> Preconditioner:
        """Return the inverse of the diagonal blocks of the Hessian at `params`: one matrix for each row of coef."""
        xp = self.objective.backend.xp
        coef, intercept = self.objective.split(params)
        A, weight = self._sample()
        wide = A.dtype
        rows = coef if intercept is None else xp.concat([coef, intercept[:, None]], axis=1)
        logits = A @ xp.astype(rows, wide, copy=False).T  # (m, K)
        single = logits.shape[1] == 1
        if single:
            logits = xp.concat([xp.zeros_like(logits), logits], axis=1)
        p = self.objective.backend.kernels(wide).softmax(logits, 1)[:, int(single) :]
        share_left_out = 1.0 - self.n_sampled / self.objective.X.shape[0]
        inverses = []
        for k in range(rows.shape[0]):
            slope = p[:, k] * (1.0 - p[:, k]) * weight  # (m,)
            total, squares = float(xp.sum(slope)), float(xp.sum(slope * slope))
            block = to_numpy((A * slope[:, None]).T @ A).astype(np.float64)
            # Few rows carry a block. What they cannot tell is filled in by the shape that all rows have, as in the
            # shrinkage of covariances (Ledoit and Wolf, 2004, doi:10.1016/S0047-259X(03)00096-4).
            n_effective = total * total / squares if squares > 0.0 else 0.0
            share = max(FLOOR, share_left_out * self.n_columns / (self.n_columns + n_effective))
            inverses.append(self._inverse((1.0 - share) * block + share * total * self._gram()))
        return self._product(np.stack(inverses))

    def _sample(self) -> tuple[Array, Array]:
        """Return the sampled rows with a column for the intercept, (m, D + 1), and weights that sum to one."""
        objective = self.objective
        xp, device = objective.backend.xp, objective.backend.device
        wide = accumulation_dtype(xp, device)
        A = xp.astype(objective.X[:: self.stride, :], wide)
        if objective.fit_intercept:
            A = xp.concat([A, xp.ones((A.shape[0], 1), dtype=wide, device=device)], axis=1)
        if objective.sample_weight is None:
            return A, xp.full(A.shape[0], 1.0 / A.shape[0], dtype=wide, device=device)
        weight = xp.astype(objective.sample_weight[:: self.stride], wide)
        return A, weight / xp.maximum(xp.sum(weight), xp.asarray(1e-300, dtype=wide, device=device))

    def _gram(self) -> np.ndarray:
        """Return A'A / n, (D + 1, D + 1)."""
        if self._gram_matrix is None:
            A, weight = self._sample()
            self._gram_matrix = to_numpy((A * weight[:, None]).T @ A).astype(np.float64)
        return self._gram_matrix

    def _inverse(self, matrix: np.ndarray) -> np.ndarray:
        """Return the inverse of a positive semidefinite matrix with the penalty, and a ridge, on its diagonal."""
        matrix = matrix.copy()
        features = np.arange(self.objective.coef_shape[1])
        matrix[features, features] += self.objective.penalty.strength
        scale = np.sqrt(np.diag(matrix))
        scale[scale == 0.0] = 1.0  # a feature that is always zero, without penalty
        matrix = matrix / scale / scale[:, None]
        matrix[np.diag_indices_from(matrix)] += RIDGE
        factor = np.linalg.inv(np.linalg.cholesky(matrix)) / scale
        return factor.T @ factor

    def _product(self, inverses: np.ndarray) -> Preconditioner:
        """Return the product with (K or 1, D + 1, D + 1) matrices, one for each row of coef and its intercept."""
        objective = self.objective
        xp = objective.backend.xp
        wide = accumulation_dtype(xp, objective.backend.device)
        matrices = objective.backend.asarray(inverses, wide)

        def product(grad: Array) -> Array:
            coef, intercept = objective.split(grad)
            rows = coef if intercept is None else xp.concat([coef, intercept[:, None]], axis=1)  # (K, D + 1)
            rows = xp.astype(rows, wide, copy=False)
            if matrices.shape[0] == 1:
                rows = rows @ matrices[0, :, :]
            else:
                rows = xp.squeeze(rows[:, None, :] @ matrices, axis=1)
            rows = xp.astype(rows, grad.dtype, copy=False)
            if intercept is None:
                return xp.reshape(rows, (-1,))
            return xp.concat([xp.reshape(rows[:, :-1], (-1,)), rows[:, -1]])

        return product
