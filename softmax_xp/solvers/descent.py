"""The loop that every descent method shares: a direction, a line search, and when to end.

A solve ends when the estimated gap, f(x) - min f, is at most `tol` times |f(x)|, with a margin of MARGIN. The estimate
is half the squared Newton decrement, g' H^-1 g / 2 with the gradient g and the Hessian H (Boyd and Vandenberghe, Convex
Optimization, 2004, section 9.5). It does not change with the units of the parameters, and means the same for any
objective. The Newton step that has found a gap near enough is the last step of the solve.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Protocol

from softmax_xp._arrays import Array, namespace
from softmax_xp.solvers import Iterate, Solution, Status
from softmax_xp.solvers.line_search import Point, ValueAndGrad, dot, evaluated, wolfe_point

MARGIN = 10.0  # how far an estimate of the gap may be wrong, and tol still keep its meaning
LEAST_GAP = 1e-12  # share of the objective; rounding hides gaps that are smaller
STALLED = 100  # steps; if they lower the objective by its rounding error or less, the solve ends
LAST_STEP = 0.2  # share of tol * |f| that the gap may be before the last step, which is a Newton step


@dataclass(frozen=True)
class Evaluation:
    """A way to evaluate the function, and how far it serves.

    Attributes
    ----------
    value_and_grad, noise : as for `descend`
    tol : float, default 0.0
        It serves until the estimated gap is at most `tol` times the objective's magnitude, or no step lowers it.
    """

    value_and_grad: ValueAndGrad
    noise: Callable[[Array], float] | None = None
    tol: float = 0.0


class Method(Protocol):
    """The directions of a descent method, and its estimates of the gap.

    Attributes
    ----------
    ends_by_newton_step : bool
        Whether the direction is a Newton step where the gap is small enough. Otherwise the solve ends without a step.
    """

    ends_by_newton_step: bool

    def direction(self, point: Point, target: float) -> tuple[Array, float, float | None]:
        """Return a descent direction, the estimated gap, and the first step to try (None: by the gradient's size).

        A gap of `target` or less makes this step the last one: it must be trustworthy, and the step a Newton step.
        """

    def stepped(self, before: Point, after: Point) -> None:
        """Take note of a step."""

    def restarted(self) -> bool:
        """Forget what may have misled the last direction; return whether there was anything to forget."""

    def gap(self, point: Point) -> float:
        """Return the best estimate of the gap at a point where the solve has to end; infinity where it is unknown."""

    def gap_after(self, before: Point, after: Point) -> float:
        """Return the gap at `after`, the end of a Newton step from `before`; infinity if the step was another one."""


def descend(
    method: Method,
    value_and_grad: ValueAndGrad,
    params: Array,
    *,
    tol: float,
    max_iter: int,
    noise: Callable[[Array], float] | None = None,
    rough: Evaluation | None = None,
    observe: Callable[[Iterate], object] | None = None,
) -> Solution:
    """Minimise a smooth function from `params` by steps along the directions of `method`.

    Parameters
    ----------
    method : Method
    value_and_grad : callable
        Takes an array like `params`; returns the value, a 0-d array, and the gradient, an array like `params`.
    params : array of shape (n,), real floating
        Where to start; not modified.
    tol : float
        Converged when the estimated gap to the optimum is at most `tol` / MARGIN times the objective's magnitude.
    max_iter : int
    noise : callable, optional
        Takes parameters to the rounding error of the value there; none by default.
    rough : Evaluation, optional
        One that costs less and is less exact, to begin with. The end is judged, and told, by `value_and_grad`.
    observe : callable, optional
        Called with an Iterate after each step; a true result ends the solve there.

    Returns
    -------
    Solution
        Of the best point reached, also when Ctrl-C ended the solve.
    """
    xp = namespace(params=params)
    exact = Evaluation(value_and_grad, noise)
    current = rough or exact
    point = evaluated(xp, current.value_and_grad, params, xp.zeros_like(params), 0.0)
    n_iter, n_evaluations, gap, target = 0, 1, math.inf, 0.0
    status: Status | None = None
    values = deque([point.value], maxlen=STALLED + 1)
    stop: object = False

    def evaluate_exactly() -> None:
        nonlocal current, point, n_evaluations
        current = exact
        point = evaluated(xp, value_and_grad, point.x, xp.zeros_like(point.x), 0.0)
        n_evaluations += 1
        values.clear()

    try:
        while status is None:
            if not math.isfinite(point.value):
                status = Status.DIVERGED
                break
            goal = tol / MARGIN * abs(point.value)
            polishes = method.ends_by_newton_step and n_iter < max_iter
            target = LAST_STEP * tol * abs(point.value) if polishes else goal
            direction, gap, first = method.direction(point, target)
            if current is not exact and (gap <= max(target, current.tol * abs(point.value)) or n_iter >= max_iter):
                evaluate_exactly()
                continue
            here = Iterate(n_iter, point.value, point.gradient_norm, _known(gap, point.value))
            stop = n_iter > 0 and observe is not None and observe(here)
            if stop or n_iter >= max_iter or (gap <= goal and not polishes):
                status = Status.CONVERGED if gap <= goal else Status.STOPPED if stop else Status.MAX_ITER
                break
            while True:
                slope = float(dot(xp, direction, point.grad))
                new, trials = None, 0
                if slope < 0.0:
                    step = min(1.0, 1.0 / math.sqrt(-slope)) if first is None else first
                    error = cache(partial(current.noise or _no_noise, point.x))
                    new, trials = wolfe_point(xp, current.value_and_grad, point, direction, slope, step, error)
                n_evaluations += trials
                if new is not None or not method.restarted():
                    break
                direction, gap, first = method.direction(point, target)
            if new is not None:
                left = method.gap_after(point, new) if current is exact else math.inf
                method.stepped(point, new)
                point, n_iter = new, n_iter + 1
                values.append(point.value)
                stalled = len(values) > STALLED and values[0] - point.value <= (current.noise or _no_noise)(point.x)
                if left <= goal:
                    gap, status = left, Status.CONVERGED
                    if observe is not None:
                        observe(Iterate(n_iter, point.value, point.gradient_norm, _known(gap, point.value)))
                elif stalled and current is exact:
                    status = Status.STALLED
                elif stalled:
                    evaluate_exactly()
            elif gap <= target:
                status = Status.CONVERGED
            elif current is not exact:
                evaluate_exactly()
            else:
                status = Status.STALLED
        if status in (Status.MAX_ITER, Status.STALLED):  # who ended it has seen an estimate
            gap = method.gap(point)
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    if current is not exact:
        evaluate_exactly()
    return Solution(
        params=point.x,
        objective=point.value,
        gradient_norm=point.gradient_norm,
        estimated_gap=_known(gap, point.value),
        n_iter=n_iter,
        n_evaluations=n_evaluations,
        status=status,
        message={
            Status.CONVERGED: f"the gap to the optimum is at most tol={tol:g} of the objective",
            Status.MAX_ITER: f"max_iter={max_iter} steps taken",
            Status.STOPPED: "ended by the observer",
            Status.INTERRUPTED: "interrupted",
            Status.STALLED: "no step lowers the objective further in this precision",
            Status.DIVERGED: "the objective is not finite at the start",
        }[status],
    )


def _known(gap: float, value: float) -> float:
    """Return an estimated gap, or LEAST_GAP of the objective if that is more."""
    return max(gap, LEAST_GAP * abs(value))


def _no_noise(params: Array) -> float:
    """Return the rounding error of a function that is taken to have none."""
    return 0.0
