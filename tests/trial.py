"""The judge of fits: what a model says of itself, against the minimum that Newton's method finds.

python tests/trial.py --family outliers --seed 3 --solver auto    one problem
python tests/trial.py --problems 500 --worst 20                   a trial: the worst fits, and a table
python tests/trial.py --outliers 20                               that of outliers and heavy tails, 20 seeds each
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
NAMES_AN_ARGUMENT = re.compile("`(X|y|C|tol|sample_weight|class_weight|fit_intercept|max_iter|dtype)`")
COLUMNS = ["converged", "not converged", "refused", "false claim", "understated", "wrong objective", "fault"]
GAP_TOL = 1e-4  # no converged fit is further above the minimum, or than `tol` if that is larger; relative
UNDERSTATEMENT = 10.0  # no gap of a converged fit is so many times what the fit says
# In rounding errors of the objective. A fit cannot see a gap that is less; an objective summed in another order, by
# kernels that take exponentials to a few of them, differs by some.
GAP_ROUNDING, VALUE_ROUNDING = 4.0, 32.0


@dataclass(frozen=True)
class Verdict:
    """What a fit said and what is so. Gaps and the error of `objective_` are relative to the minimum."""

    family: str
    seed: int
    solver: str
    dtype: str = ""
    tol: float = 0.0
    minimum: float = 0.0
    findings: tuple[str, ...] = ()  # of COLUMNS: the first says how the fit ended
    message: str = ""
    n_iter: int = 0
    seconds: float = 0.0
    told: float = 0.0  # estimated_gap_
    gap: float = 0.0  # the true one, at coef_ and intercept_
    error: float = 0.0

    @property
    def wrong(self):
        return not {"false claim", "understated", "wrong objective", "fault"}.isdisjoint(self.findings)

    def __str__(self):
        return (
            f"{self.family:13} {self.seed:4} {self.solver:9} {self.dtype} tol {self.tol:.0e}  {self.n_iter:4} steps "
            f"{self.seconds:6.2f} s  minimum {self.minimum:.6e}  gap {self.gap:8.1e} told {self.told:8.1e}  "
            f"objective_ off {self.error:8.1e}  {', '.join(self.findings)} {self.message}"
        )


def judge(problem, solver, minimum, **names):
    """Fit a problem and compare what the model says with the minimum."""
    model = sx.SoftmaxClassifier(
        C=problem.C, tol=problem.tol, fit_intercept=problem.fit_intercept, solver=solver, workers=1, device="cpu"
    )
    names |= {"solver": solver, "dtype": problem.dtype, "tol": problem.tol, "minimum": float(minimum)}
    start = time.perf_counter()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(problem.X, problem.y, problem.sample_weight)
    except Exception as error:
        refused = isinstance(error, TypeError | ValueError) and NAMES_AN_ARGUMENT.search(str(error))
        return Verdict(**names, findings=("refused" if refused else "fault",), message=repr(error))
    names |= {"seconds": time.perf_counter() - start, "n_iter": int(model.n_iter_[0])}
    value, size = newton.value_and_size(
        problem.X, problem.y, model.coef_, model.intercept_, problem.C, problem.sample_weight
    )
    gap, told, error = value - minimum, model.estimated_gap_, abs(model.objective_ - value)
    rounding = np.finfo(problem.dtype).eps * size
    findings, message = ["converged" if model.converged_ else "not converged"], ""
    if model.converged_ and not gap <= max(GAP_TOL, problem.tol) * minimum:
        findings.append("false claim")
    if model.converged_ and not gap <= UNDERSTATEMENT * told + GAP_ROUNDING * rounding:
        findings.append("understated")
    # By a tenth of what `tol` allows, or by rounding.
    if not error <= max(0.1 * problem.tol * value, VALUE_ROUNDING * rounding):
        findings.append("wrong objective")
    if [warning.category for warning in caught] != ([] if model.converged_ else [ConvergenceWarning]):
        findings.append("fault")
        message = f"warnings {[str(warning.message) for warning in caught]}"
    if gap < -1e-12 * minimum:
        findings.append("fault")
        message = f"the judge is beaten: {value} < {minimum}"
    told, gap, error = (float(x / minimum if minimum else x) for x in (told, gap, error))
    return Verdict(**names, findings=tuple(findings), message=message, told=told, gap=gap, error=error)


def verdicts(problem, solvers, family, seed):
    """Judge each solver on one problem."""
    try:
        minimum, _, _ = newton.minimum(problem.X, problem.y, problem.C, problem.fit_intercept, problem.sample_weight)
    except newton.NotSolvedError as error:
        return [Verdict(family, seed, "judge", findings=("fault",), message=str(error))]
    return [judge(problem, solver, minimum, family=family, seed=seed) for solver in solvers]


def of_family(family, seed, solvers):
    return verdicts(families.problem(family, seed), solvers, family, seed)


def of_outlier(exponent, seed, solvers):
    return verdicts(families.outlier(exponent, seed), solvers, f"cell of 1e{exponent}", seed)


def of_heavy_tails(name, seed, solvers):
    return verdicts(families.heavy_tailed(name, seed), solvers, name, seed)


def run(n_problems, solvers=SOLVERS, chosen=families.FAMILIES):
    """The verdicts of a trial of so many problems, for which the families take turns; on all cores."""
    turns = (divmod(i, len(chosen)) for i in range(n_problems))
    return _parallel(joblib.delayed(of_family)(chosen[turn], seed, solvers) for seed, turn in turns)


def run_outliers(n_seeds, solvers=SOLVERS):
    """The verdicts of fits to one cell of 1e2 to 1e9, and to heavy-tailed features."""
    tasks = [joblib.delayed(of_outlier)(power, seed, solvers) for power in range(2, 10) for seed in range(n_seeds)]
    names = ("pareto", "cauchy", "lognormal")
    tasks += [joblib.delayed(of_heavy_tails)(name, seed, solvers) for name in names for seed in range(n_seeds)]
    return _parallel(tasks)


def _parallel(tasks):
    """Each process with one thread, so that the cores are not asked for twice."""
    with joblib.parallel_config("loky", n_jobs=len(os.sched_getaffinity(0)), inner_max_num_threads=1):
        return [verdict for found in joblib.Parallel()(tasks) for verdict in found]


def table(found):
    """How many fits of each family, and of all, with each solver, ended in each way."""
    counts = {}
    for verdict in found:
        for family in (verdict.family, "all"):
            own = counts.setdefault((family, verdict.solver), Counter())
            own.update(["fits", *verdict.findings])
    lines = ["".join([f"{'family':14}{'solver':10}", *(f"{name:>16}" for name in ("fits", *COLUMNS))])]
    for family, solver in sorted(counts, key=lambda key: key[0] == "all"):
        own = counts[family, solver]
        lines.append("".join([f"{family:14}{solver:10}", *(f"{own[name] or '-':>16}" for name in ("fits", *COLUMNS))]))
    return "\n".join(lines)


def worst(found, count):
    """The worst fits: faults, false claims, wrong gaps and objectives, then those that have not converged."""

    def badness(verdict):
        order = ["fault", "false claim", "understated", "wrong objective", "not converged", "refused"]
        return [name in verdict.findings for name in order] + [np.nan_to_num(verdict.gap, nan=np.inf)]

    return sorted(found, key=badness, reverse=True)[:count]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", action="append", choices=families.FAMILIES, help="may be given several times")
    parser.add_argument("--seed", type=int, help="judge this one problem of each family")
    parser.add_argument("--solver", action="append", choices=SOLVERS, help="may be given several times")
    parser.add_argument("--problems", type=int, default=60, help="of the trial; the families take turns")
    parser.add_argument("--outliers", type=int, metavar="SEEDS", help="run that of outliers and heavy tails instead")
    parser.add_argument("--worst", type=int, default=20, help="how many fits to show")
    options = parser.parse_args()
    solvers, chosen = options.solver or SOLVERS, options.family or families.FAMILIES
    if options.seed is not None:
        for family in chosen:
            problem = families.problem(family, options.seed)
            s = problem.sample_weight
            print(
                f"X {problem.X.shape} {problem.dtype} in [{problem.X.min():.3g}, {problem.X.max():.3g}], "
                f"{problem.y.max() + 1} classes, C={problem.C:.3g}, fit_intercept={problem.fit_intercept}, "
                f"weights {'one' if s is None else f'in [{s.min():.3g}, {s.max():.3g}]'}",
                *of_family(family, options.seed, solvers),
                sep="\n",
            )
        return
    start = time.perf_counter()
    found = run_outliers(options.outliers, solvers) if options.outliers else run(options.problems, solvers, chosen)
    print(*worst(found, options.worst), "", table(found), sep="\n")
    fits = sum(verdict.seconds for verdict in found)
    print(f"{time.perf_counter() - start:.0f} s; fits took {fits:.0f} s of one core")


if __name__ == "__main__":
    main()
