"""Limited-memory BFGS with a line search that satisfies the strong Wolfe conditions.

Written in the array API: the vectors stay on their device, and what comes to the host in an evaluation is the
value, the slope along the search direction and the gradient's norm, in one transfer.

References
----------
Nocedal and Wright, Numerical Optimization, 2nd ed., 2006, doi:10.1007/978-0-387-40065-5: algorithms 7.4
(two-loop recursion), 3.5 and 3.6 (line search).
Hager and Zhang, 2005, doi:10.1137/030601880: the approximate Wolfe conditions, by which a step is judged where
the values differ by less than their rounding errors.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from softmax_xp._arrays import Array, Namespace, accumulation_dtype, device_of, namespace, to_numpy
from softmax_xp.solvers import Iterate, Solution

SUFFICIENT_DECREASE = 1e-4
CURVATURE = 0.9
MAX_TRIALS = 25

ValueAndGrad: TypeAlias = Callable[[Array], tuple[Array, Array]]
Precondition: TypeAlias = Callable[[Array], Array]


@dataclass(frozen=True)
class _Point:
    """A point on the search line: x = start + step * direction."""

    step: float
    x: Array
    value: float
    grad: Array
    slope: float  # of the objective along the direction
    gradient_norm: float


def minimize(
    value_and_grad: ValueAndGrad,
    params: Array,
    *,
    tol: float = 1e-4,
    max_iter: int = 1000,
    memory: int = 10,
    rounding: float = 0.0,
    precondition: Precondition | None = None,
    refresh: Callable[[int, float, Array], Precondition | None] | None = None,
    observe: Callable[[Iterate], object] | None = None,
) -> Solution:
    """Minimise a smooth function from `params`.

    Parameters
    ----------
    value_and_grad : callable
        Takes an array like `params`; returns the value, a 0-d array, and the gradient, an array like `params`.
    params : array of shape (n,), real floating
        Where to start; not modified.
    tol : float, default 1e-4
        Converged when the gradient's Euclidean norm is at most `tol`. That is never less than its largest
        entry, which scikit-learn's lbfgs tests: at the same `tol` this ends at least as close to the optimum.
    max_iter : int, default 1000
    memory : int, default 10
        How many pairs of steps and gradient differences describe the curvature; 2 * memory vectors are kept.
    rounding : float, default 0.0
        Relative rounding error of the value. Values that differ by less are not compared; slopes are.
    precondition : callable, optional
        Takes an array like `params` to a symmetric positive definite estimate of the inverse Hessian times it,
        from which the recursion starts; the identity, scaled, by default.
    refresh : callable, optional
        Called with the number of steps, the gradient's norm and the parameters after each step; returns another
        `precondition`, with which the
        recursion starts afresh from there, or None to go on.
    observe : callable, optional
        Called with an Iterate after each step; a true result ends the solve there.

    Returns
    -------
    Solution
        Of the best point reached, also when Ctrl-C ended the solve.
    """
    xp = namespace(params=params)
    pairs: deque[tuple[Array, Array, Array]] = deque(maxlen=memory)
    zero = xp.zeros_like(params)
    point = _evaluate(xp, value_and_grad, params, zero, 0.0)
    n_iter, n_evaluations = 0, 1
    message, converged = "", False
    try:
        while not message:
            if not math.isfinite(point.value):
                message = "the objective is not finite at the start"
            elif point.gradient_norm <= tol:
                message, converged = f"the gradient's norm is at most tol={tol:g}", True
            elif n_iter >= max_iter:
                message = f"max_iter={max_iter} steps taken"
            else:
                direction = -_inverse_hessian_product(xp, pairs, point.grad, precondition)
                slope = float(_dot(xp, direction, point.grad))
                if not slope < 0.0:  # the pairs have lost their meaning to rounding: start them afresh
                    pairs.clear()
                    direction = -point.grad
                    slope = float(_dot(xp, direction, point.grad))
                first = 1.0 if pairs or precondition else min(1.0, 1.0 / math.sqrt(-slope))
                new, trials = _wolfe_point(xp, value_and_grad, point, direction, slope, first, rounding)
                n_evaluations += trials
                if new is None and pairs:
                    pairs.clear()  # once more along the gradient itself before giving up
                elif new is None:
                    message = "no step lowers the objective further in this precision"
                else:
                    s, y = new.x - point.x, new.grad - point.grad
                    curvature = _dot(xp, s, y)
                    if float(curvature) > 0.0:
                        pairs.append((s, y, 1.0 / curvature))
                    point, n_iter = new, n_iter + 1
                    if observe is not None and observe(Iterate(n_iter, point.value, point.gradient_norm)):
                        message = "ended by the observer"
                    elif refresh is not None and point.gradient_norm > tol:
                        refreshed = refresh(n_iter, point.gradient_norm, point.x)
                        if refreshed is not None:
                            precondition = refreshed
                            pairs.clear()
    except KeyboardInterrupt:
        message = "interrupted"
    return Solution(
        params=point.x,
        objective=point.value,
        gradient_norm=point.gradient_norm,
        n_iter=n_iter,
        n_evaluations=n_evaluations,
        converged=converged,
        message=message,
    )


def _dot(xp: Namespace, a: Array, b: Array) -> Array:
    """Return the inner product as a 0-d array, accumulated in the widest floating dtype of the device."""
    wide = accumulation_dtype(xp, device_of(a))
    return xp.sum(xp.astype(a, wide, copy=False) * xp.astype(b, wide, copy=False))


def _evaluate(xp: Namespace, value_and_grad: ValueAndGrad, start: Array, direction: Array, step: float) -> _Point:
    x = start + step * direction
    value, grad = value_and_grad(x)
    slope = _dot(xp, grad, direction)
    scalars = xp.stack([xp.astype(value, slope.dtype), slope, xp.sqrt(_dot(xp, grad, grad))])
    value, slope, norm = to_numpy(scalars).tolist()
    return _Point(step, x, value, grad, slope, norm)


def _inverse_hessian_product(
    xp: Namespace,
    pairs: deque[tuple[Array, Array, Array]],
    grad: Array,
    precondition: Precondition | None,
) -> Array:
    """Return the two-loop recursion's product of the inverse Hessian estimate with `grad`.

    All in arrays of the device: no inner product comes to the host.
    """
    start = precondition or (lambda x: x)
    q, alphas = grad, []
    for s, y, rho in reversed(pairs):
        alpha = xp.astype(rho * _dot(xp, s, q), grad.dtype)
        q = q - alpha * y
        alphas.append(alpha)
    q = start(q)
    if pairs:
        s, y, rho = pairs[-1]
        q = q * xp.astype(1.0 / (rho * _dot(xp, y, start(y))), grad.dtype)
    for (s, y, rho), alpha in zip(pairs, reversed(alphas), strict=True):
        beta = xp.astype(rho * _dot(xp, y, q), grad.dtype)
        q = q + (alpha - beta) * s
    return q


def _wolfe_point(
    xp: Namespace,
    value_and_grad: ValueAndGrad,
    start: _Point,
    direction: Array,
    slope: float,
    step: float,
    rounding: float,
) -> tuple[_Point | None, int]:
    """Return a point that satisfies the strong Wolfe conditions, and the number of evaluations it took.

    The best point of sufficient decrease stands in when MAX_TRIALS run out; None when there is no such point.
    `low` is the best point so far, `high` the other end of a bracket around a minimum once there is one.
    """
    noise = rounding * abs(start.value)
    low = _Point(0.0, start.x, start.value, start.grad, slope, start.gradient_norm)
    high: _Point | None = None
    for trial in range(1, MAX_TRIALS + 1):
        point = _evaluate(xp, value_and_grad, start.x, direction, step)
        decrease = point.value <= start.value + SUFFICIENT_DECREASE * step * slope or (
            abs(point.value - start.value) <= noise and point.slope <= (2 * SUFFICIENT_DECREASE - 1) * slope
        )
        if not (math.isfinite(point.value) and decrease and point.value <= low.value + noise):
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


def _interpolated(low: _Point, high: _Point) -> float:
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
