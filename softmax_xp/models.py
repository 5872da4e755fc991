"""Networks that end in logits: parameters, forward pass, and backward pass written by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from softmax_xp.arrays import (
    Array,
    accumulation_dtype,
    all_finite,
    block_bytes,
    checked_arrays,
    describe,
    device_context,
    dtype_name,
    namespace,
    row_blocks,
    working_dtype,
)
from softmax_xp.backend import Backend, backend_of
from softmax_xp.checks import check_finite, check_floating, check_integer, check_option, check_random_state, check_rank
from softmax_xp.kernels.row_pass import RowPass
from softmax_xp.losses import Loss, checked_loss
from softmax_xp.penalties import Penalty

Params: TypeAlias = dict[str, Array]


class MLP:
    """A multilayer perceptron: h_0 = X, h_l = activation(h_{l-1} W_l + b_l), logits = h_{L-1} W_L + b_L.

    Parameters
    ----------
    sizes : sequence of int
        Width of each layer, from n_features to n_classes: [784, 256, 10] has one hidden layer.
    activation : {"relu", "tanh"}, default "relu"
    init : {"he", "glorot", "zeros"}, optional
        Initial weights: normal with variance 2 / n_in (He et al., 2015, doi:10.1109/ICCV.2015.123), or
        uniform with variance 2 / (n_in + n_out) (Glorot and Bengio, 2010). By default "he" for relu and "glorot"
        for tanh. Intercepts start at zero.
    random_state : int, numpy.random.Generator or None, default 0
        Seed of the initial weights. They are drawn on the host, so that they are the same on every backend; with None
        they differ each time.

    Attributes
    ----------
    params : dict of str to array
        "W1" (n_features, sizes[1]), "b1" (sizes[1],), "W2", ... NumPy arrays in float64 until the model is
        trained; after that, arrays of the library, device and dtype of the training data.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str = "relu",
        init: str | None = None,
        random_state: int | np.random.Generator | None = 0,
    ) -> None:
        if isinstance(sizes, str | bytes) or not isinstance(sizes, Sequence) or len(sizes) < 2:
            raise ValueError(
                f"`sizes` must list at least n_features and n_classes, got {describe(sizes)}; "
                f"for example [784, 256, 10]."
            )
        remedy = "choose a width of each layer such as [784, 256, 10]"
        self.sizes = [check_integer(size, "sizes", low=1, remedy=remedy) for size in sizes]
        self.activation = check_option(activation, "activation", ("relu", "tanh"))
        self.init = check_option(
            ("he" if activation == "relu" else "glorot") if init is None else init, "init", ("he", "glorot", "zeros")
        )
        rng = check_random_state(random_state)
        self.params: Params = {}
        for layer, (n_in, n_out) in enumerate(zip(self.sizes[:-1], self.sizes[1:], strict=True)):
            weight, intercept = self.layer_names(layer)
            try:
                self.params[weight], self.params[intercept] = _drawn(rng, self.init, n_in, n_out), np.zeros(n_out)
            except (MemoryError, ValueError) as error:  # NumPy has a largest shape, too
                raise ValueError(
                    f"`sizes` must fit into memory, got a layer from {n_in} to {n_out}: {error}; choose narrower ones."
                ) from error

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.sizes}, activation={self.activation!r})"

    @property
    def n_features(self) -> int:
        """Columns that X must have."""
        return self.sizes[0]

    @property
    def n_classes(self) -> int:
        """Columns of the logits."""
        return self.sizes[-1]

    def layer_names(self, layer: int) -> tuple[str, str]:
        """Return the names of a layer's weight and intercept in `params`."""
        return f"W{layer + 1}", f"b{layer + 1}"

    def __call__(self, X: Array) -> Array:
        """Return the logits (n_samples, n_classes) of X (n_samples, n_features).

        X may be of any array library. The logits are in its namespace, on its device and in its dtype. Raises
        ValueError for an X that is not finite, and for logits that overflow.
        """
        X = self._checked_features(X)
        backend = backend_of(X)
        with backend.context():
            xp, dtype = backend.xp, working_dtype(backend.xp, X.dtype)
            params = self.params_on(backend, dtype)
            with np.errstate(over="ignore", invalid="ignore"):  # told below, by an error
                logits = xp.astype(self.forward(params, xp.astype(X, dtype, copy=False))[0], X.dtype, copy=False)
            if not all_finite(xp, logits):
                check_finite(xp, X, "X")
                raise ValueError(
                    f"`X` must have logits that {dtype_name(X.dtype)} can hold, got an overflow; "
                    f"scale the features, or pass a wider dtype."
                )
            return logits

    def predict(self, X: Array) -> Array:
        """Return the class index of the largest logit of each row.

        Parameters
        ----------
        X : array of shape (n_samples, n_features), real floating, of any library

        Returns
        -------
        array of shape (n_samples,), integers, on the device of X

        Raises
        ------
        TypeError, ValueError
            For an X of another shape or dtype.
        """
        X = self._checked_features(X)
        xp = namespace(X=X)
        check_finite(xp, X, "X")
        device = backend_of(X).device
        with device_context(device):
            blocks = row_blocks(X.shape[0], max(self.sizes) * 8, block_bytes(device))
            return xp.concat([xp.argmax(self(X[rows, :]), axis=1) for rows in blocks])

    def params_on(self, backend: Backend, dtype: Any) -> Params:
        """Return the parameters on `backend` in `dtype`."""
        return {name: backend.asarray(value, dtype) for name, value in self.params.items()}

    def forward(self, params: Params, X: Array) -> tuple[Array, list[Array]]:
        """Return the logits, and the input of each layer, which `backward` needs."""
        xp, matmul = namespace(X=X), backend_of(X).kernels(X.dtype).matmul
        inputs = []
        last = len(self.sizes) - 2
        h = X
        for layer in range(last + 1):
            weight, intercept = self.layer_names(layer)
            inputs.append(h)
            h = matmul(h, params[weight]) + params[intercept]
            if layer < last:
                h = xp.tanh(h) if self.activation == "tanh" else xp.where(h > 0, h, xp.zeros_like(h))
        return h, inputs

    def backward(self, params: Params, inputs: list[Array], dlogits: Array) -> Params:
        """Return the gradient of each parameter from the gradient of the logits and the layer inputs of `forward`."""
        xp, matmul = namespace(dlogits=dlogits), backend_of(dlogits).kernels(dlogits.dtype).matmul
        grads = {}
        dh = dlogits
        for layer in range(len(inputs) - 1, -1, -1):
            weight, intercept = self.layer_names(layer)
            h = inputs[layer]
            grads[weight] = matmul(h.T, dh)
            grads[intercept] = xp.sum(dh, axis=0)
            if layer > 0:
                dh = matmul(dh, params[weight].T)
                # h is the activation of the layer below; its derivative follows from h itself.
                dh = dh * (1.0 - h * h) if self.activation == "tanh" else xp.where(h > 0, dh, xp.zeros_like(dh))
        return grads

    def value_and_grad(
        self,
        params: Params,
        X: Array,
        targets: Array,
        reg: float = 0.0,
        weight: Array | None = None,
        label_smoothing: float = 0.0,
        loss: str | Loss = "cross_entropy",
    ) -> tuple[Array, Params]:
        """Return sum_i weight_i loss(logits_i, t_i) + reg / 2 * sum of squared weights, and its gradient.

        Parameters
        ----------
        params : dict of arrays, as `self.params`, on the device and in the dtype of X
        X : array of shape (n, n_features)
        targets : integer labels (n,), or probabilities (n, n_classes)
        reg : float
            Strength of the L2 penalty on the weights; intercepts are not penalised.
        weight : array of shape (n,), optional
            By default 1 / n each, so that the sum is a mean.
        label_smoothing : float in [0, 1]
        loss : str or Loss
            As for `softmax_xp.cross_entropy`.

        Returns
        -------
        value : 0-d array in the widest floating dtype of the device
        grads : dict of arrays, as `params`
        """
        backend = backend_of(X)
        xp = backend.xp
        with backend.context():
            if weight is None:
                weight = xp.full(X.shape[0], 1.0 / X.shape[0], dtype=working_dtype(xp, X.dtype), device=backend.device)
            logits, inputs = self.forward(params, X)
            kernels = backend.kernels(logits.dtype)
            row_pass = RowPass(checked_loss(loss), label_smoothing)
            losses, dlogits = kernels.cross_entropy_with_grad(logits, targets, weight, row_pass)
            grads = self.backward(params, inputs, dlogits)
            penalty = Penalty(reg)
            value = xp.sum(losses, dtype=accumulation_dtype(xp, backend.device))
            for layer in range(len(self.sizes) - 1):
                name = self.layer_names(layer)[0]
                value = value + penalty.value(params[name])
                grads[name] = grads[name] + penalty.grad(params[name])
            return value, grads

    def _checked_features(self, X: Array) -> Array:
        """Return X (n_samples, n_features), real floating, in the byte order of this machine."""
        xp, X = checked_arrays(X=X)
        check_rank(X, "X", 2, "(n_samples, n_features)")
        check_floating(xp, X, "X")
        if X.shape[1] != self.n_features:
            raise ValueError(
                f"`X` must have n_features={self.n_features} columns, got {X.shape[1]}; "
                f"select the features that the model was made for."
            )
        return X


