"""What the size of the coefficients costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from softmax_xp._arrays import Array, accumulation_dtype, device_of, namespace


@dataclass(frozen=True)
class L2:
    """The penalty strength / 2 * sum(coef ** 2) (Hoerl and Kennard, 1970, doi:10.1080/00401706.1970.10488634).

    Parameters
    ----------
    strength : float, not negative
    """

    strength: float

    def value(self, coef: Array) -> Array:
        """Return the penalty, a 0-d array in the widest floating dtype of the device."""
        xp = namespace(coef=coef)
        wide = xp.astype(coef, accumulation_dtype(xp, device_of(coef)), copy=False)
        scaled = math.sqrt(0.5 * self.strength) * wide  # the square of a coefficient alone may overflow
        return xp.sum(scaled * scaled)  # a vecdot could not be recorded as a graph

    def grad(self, coef: Array) -> Array:
        """Return the gradient, strength * coef, in the shape and dtype of `coef`."""
        return self.strength * coef

    def hessian_product(self, direction: Array) -> Array:
        """Return the Hessian, strength times the identity, times `direction`."""
        return self.strength * direction
