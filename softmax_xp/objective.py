"""The objective of a linear classifier: a mean of losses over rows, and a penalty on the coefficients."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace

from softmax_xp.arrays import Array, block_bytes, bytes_of, device_of, namespace, row_blocks
from softmax_xp.kernels import reference
from softmax_xp.kernels.row_pass import PLAIN, RowPass
from softmax_xp.kernels.workspace import Workspace
from softmax_xp.losses import Loss
from softmax_xp.penalties import Penalty
from softmax_xp.rows import Rows

EPS = {"tf32": 2.0**-10, "bfloat16": 2.0**-7}  # of the factors of products, by their precision


class LinearObjective:
    """Mean loss of softmax(X coef' + intercept), plus a penalty on coef: rows, targets, a loss and a penalty.

    f(coef, intercept) = sum_i s_i loss(coef x_i + intercept, t_i) / sum_i s_i + penalty(coef)

    The parameters are one flat vector, coef row by row and then the intercept, in any floating dtype: products
    are done in the dtype of X, and the gradient comes back in that of the parameters. For two classes there is
    one row of coefficients, and class 0 has the logit 0.

    Parameters
    ----------
    rows : Rows
        The features x_i and the weights s_i.
    targets : array of shape (n_samples,) with integers in [0, n_classes), or (n_samples, n_classes) with
        probabilities in the dtype of the features
    n_classes : int, at least 2
    penalty : Penalty
        Without an l1 part, which no solver here minimises.
    fit_intercept : bool, default True
    row_pass : RowPass
        The loss, the smoothing of labels, and the precision of the matrix products: one of the PRECISIONS of the
        backend's kernels; "float32" means that of the features. Hessian products are always made in that.
    """

    def __init__(
        self,
        rows: Rows,
        targets: Array,
        n_classes: int,
        penalty: Penalty,
        fit_intercept: bool = True,
        row_pass: RowPass = PLAIN,
    ) -> None:
        if penalty.has_l1:
            raise ValueError("`penalty` must have no l1 part, which no solver here minimises; pass Penalty(l2=...).")
        self.rows = rows
        self.backend = rows.backend
        self.targets = targets
        self.n_classes = n_classes
        self.penalty = penalty
        self.fit_intercept = fit_intercept
        self.row_pass = row_pass
        self.coef_shape: tuple[int, int] = (1 if n_classes == 2 else n_classes, rows.n_features)
        self._curvature_weight: tuple[Array, Array] | None = None  # the last parameters, and the weights there

    def in_precision(self, precision: str) -> LinearObjective:
        """Return the same objective with matrix products of another precision."""
        other = copy(self)
        other.row_pass = replace(self.row_pass, precision=precision)
        return other

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
        return self._mean_of(params, None, self.rows.total_weight)

    def batch_value_and_grad(self, params: Array, index: Array) -> tuple[Array, Array]:
        """Return an unbiased estimate of f and its gradient from the rows at the integer indices `index`."""
        return self._mean_of(params, index, index.shape[0] * (self.rows.total_weight / self.rows.n_rows))

    def rounding_error(self, params: Array) -> float:
        """Return the error that rounding may leave in f: of the size of its largest logits."""
        backend = self.backend
        coef, intercept = self.split(params)
        logits = backend.xp.abs(coef) @ backend.xp.astype(self.rows.feature_scale(), coef.dtype)
        logits = logits if intercept is None else logits + backend.xp.abs(intercept)
        eps = EPS.get(self.row_pass.precision, float(backend.xp.finfo(self.rows.dtype).eps))
        return eps * (1.0 + float(backend.xp.max(logits)))

    def hessian_product(self, params: Array) -> Callable[[Array], Array]:
        """Return the function that takes a direction, like `params`, to the Hessian at `params` times it."""
        rows, penalty, row_pass = self.rows, self.penalty, replace(self.row_pass, precision="float32")
        coef, intercept = self.split(params)

        def product(direction: Array) -> Array:
            along, shift = self.split(direction)
            sums = rows.hessian_product(coef, intercept, self.targets, along, shift, row_pass)

            def of_penalty(classes: slice) -> Array:
                return penalty.of_classes(classes).hessian_product(along[classes, :])

            return _mean(sums, rows.total_weight, direction, of_penalty, rows.workspace)

        return product

    def curvature_weight(self, params: Array) -> Array | None:
        """Return the weights (n,) with which the Hessian of cross-entropy is the positive part of this one's.

        They are s_i T_i, where T_i is the sum of the effective targets of row i: for cross-entropy the weights of the
        rows, None where these are equal. The last ones are kept.
        """
        rows, weight = self.rows, self.rows.sample_weight
        if self.row_pass.is_cross_entropy:
            return weight
        if self._curvature_weight is None or self._curvature_weight[0] is not params:
            xp = self.backend.xp
            out = xp.empty(rows.n_rows, dtype=rows.dtype, device=self.backend.device)

            def add(part: slice) -> None:
                log_p = self.log_p(rows.part(part), params)
                _, effective = reference.effective(log_p, self.targets[part, ...], self.row_pass, 1)
                mass = xp.sum(effective, axis=1)
                out[part] = mass if weight is None else mass * weight[part]

            row_bytes = 16 * self.n_classes * bytes_of(xp, rows.dtype)
            rows.workspace.map(add, row_blocks(rows.n_rows, row_bytes, block_bytes(self.backend.device)))
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

    def _mean_of(self, params: Array, index: Array | None, total: float) -> tuple[Array, Array]:
        """Return loss and gradient summed over all rows, or those at `index`, divided by `total`, with the penalty."""
        coef, intercept = self.split(params)
        sums = self.rows.linear_sums(coef, intercept, self.targets, self.row_pass, index)
        return penalised_mean(sums, total, coef, self.penalty, self.rows.workspace)


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
