"""Stochastic gradient methods: the update rules, and the loop over mini-batches.

Parameters, gradients and the moments of an optimizer are dicts of arrays with the same keys. They stay on their device;
a step copies nothing to the host.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeAlias

import numpy as np

from softmax_xp._arrays import Array, accumulation_dtype, check_bool, check_real, namespace
from softmax_xp.data import minibatches
from softmax_xp.objective import LinearObjective
from softmax_xp.solvers import Iterate, Solution, Status
from softmax_xp.solvers.schedules import CosineSchedule, Schedule, as_schedule

BATCH_SIZE = 256  # rows per step in `minimize`

Params: TypeAlias = dict[str, Array]
State: TypeAlias = dict[str, Params]


class Optimizer(Protocol):
    """The update rule of one step.

    The optimizers of this module split it in two parts, so that a step can be recorded as a CUDA graph.
    """

    def start(self, params: Params) -> State:
        """Return the state before the first step."""

    def step(self, params: Params, grads: Params, state: State, n: int) -> tuple[Params, State]:
        """Return the parameters and the state after step `n`, counted from 0; nothing is modified."""


class _Rule(Optimizer):
    """An update rule in two parts: the numbers that change from step to step, and the update that uses them."""

    @abstractmethod
    def factors(self, n: int) -> tuple[float, ...]:
        """Return the numbers of step `n`, counted from 0."""

    @abstractmethod
    def update(self, params: Params, grads: Params, state: State, *factors: float) -> tuple[Params, State]:
        """Return the parameters and the state after a step. Factors are numbers or 0-d arrays."""

    def step(self, params: Params, grads: Params, state: State, n: int) -> tuple[Params, State]:
        """Return the parameters and the state after step `n`, counted from 0; nothing is modified."""
        return self.update(params, grads, state, *self.factors(n))


@dataclass(frozen=True)
class SGD(_Rule):
    """Stochastic gradient descent: v = momentum * v + g, and params -= learning_rate * v.

    Parameters
    ----------
    learning_rate : float, positive, or a schedule
    momentum : float in [0, 1), default 0.0
        Polyak, 1964, doi:10.1016/0041-5553(64)90137-5.
    nesterov : bool, default False
        Step along g + momentum * v instead of v (Sutskever et al., 2013).
    """

    learning_rate: float | Schedule = 1e-2
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        as_schedule(self.learning_rate)
        remedy = "choose a value such as 0.9"
        _set(self, momentum=check_real(self.momentum, "momentum", low=0.0, high=1.0, include_high=False, remedy=remedy))
        if check_bool(self.nesterov, "nesterov") and not self.momentum:
            raise ValueError("`nesterov` needs a positive `momentum`, got 0; try momentum=0.9.")

    def start(self, params: Params) -> State:
        """Return zero velocities."""
        return {"velocity": _zeros(params)} if self.momentum else {}

    def factors(self, n: int) -> tuple[float, ...]:
        """Return the learning rate."""
        return (_rate(self.learning_rate, n),)

    def update(self, params: Params, grads: Params, state: State, *factors: float) -> tuple[Params, State]:
        """Return parameters and velocities after a step."""
        (rate,) = factors
        if not self.momentum:
            return {k: params[k] - rate * g for k, g in grads.items()}, state
        velocity = {k: self.momentum * state["velocity"][k] + g for k, g in grads.items()}
        along = {k: g + self.momentum * velocity[k] for k, g in grads.items()} if self.nesterov else velocity
        return {k: params[k] - rate * along[k] for k in params}, {"velocity": velocity}


@dataclass(frozen=True)
class Adam(_Rule):
    """Adam (Kingma and Ba, 2015, arXiv:1412.6980).

    Parameters
    ----------
    learning_rate : float, positive, or a schedule
    beta1, beta2 : float in [0, 1)
        Decay of the running means of the gradient and of its square.
    eps : float, positive
    """

    learning_rate: float | Schedule = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        as_schedule(self.learning_rate)
        remedy = "choose a value such as 0.9"
        _set(self, beta1=check_real(self.beta1, "beta1", low=0.0, high=1.0, include_high=False, remedy=remedy))
        remedy = "choose a value such as 0.999"
        _set(self, beta2=check_real(self.beta2, "beta2", low=0.0, high=1.0, include_high=False, remedy=remedy))
        limits: dict[str, Any] = {"low": 0.0, "include_low": False, "high": math.inf, "include_high": False}
        _set(self, eps=check_real(self.eps, "eps", **limits, remedy="choose a value such as 1e-8"))

    def start(self, params: Params) -> State:
        """Return zero means."""
        return {"mean": _zeros(params), "square": _zeros(params)}

    def factors(self, n: int) -> tuple[float, ...]:
        """Return the learning rate and the root of the squares' weight, both with bias correction.

        The running means start at zero and are too small at first. Both corrections tend to 1.
        """
        rate = _rate(self.learning_rate, n)
        return rate / (1.0 - self.beta1 ** (n + 1)), (1.0 - self.beta2 ** (n + 1)) ** 0.5

    def update(self, params: Params, grads: Params, state: State, *factors: float) -> tuple[Params, State]:
        """Return parameters and means after a step."""
        rate, correction = factors
        mean = {k: self.beta1 * state["mean"][k] + (1.0 - self.beta1) * g for k, g in grads.items()}
        square = {k: self.beta2 * state["square"][k] + (1.0 - self.beta2) * g * g for k, g in grads.items()}
        new = {}
        for k, x in params.items():
            xp = namespace(**{k: x})
            new[k] = x - rate * mean[k] / (xp.sqrt(square[k]) / correction + self.eps)
        return new, {"mean": mean, "square": square}


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019, arXiv:1711.05101).

    Each step first multiplies the parameters by 1 - learning_rate * weight_decay, except vectors, which are the
    intercepts.

    Parameters
    ----------
    weight_decay : float, not negative, default 1e-2
        The other parameters are those of `Adam`.
    """

    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        limits: dict[str, Any] = {"low": 0.0, "high": math.inf, "include_high": False}
        remedy = "choose a value such as 1e-2"
        _set(self, weight_decay=check_real(self.weight_decay, "weight_decay", **limits, remedy=remedy))

    def factors(self, n: int) -> tuple[float, ...]:
        """Return the factor of the weight decay, and the factors of Adam."""
        return 1.0 - _rate(self.learning_rate, n) * self.weight_decay, *super().factors(n)

    def update(self, params: Params, grads: Params, state: State, *factors: float) -> tuple[Params, State]:
        """Return parameters and means after a step."""
        keep, *of_adam = factors
        return super().update({k: keep * x if x.ndim > 1 else x for k, x in params.items()}, grads, state, *of_adam)


