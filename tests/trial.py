"""The judge of fits: what a model says of itself, against the minimum that Newton's method finds.

python tests/trial.py --family outliers --seed 3 --solver auto     one fit
python tests/trial.py --problems 500 --worst 20                    a trial: the table, and the worst fits
"""

from __future__ import annotations

import argparse
import os
import re
import time
import warnings
from collections import Counter
from dataclasses import dataclass

import families
import joblib
import newton
import numpy as np
from sklearn.exceptions import ConvergenceWarning

import softmax_xp as sx

SOLVERS = ["auto", "newton-cg", "lbfgs"]
ARGUMENTS = re.compile("`(X|y|C|tol|sample_weight|class_weight|fit_intercept|max_iter|dtype)`")
COLUMNS = ["converged", "not converged", "refused", "false claim", "understated", "objective wrong", "fault"]


@dataclass(frozen=True)
class Verdict:
    """What a fit said and what is so. Gaps are relative to the minimum."""

    family: str
    seed: int
    solver: str
    dtype: str = ""
    tol: float = 0.0
    status: str = ""  # converged, not converged, refused, or fault
    message: str = ""
    n_iter: int = 0
    minimum: float = 0.0
    told: float = 0.0  # the estimated gap
    gap: float = 0.0  # the true one, at coef_ and intercept_
    error: float = 0.0  # of objective_
    seconds: float = 0.0
    false_claim: bool = False
    understated: bool = False
    objective_wrong: bool = False

    def findings(self):
        names = {
            "false claim": self.false_claim,
            "understated": self.understated,
            "objective wrong": self.objective_wrong,
        }
        return [self.status, *(name for name, found in names.items() if found)]

    def __str__(self):
        return (
            f"{self.family:13} {self.seed:4} {self.solver:9} {self.dtype} tol {self.tol:.0e}  {self.n_iter:4} steps {self.seconds:6.2f} s  "
            f"minimum {self.minimum:.6e}  gap {self.gap:8.1e} told {self.told:8.1e}  objective_ off {self.error:8.1e}  "
            f"{', '.join(self.findings())} {self.message}"
        )


def judge(problem, solver, minimum, **names):
    """Fit a problem and compare what the model says with the minimum."""
    model = sx.SoftmaxClassifier(
        C=problem.C, tol=problem.tol, fit_intercept=problem.fit_intercept, solver=solver, workers=1, device="cpu"
    )
    says = {"solver": solver, "dtype": str(problem.X.dtype), "tol": problem.tol, "minimum": float(minimum), **names}
    start = time.perf_counter()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(problem.X, problem.y, problem.sample_weight)
    except (TypeError, ValueError) as error:
        return Verdict(**says, status="refused" if ARGUMENTS.search(str(error)) else "fault", message=repr(error))
    except Exception as error:
        return Verdict(**says, status="fault", message=repr(error))
    says |= {"seconds": time.perf_counter() - start, "n_iter": int(model.n_iter_[0])}
    warned = [warning.category for warning in caught]
    status, message = "converged" if model.converged_ else "not converged", ""
    if warned != ([] if model.converged_ else [ConvergenceWarning]):
        status, message = "fault", f"warnings {[str(warning.message) for warning in caught]}"
    value, rounding = newton.value_and_rounding(
        problem.X, problem.y, model.coef_, model.intercept_, problem.C, problem.sample_weight
    )
    rounding *= np.finfo(problem.X.dtype).eps
    gap, told, error = float(value - minimum), model.estimated_gap_, abs(float(model.objective_ - value))
    if gap < -1e-9 * value:
        status, message = "fault", f"the judge is beaten: {value} < {minimum}"
    return Verdict(
        **says,
        status=status,
        message=message,
        gap=gap / float(minimum),
        told=told / float(minimum),
        error=error / float(minimum),
        false_claim=bool(model.converged_ and not gap <= max(1e-4, problem.tol) * minimum),
        # A gap below the rounding of the objective cannot be seen in it, nor in float32 gradients.
        understated=bool(model.converged_ and not gap <= 10 * told + 4 * rounding),
        # To a tenth of what `tol` promises, or to rounding of logits of the size that they have.
        objective_wrong=bool(not error <= max(0.1 * problem.tol * value, 32 * rounding)),
    )


