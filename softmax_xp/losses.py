"""What a row costs: sum_k t_k phi(log p_k), for target probabilities t and the probabilities p of a model.

A loss is three scalar functions of the log-probability l of one class: `value` is phi, `slope` is -phi', and `bend` is
phi''. With t'_k = t_k slope(l_k), T = sum_k t'_k, b_k = t_k bend(l_k) and, for a direction u of the logits,
v = u - p'u, every loss has

    gradient in the logits    p T - t'
    Hessian times u           T (p o v) - p sum_k b_k v_k + b o v

so that the gradient is that of cross-entropy with the effective targets t'. Cross-entropy has T = sum_k t_k and b = 0.

| loss | phi(l), with p = exp(l) |
|---|---|
| `CrossEntropy` | -l |
| `GeneralizedCrossEntropy` | (1 - p^q) / q |
| `SymmetricCrossEntropy` | -alpha l - beta log_zero (1 - p) |
| `Focal` | -(1 - p)^gamma l |

The first is convex in the logits. The others bound, or lower, what a row can cost; an optimum of theirs is a local one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from softmax_xp.arrays import Array, describe, namespace
from softmax_xp.checks import check_real


class Loss(Protocol):
    """Three scalar functions of a log-probability, applied to arrays of any shape."""

    @property
    def convex(self) -> bool:
        """Whether the loss of a row is convex in its logits."""

    @property
    def slope_bound(self) -> float:
        """The largest `slope`: Boehning's bound of the Hessian of cross-entropy times it is one for this loss.

        It bounds the part of the Hessian without b, which is positive semidefinite.
        """

    def value(self, log_p: Array) -> Array:
        """Return phi(l), in the shape and dtype of `log_p`."""

    def slope(self, log_p: Array) -> Array:
        """Return -phi'(l), which is not negative."""

    def bend(self, log_p: Array) -> Array:
        """Return phi''(l)."""


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Minus the log-probability of the target: phi(l) = -l."""

    convex = True
    slope_bound = 1.0

    def value(self, log_p: Array) -> Array:
        """Return -l."""
        return -log_p

    def slope(self, log_p: Array) -> Array:
        """Return 1."""
        return namespace(log_p=log_p).ones_like(log_p)

    def bend(self, log_p: Array) -> Array:
        """Return 0."""
        return namespace(log_p=log_p).zeros_like(log_p)


@dataclass(frozen=True)
class GeneralizedCrossEntropy(Loss):
    """Between cross-entropy and the mean absolute error: phi(l) = (1 - p^q) / q.

    A row whose label has the probability p counts p^q times as much as in cross-entropy, so that rows with a wrong
    label count little (Zhang and Sabuncu, 2018, arXiv:1805.07836).

    Parameters
    ----------
    q : float in (0, 1], default 0.7
        Towards 0 the loss becomes cross-entropy; 1 is half the absolute error of the probabilities.
    """

    q: float = 0.7
    convex = False
    slope_bound = 1.0

    def __post_init__(self) -> None:
        remedy = "choose a value such as 0.7; for cross-entropy use loss='cross_entropy'"
        _set(self, q=check_real(self.q, "q", low=0.0, include_low=False, high=1.0, remedy=remedy))

    def value(self, log_p: Array) -> Array:
        """Return (1 - p^q) / q."""
        return namespace(log_p=log_p).expm1(self.q * log_p) / -self.q

    def slope(self, log_p: Array) -> Array:
        """Return p^q."""
        return namespace(log_p=log_p).exp(self.q * log_p)

    def bend(self, log_p: Array) -> Array:
        """Return -q p^q."""
        return -self.q * self.slope(log_p)


@dataclass(frozen=True)
class SymmetricCrossEntropy(Loss):
    """Cross-entropy, and the cross-entropy of the targets under the model: phi(l) = -alpha l - beta log_zero (1 - p).

    The second is -sum_k p_k log t_k for a label, with `log_zero` for the logarithm of zero. It bounds the pull of a row
    with a wrong label (Wang et al., 2019, doi:10.1109/ICCV.2019.00041). For probabilities as targets, the loss here is
    the mean of the losses of the labels.

    Parameters
    ----------
    alpha : float, not negative, default 0.1
        Weight of cross-entropy.
    beta : float, positive, default 1.0
        Weight of the reversed cross-entropy.
    log_zero : float, negative, default -4.0
        What stands for log(0).
    """

    alpha: float = 0.1
    beta: float = 1.0
    log_zero: float = -4.0
    convex = False

    def __post_init__(self) -> None:
        finite: dict[str, Any] = {"high": math.inf, "include_high": False}
        alpha = check_real(self.alpha, "alpha", low=0.0, remedy="choose a value such as 0.1", **finite)
        remedy = "choose a value such as 1.0; with 0 it is cross-entropy"
        beta = check_real(self.beta, "beta", low=0.0, include_low=False, remedy=remedy, **finite)
        least = float(np.finfo(np.float64).min)
        remedy = "choose a value such as -4.0"
        log_zero = check_real(self.log_zero, "log_zero", low=least, high=0.0, include_high=False, remedy=remedy)
        _set(self, alpha=alpha, beta=beta, log_zero=log_zero)

    @property
    def slope_bound(self) -> float:
        """The slope at p = 1."""
        return self.alpha - self.beta * self.log_zero

    def value(self, log_p: Array) -> Array:
        """Return -alpha l - beta log_zero (1 - p)."""
        reversed_entropy = self.beta * self.log_zero * namespace(log_p=log_p).expm1(log_p)
        return reversed_entropy - self.alpha * log_p if self.alpha else reversed_entropy  # 0 times infinity is NaN

    def slope(self, log_p: Array) -> Array:
        """Return alpha - beta log_zero p."""
        return self.alpha - self.beta * self.log_zero * namespace(log_p=log_p).exp(log_p)

    def bend(self, log_p: Array) -> Array:
        """Return beta log_zero p."""
        return self.beta * self.log_zero * namespace(log_p=log_p).exp(log_p)


@dataclass(frozen=True)
class Focal(Loss):
    """Cross-entropy in which rows that are classified well count little: phi(l) = -(1 - p)^gamma l.

    Lin et al., 2017, doi:10.1109/ICCV.2017.324.

    Parameters
    ----------
    gamma : float, not negative, default 2.0
        0 is cross-entropy.
    """

    gamma: float = 2.0

    def __post_init__(self) -> None:
        remedy = "choose a value such as 2.0, or 0 for cross-entropy"
        _set(self, gamma=check_real(self.gamma, "gamma", low=0.0, high=math.inf, include_high=False, remedy=remedy))

    @property
    def convex(self) -> bool:
        """Whether it is cross-entropy."""
        return self.gamma == 0.0

    @cached_property
    def slope_bound(self) -> float:
        """The largest slope, by a search of 10 000 log-probabilities from -20 to 0; the maximum is flat."""
        return float(self.slope(np.linspace(-20.0, 0.0, 10_000)).max())

    def value(self, log_p: Array) -> Array:
        """Return -(1 - p)^gamma l."""
        return -((-namespace(log_p=log_p).expm1(log_p)) ** self.gamma) * log_p

    def slope(self, log_p: Array) -> Array:
        """Return (1 - p)^gamma - gamma p (1 - p)^(gamma - 1) l."""
        _, rest, ratio = self._parts(log_p)
        return rest**self.gamma * (1.0 - self.gamma * ratio)

    def bend(self, log_p: Array) -> Array:
        """Return gamma p (1 - p)^(gamma - 2) ((1 - gamma p) l + 2 (1 - p))."""
        xp = namespace(log_p=log_p)
        p, rest, ratio = self._parts(log_p)
        # With gamma < 1 the power has a pole at p = 1, where it is multiplied with a v that vanishes faster.
        power = xp.maximum(rest, xp.full_like(rest, float(xp.finfo(rest.dtype).eps))) ** (self.gamma - 1.0)
        return self.gamma * power * (ratio * (1.0 - self.gamma * p) + 2.0 * p)

    def _parts(self, log_p: Array) -> tuple[Array, Array, Array]:
        """Return p, 1 - p and p l / (1 - p), with the limits of the last: 0 at p = 0, and -1 at p = 1."""
        xp = namespace(log_p=log_p)
        p, rest = xp.exp(log_p), -xp.expm1(log_p)
        one, certain = xp.ones_like(p), rest == 0.0
        ratio = xp.where(p == 0.0, xp.zeros_like(p), p) * xp.where(p == 0.0, one, log_p) / xp.where(certain, one, rest)
        return p, rest, xp.where(certain, -one, ratio)


CROSS_ENTROPY = CrossEntropy()
LOSSES: dict[str, type[CrossEntropy | GeneralizedCrossEntropy | SymmetricCrossEntropy | Focal]] = {
    "cross_entropy": CrossEntropy,
    "gce": GeneralizedCrossEntropy,
    "sce": SymmetricCrossEntropy,
    "focal": Focal,
}


def checked_loss(loss: str | Loss) -> Loss:
    """Return a loss, given by its name, with default parameters, or as an instance.

    Raises
    ------
    TypeError, ValueError
        For anything else.
    """
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise ValueError(
                f"`loss` must be one of {', '.join(map(repr, LOSSES))} or an instance of a loss, got {loss!r}; "
                f"for example softmax_xp.GeneralizedCrossEntropy(q=0.5)."
            )
        return LOSSES[loss]()
    if isinstance(loss, type) or not all(hasattr(loss, name) for name in ("value", "slope", "bend", "convex")):
        raise TypeError(
            f"`loss` must be one of {', '.join(map(repr, LOSSES))} or an instance of a loss, got {describe(loss)}; "
            f"for example softmax_xp.GeneralizedCrossEntropy(q=0.5)."
        )
    return loss


def described(loss: Loss) -> dict[str, Any] | None:
    """Return the name and the parameters of a loss of LOSSES, or None for another one."""
    for name, kind in LOSSES.items():
        if type(loss) is kind:
            return {"name": name} | {field.name: getattr(loss, field.name) for field in fields(kind)}
    return None


def _set(loss: Loss, **numbers: float) -> None:
    """Store Python floats in a frozen loss, because they do not promote the dtype of an array."""
    for name, number in numbers.items():
        object.__setattr__(loss, name, number)