@dataclass(frozen=True)
class Run:
    """The end of a loop of stochastic steps: the parameters, the number of steps, and whether Ctrl-C ended it."""

    params: Params
    n_steps: int
    interrupted: bool


def run(
    value_and_grad: Callable[[Params, Any], tuple[Array, Params]],
    params: Params,
    batches: Iterable[Any],
    optimizer: Optimizer,
    observe: Callable[[int, Array, Params], object],
    repeated: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
) -> Run:
    """Take one step per batch until the batches end, the observer returns true, or Ctrl-C.

    Parameters
    ----------
    value_and_grad : callable
        Takes parameters and a batch; returns the objective on that batch, a 0-d array, and its gradient.
    params : dict of arrays
        The start; not modified.
    batches : iterable
    optimizer : Optimizer
    observe : callable
        Called after each step with the number of steps taken, the value before the step, and the parameters
        after it; a true result ends the loop.
    repeated : callable, optional
        `Backend.repeated`, which lets a GPU replay the step as a CUDA graph. Only for a `value_and_grad` that runs the
        same operations at every call.
    """

    def one_step(params: Params, state: State, batch: Any, factors: tuple[float, ...]) -> tuple[Array, Params, State]:
        value, grads = value_and_grad(params, batch)
        return value, *update(params, grads, state, *factors)

    if isinstance(optimizer, _Rule) and type(optimizer) in (SGD, Adam, AdamW):
        update: Callable[..., tuple[Params, State]] = optimizer.update
        factors: Callable[[int], tuple[float, ...]] = optimizer.factors
        take = one_step if repeated is None else repeated(one_step)
    else:  # the step of a user's optimizer is not recorded
        update, factors, take = optimizer.step, lambda n: (n,), one_step
    state = optimizer.start(params)
    n_steps = 0
    try:
        for batch in batches:
            value, params, state = take(params, state, batch, factors(n_steps))
            n_steps += 1
            if observe(n_steps, value, params):
                break
    except KeyboardInterrupt:
        return Run(params, n_steps, interrupted=True)
    return Run(params, n_steps, interrupted=False)


