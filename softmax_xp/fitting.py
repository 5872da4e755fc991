"""How an objective is minimised: the solver, what it knows of the curvature, and from where it starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from softmax_xp.arrays import Array, bytes_of, to_numpy
from softmax_xp.curvature.estimates import ClassBlocks
from softmax_xp.curvature.hidden_gap import hidden_gap
from softmax_xp.curvature.timetable import Curvature
from softmax_xp.losses import CROSS_ENTROPY
from softmax_xp.objective import LinearObjective
from softmax_xp.rows import Rows
from softmax_xp.solvers import Callback, State, Status, lbfgs, newton_cg, stochastic
from softmax_xp.solvers.descent import Evaluation
from softmax_xp.solvers.optimizers import Optimizer

MIN_PAIRS, MAX_PAIRS = 3, 20  # of L-BFGS
# Gap, relative to the objective, to which rounded factors lead as straight as exact ones: by trial on six data sets,
# rounding by hand. Ten times less takes up to twice as many steps.
ROUGH_TOL = {"tf32": 3e-5, "bfloat16": 3e-4}
START_TOL = 1e-3  # the tol to which cross-entropy is minimised before a loss that is not convex. A guess


@dataclass
class Fitting:
    """A fit of a SoftmaxClassifier, by its parameters of these names.

    Attributes
    ----------
    solver, tol, max_iter, precision, random_state, max_memory
        As for `SoftmaxClassifier`.
    blocks : ClassBlocks or None
        What an earlier fit has learnt of the curvature; after the fit, what this one has.
    """

    solver: str | Optimizer
    tol: float
    max_iter: int
    precision: str
    random_state: int | np.random.Generator | None
    max_memory: int | None
    blocks: ClassBlocks | None = None

    def minimum(self, objective: LinearObjective, start: Array, callbacks: Sequence[Callback]) -> State:
        """Return the State at the end of the fit, from `start` (n_params,).

        A loss that is not convex is minimised from the optimum of cross-entropy, if `start` is zero.
        """
        rough = None if self.precision == "float32" else objective.in_precision(self.precision)
        if self.solver not in ("auto", "lbfgs", "newton-cg"):
            optimizer = self.solver
            if isinstance(optimizer, str):
                optimizer = stochastic.default_optimizer(optimizer, objective, self.max_iter)
            rng = np.random.default_rng(self.random_state)
            return stochastic.minimize(
                objective,
                start,
                optimizer,
                tol=self.tol,
                max_epochs=self.max_iter,
                rng=rng,
                rough=rough,
                callbacks=callbacks,
            )
        tol, is_cold = self.tol, not bool(objective.backend.xp.any(start != 0.0))
        if objective.row_pass.loss.convex or not is_cold:
            return self._minimum(objective, start, rough, callbacks, tol, self.max_iter)
        # Where there are several minima, the one near the optimum of cross-entropy.
        rough_convex = None if rough is None else rough.of_loss(CROSS_ENTROPY)
        convex = objective.of_loss(CROSS_ENTROPY)
        first = self._minimum(convex, start, rough_convex, callbacks, max(tol, START_TOL), self.max_iter)
        if first.status in (Status.STOPPED, Status.INTERRUPTED):
            value, grad = objective.value_and_grad(first.params)
            norm = float(np.linalg.norm(to_numpy(grad)))
            return replace(first, objective=float(value), gradient_norm=norm, estimated_gap=math.inf)

        def total(state: State) -> State:
            n_iter, n_evaluations = first.n_iter + state.n_iter, first.n_evaluations + state.n_evaluations
            message = f"max_iter={self.max_iter} steps taken" if state.status is Status.MAX_ITER else state.message
            return replace(state, n_iter=n_iter, n_evaluations=n_evaluations, message=message)

        def counted(state: State) -> bool:
            answers = [callback(total(state)) for callback in callbacks]  # each is asked
            return any(answers)

        return total(self._minimum(objective, first.params, rough, [counted], tol, self.max_iter - first.n_iter))

    def _minimum(
        self,
        objective: LinearObjective,
        start: Array,
        rough: LinearObjective | None,
        callbacks: Sequence[Callback],
        tol: float,
        max_iter: int,
    ) -> State:
        """Return the minimum of an objective, or where it is found to have none."""
        smoothed = objective.row_pass.smoothing > 0.0 or objective.targets.ndim == 2
        if objective.penalty.least > 0.0 or smoothed:
            return self._descend(objective, start, rough, callbacks, tol, max_iter)
        return _unless_separated(
            objective, lambda watch: self._descend(objective, start, rough, [*callbacks, watch], tol, max_iter)
        )

    def _descend(
        self,
        objective: LinearObjective,
        start: Array,
        rough: LinearObjective | None,
        callbacks: Sequence[Callback],
        tol: float,
        max_iter: int,
    ) -> State:
        common: dict[str, Any] = {
            "tol": tol,
            "max_iter": max_iter,
            "noise": objective.rounding_error,
            "rough": rough and Evaluation(rough.value_and_grad, rough.rounding_error, ROUGH_TOL[self.precision]),
            "callbacks": callbacks,
            "hessian_product": objective.hessian_product,
            "hidden_gap": partial(hidden_gap, objective),
            "convex": objective.row_pass.loss.convex,
        }
        budget = self._max_memory(objective.rows)
        curvature = Curvature(objective, budget // 2, self.blocks)
        self.blocks = None
        common["exact_inverse"] = curvature.exact_inverse if objective.row_pass.loss.convex else None
        if self.solver == "newton-cg":
            return newton_cg.minimize(objective.value_and_grad, start, precondition=curvature.at, **common)
        common["renewed"] = curvature.renewed
        if self.solver == "auto":
            common |= {"precondition": curvature.first(start), "due": curvature.due}
            common["correlations"] = curvature.knows_correlations
        pair_bytes = 2 * objective.n_params * bytes_of(objective.backend.xp, start.dtype)
        memory = max(MIN_PAIRS, min(MAX_PAIRS, budget // 4 // pair_bytes))
        solution = lbfgs.minimize(objective.value_and_grad, start, memory=memory, **common)
        self.blocks = curvature.blocks
        return solution

    def _max_memory(self, rows: Rows) -> int:
        """Return how many bytes the solver may take: `max_memory`, or as many as X takes but 256 MiB at least."""
        if self.max_memory is not None:
            return int(self.max_memory)
        return max(256 << 20, rows.nbytes)


def _unless_separated(objective: LinearObjective, solve: Callable[[Callback], State]) -> State:
    """Return the result of a solve without a penalty, with the status SEPARATED if the objective has no minimum.

    There is none once the loss of every row is less than at the probability 1/2: each row then has its own class for
    the most probable one, and the loss falls towards 0 as the coefficients grow. `solve` takes a callback that ends the
    solve then.
    """
    xp, weight = objective.backend.xp, objective.rows.sample_weight
    least = 1.0 if weight is None else float(xp.min(weight))
    half = float(objective.row_pass.loss.value(np.array(-math.log(2.0))))  # the loss at the probability 1/2

    def separated(value: float) -> bool:
        return value * objective.rows.total_weight < half * least

    solution = solve(lambda state: separated(state.objective))
    if solution.converged or not separated(solution.objective):
        return solution
    message = "every row is classified right, so that without a penalty there is no minimum"
    return replace(solution, estimated_gap=solution.objective, status=Status.SEPARATED, message=message)
