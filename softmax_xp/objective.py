"""The objective of a linear classifier: a mean of losses over rows, and a penalty on the coefficients."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace

import numpy as np

from softmax_xp._arrays import (
    Array,
    accumulation_dtype,
    block_bytes,
    bytes_of,
    device_of,
    is_numpy,
    namespace,
    row_blocks,
    to_numpy,
)
from softmax_xp.backend import Backend
from softmax_xp.kernels import reference
from softmax_xp.kernels.row_pass import PLAIN, RowPass
from softmax_xp.kernels.workspace import Workspace
from softmax_xp.losses import Loss
from softmax_xp.penalties import Penalty

EPS = {"tf32": 2.0**-10, "bfloat16": 2.0**-7}  # of the factors of products, by their precision


class LinearObjective:
    """Mean loss of softmax(X coef' + intercept), plus an L2 penalty on coef.

    f(coef, intercept) = sum_i s_i loss(coef x_i + intercept, t_i) / sum_i s_i + penalty(coef)

    The parameters are one flat vector, coef row by row and then the intercept, in any floating dtype: products
    are done in the dtype of X, and the gradient comes back in that of the parameters. For two classes there is
    one row of coefficients, and class 0 has the logit 0.

    Parameters
    ----------
    backend : Backend
        Where every array lives.
    X : array of shape (n_samples, n_features), real floating, finite
    targets : array of shape (n_samples,) with integers in [0, n_classes), or (n_samples, n_classes) with
        probabilities in the dtype of X
    n_classes : int, at least 2
    penalty : Penalty
        Without an l1 part, which no solver here minimises.
    sample_weight : array of shape (n_samples,) in the dtype of X, optional
    fit_intercept : bool, default True
    workers : int, optional
        Threads on a CPU; by default as many as the process may use cores. Results do not depend on it.
    row_pass : RowPass
        The loss, the smoothing of labels, and the precision of the matrix products: one of the PRECISIONS of the
        backend's kernels; "float32" means that of X. Hessian products are always made in that of X. "bfloat16" may
        keep a rounded copy of X.
    """

    def __init__(
        self,
        backend: Backend,
        X: Array,
        targets: Array,
        n_classes: int,
        penalty: Penalty,
        sample_weight: Array | None = None,
        fit_intercept: bool = True,
        workers: int | None = None,
        row_pass: RowPass = PLAIN,
    ) -> None:
        if penalty.has_l1:
            raise ValueError("`penalty` must have no l1 part, which no solver here minimises; pass Penalty(l2=...).")
        self.backend = backend
        self.X = X
        self.targets = targets
        self.n_classes = n_classes
        self.penalty = penalty
        self.sample_weight = sample_weight
        self.fit_intercept = fit_intercept
        self.host_workspace = Workspace(workers)  # for what is always computed by NumPy
        self.workspace = self.host_workspace if is_numpy(X) else Workspace(1)  # a GPU shares out the work by itself
        self.row_pass = row_pass
        is_exact = row_pass.precision == "float32"
        self._rounded = None if is_exact else backend.kernels(X.dtype).factor(X, row_pass.precision)
        self._curvature_weight: tuple[Array, Array] | None = None  # the last parameters, and the weights there
        self._feature_scale: Array | None = None
        self._usual_size: np.ndarray | None = None
        self.coef_shape: tuple[int, int] = (1 if n_classes == 2 else n_classes, X.shape[1])
        wide = accumulation_dtype(backend.xp, backend.device)
        self.total_weight = float(X.shape[0] if sample_weight is None else backend.xp.sum(sample_weight, dtype=wide))

    def in_precision(self, precision: str) -> LinearObjective:
        """Return the same objective with matrix products of another precision."""
        return LinearObjective(
            self.backend,
            self.X,
            self.targets,
            self.n_classes,
            self.penalty,
            self.sample_weight,
            self.fit_intercept,
            self.workspace.workers,
            replace(self.row_pass, precision=precision),
        )

    def of_loss(self, loss: Loss) -> LinearObjective:
        """Return the objective of another loss."""
        other = copy(self)
        other.row_pass = replace(self.row_pass, loss=loss)
        other._curvature_weight = None
        return other

    @property
    def n_params(self) -> int:
        """The length of the parameter vector."""
        return self.coef_shape[0] * (self.coef_shape[1] + self.fit_intercept)

    def split(self, params: Array) -> tuple[Array, Array | None]:
        """Return views of `params` as coef (K, n_features) and intercept (K,), or None for the latter."""
        n_coef = self.coef_shape[0] * self.coef_shape[1]
        coef = self.backend.xp.reshape(params[:n_coef], self.coef_shape)
        return coef, params[n_coef:] if self.fit_intercept else None

    def value_and_grad(self, params: Array) -> tuple[Array, Array]:
        """Return f, a 0-d array in the widest floating dtype of the device, and its gradient, like `params`."""
        return self._sum(params, self._factor(), self.targets, self.sample_weight, self.total_weight)

    def batch_value_and_grad(self, params: Array, rows: Array) -> tuple[Array, Array]:
        """Return an unbiased estimate of f and its gradient from the rows at the integer indices `rows`."""
        take = self.backend.xp.take
        weight = None if self.sample_weight is None else take(self.sample_weight, rows, axis=0)
        share = rows.shape[0] * (self.total_weight / self.X.shape[0])
        return self._sum(params, take(self._factor(), rows, axis=0), take(self.targets, rows, axis=0), weight, share)

    def rounding_error(self, params: Array) -> float:
        """Return the error that rounding may leave in f: of the size of its largest logits."""
        backend = self.backend
        coef, intercept = self.split(params)
        logits = backend.xp.abs(coef) @ backend.xp.astype(self.feature_scale(), coef.dtype)
        logits = logits if intercept is None else logits + backend.xp.abs(intercept)
        eps = EPS.get(self.row_pass.precision, float(backend.xp.finfo(self.X.dtype).eps))
        return eps * (1.0 + float(backend.xp.max(logits)))

    def feature_scale(self) -> Array:
        """Return the root mean square of each feature over a thousand rows evenly spaced, (n_features,)."""
        if self._feature_scale is None:
            xp, sample = self.backend.xp, self._sample()
            self._feature_scale = xp.sqrt(xp.mean(sample * sample, axis=0))
        return self._feature_scale

    def usual_size(self) -> np.ndarray:
        """Return the median of |x| of each feature over a quarter of the sampled rows, (n_features,).

        A few outliers do not change it. A feature whose median is zero has its root mean square instead, over all rows
        if the sampled ones are all zero.
        """
        if self._usual_size is None:
            xp, usual = self.backend.xp, to_numpy(self.feature_scale()).copy()
            sizes = np.sort(np.abs(to_numpy(self._sample()[::4, :])), axis=0)  # faster than np.median
            median = sizes[len(sizes) // 2]
            usual[median > 0.0] = median[median > 0.0]
            wide = accumulation_dtype(xp, self.backend.device)
            rare = np.flatnonzero(usual == 0.0)
            if rare.size:
                at, n = self.backend.asarray(rare, "int64"), self.X.shape[0]
                squares = xp.zeros(rare.size, dtype=wide, device=self.backend.device)
                for rows in row_blocks(n, 16 * rare.size, block_bytes(self.backend.device)):
                    columns = xp.astype(xp.take(self.X[rows, :], at, axis=1), wide)
                    squares += xp.sum(columns * columns, axis=0)
                usual[rare] = to_numpy(xp.sqrt(squares / n))
            self._usual_size = usual
        return self._usual_size

    def _sample(self) -> Array:
        """Return a thousand rows evenly spaced, (m, n_features), in the widest floating dtype of the device."""
        xp = self.backend.xp
        rows = self.X[:: -(-self.X.shape[0] // 1024), :]
        return xp.astype(rows, accumulation_dtype(xp, self.backend.device), copy=False)

    def hessian_product(self, params: Array) -> Callable[[Array], Array]:
        """Return the function that takes a direction, like `params`, to the Hessian at `params` times it."""
        kernels = self.backend.kernels(self.X.dtype)
        penalty, row_pass = self.penalty, replace(self.row_pass, precision="float32")
        at = self.split(params)

        def product(direction: Array) -> Array:
            along = self.split(direction)
            sums = kernels.linear_hessian_product(
                *at, self.X, self.targets, *along, self.sample_weight, row_pass, self.workspace
            )

            def of_penalty(rows: slice) -> Array:
                return penalty.of_classes(rows).hessian_product(along[0][rows, :])

            return _mean(sums, self.total_weight, direction, of_penalty, self.workspace)

        return product

    def curvature_weight(self, params: Array) -> Array | None:
        """Return the weights (n,) with which the Hessian of cross-entropy is the positive part of this one's.

        They are s_i T_i, where T_i is the sum of the effective targets of row i: for cross-entropy the weights of the
        rows, None where these are equal. The last ones are kept.
        """
        if self.row_pass.is_cross_entropy:
            return self.sample_weight
        if self._curvature_weight is None or self._curvature_weight[0] is not params:
            xp, n_rows = self.backend.xp, self.X.shape[0]
            out = xp.empty(n_rows, dtype=self.X.dtype, device=self.backend.device)

            def add(rows: slice) -> None:
                _, effective = reference.effective(
                    self.log_p(self.X[rows, :], params), self.targets[rows, ...], self.row_pass, 1
                )
                mass = xp.sum(effective, axis=1)
                out[rows] = mass if self.sample_weight is None else mass * self.sample_weight[rows]

            row_bytes = 16 * self.n_classes * bytes_of(xp, self.X.dtype)
            self.workspace.map(add, row_blocks(n_rows, row_bytes, block_bytes(self.backend.device)))
            self._curvature_weight = params, out
        return self._curvature_weight[1]

    def log_p(self, X: Array, params: Array) -> Array:
        """Return the log-probabilities (m, n_classes) of rows X (m, n_features), in their dtype."""
        xp = self.backend.xp
        coef, intercept = self.split(xp.astype(params, X.dtype, copy=False))
        logits = X @ coef.T
        logits = logits if intercept is None else logits + intercept
        if coef.shape[0] == 1:
            logits = xp.concat([xp.zeros_like(logits), logits], axis=1)
        return self.backend.kernels(X.dtype).log_softmax(logits, 1)

    def _factor(self) -> Array:
        """Return X as a factor of products."""
        return self.X if self._rounded is None else self._rounded

    def _sum(
        self, params: Array, factor: Array, targets: Array, weight: Array | None, total: float
    ) -> tuple[Array, Array]:
        coef, intercept = self.split(params)
        kernels = self.backend.kernels(self.X.dtype)
        sums = kernels.linear_sums(coef, intercept, factor, targets, weight, self.row_pass, self.workspace)
        return penalised_mean(sums, total, coef, self.penalty, self.workspace)


def penalised_mean(
    sums: tuple[Array, Array, Array | None], total: float, coef: Array, penalty: Penalty, workspace: Workspace
) -> tuple[Array, Array]:
    """Return the mean loss with the penalty, and its gradient as one flat vector in the dtype of `coef`.

    Parameters
    ----------
    sums : loss (), and its gradient in coef (K, n_features) and intercept (K,), or None for the latter
        Sums over the rows.
    total : float
        What they are divided by.
    coef : array of shape (K, n_features)
    penalty : Penalty
    workspace : Workspace
    """
    values: dict[int, Array] = {}
    xp = namespace(coef=coef)

    def of_penalty(rows: slice) -> Array:
        flat = xp.reshape(coef[rows, :], (-1,))  # a copy of what is transposed, once
        own, of_rows = xp.reshape(flat, (-1, coef.shape[1])), penalty.of_classes(rows)
        values[rows.start] = of_rows.value(own)
        return of_rows.grad(own)

    grad = _mean(sums[1:], total, coef, of_penalty, workspace)
    return sums[0] / total + sum(values[start] for start in sorted(values)), grad


def _mean(
    sums: tuple[Array, Array | None],
    total: float,
    like: Array,
    of_penalty: Callable[[slice], Array],
    workspace: Workspace,
) -> Array:
    """Return sums for coef and intercept, divided by `total`, with the penalty's part, as a flat vector like `like`.

    In blocks of classes, of which all that is formed stays in cache: where coef is large every pass through memory
    takes a share of the time.
    """
    coef, intercept = sums
    xp, device = namespace(like=like), device_of(like)
    n_coef, n_features = coef.shape
    size = n_coef * n_features
    mean = xp.empty(size + (0 if intercept is None else n_coef), dtype=like.dtype, device=device)

    def finish(rows: slice) -> None:
        part = mean[rows.start * n_features : rows.stop * n_features]  # a view
        part[...] = xp.reshape(coef[rows, :], (-1,))
        part /= total
        part += xp.reshape(of_penalty(rows), (-1,))

    workspace.map(finish, row_blocks(n_coef, 32 * n_features, block_bytes(device)))
    if intercept is not None:
        own = xp.astype(intercept, like.dtype, copy=False) / total
        # These sum to zero, because a shift of all logits changes no loss. A sum that rounding leaves would be divided
        # by a curvature of zero.
        mean[size:] = own - xp.mean(own) if n_coef > 1 else own
    return mean