def minimize(
    objective: LinearObjective,
    params: Array,
    optimizer: Optimizer,
    *,
    tol: float,
    max_epochs: int,
    rng: np.random.Generator,
    rough: LinearObjective | None = None,
    observe: Callable[[Iterate], object] | None = None,
) -> Solution:
    """Minimise an objective from `params` by steps along mini-batches of BATCH_SIZE rows.

    The fit has converged when, after an epoch, the Euclidean norm of the gradient over all rows is at most `tol`.

    Parameters
    ----------
    objective : LinearObjective
    params : array of shape (n_params,)
        The start; not modified.
    optimizer : Optimizer
    tol : float
    max_epochs : int
    rng : numpy.random.Generator
        Shuffles the rows.
    rough : LinearObjective, optional
        The same objective in a lower precision; the steps use it.
    observe : callable, optional
        Called with an Iterate after each epoch; if it returns true, the solve ends.

    Returns
    -------
    Solution
        `n_iter` counts epochs, `n_evaluations` mini-batches.

    Raises
    ------
    KeyboardInterrupt
        By Ctrl-C before the first step.
    """
    backend, n_rows = objective.backend, objective.X.shape[0]
    xp = backend.xp
    per_epoch = -(-n_rows // BATCH_SIZE)
    status, n_iter = Status.MAX_ITER, 0

    def parts(flat: Array) -> Params:
        coef, intercept = objective.split(flat)
        return {"coef": coef} if intercept is None else {"coef": coef, "intercept": intercept}

    def joined(params: Params) -> Array:
        return xp.concat([xp.reshape(x, (-1,)) for x in params.values()])

    def over_all(params: Params) -> tuple[float, float]:
        value, grad = objective.value_and_grad(joined(params))
        wide = xp.astype(grad, accumulation_dtype(xp, backend.device), copy=False)
        return float(value), float(xp.sum(wide * wide)) ** 0.5

    def value_and_grad(params: Params, rows: Array) -> tuple[Array, Params]:
        value, grad = (rough or objective).batch_value_and_grad(joined(params), rows)
        return value, parts(grad)

    def after_step(step: int, value: Array, params: Params) -> bool:
        nonlocal status, n_iter
        if step % per_epoch:
            return False
        n_iter += 1
        value, norm = over_all(params)
        if not math.isfinite(value):
            status = Status.DIVERGED
        elif norm <= tol:
            status = Status.CONVERGED
        elif observe is not None and observe(Iterate(n_iter, value, norm, math.nan)):
            status = Status.STOPPED
        else:
            return False
        return True

    batches = islice(minibatches(backend, n_rows, BATCH_SIZE, rng), per_epoch * max_epochs)
    ended = run(value_and_grad, parts(params), batches, optimizer, after_step, backend.repeated)
    if ended.interrupted:
        status = Status.INTERRUPTED
        if ended.n_steps == 0:
            raise KeyboardInterrupt
    value, norm = over_all(ended.params)
    return Solution(
        params=joined(ended.params),
        objective=value,
        gradient_norm=norm,
        estimated_gap=math.nan,
        n_iter=max(n_iter, -(-ended.n_steps // per_epoch)),
        n_evaluations=ended.n_steps,
        status=status,
        message={
            Status.CONVERGED: f"the gradient's norm is at most tol={tol:g}",
            Status.MAX_ITER: f"max_iter={max_epochs} epochs done",
            Status.STOPPED: "ended by the observer",
            Status.INTERRUPTED: f"interrupted in epoch {n_iter + 1}",
            Status.DIVERGED: f"the objective stopped being finite in epoch {n_iter}; lower the learning rate",
        }[status],
    )


def default_optimizer(name: str, objective: LinearObjective, max_epochs: int) -> Optimizer:
    """Return "sgd", "adam" or "adamw" with a learning rate that suits the size of the rows and falls to 0 at the end.

    The learning rate of SGD starts at 1 / L, where L bounds the curvature of the mean loss: half the mean of |x|^2 + 1
    (Boehning, 1992, doi:10.1007/BF00048682). Adam and AdamW scale the step of each coefficient; their learning rate
    starts where a step changes a logit by about 0.1.
    """
    xp, n_rows = objective.backend.xp, objective.X.shape[0]
    wide = accumulation_dtype(xp, objective.backend.device)
    rows = xp.astype(objective.X[:: -(-n_rows // 10_000), :], wide, copy=False)
    n_steps = -(-n_rows // BATCH_SIZE) * max_epochs
    if name == "sgd":
        curvature = 0.5 * (float(xp.sum(rows * rows)) / rows.shape[0] + 1.0)
        return SGD(CosineSchedule(1.0 / (curvature + objective.penalty.strength), n_steps), momentum=0.9)
    length = float(xp.sum(xp.abs(rows))) / rows.shape[0] + 1.0
    return {"adam": Adam, "adamw": AdamW}[name](CosineSchedule(0.1 / length, n_steps))


def _rate(learning_rate: float | Schedule, n: int) -> float:
    """Return the learning rate of step `n` as a Python float, which does not promote the dtype of an array."""
    return float(as_schedule(learning_rate)(n))


def _set(optimizer: _Rule, **numbers: float) -> None:
    """Store Python floats in a frozen optimizer, because they do not promote the dtype of an array."""
    for name, number in numbers.items():
        object.__setattr__(optimizer, name, number)


def _zeros(params: Params) -> Params:
    return {k: namespace(**{k: x}).zeros_like(x) for k, x in params.items()}
