"""What the size of the coefficients costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from softmax_xp.arrays import Array, Namespace, accumulation_dtype, device_of, is_array, namespace, to_numpy

# A number; or an array that broadcasts against coef (K, n_features), in its library and on its device: (n_features,)
# for one a feature, (K, 1) for one a class.
Strength: TypeAlias = "float | Array"


@dataclass(frozen=True, eq=False)
class Penalty:
    """The elastic net, sum(l2 / 2 * coef ** 2 + l1 * abs(coef)) (Zou and Hastie, 2005).

    doi:10.1111/j.1467-9868.2005.00503.x. The first part is smooth: `value`, `grad` and `hessian_product` are of that
    part alone, and `absolute_value` and `prox` are of the second.

    Parameters
    ----------
    l2, l1 : float or array, not negative
        Strengths: one number, one a feature (n_features,), or one a class (K, 1).
    """

    l2: Strength = 0.0
    l1: Strength = 0.0

    def __post_init__(self) -> None:
        for name in ("l2", "l1"):
            if not is_array(strength := getattr(self, name)):
                object.__setattr__(self, name, float(strength))

    def value(self, coef: Array) -> Array:
        """Return the smooth part, a 0-d array in the widest floating dtype of the device."""
        xp = namespace(coef=coef)
        wide = xp.astype(coef, accumulation_dtype(xp, device_of(coef)), copy=False)
        scaled = _root(xp, _like(self.l2, wide)) * wide  # the square of a coefficient alone may overflow
        return xp.sum(scaled * scaled)  # a vecdot could not be recorded as a graph

    def absolute_value(self, coef: Array) -> Array:
        """Return the part that is not smooth, sum(l1 * abs(coef)), in the dtype of `value`."""
        xp = namespace(coef=coef)
        wide = xp.astype(coef, accumulation_dtype(xp, device_of(coef)), copy=False)
        return xp.sum(_like(self.l1, wide) * xp.abs(wide))

    def grad(self, coef: Array) -> Array:
        """Return the gradient of the smooth part, l2 * coef, in the shape and dtype of `coef`."""
        return _like(self.l2, coef) * coef

    def hessian_product(self, direction: Array) -> Array:
        """Return the Hessian of the smooth part, a diagonal, times `direction`, in its shape and dtype."""
        return _like(self.l2, direction) * direction

    def prox(self, coef: Array, step: float) -> Array:
        """Return the minimiser x of step * sum(l1 * abs(x)) + sum((x - coef) ** 2) / 2: soft thresholding.

        It moves each coefficient towards zero by step * l1, and to zero where it is smaller than that.
        """
        xp = namespace(coef=coef)
        threshold = step * _like(self.l1, coef)
        return xp.sign(coef) * xp.maximum(xp.abs(coef) - threshold, xp.zeros_like(coef))

    def of_classes(self, rows: slice) -> Penalty:
        """Return the penalty of some rows of coef."""
        if isinstance(self.l2, float) and isinstance(self.l1, float):
            return self
        return Penalty(_of_classes(self.l2, rows), _of_classes(self.l1, rows))

    def diagonal(self, n_features: int) -> np.ndarray:
        """Return the curvature of each feature's coefficients, (n_features,), in float64; the mean over the classes."""
        l2 = to_numpy(self.l2) if is_array(self.l2) else np.asarray(self.l2)
        per_feature: np.ndarray = np.atleast_2d(l2.astype(np.float64)).mean(axis=0)
        return np.broadcast_to(per_feature, (n_features,))

    @property
    def least(self) -> float:
        """The least curvature of a coefficient: where it is positive there is a minimum."""
        return float(to_numpy(self.l2).min()) if is_array(self.l2) else self.l2

    @property
    def has_l1(self) -> bool:
        """Whether there is a part that is not smooth."""
        return bool(to_numpy(self.l1).any()) if is_array(self.l1) else self.l1 > 0.0


def _of_classes(strength: Any, rows: slice) -> Strength:
    by_class = is_array(strength) and strength.ndim == 2 and strength.shape[0] > 1
    return strength[rows, :] if by_class else strength


def _like(strength: Strength, x: Array) -> Strength:
    """Return a strength in the dtype of `x`; a number as it is."""
    return strength if isinstance(strength, float) else namespace(x=x).astype(strength, x.dtype, copy=False)


def _root(xp: Namespace, strength: Strength) -> Strength:
    """Return sqrt(strength / 2)."""
    return math.sqrt(0.5 * strength) if isinstance(strength, float) else xp.sqrt(0.5 * strength)
