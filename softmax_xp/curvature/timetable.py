"""When to make an estimate of the curvature: what each costs, and how many steps are still to come."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from softmax_xp.arrays import Array, is_gpu, namespace
from softmax_xp.curvature.costs import COSTS, TIMES, CostModel, Timetable
from softmax_xp.curvature.estimates import ClassBlocks, Preconditioner
from softmax_xp.curvature.whole import NEGLIGIBLE_PAIR, WholeHessian
from softmax_xp.objective import LinearObjective


class Curvature(WholeHessian):
    """The preconditioners of one objective, and when to change from one to the next.

    The bound comes first where it is cheap. Later, the gains of the last steps are extrapolated to the number of steps
    still to come. A finer estimate is made at the point reached if it costs fewer evaluations than that number.

    Parameters
    ----------
    objective, max_bytes, known, costs : as for `Estimates`
    times : Timetable
    """

    def __init__(
        self,
        objective: LinearObjective,
        max_bytes: int,
        known: ClassBlocks | None = None,
        costs: CostModel = COSTS,
        times: Timetable = TIMES,
    ) -> None:
        super().__init__(objective, max_bytes, known, costs)
        self.times = times
        self._values: list[float] = []  # the objective after each step with the estimate in use
        self._wait = float(times.first_look)
        self._earned = 0.0  # steps, less the share `earned` of what the estimates so far have cost
        self._level = 0  # of the estimate in use: 1 for kronecker, 2 for class blocks, 3 for the whole Hessian

    def first(self, params: Array) -> Preconditioner | None:
        """Return the preconditioner to start with from `params`, or None.

        That is the bound, unless the start is somewhere that an earlier solve has found, near the optimum; where
        the features are nearly uncorrelated, it is the bound's diagonal, and progress is judged later.
        """
        if not self._is_zero(params):
            if self.cost_of_whole() <= self.times.warm_estimate:
                self._level = 3
                return self.whole(params)
            known = self.blocks if self.blocks is not None and self._known(self.blocks) else None
            if known is not None:
                self._level, self._diagonal_in_use = 2, partial(self._diagonal, params)
                return self._product(known.basis, self._multiplied(known.inverses))
            if self.cost(self.objective.coef_shape[0]) <= self.times.warm_estimate:
                self._level = 2
                return self.class_blocks(params)
        if self.cost(1) > self.times.first_estimate:
            return None
        if self.knows_correlations:
            gram = self._bounding_gram()
            if self._uncorrelated(gram):
                self._wait = float(self.times.patience)
                return self._inverted(namespace(gram=gram).linalg.diagonal(gram))
        return self.bound()

    @property
    def knows_correlations(self) -> bool:
        """Whether the preconditioners know those of the features, and how they change where few rows still count."""
        return self._holds_matrix() and not self._few_rows()

    def due(self, value: float, gap: float, target: float) -> Callable[[Array], Preconditioner] | None:
        """Return what makes a better preconditioner at given parameters where that pays, else None.

        Called once after each step with the objective, its estimated gap, and the gap at which the solve will end.
        """
        self._values.append(value)
        self._earned += 1.0
        n_steps = len(self._values)
        if n_steps < self._wait or not gap > target:
            return None
        to_come = self._to_come(gap, target)
        for level, make, cost in (
            (3, partial(self.whole, negligible=NEGLIGIBLE_PAIR), self.cost_of_whole(self.costs.likely_pairs)),
            (2, self.class_blocks, self.cost(self.objective.coef_shape[0])),
            (1, self.kronecker, self.cost(1, self.costs.eigen)),
        ):
            if level < self._level:  # a coarser one would be a step back
                break
            if self._earned < self.times.earned * cost or (
                level == self._level == 3 and n_steps < self.times.whole_age * cost
            ):
                continue
            if cost < min(to_come, self.times.most_to_come if level < 3 else self.times.most_to_come_of_whole):
                self._wait *= self.times.look_growth
                self._values = []
                self._level = level
                self._earned -= self.times.earned * cost
                return make
        return None

    def _to_come(self, gap: float, target: float) -> float:
        """Return how many steps are still to come, if the gain of a step goes on falling by the same factor.

        The factor is that between the two halves of the steps with the estimate in use, without the first ones. The gap
        that L-BFGS estimates is no measure of progress: far from the optimum it goes up and down a hundredfold.
        """
        half = (len(self._values) - 1 - self.times.settling) // 2
        first, middle, last = (self._values[-1 - i * half] for i in (2, 1, 0))
        if not 0.0 < middle - last < first - middle:
            return math.inf
        ratio = (middle - last) / (first - middle)
        left = max(gap, (middle - last) * ratio / (1.0 - ratio))
        return half * math.log(left / target) / -math.log(ratio) if target > 0.0 else math.inf

    def at(self, params: Array) -> Preconditioner:
        """Return the finest preconditioner at `params` that one step of Newton's method is worth, or else the bound.

        At zero all rows have the same probabilities, and the Hessian is a Kronecker product.
        """
        if not self._is_zero(params):
            if self.cost_of_whole() <= self.times.newton_estimate:
                return self.whole(params)
            if self.cost(self.objective.coef_shape[0]) <= self.times.newton_estimate:
                return self.class_blocks(params)
        if self.cost(1, self.costs.eigen) <= self.times.newton_estimate:
            return self.kronecker(params)
        bound = self.bound()
        return self.renewed(params, bound) or bound

    def _is_zero(self, params: Array) -> bool:
        return not bool(self.objective.backend.xp.any(params != 0.0))

    def cost(self, n_matrices: int, factor: float | None = None) -> float:
        """Return what forming and inverting so many matrices costs, in evaluations of value and gradient.

        The unit of work is a multiplication. Each matrix takes gather m D for its m rows, gram m D^2 / 2 for their
        products and `factor` D^3, by default that of an inverse. For more than one matrix, sampling the rows takes
        draw n K. All but the bound need eigenvectors of the classes, too. The cost is infinite if the matrices do not
        fit, and zero for a small problem.
        """
        costs = self.costs
        factor = costs.inverse if factor is None else factor
        n_coef = self.objective.coef_shape[0]
        drawn = 12 * self.n_sampled  # a class's rows and their weights
        if n_matrices > 1 and (
            n_matrices * (8 * self.n_columns**2 + drawn) > self.max_bytes or not self._holds_classes()
        ):
            return math.inf
        n_columns = self.n_columns if self._holds_matrix() else 1
        small, host, least = 1.0, 1.0, 0.0
        if is_gpu(self.objective.backend.device):
            small, host, least = costs.small_on_gpu, costs.host_on_gpu, costs.step_on_gpu
        slower = host if factor > costs.inverse else small
        of_rows = self.n_sampled * n_columns * (costs.gather + costs.gram * n_columns / 2)
        work = n_matrices * (of_rows + slower * factor * n_columns**3)
        if n_matrices > 1:
            work += costs.draw * self.objective.rows.n_rows * n_coef
        if n_matrices == 1 and factor == costs.inverse and self._few_rows():
            n_rows = self.objective.rows.n_rows
            work = host * (costs.gram * n_rows**2 * self.n_columns / 2 + factor * n_rows**3)
        if (n_matrices > 1 or factor > costs.inverse) and self._holds_classes():
            work += host * costs.eigen * n_coef**3
        evaluation = max(least, self._evaluation_work())
        return 0.0 if work < costs.free else float(work / evaluation)

    def _evaluation_work(self) -> float:
        """Return the multiplications that take as long as one evaluation of value and gradient."""
        n_coef, n_features = self.objective.coef_shape
        return float(
            self.objective.rows.n_rows * (2.0 * n_features * (n_coef + self.costs.stream) + self.costs.logit * n_coef)
        )

    def exact_inverse(self, params: Array) -> Preconditioner | None:
        """Return the inverse Hessian at `params` where conjugate gradients without it cost more, else None."""
        return self.whole(params) if self.cost_of_whole() <= self.times.exact_check else None

    def cost_of_whole(self, likely_pairs: float = math.inf) -> float:
        """Return what the whole Hessian costs, and solving with it, in evaluations of value and gradient.

        A row couples `likely_pairs` pairs of classes at most. Infinite where the Hessian would not fit, and on a GPU,
        for which it is not written.
        """
        objective, n_coef = self.objective, self.objective.coef_shape[0]
        n, n_rows = n_coef * self.n_columns, objective.rows.n_rows
        if not objective.backend.is_host or self._dtype_of_whole() is None or 16 * n_rows * n_coef > self.max_bytes:
            return math.inf
        cholesky = self.costs.cholesky if self._dtype_of_whole() == np.float64 else self.costs.cholesky / 2.0
        pairs = n_coef + min(n_coef * (n_coef - 1) / 2, likely_pairs)
        forming = 2.0 * self.costs.gram * n_rows * pairs * self.n_columns**2  # in float64, both halves
        work = forming + cholesky * n**3
        return (
            0.0
            if work < self.costs.free_whole
            else (work + self.costs.solves * self.costs.solve * n**2) / self._evaluation_work()
        )
