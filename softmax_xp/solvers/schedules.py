"""Learning rates as functions of the step, counted from 0."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from softmax_xp.checks import check_integer, check_real

# A function from the step number to the learning rate.
Schedule: TypeAlias = Callable[[int], float]


@dataclass(frozen=True)
class ConstantSchedule:
    """The same learning rate at every step.

    Parameters
    ----------
    learning_rate : float, positive
    """

    learning_rate: float

    def __post_init__(self) -> None:
        _check_rate(self.learning_rate)

    def __call__(self, step: int) -> float:
        """Return the learning rate at `step`."""
        return self.learning_rate


@dataclass(frozen=True)
class StepSchedule:
    """learning_rate * factor ** (step // every): a staircase.

    Parameters
    ----------
    learning_rate : float, positive
    every : int, at least 1
        Steps between two drops.
    factor : float in (0, 1], default 0.1
    """

    learning_rate: float
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        _check_rate(self.learning_rate)
        check_integer(self.every, "every", low=1, remedy="choose a value such as 1000")
        check_real(self.factor, "factor", low=0.0, high=1.0, include_low=False, remedy="choose a value such as 0.1")

    def __call__(self, step: int) -> float:
        """Return the learning rate at `step`."""
        return self.learning_rate * self.factor ** (step // self.every)


@dataclass(frozen=True)
class CosineSchedule:
    """A linear rise over `warmup` steps, then half a cosine down to `final` at step `n_steps`.

    The cosine is from Loshchilov and Hutter, SGDR, 2017, arXiv:1608.03983; the rise from Goyal et al., 2017,
    arXiv:1706.02677.

    Parameters
    ----------
    learning_rate : float, positive
        The peak, reached at step `warmup`.
    n_steps : int, at least 1
        Number of steps; after them the rate stays at `final`.
    warmup : int, default 0, less than `n_steps`
    final : float, not negative, default 0.0
    """

    learning_rate: float
    n_steps: int
    warmup: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        _check_rate(self.learning_rate)
        check_integer(self.n_steps, "n_steps", low=1, remedy="choose a value such as 1000")
        if check_integer(self.warmup, "warmup", low=0, remedy="choose a value such as 0") >= self.n_steps:
            raise ValueError(
                f"`warmup` must be less than `n_steps` ({self.n_steps}), got {self.warmup}; shorten the warm-up."
            )
        check_real(self.final, "final", low=0.0, high=self.learning_rate, remedy="choose a value such as 0.0")

    def __call__(self, step: int) -> float:
        """Return the learning rate at `step`."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / (self.warmup + 1)
        done = min(1.0, (step - self.warmup) / (self.n_steps - self.warmup))
        return self.final + 0.5 * (self.learning_rate - self.final) * (1.0 + math.cos(math.pi * done))


def as_schedule(learning_rate: float | Schedule) -> Schedule:
    """Return `learning_rate` if it is a schedule, or a constant schedule if it is a number."""
    return learning_rate if callable(learning_rate) else ConstantSchedule(learning_rate)


def _check_rate(value: float) -> None:
    remedy = "choose a value such as 1e-3"
    check_real(value, "learning_rate", low=0.0, include_low=False, high=math.inf, include_high=False, remedy=remedy)
