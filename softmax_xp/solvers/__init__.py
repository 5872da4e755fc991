"""Solvers: one file each. Every one of them returns a Solution."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


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
    converged : bool
        Whether the solver's own rule was met.
    message : str
        Why it ended.
    """

    params: Any = field(repr=False)
    objective: float
    gradient_norm: float
    estimated_gap: float
    n_iter: int
    n_evaluations: int
    converged: bool
    message: str


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
