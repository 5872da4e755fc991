"""Solvers: each is `start` and `step` over a State, and `solve` is the loop that runs them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, TypeAlias

from softmax_xp.arrays import describe


class Status(StrEnum):
    """Why a solve ended."""

    CONVERGED = "converged"
    """The solver's own rule is met."""
    MAX_ITER = "max_iter"
    """All steps (or epochs) that were allowed are taken."""
    STOPPED = "stopped"
    """A callback ended it."""
    INTERRUPTED = "interrupted"
    """Ctrl-C or a signal ended it."""
    STALLED = "stalled"
    """No step lowers the objective further in this precision."""
    DIVERGED = "diverged"
    """The objective is not finite."""
    SEPARATED = "separated"
    """Every row is classified right, so that without a penalty there is no minimum."""


@dataclass(frozen=True, eq=False)
class State:
    """One point of a solve: what a callback is shown, what a solve returns, and what a checkpoint holds.

    It can be pickled.

    Attributes
    ----------
    params : array, or a dict of arrays
        The parameters, as they were given to the solver: same structure, namespace, device and dtype.
    objective : float
        The objective at `params`.
    gradient_norm : float
        The Euclidean norm of the gradient at `params`; NaN if it has not been computed.
    estimated_gap : float
        An estimate of the objective at `params` minus its minimum; NaN if the solver has none.
    n_iter : int
        Steps taken; epochs in a stochastic solve.
    n_evaluations : int
        Evaluations of value and gradient: over all rows, or over one mini-batch each in a stochastic solve.
    status : Status or None
        Why the solve ended; None before it ends.
    message : str
        The same in words, with the numbers; empty before it ends.
    memory : mapping
        What the solver needs to resume here, by name: arrays, dicts of arrays, and values that JSON can hold. Empty if
        the solver cannot resume.
    """

    params: Any = field(repr=False)
    objective: float
    gradient_norm: float
    estimated_gap: float
    n_iter: int
    n_evaluations: int
    status: Status | None = None
    message: str = ""
    memory: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def converged(self) -> bool:
        """Whether the solver's own rule was met."""
        return self.status is Status.CONVERGED


Solution = State  # the public name of the State that a solve returns
Iterate = State  # the public name of the State that a callback is shown
Callback: TypeAlias = Callable[[State], object]


class Solver(Protocol):
    """A method of minimisation that `solve` runs.

    Attributes
    ----------
    max_iter : int
        The most steps, counted by State.n_iter.
    """

    max_iter: int

    def start(self, start: Any) -> State:
        """Return the State before the first step, given parameters, or a State if the solver can resume."""

    def step(self, state: State) -> State:
        """Return the State after one step from `state`, which is the last State that this solver returned.

        The new State has a status if the solve ends there. Its n_iter is that of `state` if no step was completed: the
        step failed, or it was only a part of an epoch.
        """

    def ended(self, state: State, status: Status) -> State:
        """Return the State with which the solve ends, given the last State and the reason that `solve` has to end it.

        That is MAX_ITER, STOPPED or INTERRUPTED. The solver may report a stronger reason, such as CONVERGED. It raises
        KeyboardInterrupt if it was interrupted before it had any result.
        """


def solve(solver: Solver, start: Any, callbacks: Sequence[Callback] = ()) -> State:
    """Run a solver until it ends.

    Parameters
    ----------
    solver : Solver
    start : array, dict of arrays, or State
        What `solver.start` takes; not modified.
    callbacks : sequence of callables
        Each is called with the State after each step, the last one included. If one returns a true result, the solve
        ends there.

    Returns
    -------
    State
        The last one, with its status. After Ctrl-C it is the last one that was completed.

    Raises
    ------
    KeyboardInterrupt
        By Ctrl-C before there is any result.
    """
    state = solver.start(start)
    try:
        while state.status is None:
            if state.n_iter >= solver.max_iter:
                return solver.ended(state, Status.MAX_ITER)
            n_before = state.n_iter
            state = solver.step(state)
            if state.n_iter > n_before:
                answers = [callback(state) for callback in callbacks]
                if state.status is None and any(answers):
                    return solver.ended(state, Status.STOPPED)
    except KeyboardInterrupt:
        return solver.ended(state, Status.INTERRUPTED)
    return state


def check_callbacks(callbacks: Any) -> None:
    """Raise TypeError unless `callbacks` is a sequence of callables."""
    if not isinstance(callbacks, Sequence) or isinstance(callbacks, str) or not all(map(callable, callbacks)):
        raise TypeError(f"`callbacks` must be a sequence of callables, got {describe(callbacks)}; put them in a list.")
