"""The stochastic solver: steps of an optimizer along mini-batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from softmax_xp.arrays import Array, accumulation_dtype
from softmax_xp.objective import LinearObjective
from softmax_xp.solvers import Callback, State, Status, solve
from softmax_xp.solvers.optimizers import SGD, Adam, AdamW, Optimizer, Params, UpdateRule
from softmax_xp.solvers.schedules import CosineSchedule

BATCH_SIZE = 256  # rows per step in `minimize`


def _unchanged(params: Any) -> Any:
    return params


class MiniBatches:
    """A Solver that takes one step of an optimizer per mini-batch.

    State.objective is that of the last mini-batch before the step, a 0-d array on the device. State.memory has the
    moments of the optimizer, under "optimizer".

    Parameters
    ----------
    value_and_grad : callable
        Takes parameters and a batch; returns the objective on that batch, a 0-d array, and its gradient.
    batches : iterable
        At least `max_iter` of them.
    optimizer : Optimizer
    max_iter : int
    repeated : callable, optional
        `Backend.repeated`, which lets a GPU replay the step as a CUDA graph. Only for a `value_and_grad` that runs the
        same operations at every call. It must not refer to this solver, or a reference cycle would keep the graph.
    split, joined : callables, optional
        Take parameters or a gradient to the dict of arrays that the optimizer takes, and back. By default they are such
        a dict.
    """

    def __init__(
        self,
        value_and_grad: Callable[[Any, Any], tuple[Array, Any]],
        batches: Iterable[Any],
        optimizer: Optimizer,
        max_iter: int,
        repeated: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None,
        split: Callable[[Any], Params] = _unchanged,
        joined: Callable[[Params], Any] = _unchanged,
    ) -> None:
        def one_step(params: Any, moments: Any, batch: Any, factors: tuple[float, ...]) -> tuple[Array, Any, Any]:
            value, grad = value_and_grad(params, batch)
            new, moments = update(split(params), split(grad), moments, *factors)
            return value, joined(new), moments

        self.max_iter = max_iter
        self.batches = iter(batches)
        self._optimizer, self._split = optimizer, split
        if isinstance(optimizer, UpdateRule) and type(optimizer) in (SGD, Adam, AdamW):
            update: Callable[..., tuple[Params, Any]] = optimizer.update
            self._factors: Callable[[int], tuple[float, ...]] = optimizer.factors
            self._one_step = one_step if repeated is None else repeated(one_step)
        else:  # the step of a user's optimizer is not recorded
            update, self._factors, self._one_step = optimizer.step, lambda n: (n,), one_step

    def start(self, start: Any) -> State:
        """Return the State at parameters, which are not modified. Its objective is not known."""
        memory = {"optimizer": self._optimizer.start(self._split(start))}
        return State(start, math.nan, math.nan, math.nan, n_iter=0, n_evaluations=0, memory=memory)

    def step(self, state: State) -> State:
        """Return the State after the next mini-batch."""
        value, params, moments = self._stepped(state)
        n = state.n_iter + 1
        return State(params, value, math.nan, math.nan, n, n, memory={"optimizer": moments})

    def ended(self, state: State, status: Status) -> State:
        """Return the same State with a status."""
        return replace(state, status=status, message=f"{status} after {state.n_iter} steps")

    def _stepped(self, state: State) -> tuple[Array, Any, Any]:
        """Return the objective on the next mini-batch, and parameters and moments after a step along its gradient."""
        factors = self._factors(state.n_evaluations)
        result: tuple[Array, Any, Any]
        result = self._one_step(state.params, state.memory["optimizer"], next(self.batches), factors)
        return result


class Epochs(MiniBatches):
    """A Solver that minimises a LinearObjective by mini-batches of BATCH_SIZE rows, and evaluates it after each epoch.

    A step is a mini-batch; State.n_iter counts epochs, and `objective` and `gradient_norm` are those at the end of the
    last epoch. State.memory has the moments of the optimizer, under "optimizer", and the state of the random generator
    before it has drawn the order of the rows of this epoch, under "generator": the solver can resume.

    Parameters
    ----------
    objective, optimizer, tol, max_epochs, rng, rough : as for `minimize`
    """

    def __init__(
        self,
        objective: LinearObjective,
        optimizer: Optimizer,
        *,
        tol: float,
        max_epochs: int,
        rng: np.random.Generator,
        rough: LinearObjective | None = None,
    ) -> None:
        backend, n_rows = objective.backend, objective.rows.n_rows
        xp = backend.xp

        def split(flat: Array) -> Params:
            coef, intercept = objective.split(flat)
            return {"coef": coef} if intercept is None else {"coef": coef, "intercept": intercept}

        def joined(params: Params) -> Array:
            return xp.concat([xp.reshape(x, (-1,)) for x in params.values()])

        value_and_grad = (rough or objective).batch_value_and_grad
        batches = objective.rows.batches(BATCH_SIZE, rng)
        super().__init__(value_and_grad, batches, optimizer, max_epochs, backend.repeated, split, joined)
        self.objective = objective
        self.tol = tol
        self.per_epoch = -(-n_rows // BATCH_SIZE)
        self.rng = rng

    def start(self, start: Array | State) -> State:
        """Return the State at parameters (n_params,), or the State to resume with; neither is modified."""
        if not isinstance(start, State):
            state = super().start(start)
            return replace(state, memory={**state.memory, "generator": self.rng.bit_generator.state})
        self.rng.bit_generator.state = start.memory["generator"]
        n_epochs, n_done = divmod(start.n_evaluations, self.per_epoch)
        for _ in range(n_done):
            next(self.batches)
        return replace(start, n_iter=n_epochs, status=None, message="")

    def step(self, state: State) -> State:
        """Return the State after the next mini-batch."""
        _, params, moments = self._stepped(state)
        n = state.n_evaluations + 1
        value, norm, n_epochs, generator = state.objective, state.gradient_norm, state.n_iter, state.memory["generator"]
        status: Status | None = None
        message = ""
        if n % self.per_epoch == 0:
            value, norm = self._over_all_rows(params)
            n_epochs += 1
            generator = self.rng.bit_generator.state
            if not math.isfinite(value):
                status = Status.DIVERGED
                message = f"the objective stopped being finite in epoch {n_epochs}; lower the learning rate"
            elif norm <= self.tol:
                status, message = Status.CONVERGED, f"the gradient's norm is at most tol={self.tol:g}"
        memory = {"optimizer": moments, "generator": generator}
        return State(params, value, norm, math.nan, n_epochs, n, status, message, memory)

    def ended(self, state: State, status: Status) -> State:
        """Return the State with the objective at its parameters, and with an unfinished epoch counted."""
        if status is Status.INTERRUPTED and state.n_evaluations == 0:
            raise KeyboardInterrupt
        value, norm = state.objective, state.gradient_norm
        if state.n_evaluations == 0 or state.n_evaluations % self.per_epoch:
            value, norm = self._over_all_rows(state.params)
        n_epochs = -(-state.n_evaluations // self.per_epoch)
        message = {
            Status.MAX_ITER: f"max_iter={self.max_iter} epochs done",
            Status.STOPPED: "ended by the observer",
            Status.INTERRUPTED: f"interrupted in epoch {state.n_iter + 1}",
        }[status]
        return replace(state, objective=value, gradient_norm=norm, n_iter=n_epochs, status=status, message=message)

    def _over_all_rows(self, params: Array) -> tuple[float, float]:
        """Return the objective over all rows and the Euclidean norm of its gradient."""
        xp, device = self.objective.backend.xp, self.objective.backend.device
        value, grad = self.objective.value_and_grad(params)
        wide = xp.astype(grad, accumulation_dtype(xp, device), copy=False)
        return float(value), float(xp.sum(wide * wide)) ** 0.5


def minimize(
    objective: LinearObjective,
    start: Array | State,
    optimizer: Optimizer,
    *,
    tol: float,
    max_epochs: int,
    rng: np.random.Generator,
    rough: LinearObjective | None = None,
    callbacks: Sequence[Callback] = (),
) -> State:
    """Minimise an objective by steps along mini-batches of BATCH_SIZE rows.

    The fit has converged when, after an epoch, the Euclidean norm of the gradient over all rows is at most `tol`.

    Parameters
    ----------
    objective : LinearObjective
    start : array of shape (n_params,), or State
        The first parameters, or a State of an earlier solve of this objective, from which the solve resumes. It is not
        modified.
    optimizer : Optimizer
    tol : float
    max_epochs : int
        Those of the earlier solve included.
    rng : numpy.random.Generator
        Shuffles the rows. To resume, it takes the state that the State has.
    rough : LinearObjective, optional
        The same objective in a lower precision; the steps use it.
    callbacks : as for `solve`
        They are called after each epoch.

    Returns
    -------
    State
        `n_iter` counts epochs, `n_evaluations` mini-batches.

    Raises
    ------
    KeyboardInterrupt
        By Ctrl-C before the first step.
    """
    epochs = Epochs(objective, optimizer, tol=tol, max_epochs=max_epochs, rng=rng, rough=rough)
    return solve(epochs, start, callbacks)


def default_optimizer(name: str, objective: LinearObjective, max_epochs: int) -> Optimizer:
    """Return "sgd", "adam" or "adamw" with a learning rate that suits the size of the rows and falls to 0 at the end.

    The learning rate of SGD starts at 1 / L, where L bounds the curvature of the mean loss: half the mean of |x|^2 + 1
    (Boehning, 1992, doi:10.1007/BF00048682). Adam and AdamW scale the step of each coefficient; their learning rate
    starts where a step changes a logit by about 0.1.
    """
    xp, n_rows = objective.backend.xp, objective.rows.n_rows
    wide = accumulation_dtype(xp, objective.backend.device)
    rows = xp.astype(objective.rows.part(objective.rows.spaced(10_000)), wide, copy=False)
    n_steps = -(-n_rows // BATCH_SIZE) * max_epochs
    if name == "sgd":
        curvature = 0.5 * (float(xp.sum(rows * rows)) / rows.shape[0] + 1.0)
        curvature += float(objective.penalty.diagonal(rows.shape[1]).max())
        return SGD(CosineSchedule(1.0 / curvature, n_steps), momentum=0.9)
    length = float(xp.sum(xp.abs(rows))) / rows.shape[0] + 1.0
    return {"adam": Adam, "adamw": AdamW}[name](CosineSchedule(0.1 / length, n_steps))
