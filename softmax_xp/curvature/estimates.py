"""Estimates of the inverse Hessian from a sample of the rows: bound, Kronecker product, and blocks of the classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
from scipy.linalg import solve_triangular

from softmax_xp.arrays import (
    Array,
    accumulation_dtype,
    block_bytes,
    dtype_name,
    is_gpu,
    namespace,
    row_blocks,
    to_numpy,
)
from softmax_xp.curvature.costs import COSTS, CostModel
from softmax_xp.curvature.inverses import cholesky, inverses, with_diagonal
from softmax_xp.curvature.sampling import SMALLEST, Sampling
from softmax_xp.objective import LinearObjective

# Maps gradients, the rows of an (m, n_params) array, to an estimate of the inverse Hessian times each.
Preconditioner: TypeAlias = Callable[[Array], Array]

NOTHING = 1e-30  # least size of a direction of the classes, where all probabilities are 0 or 1, and nothing is left
FLAT = 0.25  # variance of the eigenvalues of a scaled bound up to which its diagonal does as well; a sample has 0.125
PARTS = 4  # of the rows of inverses: OpenBLAS multiplies a few of them without copying them first
WHOLE = 1 << 20  # bytes of inverses that are multiplied before another thread would have been woken


@dataclass(frozen=True)
class ClassBlocks:
    """What `Curvature.class_blocks` is made of: it serves a later solve of nearly the same problem, too.

    Attributes
    ----------
    basis : numpy.ndarray of shape (K, K)
        The eigenvectors, one a column.
    inverses : array of shape (K, D + 1, D + 1)
        Of their blocks; (K, D, D) without an intercept. On the GPU of the solve, else of NumPy.
    feature_scale : numpy.ndarray of shape (D,)
        That of the objective: how the problem is known again.
    """

    basis: np.ndarray
    inverses: Array
    feature_scale: np.ndarray


class Estimates(Sampling):
    """Estimates of the inverse Hessian of an objective, from a sample of its rows.

    Parameters
    ----------
    objective, max_bytes, costs : as for `Sampling`
        Where the matrices of an estimate would need more bytes, a coarser one takes its place; the coarsest knows the
        scale of each feature alone.
    known : ClassBlocks, optional
        Of an earlier solve, with another penalty perhaps; taken up where it was of the same features.

    Attributes
    ----------
    blocks : ClassBlocks or None
        The last ones.
    """

    def __init__(
        self,
        objective: LinearObjective,
        max_bytes: int,
        known: ClassBlocks | None = None,
        costs: CostModel = COSTS,
    ) -> None:
        super().__init__(objective, max_bytes, costs)
        self.blocks = known
        self._bound: Preconditioner | None = None
        # The diagonal that the estimate in use has, (K, D + 1) or (D + 1,): asked for where a gap is checked.
        self._diagonal_in_use: Callable[[], np.ndarray] = lambda: self._bounding_factor * self._squares()

    def bound(self) -> Preconditioner:
        """Return the inverse of the bound: one matrix for all classes. It does not change during a solve."""
        if self._bound is None:
            if self._few_rows():
                self._bound = self._product(None, self._inverted_by_rows())
            else:
                self._bound = self._inverted(self._bounding_gram())
        return self._bound

    def _inverted(self, gram: Array) -> Preconditioner:
        """Return the inverse of `gram`, given whole or as a diagonal, with the penalty: the same for all classes."""
        if gram.ndim == 1:
            return self._product(None, self._divided(np.ones(1), gram))
        return self._product(None, self._multiplied(self._inverses(gram[None, :, :])))

    def _inverted_by_rows(self) -> Callable[[Array], Array]:
        """Return the product with the inverse of the bound, from the inner products of the rows: Woodbury's identity.

        With B'B the bound of centred features, d the penalty and a ridge, and b = B d^-1/2, the inverse for them is
        d^-1/2 (I - U'U) d^-1/2, where U = L^-1 b and L L' = I + b b'. The intercept of centred features has a curvature
        of its own.
        """
        xp, n_features = self.objective.backend.xp, self.objective.coef_shape[1]
        sample, weight = self._sampled_rows()  # all of them
        weight = self._bounding_factor * weight
        B = to_numpy(sample.part(slice(None))).astype(np.float64)
        centre = weight @ B / weight.sum() if self.objective.fit_intercept else np.zeros(n_features)
        B = (B - centre) * np.sqrt(weight)[:, None]
        penalty = self.objective.penalty.diagonal(n_features)
        diagonal = np.einsum("ij,ij->j", B, B) + penalty
        per_root = 1.0 / np.sqrt(penalty + self._ridge * np.where(diagonal > 0.0, diagonal, 1.0))
        B *= per_root
        U = self._wide(solve_triangular(np.linalg.cholesky(np.eye(len(B)) + B @ B.T), B, lower=True))
        centre, per_root, per_weight = self._wide(centre), self._wide(per_root), 1.0 / float(weight.sum())

        def product(rows: Array) -> Array:
            coef, intercept = rows[:, :, :n_features], rows[:, :, n_features:]
            if self.objective.fit_intercept:
                coef = coef - intercept * centre
            coef = coef * per_root
            coef = (coef - (coef @ U.T) @ U) * per_root
            if self.objective.fit_intercept:
                intercept = intercept * per_weight - xp.sum(coef * centre, axis=2, keepdims=True)
            return xp.concat([coef, intercept], axis=2)

        return product

    @property
    def _bounding_factor(self) -> float:
        of_cross_entropy = 0.25 if self.objective.coef_shape[0] == 1 else 0.5
        return of_cross_entropy * self.objective.row_pass.loss.slope_bound

    def _bounding_gram(self) -> Array:
        return self._bounding_factor * self._even_gram()

    def _uncorrelated(self, gram: Array) -> bool:
        """Return whether the eigenvalues of `gram` with the penalty, scaled to a unit diagonal, are nearly the same."""
        penalty, scale = self._scaled(gram)
        apart = with_diagonal(with_diagonal(gram, penalty) / scale / scale[:, None], -1.0)
        return bool(namespace(gram=gram).sum(apart * apart) <= FLAT * self.n_columns)

    def kronecker(self, params: Array) -> Preconditioner:
        """Return the inverse of the Kronecker product at `params`: one matrix for the classes, one for the features."""
        backend = self.objective.backend
        xp, wide = backend.xp, accumulation_dtype(backend.xp, backend.device)
        sample, weight = self._sampled_rows(params)
        n_coef = self.objective.coef_shape[0]
        squares = n_coef if self._holds_classes() else 0  # else the diagonal of the mean of S_i alone
        mean, product = np.zeros(n_coef), np.zeros((squares, squares))
        traces = []
        for rows, _, p in self._probabilities(sample, params):
            p = xp.astype(p, wide, copy=False)
            w = self._wide(weight[rows])
            mean += to_numpy(w @ (p if squares else p * (1.0 - p)))
            product += to_numpy((p * w[:, None]).T @ p) if squares else 0.0
            traces.append(to_numpy(xp.sum(p, axis=1) - xp.sum(p * p, axis=1)))
        if squares:
            sizes, basis = np.linalg.eigh(np.diag(mean) - product)
        else:
            sizes, basis = mean, None
        trace = np.concatenate(traces)
        total = float(weight @ trace)
        gram = self._with_rare(self._gram(sample, weight * trace / total if total > 0.0 else weight), self._squares())
        sizes = np.maximum(sizes, max(SMALLEST * sizes.max(), NOTHING))
        of_classes = sizes if basis is None else basis**2 @ sizes
        of_columns = to_numpy(gram if gram.ndim == 1 else namespace(gram=gram).linalg.diagonal(gram))
        self._diagonal_in_use = lambda: np.outer(of_classes, of_columns)
        return self._product(basis, self._divided(sizes, gram) if gram.ndim == 1 else self._factored(sizes, gram))

    def class_blocks(self, params: Array) -> Preconditioner:
        """Return the inverse of the Hessian's diagonal blocks at `params`, in the basis that makes them most of it.

        The rows that form a block are drawn with probabilities in proportion to their weights q_k' S_i q_k, and the
        rows that count for it are few once the model is sure of most: an even sample would miss them.
        """
        if not self._holds_matrix():
            return self.kronecker(params)
        self.blocks = None  # its memory is free before the next ones are made
        self._diagonal_in_use = partial(self._diagonal, params)
        objective = self.objective
        xp, n_coef = objective.backend.xp, objective.coef_shape[0]
        mean, product, total = np.zeros(n_coef), np.zeros((n_coef, n_coef)), objective.rows.total_weight
        of_rows = objective.curvature_weight(params)
        for rows, _, p in self._probabilities(objective.rows, params):
            wp = p if of_rows is None else p * of_rows[rows][:, None]
            mean += to_numpy(xp.sum(wp, axis=0)).astype(np.float64)
            product += to_numpy(wp.T @ p).astype(np.float64)
        sizes, basis = np.linalg.eigh((np.diag(mean) - product) / total)
        least = max(SMALLEST * sizes.max(), NOTHING)
        drawn, squares = self._drawn(params, basis, np.maximum(sizes, least))
        everywhere, home = self._even_gram(), self._home
        blocks = home.xp.empty((n_coef, self.n_columns, self.n_columns), dtype=home.xp.float64, device=home.device)

        def form(k: int) -> None:
            ridge = float(self._ridge * sizes[k] if sizes[k] > least else least)
            gram = self._with_rare(self._gram(objective.rows, *drawn[k]), squares[k])
            blocks[k, ...] = gram + ridge * everywhere

        objective.rows.workspace.map(form, range(n_coef))
        each = 8 * self.n_columns**2
        at_once = block_bytes(home.device) if is_gpu(home.device) else each * objective.rows.host_workspace.workers
        for classes in row_blocks(n_coef, each, at_once):
            blocks[classes, ...] = self._inverses(blocks[classes, ...])
        self.blocks = ClassBlocks(basis, blocks, to_numpy(objective.rows.feature_scale()))
        return self._product(basis, self._multiplied(blocks))

    def _known(self, blocks: ClassBlocks) -> bool:
        """Return whether class blocks are of this objective's classes and features, and fit in memory."""
        shape = (self.objective.coef_shape[0], self.n_columns, self.n_columns)
        return (
            blocks.inverses.shape == shape
            and 8 * math.prod(shape) <= self.max_bytes
            and np.array_equal(blocks.feature_scale, to_numpy(self.objective.rows.feature_scale()))
        )

    def _inverses(self, grams: Array) -> Array:
        """Return the inverses of positive semidefinite matrices (k, D + 1, D + 1) with penalty and ridge."""
        penalty, scale = self._scaled(grams)
        across, down = scale[:, None, :], scale[:, :, None]
        scaled = with_diagonal(grams, penalty) / across / down
        return inverses(scaled, self._ridge, self.objective.rows.host_workspace) / across / down

    def _multiplied(self, matrices: Array) -> Callable[[Array], Array]:
        """Return the product with (K or 1, D + 1, D + 1) matrices, one for each row of coef and its intercept."""
        objective = self.objective
        xp = objective.backend.xp
        wide = accumulation_dtype(xp, objective.backend.device)
        factors = objective.backend.asarray(matrices, dtype_name(wide))
        if matrices.shape[0] == 1:
            return lambda rows: rows @ factors[0, :, :]
        n_parts = PARTS if objective.backend.is_host and 8 * math.prod(matrices.shape) > WHOLE else 1
        parts = list(row_blocks(self.n_columns, 1, -(-self.n_columns // n_parts)))

        def product(rows: Array) -> Array:
            by_class = xp.permute_dims(rows, (1, 2, 0))  # (K, D + 1, m)
            out = xp.empty_like(by_class)

            def multiply(part: slice) -> None:
                out[:, part, :] = factors[:, part, :] @ by_class

            objective.rows.workspace.map(multiply, parts)
            return xp.permute_dims(out, (2, 0, 1))

        return product

    def _divided(self, sizes: np.ndarray, gram: Array) -> Callable[[Array], Array]:
        """Return the division by the diagonal of diag(sizes) (x) gram, the latter given as a diagonal, and penalty."""
        gram = to_numpy(gram)
        penalty, scale = self._scaled(gram)
        diagonal = sizes[:, None] * gram + penalty
        inverse = self._wide(1.0 / np.maximum(diagonal, self._ridge * sizes.max() * scale**2))
        return lambda rows: rows * inverse

    def _factored(self, sizes: np.ndarray, gram: Array) -> Callable[[Array], Array]:
        """Return the product with the inverse of diag(sizes) (x) gram + penalty, exactly.

        With s the largest size, B = gram + penalty / s = L L' and L^-1 penalty L'^-1 = V diag(v) V', each matrix
        s_k gram + penalty is L V diag(s_k + (1 - s_k / s) v) V' L': one basis suits them all.
        """
        gram, largest = to_numpy(gram), float(sizes.max())
        penalty, scale = self._scaled(gram * largest)
        penalty, scale = penalty / scale**2 * largest, scale / math.sqrt(largest)
        L = cholesky((gram / scale / scale[:, None]) + np.diag(penalty / largest), self._ridge)
        half = solve_triangular(L, np.diag(np.sqrt(penalty)), lower=True)
        v, V = np.linalg.eigh(half @ half.T)
        U = self._wide(solve_triangular(L, V, lower=True, trans="T") / scale[:, None])
        inverse = self._wide(1.0 / (sizes[:, None] + (1.0 - sizes[:, None] / largest) * np.clip(v, 0.0, largest)))
        return lambda rows: ((rows @ U) * inverse) @ U.T

    def _product(self, basis: np.ndarray | None, of_rows: Callable[[Array], Array]) -> Preconditioner:
        """Return `of_rows`, which maps (m, K, D + 1), in a basis of the classes and as a map of flat gradients.

        It leaves the mean over the classes as it is: the optimum has it where it starts, at zero.
        """
        objective = self.objective
        xp = objective.backend.xp
        wide = accumulation_dtype(xp, objective.backend.device)
        n_coef, n_features = objective.coef_shape
        Q = None if basis is None else self._wide(basis)

        def centred(rows: Array) -> Array:
            # A shift of all logits changes no probability. Rounding leaves a gradient there, but no curvature.
            return rows - xp.mean(rows, axis=1, keepdims=True) if n_coef > 1 else rows

        def product(grads: Array) -> Array:
            m = grads.shape[0]
            rows = xp.reshape(grads[:, : n_coef * n_features], (m, n_coef, n_features))
            if objective.fit_intercept:
                rows = xp.concat([rows, grads[:, n_coef * n_features :][:, :, None]], axis=2)
            rows = centred(xp.astype(rows, wide, copy=False))  # (m, K, D + 1)
            rows = centred(of_rows(rows) if Q is None else Q @ of_rows(Q.T @ rows))
            rows = xp.astype(rows, grads.dtype, copy=False)
            coef = xp.reshape(rows[:, :, :n_features], (m, -1))
            return xp.concat([coef, rows[:, :, -1]], axis=1) if objective.fit_intercept else coef

        return product
