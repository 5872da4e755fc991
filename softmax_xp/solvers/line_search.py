"""A line search that ends where the strong Wolfe conditions hold.

References
----------
Nocedal and Wright, Numerical Optimization, 2nd ed., 2006, doi:10.1007/978-0-387-40065-5: algorithms 3.5 and 3.6.
Hager and Zhang, 2005, doi:10.1137/030601880: the approximate Wolfe conditions, by which a step is judged where
the values differ by less than their rounding errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from softmax_xp.arrays import Array, Namespace, accumulation_dtype, device_of, to_numpy

SUFFICIENT_DECREASE = 1e-4
CURVATURE = 0.9
MAX_TRIALS = 25

ValueAndGrad: TypeAlias = Callable[[Array], tuple[Array, Array]]


@dataclass(frozen=True)
class Point:
    """A point on a search line: x = start + step * direction."""

    step: float
    x: Array
    value: float
    grad: Array
    slope: float  # of the objective along the direction
    gradient_norm: float


def dot(xp: Namespace, a: Array, b: Array) -> Array:
    """Return the inner product as a 0-d array, accumulated in the widest floating dtype of the device."""
    wide = accumulation_dtype(xp, device_of(a))
    return xp.astype(a, wide, copy=False) @ xp.astype(b, wide, copy=False)


def evaluated(xp: Namespace, value_and_grad: ValueAndGrad, start: Array, direction: Array, step: float) -> Point:
    """Return the point at `step` along `direction`; what comes to the host is three numbers, in one transfer."""
    x = start + step * direction
    value, grad = value_and_grad(x)
    slope = dot(xp, grad, direction)
    scalars = xp.stack([xp.astype(value, slope.dtype), slope, xp.sqrt(dot(xp, grad, grad))])
    value, slope, norm = to_numpy(scalars).tolist()
    return Point(step, x, value, grad, slope, norm)


def wolfe_point(
    xp: Namespace,
    value_and_grad: ValueAndGrad,
    start: Point,
    direction: Array,
    slope: float,
    step: float,
    noise: Callable[[], float],
) -> tuple[Point | None, int]:
    """Return a point that satisfies the strong Wolfe conditions, and the number of evaluations it took.

    `noise` tells the rounding error of a value, and is asked where it matters alone: values that differ by less are not
    compared, slopes are. The best point of sufficient decrease stands in when MAX_TRIALS run out; None when there is no
    such point. `low` is the best point so far, `high` the other end of a bracket around a minimum once there is one.
    """
    low = Point(0.0, start.x, start.value, start.grad, slope, start.gradient_norm)
    high: Point | None = None
    for trial in range(1, MAX_TRIALS + 1):
        point = evaluated(xp, value_and_grad, start.x, direction, step)
        decrease = point.value <= start.value + SUFFICIENT_DECREASE * step * slope or (
            abs(point.value - start.value) <= noise() and point.slope <= (2 * SUFFICIENT_DECREASE - 1) * slope
        )
        lower = decrease and (point.value <= low.value or point.value <= low.value + noise())
        if not (math.isfinite(point.value) and lower):
            high = point
        elif abs(point.slope) <= -CURVATURE * slope:
            return point, trial
        else:
            if point.slope * ((high.step if high else math.inf) - low.step) >= 0:
                high = low
            low = point
        if high is None:
            step = 4.0 * step
        else:
            step = _interpolated(low, high)
            if step in (low.step, high.step):
                break
    # A step that is lost in rounding leaves x where it was: to take it would be to stand there until max_iter.
    return (low if low.step > 0.0 and bool(xp.any(low.x != start.x)) else None), trial


def _interpolated(low: Point, high: Point) -> float:
    """Return the minimiser of the cubic through both ends, kept away from them by a tenth of the bracket."""
    width = high.step - low.step
    if not (math.isfinite(high.value) and math.isfinite(high.slope)):
        return low.step + 0.1 * width
    d1 = low.slope + high.slope - 3.0 * (high.value - low.value) / width
    discriminant = d1 * d1 - low.slope * high.slope
    share = 0.5
    if discriminant > 0.0:
        d2 = math.copysign(math.sqrt(discriminant), width)
        denominator = high.slope - low.slope + 2.0 * d2
        if denominator != 0.0:
            share = 1.0 - (high.slope + d2 - d1) / denominator
    return low.step + min(0.9, max(0.1, share)) * width
