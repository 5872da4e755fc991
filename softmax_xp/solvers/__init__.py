"""Solvers: one file each. Every one of them returns a Solution."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """Why a solve ended."""

    CONVERGED = "converged"
    """The solver's own rule is met."""
    MAX_ITER = "max_iter"
    """All steps (or epochs) that were allowed are taken."""
    STOPPED = "stopped"
    """An observer or a callback ended it."""
    INTERRUPTED = "interrupted"
    """Ctrl-C or a signal ended it."""
    STALLED = "stalled"
    """No step lowers the objective further in this precision."""
    DIVERGED = "diverged"
    """The objective is not finite."""
    SEPARATED = "separated"
    """Every row is classified right, so that without a penalty there is no minimum."""


@dataclass(frozen=True)
class Solution:
    """Where a solve ended.

    Attributes
    ----------
    params : array, or a dict of arrays
        The parameters, as they were given to the solver: same structure, namespace, device and dtype.
    objective : float
        The objective at `params`.
    gradient_norm : float
        The Euclidean norm of the gradient at `params`.
    estimated_gap : float
        An estimate of the objective at `params` minus its minimum; NaN where a solver has none.
    n_iter : int
        Steps taken.
    n_evaluations : int
        Evaluations of value and gradient: over all rows, or over one mini-batch each in a stochastic solve.
    status : Status
        Why it ended.
    message : str
        The same in words, with the numbers.
    """

    params: Any = field(repr=False)
    objective: float
    gradient_norm: float
    estimated_gap: float
    n_iter: int
    n_evaluations: int
    status: Status
    message: str

    @property
    def converged(self) -> bool:
        """Whether the solver's own rule was met."""
        return self.status is Status.CONVERGED


@dataclass(frozen=True)
class Iterate:
    """What a solver shows its observer after each step; an observer that returns True ends the solve.

    Attributes
    ----------
    n_iter : int
        Steps taken so far.
    objective, gradient_norm, estimated_gap : float
        As in Solution; the last by what the solver has at hand.
    """

    n_iter: int
    objective: float
    gradient_norm: float
    estimated_gap: float
