"""The rows that an estimate of the curvature is made of, their weights, and sums over them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

from softmax_xp.arrays import (
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
from softmax_xp.curvature.costs import COSTS, CostModel
from softmax_xp.curvature.inverses import with_diagonal
from softmax_xp.objective import LinearObjective
from softmax_xp.rows import Rows

SMALLEST = 1e-5  # relative size of a direction of the classes that counts: in one of them all logits shift alike
RARE = 0.1  # share of a sum of squares over all rows: where a sample has less, it has missed the feature. A guess
# The ridge of a matrix scaled to a unit diagonal, in float64. It keeps its factor finite where features repeat each
# other. float32 takes more: its gradients are not quite zero where there is no curvature.
RIDGE = 1e-10
MODEST = 1e-12, 1e12  # sizes of features whose squares float32 can hold and sum
SMALLEST_UNIT = 1e-37  # whose inverse is a number of float32
ROWS_OF_PART = 2  # least rows a column in each part of a Gram matrix: adding the parts up takes time too. A guess
LEAST_PROBABILITY = 1e-20  # smaller ones become zero: arithmetic on subnormal numbers of float32 is slow
LONG = 1e8  # multiplications of a Gram matrix from which float32 saves time, where X is in it. A guess


class Sampling:
    """Rows of an objective and sums over them, for estimates of its curvature.

    Parameters
    ----------
    objective : LinearObjective
    max_bytes : int
        Of the matrices that are kept.
    costs : CostModel
        Its `min_rows` and `rows_per_feature` say how many rows are sampled.
    """

    def __init__(self, objective: LinearObjective, max_bytes: int, costs: CostModel = COSTS) -> None:
        self.objective = objective
        self.max_bytes = max_bytes
        self.costs = costs
        n_rows, n_features = objective.rows.n_rows, objective.rows.n_features
        self.n_columns = n_features + objective.fit_intercept
        self.n_sampled = min(n_rows, max(costs.min_rows, costs.rows_per_feature * self.n_columns))
        self._ridge = max(RIDGE, 8.0 * float(objective.backend.xp.finfo(objective.rows.dtype).eps))
        self._home = objective.backend if is_gpu(objective.backend.device) else select_backend("cpu")  # of matrices
        self._even: Array | None = None
        self._squares_of_all: np.ndarray | None = None
        self._diagonals: deque[tuple[Array, np.ndarray]] = deque(maxlen=2)

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
        if len(weight) * self.n_columns**2 > LONG:  # long enough that float32, where X is in it, saves something
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

    def _wide(self, x: np.ndarray) -> Array:
        """Return a host array on the backend, in its widest dtype."""
        backend = self.objective.backend
        return backend.asarray(x, dtype_name(accumulation_dtype(backend.xp, backend.device)))

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