def verdicts(problem, solvers, **names):
    """Judge each solver on one problem."""
    try:
        minimum, _, _ = newton.minimum(problem.X, problem.y, problem.C, problem.fit_intercept, problem.sample_weight)
    except newton.NotSolvedError as error:
        return [Verdict(**names, solver="judge", status="fault", message=str(error))]
    return [judge(problem, solver, minimum, **names) for solver in solvers]


def _of_family(family, seed, solvers):
    return verdicts(families.problem(family, seed), solvers, family=family, seed=seed)


def _outlier(exponent, seed, solvers):
    return verdicts(families.outlier(exponent, seed), solvers, family=f"one cell 1e{exponent}", seed=seed)


def _heavy(name, seed, solvers):
    return verdicts(families.heavy(name, seed), solvers, family=name, seed=seed)


def run(n_problems, solvers=SOLVERS, chosen=families.FAMILIES):
    """The verdicts of a trial of as many problems, which takes the families in turn; on all cores."""
    tasks = [joblib.delayed(_of_family)(chosen[i % len(chosen)], i // len(chosen), solvers) for i in range(n_problems)]
    return _parallel(tasks)


def run_outliers(n_seeds, solvers=SOLVERS):
    """The verdicts of fits to one cell of 1e2 to 1e9, and to heavy-tailed features."""
    tasks = [joblib.delayed(_outlier)(exponent, seed, solvers) for exponent in range(2, 10) for seed in range(n_seeds)]
    tasks += [
        joblib.delayed(_heavy)(name, seed, solvers)
        for name in ("pareto", "cauchy", "lognormal")
        for seed in range(n_seeds)
    ]
    return _parallel(tasks)


def _parallel(tasks):
    return [verdict for found in joblib.Parallel(n_jobs=len(os.sched_getaffinity(0)))(tasks) for verdict in found]


def table(found):
    """How many fits of each family and solver ended in each way."""
    lines = [f"{'family':14}{'solver':10}{'fits':>6}" + "".join(f"{name:>17}" for name in COLUMNS)]
    counts = {}
    for verdict in found:
        for key in ((verdict.family, verdict.solver), ("all", verdict.solver)):
            counts.setdefault(key, Counter()).update(["fits", *verdict.findings()])
    order = [key for key in counts if key[0] != "all"] + [key for key in counts if key[0] == "all"]
    lines += [
        f"{key[0]:14}{key[1]:10}{counts[key]['fits']:6}" + "".join(f"{counts[key][name]:17}" for name in COLUMNS)
        for key in order
    ]
    return "\n".join(lines)


def worst(found, count):
    """The worst fits, false claims first, then wrong gaps and objectives, then those that have not converged."""

    def badness(verdict):
        return (
            verdict.status == "fault",
            verdict.false_claim,
            verdict.understated,
            verdict.objective_wrong,
            verdict.status != "converged",
            verdict.gap if np.isfinite(verdict.gap) else 1e300,
        )

    return sorted(found, key=badness, reverse=True)[:count]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", action="append", choices=families.FAMILIES)
    parser.add_argument("--seed", type=int, help="judge this one problem of the family")
    parser.add_argument("--solver", action="append", choices=SOLVERS)
    parser.add_argument("--problems", type=int, default=60, help="of a trial; the families take turns")
    parser.add_argument(
        "--outliers", type=int, metavar="SEEDS", help="run the trial of outliers and heavy tails instead"
    )
    parser.add_argument("--worst", type=int, default=20, help="how many fits to show")
    options = parser.parse_args()
    solvers, chosen = options.solver or SOLVERS, options.family or families.FAMILIES
    if options.seed is not None:
        for family in chosen:
            problem = families.problem(family, options.seed)
            s = problem.sample_weight
            print(
                f"X {problem.X.shape} {problem.X.dtype} in [{problem.X.min():.3g}, {problem.X.max():.3g}], {problem.y.max() + 1} classes, "
                f"C {problem.C:.3g}, intercept {problem.fit_intercept}, weights {None if s is None else (s.min(), s.max())}"
            )
            print(*_of_family(family, options.seed, solvers), sep="\n")
        return
    start = time.perf_counter()
    found = run_outliers(options.outliers, solvers) if options.outliers else run(options.problems, solvers, chosen)
    print(*worst(found, options.worst), "", table(found), sep="\n")
    print(
        f"{time.perf_counter() - start:.0f} s, of which fits took {sum(verdict.seconds for verdict in found):.0f} s of one core"
    )


if __name__ == "__main__":
    main()
