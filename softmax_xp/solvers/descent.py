"""The step that every descent method shares: a direction, a line search, and when to end.

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
from typing import NamedTuple, Protocol

from softmax_xp.arrays import Array, namespace
from softmax_xp.solvers import State, Status
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
    value_and_grad, noise : as for `Descent`
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


class _Search(NamedTuple):
    """A direction from the current point, and the gaps that are compared there.

    Attributes
    ----------
    direction : array of shape (n,)
    first : float or None
        The first step length to try; None if the gradient's size decides.
    goal : float
        The gap at which the solve has converged.
    target : float
        The gap at which this step is the last one.
    """

    direction: Array
    first: float | None
    goal: float
    target: float


class Descent:
    """A Solver that minimises a smooth function by steps along the directions of a Method.

    A step is a line search along the known direction, followed by the direction at the new point, which also estimates
    the gap there. This object keeps the point, and its Method what it has learnt of the curvature. Neither is part of
    the State: a descent cannot resume from a State, only start from its parameters.

    Parameters
    ----------
    method : Method
    value_and_grad : callable
        Takes an array like the parameters; returns the value, a 0-d array, and the gradient, an array like them.
    tol : float
        Converged when the estimated gap to the optimum is at most `tol` / MARGIN times the objective's magnitude.
    max_iter : int
    noise : callable, optional
        Takes parameters to the rounding error of the value there; none by default.
    rough : Evaluation, optional
        A cheaper and less exact evaluation to begin with. The end is judged and reported by `value_and_grad`.
    """

    def __init__(
        self,
        method: Method,
        value_and_grad: ValueAndGrad,
        *,
        tol: float,
        max_iter: int,
        noise: Callable[[Array], float] | None = None,
        rough: Evaluation | None = None,
    ) -> None:
        self.method = method
        self.tol = tol
        self.max_iter = max_iter
        self._exact = Evaluation(value_and_grad, noise)
        self._current = rough or self._exact
        self._values: deque[float] = deque(maxlen=STALLED + 1)  # of the objective, at the last points
        self._point: Point
        self._n_iter = self._n_evaluations = 0
        self._gap = math.inf
        self._search: _Search | None = None

    def start(self, start: Array) -> State:
        """Evaluate the function at parameters (n,), real floating; they are not modified."""
        self._evaluate(self._current, start)
        self._values.append(self._point.value)
        return self._state()

    def step(self, state: State) -> State:
        """Return the State after a line search. If that fails, the point stays, with exact values or a status."""
        search = self._search or self._directed()
        status = self._searched(search) if isinstance(search, _Search) else search
        if status is None:
            search = self._directed()
            if isinstance(search, _Search):
                self._search = search
                return self._state()
            status = search
        return self._finished(status)

    def ended(self, state: State, status: Status) -> State:
        """Return the best point reached, which may be one step ahead of `state` after Ctrl-C."""
        if status is Status.MAX_ITER and self._search is None:  # max_iter is 0
            search = self._directed()
            if not isinstance(search, _Search):
                return self._finished(search)
        if status is Status.STOPPED and self._search is not None and self._gap <= self._search.goal:
            status = Status.CONVERGED
        return self._finished(status)

    def _evaluate(self, evaluation: Evaluation, params: Array) -> None:
        """Set the current point, and the evaluation that made it."""
        xp = namespace(params=params)
        self._point = evaluated(xp, evaluation.value_and_grad, params, xp.zeros_like(params), 0.0)
        self._current = evaluation
        self._n_evaluations += 1

    def _evaluate_exactly(self) -> None:
        """Go on with the exact evaluation, from the same parameters."""
        self._evaluate(self._exact, self._point.x)
        self._values.clear()

    def _directed(self) -> _Search | Status:
        """Return the next direction, or the status with which the solve ends at the current point."""
        while True:
            point, has_steps = self._point, self._n_iter < self.max_iter
            size = abs(point.value)
            if not math.isfinite(point.value):
                return Status.DIVERGED
            goal = self.tol / MARGIN * size
            ends_by_step = self.method.ends_by_newton_step and has_steps
            target = LAST_STEP * self.tol * size if ends_by_step else goal
            direction, self._gap, first = self.method.direction(point, target)
            is_rough = self._current is not self._exact
            if is_rough and (self._gap <= max(target, self._current.tol * size) or not has_steps):
                self._evaluate_exactly()
                continue
            if self._gap <= goal and not ends_by_step:
                return Status.CONVERGED
            return _Search(direction, first, goal, target)

    def _searched(self, search: _Search) -> Status | None:
        """Move the current point by a line search; return the status if the solve ends there."""
        point, xp = self._point, namespace(params=self._point.x)
        direction, first = search.direction, search.first
        noise = self._current.noise or _no_noise
        while True:
            slope = float(dot(xp, direction, point.grad))
            new, trials = None, 0
            if slope < 0.0:
                length = min(1.0, 1.0 / math.sqrt(-slope)) if first is None else first
                error = cache(partial(noise, point.x))
                new, trials = wolfe_point(xp, self._current.value_and_grad, point, direction, slope, length, error)
            self._n_evaluations += trials
            if new is not None or not self.method.restarted():
                break
            direction, self._gap, first = self.method.direction(point, search.target)
        is_exact = self._current is self._exact
        if new is None:
            if self._gap <= search.target:
                return Status.CONVERGED
            if is_exact:
                return Status.STALLED
            self._evaluate_exactly()
            return None
        gap_after = self.method.gap_after(point, new) if is_exact else math.inf
        self.method.stepped(point, new)
        self._point, self._n_iter = new, self._n_iter + 1
        self._values.append(new.value)
        is_stalled = len(self._values) > STALLED and self._values[0] - new.value <= noise(new.x)
        if gap_after <= search.goal:
            self._gap = gap_after
            return Status.CONVERGED
        if is_stalled and is_exact:
            return Status.STALLED
        if is_stalled:
            self._evaluate_exactly()
        return None

    def _finished(self, status: Status) -> State:
        """Return the State at the end, evaluated exactly."""
        if status in (Status.MAX_ITER, Status.STALLED):  # the gap of the direction may be a rough estimate
            self._gap = self.method.gap(self._point)
        if self._current is not self._exact:
            self._evaluate_exactly()
        return self._state(
            status,
            {
                Status.CONVERGED: f"the gap to the optimum is at most tol={self.tol:g} of the objective",
                Status.MAX_ITER: f"max_iter={self.max_iter} steps taken",
                Status.STOPPED: "ended by the observer",
                Status.INTERRUPTED: "interrupted",
                Status.STALLED: "no step lowers the objective further in this precision",
                Status.DIVERGED: "the objective is not finite at the start",
            }[status],
        )

    def _state(self, status: Status | None = None, message: str = "") -> State:
        """Return the current point as a State. Its gap is LEAST_GAP of the objective at least."""
        point = self._point
        gap = max(self._gap, LEAST_GAP * abs(point.value))
        return State(point.x, point.value, point.gradient_norm, gap, self._n_iter, self._n_evaluations, status, message)


def _no_noise(params: Array) -> float:
    """Return the rounding error of a function that is taken to have none."""
    return 0.0
