"""What is known of the curvature of a LinearObjective: estimates of its inverse Hessian, and what they cost.

With A the features and a column of ones for the intercept, the Hessian of the mean cross-entropy is

    H = mean_i S_i (x) a_i a_i',    S_i = diag(p_i) - p_i p_i'

where p_i are the probabilities of row i. Its inverse is estimated in four ways, from the coarse to the fine:

- `bound`: 1/2 I (x) A'A / n, which lies above H everywhere (Boehning, 1992, doi:10.1007/BF00048682; 1/4 A'A / n for
  two classes). It knows the scales, means and correlations of the features.
- `kronecker`: mean_i S_i (x) mean_i t_i a_i a_i', where t_i is the share of row i in the trace of the first factor.
  It also knows the classes, and which rows still count (Martens and Grosse, 2015, arXiv:1503.05671).
- `class_blocks`: in the basis of the eigenvectors q_k of mean_i S_i, the blocks mean_i (q_k' S_i q_k) a_i a_i' on the
  diagonal. In that basis the weights of every other block sum to zero, so that little is lost without them.
- `whole`: H itself, by its Cholesky factor. It is made where K (D + 1) is small. It alone knows how rows between two
  classes couple them, which is what counts where nearly all rows are classified right and the penalty is weak.

The first three are made from a sample of the rows, but for their diagonal: a feature that few rows have may be zero in
all of a sample. They are inverted in float64, scaled to a unit diagonal first, so that the units of the features do not
matter: on a GPU there, but for eigenvectors and for the inner products of few rows, which the host makes. The whole
Hessian is made by the host alone, for rows that are there.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
from scipy.linalg import get_blas_funcs, solve_triangular

from softmax_xp._arrays import (
    MAX_SUMS,
    MIN_SUM_WORK,
    Array,
    DType,
    accumulation_dtype,
    block_bytes,
    device_of,
    dtype_name,
    is_gpu,
    namespace,
    row_blocks,
    sum_parts,
    to_numpy,
)
from softmax_xp.backend import select_backend
from softmax_xp.inverses import cholesky, factorise, inverses, with_diagonal
from softmax_xp.objective import LinearObjective
from softmax_xp.rows import Rows

# Maps gradients, the rows of an (m, n_params) array, to an estimate of the inverse Hessian times each.
Preconditioner: TypeAlias = Callable[[Array], Array]

MIN_ROWS = 2048  # sampled rows: at least this many, and so many for each feature
ROWS_PER_FEATURE = 8
RARE = 0.1  # of a sum of squares over all rows: where a sample has less, it has missed the feature
RIDGE = 1e-10  # of a matrix scaled to a unit diagonal: keeps its factor finite where features repeat each other;
#                more for float32, whose gradients are not quite zero where there is no curvature
RIDGE_OF_WHOLE = 2e-12  # the ridge of the whole Hessian, which makes directions of less curvature look that stiff
SMALLEST = 1e-5  # relative size of a direction of the classes that counts: in one of them all logits shift alike
MODEST = 1e-12, 1e12  # sizes of features whose squares float32 can hold and sum
SMALLEST_UNIT = 1e-37  # whose inverse is a number of float32
NOTHING = 1e-30  # the same where all probabilities are 0 or 1, and nothing is left
ROWS_OF_PART = 2  # least rows a column in each part of a Gram matrix: adding the parts up takes time too
PARTS = 4  # of the rows of inverses: OpenBLAS multiplies a few of them without copying them first
WHOLE = 1 << 20  # bytes of inverses that are multiplied before another thread would have been woken

FREE = 1e7  # multiplications that are over before anyone notices, and so are not counted
FREE_WHOLE = 5e8  # the same for a whole Hessian, which makes the gap certain: some 20 ms
STREAM = 25  # coefficients a feature for which reading X takes as long as multiplying it
LOGIT = 200.0  # multiplications that take as long as the row pass over one logit: 200 to 330 on an Intel Xeon
GATHER = 200.0  # multiplications that take as long as gathering, scaling and converting one feature of a sampled row
DRAW = 6000.0  # multiplications that take as long as the twenty array operations, per logit, that sample the rows
# How much longer than those of a large product in float32 multiplications take:
GRAM = 1.5  # those of a Gram matrix
INVERSE = 3.0  # of an inverse
EIGEN = 30.0  # of eigenvectors, and all that is made of them
CHOLESKY = 0.12  # of a Cholesky factor in float64, as a multiple of n^3; half of it in float32
SOLVE = 8.0  # of the solution with a factor, as a multiple of n^2: reading the factor takes the time
SOLVES = 30.0  # solutions with a factor before another one is made. A guess
LIKELY_PAIRS = 10.0  # pairs of classes that are likely for a row, of many. A guess
LEAST_PROBABILITY = 1e-20  # smaller ones become zero: arithmetic on subnormal numbers of float32 is slow
NEGLIGIBLE_PAIR = 1e-4  # product of the probabilities of two classes for a row, below which it does not couple them
# On a GPU, where the products of an inverse are small, eigenvectors are made by the host, and no iteration, however
# small, takes less time than launching its kernels: 102 by a count, with four waits for a number. From data sheets
# (50e12 multiplications a second), and by a guess (3e11 on a host; 0.6 ms), not measured.
SMALL = 30.0  # times as long
HOST = 160.0
LAUNCHES = 3e10  # multiplications that could be done in that time
# Evaluations that the first estimate may cost, before anything is known of the problem: without it the last check of
# the gap takes 50 products, and raw features take hundreds of steps.
CHEAP = 200.0
WARM = 50.0  # the same for a start that is near the optimum
NEWTON = 50.0  # and for one step of Newton's method, which takes up to a hundred products
CHECKED_BY_WHOLE = 4.0  # and for the last Newton step of a solve, which takes a dozen products or more without it
FLAT = 0.25  # variance of the eigenvalues of a scaled bound up to which its diagonal does as well; a sample has 0.125
PATIENCE = 32  # iterations after which progress is judged then
FIRST_LOOK = 8  # iterations after which progress is judged, and by how much later each time after that
LATER = 1.5
SETTLING = 3  # first iterations with a new estimate, whose gains are larger than those of later ones, and not counted
MOST_TO_COME = 200  # iterations that are foreseen at most, where gains hardly fall
AGED = 10.0  # factor by which the curvature of one parameter has changed more than its class's, to be known anew
MOST_TO_COME_OF_WHOLE = 600  # the same for the whole Hessian: it helps where the other estimates do not
EARNED = 0.1  # share of an estimate's cost that as many steps have to earn first. A guess
# A whole Hessian is made anew after as many steps as this share of its cost in evaluations. On features of low rank
# with 99 classes shares of 0.65 to 1.1 took the same time, and 0.3 took a fifth more.
AGED_WHOLE = 0.8


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


class Curvature:
    """The preconditioners of one objective, and when to change from one to the next.

    The bound comes first where it is cheap. Later, the gains of the last steps are extrapolated to the number of steps
    still to come. A finer estimate is made at the point reached if it costs fewer evaluations than that number.

    Parameters
    ----------
    objective : LinearObjective
    max_bytes : int
        Of the matrices that are kept. Where they would need more, a coarser estimate takes their place; the coarsest
        knows the scale of each feature alone.
    known : ClassBlocks, optional
        Of an earlier solve, with another penalty perhaps; taken up where it was of the same features.

    Attributes
    ----------
    blocks : ClassBlocks or None
        The last ones.
    """

    def __init__(self, objective: LinearObjective, max_bytes: int, known: ClassBlocks | None = None) -> None:
        self.objective = objective
        self.max_bytes = max_bytes
        self.blocks = known
        n_rows, n_features = objective.rows.n_rows, objective.rows.n_features
        self.n_columns = n_features + objective.fit_intercept
        self.n_sampled = min(n_rows, max(MIN_ROWS, ROWS_PER_FEATURE * self.n_columns))
        self._ridge = max(RIDGE, 8.0 * float(objective.backend.xp.finfo(objective.rows.dtype).eps))
        self._home = objective.backend if is_gpu(objective.backend.device) else select_backend("cpu")  # of matrices
        self._even: Array | None = None
        self._bound: Preconditioner | None = None
        self._squares_of_all: np.ndarray | None = None
        self._values: list[float] = []  # the objective after each step with the estimate in use
        self._wait = float(FIRST_LOOK)
        self._earned = 0.0  # steps, less the share EARNED of what the estimates so far have cost
        self._diagonals: deque[tuple[Array, np.ndarray]] = deque(maxlen=2)
        # The diagonal that the estimate in use has, (K, D + 1) or (D + 1,): asked for where a gap is checked.
        self._diagonal_in_use: Callable[[], np.ndarray] = lambda: self._bounding_factor * self._squares()
        self._level = 0  # of the estimate in use: 1 for kronecker, 2 for class blocks, 3 for the whole Hessian

    def first(self, params: Array) -> Preconditioner | None:
        """Return the preconditioner to start with from `params`, or None.

        That is the bound, unless the start is somewhere that an earlier solve has found, near the optimum; where
        the features are nearly uncorrelated, it is the bound's diagonal, and progress is judged later.
        """
        if not self._is_zero(params):
            if self.cost_of_whole() <= WARM:
                self._level = 3
                return self.whole(params)
            known = self.blocks if self.blocks is not None and self._known(self.blocks) else None
            if known is not None:
                self._level, self._diagonal_in_use = 2, partial(self._diagonal, params)
                return self._product(known.basis, self._multiplied(known.inverses))
            if self.cost(self.objective.coef_shape[0]) <= WARM:
                self._level = 2
                return self.class_blocks(params)
        if self.cost(1) > CHEAP:
            return None
        if self.knows_correlations:
            gram = self._bounding_gram()
            if self._uncorrelated(gram):
                self._wait = float(PATIENCE)
                return self._inverted(namespace(gram=gram).linalg.diagonal(gram))
        return self.bound()

    @property
    def knows_correlations(self) -> bool:
        """Whether the preconditioners know those of the features, and how they change where few rows still count."""
        return self._holds_matrix() and not self._few_rows()

    def due(self, value: float, gap: float, target: float) -> Callable[[Array], Preconditioner] | None:
        """Return what makes a better preconditioner at given parameters where that pays, else None.

        Called once after each step with the objective, its estimated gap, and the gap at which the solve will end.
        """
        self._values.append(value)
        self._earned += 1.0
        n_steps = len(self._values)
        if n_steps < self._wait or not gap > target:
            return None
        to_come = self._to_come(gap, target)
        for level, make, cost in (
            (3, partial(self.whole, negligible=NEGLIGIBLE_PAIR), self.cost_of_whole(LIKELY_PAIRS)),
            (2, self.class_blocks, self.cost(self.objective.coef_shape[0])),
            (1, self.kronecker, self.cost(1, EIGEN)),
        ):
            if level < self._level:  # a coarser one would be a step back
                break
            if self._earned < EARNED * cost or (level == self._level == 3 and n_steps < AGED_WHOLE * cost):
                continue
            if cost < min(to_come, MOST_TO_COME if level < 3 else MOST_TO_COME_OF_WHOLE):
                self._wait *= LATER
                self._values = []
                self._level = level
                self._earned -= EARNED * cost
                return make
        return None

    def _to_come(self, gap: float, target: float) -> float:
        """Return how many steps are still to come, if the gain of a step goes on falling by the same factor.

        The factor is that between the two halves of the steps with the estimate in use, without the first SETTLING. The
        gap that L-BFGS estimates is no measure of progress: far from the optimum it goes up and down a hundredfold.
        """
        half = (len(self._values) - 1 - SETTLING) // 2
        first, middle, last = (self._values[-1 - i * half] for i in (2, 1, 0))
        if not 0.0 < middle - last < first - middle:
            return math.inf
        ratio = (middle - last) / (first - middle)
        left = max(gap, (middle - last) * ratio / (1.0 - ratio))
        return half * math.log(left / target) / -math.log(ratio) if target > 0.0 else math.inf

    def at(self, params: Array) -> Preconditioner:
        """Return the finest preconditioner at `params` that one step of Newton's method is worth, or else the bound.

        At zero all rows have the same probabilities, and the Hessian is a Kronecker product.
        """
        if not self._is_zero(params):
            if self.cost_of_whole() <= NEWTON:
                return self.whole(params)
            if self.cost(self.objective.coef_shape[0]) <= NEWTON:
                return self.class_blocks(params)
        if self.cost(1, EIGEN) <= NEWTON:
            return self.kronecker(params)
        bound = self.bound()
        return self.renewed(params, bound) or bound

    def _is_zero(self, params: Array) -> bool:
        return not bool(self.objective.backend.xp.any(params != 0.0))

    def cost(self, n_matrices: int, factor: float = INVERSE) -> float:
        """Return what forming and inverting so many matrices costs, in evaluations of value and gradient.

        The unit of work is a multiplication. Each matrix takes GATHER m D for its m rows, GRAM m D^2 / 2 for their
        products and `factor` D^3. For more than one matrix, sampling the rows takes DRAW n K. All but the bound need
        eigenvectors of the classes, too. The cost is infinite if the matrices do not fit, and zero for a small problem.
        """
        n_coef = self.objective.coef_shape[0]
        drawn = 12 * self.n_sampled  # a class's rows and their weights
        if n_matrices > 1 and (
            n_matrices * (8 * self.n_columns**2 + drawn) > self.max_bytes or not self._holds_classes()
        ):
            return math.inf
        n_columns = self.n_columns if self._holds_matrix() else 1
        small, host, least = (SMALL, HOST, LAUNCHES) if is_gpu(self.objective.backend.device) else (1.0, 1.0, 0.0)
        slower = host if factor > INVERSE else small
        of_rows = self.n_sampled * n_columns * (GATHER + GRAM * n_columns / 2)
        work = n_matrices * (of_rows + slower * factor * n_columns**3)
        if n_matrices > 1:
            work += DRAW * self.objective.rows.n_rows * n_coef
        if n_matrices == 1 and factor == INVERSE and self._few_rows():
            n_rows = self.objective.rows.n_rows
            work = host * (GRAM * n_rows**2 * self.n_columns / 2 + factor * n_rows**3)
        if (n_matrices > 1 or factor > INVERSE) and self._holds_classes():
            work += host * EIGEN * n_coef**3
        evaluation = max(least, self._evaluation_work())
        return 0.0 if work < FREE else float(work / evaluation)

    def _evaluation_work(self) -> float:
        """Return the multiplications that take as long as one evaluation of value and gradient."""
        n_coef, n_features = self.objective.coef_shape
        return float(self.objective.rows.n_rows * (2.0 * n_features * (n_coef + STREAM) + LOGIT * n_coef))

    def exact_inverse(self, params: Array) -> Preconditioner | None:
        """Return the inverse Hessian at `params` where conjugate gradients without it cost more, else None."""
        return self.whole(params) if self.cost_of_whole() <= CHECKED_BY_WHOLE else None

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

    def _diagonal(self, params: Array) -> np.ndarray:
        """Return the diagonal of the Hessian, (K, D + 1), on the host. The last two are kept."""
        for at, kept in self._diagonals:
            if at is params:
                return kept
        diagonal = self._formed_diagonal(params)
        self._diagonals.append((params, diagonal))
        return diagonal

    def _formed_diagonal(self, params: Array) -> np.ndarray:
        objective, rows_of_fit = self.objective, self.objective.rows
        n, n_features = rows_of_fit.n_rows, rows_of_fit.n_features
        device, dtype = objective.backend.device, rows_of_fit.dtype
        if self._unit() is not None:
            dtype = accumulation_dtype(objective.backend.xp, device)
        n_coef = objective.coef_shape[0]
        parts = sum_parts(n, 2 * n_features * n_coef)
        sums = np.zeros((len(parts), n_coef, self.n_columns))
        of_rows = objective.curvature_weight(params)

        def add(i: int) -> None:
            part = rows_of_fit.part(parts[i])
            weight = None if of_rows is None else of_rows[parts[i]]
            for rows in row_blocks(part.shape[0], 16 * n_features + 64 * len(sums[i]), block_bytes(device)):
                p = self._probabilities_of(part[rows, :], params)
                own = p * (1.0 - p)
                own = own if weight is None else own * weight[rows][:, None]
                own, B = (objective.backend.xp.astype(x, dtype, copy=False) for x in (own, part[rows, :]))
                sums[i, :, :n_features] += to_numpy(own.T @ (B * B))
                sums[i, :, n_features:] += to_numpy(objective.backend.xp.sum(own, axis=0))[:, None]

        objective.rows.workspace.map(add, range(len(parts)))
        penalty, scale = self._scaled(self._squares())
        diagonal: np.ndarray = sums.sum(axis=0) / objective.rows.total_weight
        diagonal += np.maximum(penalty, self._ridge * SMALLEST * scale**2)
        return diagonal

    def cost_of_whole(self, likely_pairs: float = math.inf) -> float:
        """Return what the whole Hessian costs, and solving with it, in evaluations of value and gradient.

        A row couples `likely_pairs` pairs of classes at most. Infinite where the Hessian would not fit, and on a GPU,
        for which it is not written.
        """
        objective, n_coef = self.objective, self.objective.coef_shape[0]
        n, n_rows = n_coef * self.n_columns, objective.rows.n_rows
        if not objective.backend.is_host or self._dtype_of_whole() is None or 16 * n_rows * n_coef > self.max_bytes:
            return math.inf
        cholesky = CHOLESKY if self._dtype_of_whole() == np.float64 else CHOLESKY / 2.0
        pairs = n_coef + min(n_coef * (n_coef - 1) / 2, likely_pairs)
        forming = 2.0 * GRAM * n_rows * pairs * self.n_columns**2  # in float64, both halves
        work = forming + cholesky * n**3
        return 0.0 if work < FREE_WHOLE else (work + SOLVES * SOLVE * n**2) / self._evaluation_work()

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

    def _drawn(
        self, params: Array, basis: np.ndarray, sizes: np.ndarray
    ) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
        """Return for each vector of the basis the weights in its block of the rows that form it, and these rows.

        And the diagonal of the block, (K, D + 1), over all rows.
        """
        objective, xp = self.objective, self.objective.backend.xp
        n_rows, total = objective.rows.n_rows, objective.rows.total_weight
        n_coef = len(sizes)
        Q = objective.backend.asarray(basis, dtype_name(objective.rows.dtype))
        weights = np.empty((n_coef, self.n_sampled))
        index = np.empty(weights.shape, dtype=np.int32 if n_rows < 2**31 else np.int64)
        wide = accumulation_dtype(xp, objective.backend.device)
        passed = xp.full((1, n_coef), 0.5, dtype=wide, device=objective.backend.device)  # the sums of chances
        per_size = self._wide(self.n_sampled / sizes)
        squares = np.zeros((n_coef, self.n_columns))
        narrow = objective.rows.dtype if self._unit() is None else wide
        of_rows = objective.curvature_weight(params)
        for rows, features, p in self._probabilities(objective.rows, params):
            weight = p @ (Q * Q) - (p @ Q) ** 2  # q_k' S_i q_k, (m, K)
            if of_rows is not None:
                weight = weight * of_rows[rows][:, None]
            weight = xp.where(weight > 0.0, weight, xp.zeros_like(weight))  # but for rounding
            squares += self._squares_of(features, weight, narrow)
            share = xp.astype(weight, wide, copy=False) / total
            chance = xp.ones_like(share)
            if self.n_sampled < n_rows:
                chance = xp.minimum(chance, share * per_size)
            # Systematic sampling: one row wherever the sum of chances passes an integer, which is its place.
            passed = xp.cumulative_sum(xp.concat([passed[-1:, :], chance], axis=0), axis=0)
            place = xp.minimum(xp.floor(passed), xp.full_like(passed, float(self.n_sampled)))
            row, k = xp.nonzero(place[1:, :] > place[:-1, :])
            at = row * n_coef + k  # what is drawn, of all of the block's: the rest stays on its device
            own, likely, to = (to_numpy(xp.take(xp.reshape(x, (-1,)), at)) for x in (share, chance, place[:-1, :]))
            row, k = to_numpy(row), to_numpy(k)
            weights[k, to.astype(np.int64)] = own.astype(np.float64) / likely
            index[k, to.astype(np.int64)] = rows.start + row
        n_drawn = np.minimum(to_numpy(passed[-1, :]), self.n_sampled).astype(int)
        return [(weights[k, :n], index[k, :n]) for k, n in enumerate(n_drawn)], squares / total

    def _probabilities(self, rows: Rows, params: Array) -> Iterator[tuple[slice, Array, Array]]:
        """Yield blocks of rows, their features (m, D) and their probabilities (m, K)."""
        n_coef, device = self.objective.coef_shape[0], self.objective.backend.device
        for block in row_blocks(rows.n_rows, 4 * n_coef * 8, block_bytes(device)):
            features = rows.part(block)
            yield block, features, self._probabilities_of(features, params)

    def _probabilities_of(self, A: Array, params: Array) -> Array:
        """Return the probabilities (m, K) of rows of A; of class 1 alone for two classes.

        Probabilities up to LEAST_PROBABILITY are returned as zero.
        """
        objective, xp = self.objective, self.objective.backend.xp
        coef, intercept = objective.split(xp.astype(params, A.dtype, copy=False))
        logits = A @ coef.T
        logits = logits if intercept is None else logits + intercept
        single = coef.shape[0] == 1
        if single:
            logits = xp.concat([xp.zeros_like(logits), logits], axis=1)
        p = objective.backend.kernels(A.dtype).softmax(logits, 1)[:, int(single) :]
        return xp.where(p > LEAST_PROBABILITY, p, xp.zeros_like(p))

    def _sampled_rows(self, params: Array | None = None) -> tuple[Rows, np.ndarray]:
        """Return rows evenly spaced, and their weights (m,).

        These sum to one. With `params` they are those of the curvature there, which for another loss than cross-entropy
        sum to the mean of T_i.
        """
        objective = self.objective
        sample, spaced = objective.rows.sample(self.n_sampled), objective.rows.spaced(self.n_sampled)
        own = objective.rows.sample_weight
        of_rows = own if params is None else objective.curvature_weight(params)
        if of_rows is None:
            return sample, np.full(sample.n_rows, 1.0 / sample.n_rows)
        weight = to_numpy(of_rows[spaced]).astype(np.float64)
        total = float(sample.n_rows) if own is None else to_numpy(own[spaced]).astype(np.float64).sum()
        return sample, weight / max(total, 1e-300)

    def _even_gram(self) -> Array:
        """Return the mean of a_i a_i' over the sampled rows, or its diagonal; it does not change during a solve."""
        if self._even is None:
            self._even = self._with_rare(self._gram(*self._sampled_rows()), self._squares())
        return self._even

    def _with_rare(self, gram: Array, squares: np.ndarray) -> Array:
        """Return `gram`, whole or as a diagonal, with what it lacks of `squares`, its diagonal over all rows."""
        xp, of_all = self._home.xp, self._home.asarray(squares)
        own = gram if gram.ndim == 1 else xp.linalg.diagonal(gram)
        missing = xp.where(own < RARE * of_all, of_all - own, xp.zeros_like(own))
        return gram + missing if gram.ndim == 1 else with_diagonal(gram, missing)

    def _squares(self) -> np.ndarray:
        """Return the mean of the squares of each column of A over all rows, (D + 1,).

        Raises
        ------
        ValueError
            Where they are too large for the widest dtype of the device.
        """
        if self._squares_of_all is None:
            objective = self.objective
            weight = objective.rows.sample_weight
            wide = accumulation_dtype(objective.backend.xp, objective.backend.device)
            sums = self._squares_of(objective.rows.part(slice(None)), None if weight is None else weight[:, None], wide)
            sums = sums[0]
            if not np.isfinite(sums).all():
                raise ValueError(
                    f"`X` must hold numbers whose squares {dtype_name(wide)} can sum, where `C` is finite; those of "
                    f"column {int(np.argmin(np.isfinite(sums)))} are too large; divide it by a power of ten."
                )
            self._squares_of_all = sums / objective.rows.total_weight
        return self._squares_of_all

    def _unit(self) -> np.ndarray | None:
        """Return what the columns of A are to be divided by, (D + 1,), before they are squared; None for ones."""
        sizes = np.sqrt(self._squares())
        sizes[sizes == 0.0] = 1.0
        return None if MODEST[0] < sizes.min() and sizes.max() < MODEST[1] else np.maximum(sizes, SMALLEST_UNIT)

    def _squares_of(self, X: Array, weight: Array | None, dtype: DType) -> np.ndarray:
        """Return the sums of the squares in each column of rows of A, (K, D + 1), times weights (m, K) or one.

        Squares, and sums over a block of rows, are formed in `dtype`.
        """
        objective = self.objective
        backend, xp = objective.backend, objective.backend.xp
        if weight is None:
            weight = xp.ones((X.shape[0], 1), dtype=X.dtype, device=backend.device)
        parts = list(row_blocks(X.shape[0], 64 * X.shape[1], block_bytes(backend.device)))
        sums = np.empty((len(parts), weight.shape[1], self.n_columns))

        def add(i: int) -> None:
            B, own = (xp.astype(x[parts[i], :], dtype, copy=False) for x in (X, weight))
            sums[i, :, : X.shape[1]] = to_numpy(own.T @ (B * B))
            sums[i, :, X.shape[1] :] = to_numpy(xp.sum(own, axis=0))[:, None]

        objective.rows.workspace.map(add, range(len(parts)))
        total: np.ndarray = sums.sum(axis=0)
        return total

    def _few_rows(self) -> bool:
        """Return whether there are fewer rows than columns, and three copies of them fit."""
        n_rows = self.objective.rows.n_rows
        return bool(n_rows < self.n_columns and 3 * 8 * n_rows * self.n_columns <= self.max_bytes)

    def _holds_matrix(self) -> bool:
        """Return whether D x D matrices fit: four of them, while one is made."""
        return bool(4 * 8 * self.n_columns**2 <= self.max_bytes)

    def _holds_classes(self) -> bool:
        """Return whether C x C matrices fit: eigenvectors need several."""
        return bool(4 * 8 * self.objective.coef_shape[0] ** 2 <= self.max_bytes)

    def _gram(self, rows: Rows, weight: np.ndarray, index: np.ndarray | None = None) -> Array:
        """Return sum_i weight_i a_i a_i' over the rows (or those at `index`), (D + 1, D + 1).

        Its diagonal (D + 1,) where that is all that fits.
        """
        backend, xp = self.objective.backend, self.objective.backend.xp
        wide = accumulation_dtype(xp, backend.device)
        if len(weight) * self.n_columns**2 > 10 * FREE:  # long enough that float32, where X is in it, saves something
            wide = rows.dtype
        total = accumulation_dtype(xp, backend.device)
        whole = self._holds_matrix()
        # The rows at `index` are those of a class block, each of which a thread forms by itself.
        parts = self._parts_of_gram(len(weight)) if index is None else [slice(0, len(weight))]
        grams = xp.zeros((len(parts), *(self.n_columns,) * (2 if whole else 1)), dtype=total, device=backend.device)
        unit = self._unit()
        per_unit = None if unit is None else backend.asarray(1.0 / unit[: rows.n_features], dtype_name(wide))

        def add(i: int) -> None:
            for block in row_blocks(parts[i].stop - parts[i].start, 8 * self.n_columns, block_bytes(backend.device)):
                own_rows = slice(parts[i].start + block.start, parts[i].start + block.stop)
                B = rows.part(own_rows) if index is None else rows.take(backend.asarray(index[own_rows], "int64"))
                root = backend.asarray(np.sqrt(weight[own_rows]), dtype_name(wide))[:, None]
                B = xp.astype(B, wide, copy=False)
                B = (B if per_unit is None else B * per_unit) * root
                if self.objective.fit_intercept:
                    B = xp.concat([B, root], axis=1)
                grams[i, ...] += xp.astype(B.T @ B if whole else xp.sum(B * B, axis=0), total, copy=False)

        self.objective.rows.workspace.map(add, range(len(parts)))
        gram = xp.sum(grams, axis=0)
        own = self._home.asarray(gram, "float64")
        if unit is None:
            return own
        per = self._home.asarray(unit)
        return own * per * (per if own.ndim == 1 else per[:, None])

    def _parts_of_gram(self, n_rows: int) -> list[slice]:
        """Return the parts of the rows over which threads sum a Gram matrix.

        A part has more rows than columns. All parts fit in the memory limit, each with its sum and one product.
        """
        if is_gpu(self.objective.backend.device):  # which shares out the product by itself
            return [slice(0, n_rows)]
        least = max(ROWS_OF_PART * self.n_columns, MIN_SUM_WORK // self.n_columns**2)
        n_parts = max(1, min(MAX_SUMS, n_rows // least, self.max_bytes // (2 * 8 * self.n_columns**2)))
        return list(row_blocks(n_rows, 1, -(-n_rows // n_parts)))

    def _scaled(self, gram: Array) -> tuple[Array, Array]:
        """Return the penalty on the diagonal, and the scale that brings gram and penalty to a unit diagonal.

        For gram as a diagonal, whole, or as many matrices.
        """
        xp = namespace(gram=gram)
        penalty = np.zeros(self.n_columns)
        n_features = self.objective.coef_shape[1]
        penalty[:n_features] = self.objective.penalty.diagonal(n_features)
        penalty = xp.asarray(penalty, device=device_of(gram))
        scale = xp.sqrt((gram if gram.ndim == 1 else xp.linalg.diagonal(gram)) + penalty)
        return penalty, xp.where(scale == 0.0, xp.ones_like(scale), scale)  # a feature always zero, without penalty

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

    def _wide(self, x: np.ndarray) -> Array:
        """Return a host array on the backend, in its widest dtype."""
        backend = self.objective.backend
        return backend.asarray(x, dtype_name(accumulation_dtype(backend.xp, backend.device)))

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
