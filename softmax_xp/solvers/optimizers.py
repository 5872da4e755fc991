"""Optimizers: the update rules of stochastic gradient methods.

Parameters, gradients and moments are dicts of arrays with the same keys. They stay on their device; a step copies
nothing to the host.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from softmax_xp.arrays import Array, namespace
from softmax_xp.checks import check_bool, check_real
from softmax_xp.solvers.schedules import Schedule, as_schedule

Params: TypeAlias = dict[str, Array]
Moments: TypeAlias = dict[str, Params]


class Optimizer(Protocol):
    """The update rule of one step.

    The optimizers of this module split it in two parts, so that a step can be recorded as a CUDA graph.
    """

    def start(self, params: Params) -> Moments:
        """Return the state before the first step."""

    def step(self, params: Params, grads: Params, state: Moments, n: int) -> tuple[Params, Moments]:
        """Return the parameters and the state after step `n`, counted from 0; nothing is modified."""


class UpdateRule(Optimizer):
    """An update rule in two parts: the numbers that change from step to step, and the update that uses them."""

    @abstractmethod
    def factors(self, n: int) -> tuple[float, ...]:
        """Return the numbers of step `n`, counted from 0."""

    @abstractmethod
    def update(self, params: Params, grads: Params, state: Moments, *factors: float) -> tuple[Params, Moments]:
        """Return the parameters and the state after a step. Factors are numbers or 0-d arrays."""

    def step(self, params: Params, grads: Params, state: Moments, n: int) -> tuple[Params, Moments]:
        """Return the parameters and the state after step `n`, counted from 0; nothing is modified."""
        return self.update(params, grads, state, *self.factors(n))


@dataclass(frozen=True)
class SGD(UpdateRule):
    """Stochastic gradient descent: v = momentum * v + g, and params -= learning_rate * v.

    Parameters
    ----------
    learning_rate : float, positive, or a schedule
    momentum : float in [0, 1), default 0.0
        Polyak, 1964, doi:10.1016/0041-5553(64)90137-5.
    nesterov : bool, default False
        Step along g + momentum * v instead of v (Sutskever et al., 2013).
    """

    learning_rate: float | Schedule = 1e-2
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        as_schedule(self.learning_rate)
        remedy = "choose a value such as 0.9"
        _set(self, momentum=check_real(self.momentum, "momentum", low=0.0, high=1.0, include_high=False, remedy=remedy))
        if check_bool(self.nesterov, "nesterov") and not self.momentum:
            raise ValueError("`nesterov` needs a positive `momentum`, got 0; try momentum=0.9.")

    def start(self, params: Params) -> Moments:
        """Return zero velocities."""
        return {"velocity": _zeros(params)} if self.momentum else {}

    def factors(self, n: int) -> tuple[float, ...]:
        """Return the learning rate."""
        return (_rate(self.learning_rate, n),)

    def update(self, params: Params, grads: Params, state: Moments, *factors: float) -> tuple[Params, Moments]:
        """Return parameters and velocities after a step."""
        (rate,) = factors
        if not self.momentum:
            return {k: params[k] - rate * g for k, g in grads.items()}, state
        velocity = {k: self.momentum * state["velocity"][k] + g for k, g in grads.items()}
        along = {k: g + self.momentum * velocity[k] for k, g in grads.items()} if self.nesterov else velocity
        return {k: params[k] - rate * along[k] for k in params}, {"velocity": velocity}


@dataclass(frozen=True)
class Adam(UpdateRule):
    """Adam (Kingma and Ba, 2015, arXiv:1412.6980).

    Parameters
    ----------
    learning_rate : float, positive, or a schedule
    beta1, beta2 : float in [0, 1)
        Decay of the running means of the gradient and of its square.
    eps : float, positive
    """

    learning_rate: float | Schedule = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        as_schedule(self.learning_rate)
        remedy = "choose a value such as 0.9"
        _set(self, beta1=check_real(self.beta1, "beta1", low=0.0, high=1.0, include_high=False, remedy=remedy))
        remedy = "choose a value such as 0.999"
        _set(self, beta2=check_real(self.beta2, "beta2", low=0.0, high=1.0, include_high=False, remedy=remedy))
        limits: dict[str, Any] = {"low": 0.0, "include_low": False, "high": math.inf, "include_high": False}
        _set(self, eps=check_real(self.eps, "eps", **limits, remedy="choose a value such as 1e-8"))

    def start(self, params: Params) -> Moments:
        """Return zero means."""
        return {"mean": _zeros(params), "square": _zeros(params)}

    def factors(self, n: int) -> tuple[float, ...]:
        """Return the learning rate and the root of the squares' weight, both with bias correction.

        The running means start at zero and are too small at first. Both corrections tend to 1.
        """
        rate = _rate(self.learning_rate, n)
        return rate / (1.0 - self.beta1 ** (n + 1)), (1.0 - self.beta2 ** (n + 1)) ** 0.5

    def update(self, params: Params, grads: Params, state: Moments, *factors: float) -> tuple[Params, Moments]:
        """Return parameters and means after a step."""
        rate, correction = factors
        mean = {k: self.beta1 * state["mean"][k] + (1.0 - self.beta1) * g for k, g in grads.items()}
        square = {k: self.beta2 * state["square"][k] + (1.0 - self.beta2) * g * g for k, g in grads.items()}
        new = {}
        for k, x in params.items():
            xp = namespace(**{k: x})
            new[k] = x - rate * mean[k] / (xp.sqrt(square[k]) / correction + self.eps)
        return new, {"mean": mean, "square": square}


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019, arXiv:1711.05101).

    Each step first multiplies the parameters by 1 - learning_rate * weight_decay, except vectors, which are the
    intercepts.

    Parameters
    ----------
    weight_decay : float, not negative, default 1e-2
        The other parameters are those of `Adam`.
    """

    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        limits: dict[str, Any] = {"low": 0.0, "high": math.inf, "include_high": False}
        remedy = "choose a value such as 1e-2"
        _set(self, weight_decay=check_real(self.weight_decay, "weight_decay", **limits, remedy=remedy))

    def factors(self, n: int) -> tuple[float, ...]:
        """Return the factor of the weight decay, and the factors of Adam."""
        return 1.0 - _rate(self.learning_rate, n) * self.weight_decay, *super().factors(n)

    def update(self, params: Params, grads: Params, state: Moments, *factors: float) -> tuple[Params, Moments]:
        """Return parameters and means after a step."""
        keep, *of_adam = factors
        return super().update({k: keep * x if x.ndim > 1 else x for k, x in params.items()}, grads, state, *of_adam)


def _rate(learning_rate: float | Schedule, n: int) -> float:
    """Return the learning rate of step `n` as a Python float, which does not promote the dtype of an array."""
    return float(as_schedule(learning_rate)(n))


def _set(optimizer: UpdateRule, **numbers: float) -> None:
    """Store Python floats in a frozen optimizer, because they do not promote the dtype of an array."""
    for name, number in numbers.items():
        object.__setattr__(optimizer, name, number)


def _zeros(params: Params) -> Params:
    return {k: namespace(**{k: x}).zeros_like(x) for k, x in params.items()}
