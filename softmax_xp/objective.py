"""The objective of a linear classifier: a mean of losses over rows, and a penalty on the coefficients."""

from __future__ import annotations

from collections.abc import Iterator

from softmax_xp._arrays import Array
from softmax_xp.backend import Backend
from softmax_xp.penalties import L2

# Rows are added up in blocks whose logits take at most this much, so that memory does not grow with their number.
BLOCK_BYTES = 256 << 20


def row_blocks(n_rows: int, n_classes: int, itemsize: int) -> Iterator[slice]:
    """Yield the slices of rows, in order, whose logits fill at most BLOCK_BYTES each."""
    step = max(1, BLOCK_BYTES // (n_classes * itemsize))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


class LinearObjective:
    """Mean cross-entropy of softmax(X coef' + intercept), plus an L2 penalty on coef.

    f(coef, intercept) = sum_i s_i cross_entropy(coef x_i + intercept, t_i) / sum_i s_i + penalty(coef)

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
    penalty : L2
    sample_weight : array of shape (n_samples,) in the dtype of X, optional
    fit_intercept : bool, default True
    """

    def __init__(
        self,
        backend: Backend,
        X: Array,
        targets: Array,
        n_classes: int,
        penalty: L2,
        sample_weight: Array | None = None,
        fit_intercept: bool = True,
    ) -> None:
        self.backend = backend
        self.X = X
        self.targets = targets
        self.n_classes = n_classes
        self.penalty = penalty
        self.sample_weight = sample_weight
        self.fit_intercept = fit_intercept
        self.coef_shape: tuple[int, int] = (1 if n_classes == 2 else n_classes, X.shape[1])
        self.total_weight = float(X.shape[0] if sample_weight is None else backend.xp.sum(sample_weight))

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
        return self._sum(params, self.X, self.targets, self.sample_weight, self.total_weight)

    def batch_value_and_grad(self, params: Array, rows: Array) -> tuple[Array, Array]:
        """Return an unbiased estimate of f and its gradient from the rows at the integer indices `rows`."""
        take = self.backend.xp.take
        weight = None if self.sample_weight is None else take(self.sample_weight, rows, axis=0)
        share = rows.shape[0] * (self.total_weight / self.X.shape[0])
        return self._sum(params, take(self.X, rows, axis=0), take(self.targets, rows, axis=0), weight, share)

    def _sum(self, params: Array, X: Array, targets: Array, weight: Array | None, total: float) -> tuple[Array, Array]:
        xp = self.backend.xp
        coef, intercept = self.split(params)
        kernels = self.backend.kernels(X.dtype)
        value = self.penalty.value(coef)
        grad_coef = self.penalty.grad(coef)
        grad_intercept = None if intercept is None else xp.zeros_like(intercept)
        for rows in row_blocks(X.shape[0], self.n_classes, xp.finfo(X.dtype).bits // 8):
            part = None if weight is None else weight[rows]
            block = kernels.linear_sums(coef, intercept, X[rows, :], targets[rows, ...], part)
            value = value + block[0] / total
            grad_coef = grad_coef + xp.astype(block[1], params.dtype, copy=False) / total
            if grad_intercept is not None:
                grad_intercept = grad_intercept + xp.astype(block[2], params.dtype, copy=False) / total
        grad = xp.reshape(grad_coef, (-1,))
        return value, grad if grad_intercept is None else xp.concat([grad, grad_intercept])