class Linear(MLP):
    """Softmax regression as a network: logits = X W + b.

    Parameters
    ----------
    n_features, n_classes : int
        The weights start at zero: the objective is convex, so that no random start is needed.

    Attributes
    ----------
    params : dict of str to array
        "W" (n_features, n_classes) and "b" (n_classes,); see MLP.
    """

    def __init__(self, n_features: int, n_classes: int) -> None:
        check_integer(n_features, "n_features", low=1, remedy="choose the number of columns of X")
        check_integer(n_classes, "n_classes", low=1, remedy="choose the number of classes, such as 10")
        super().__init__([n_features, n_classes], init="zeros")

    def __repr__(self) -> str:
        return f"Linear(n_features={self.n_features}, n_classes={self.n_classes})"

    def layer_names(self, layer: int) -> tuple[str, str]:
        """Return the names of the only layer's weight and intercept in `params`."""
        return "W", "b"


def _drawn(rng: np.random.Generator, init: str, n_in: int, n_out: int) -> np.ndarray:
    """Return a weight matrix (n_in, n_out) in float64."""
    if init == "zeros":
        return np.zeros((n_in, n_out))
    if init == "he":
        return rng.standard_normal((n_in, n_out)) * math.sqrt(2.0 / n_in)
    bound = math.sqrt(6.0 / (n_in + n_out))
    return rng.uniform(-bound, bound, (n_in, n_out))
