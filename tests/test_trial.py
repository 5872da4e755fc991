"""A trial of convergence: random problems of many families, each fit judged by an independent Newton method.

The whole of it, `pytest tests/test_trial.py --trial=whole`, takes 80 seconds on two cores; otherwise a part runs.
"""

from __future__ import annotations

import families
import newton
import numpy as np
import pytest
import trial
from scipy.optimize import minimize

# Share of the fits to random problems that must converge, so that the trial is not passed by excuses.
LEAST_CONVERGED = {"auto": 0.95, "newton-cg": 0.95, "lbfgs": 0.9}


@pytest.fixture(scope="module")
def whole(request):
    return request.config.getoption("--trial") == "whole"


def assert_trusted(found, capsys, whole):
    """Print the table of a whole trial, and assert that fits say of themselves what is so."""
    if whole:
        with capsys.disabled():
            print("", trial.table(found), sep="\n")
    wrong = [verdict for verdict in found if verdict.wrong]
    assert not wrong, "\n".join(["", *map(str, trial.worst(wrong, 20)), f"{len(wrong)} of {len(found)} fits"])


def test_fits_to_random_problems_say_of_themselves_what_is_so(whole, capsys):
    found = trial.run(500 if whole else 60)
    assert_trusted(found, capsys, whole)
    for solver in trial.SOLVERS:
        own = [verdict for verdict in found if verdict.solver == solver]
        assert sum("converged" in verdict.findings for verdict in own) >= LEAST_CONVERGED[solver] * len(own), solver


def test_fits_to_outliers_and_heavy_tails_say_of_themselves_what_is_so(whole, capsys):
    assert_trusted(trial.run_outliers(20 if whole else 1), capsys, whole)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_judge_is_at_the_minimum(family, seed):
    """From two starts, and by the duality gap where the penalty is large enough for that to say anything."""
    problem = families.problem(family, seed)
    data = problem.X, problem.y, problem.C, problem.fit_intercept, problem.sample_weight
    best, coef, intercept = newton.minimum(*data)
    assert newton.minimum(*data, start=seed)[0] == pytest.approx(best, rel=1e-11)
    if family not in ("units", "mixtures"):
        gap = newton.duality_gap(
            problem.X, problem.y, coef, intercept, problem.C, problem.sample_weight, problem.fit_intercept
        )
        assert gap <= 1e-10 * best


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_the_judge_finds_the_minimum_of_the_objective_by_definition(rng, n_classes, fit_intercept):
    """As a quasi-Newton method finds it for a function that is written anew here."""
    X, y = rng.normal(size=(60, 3)), rng.integers(n_classes, size=60)
    s, C, K = rng.exponential(size=60), 2.0, 1 if n_classes == 2 else n_classes

    def function(params):
        coef = params[: 3 * K].reshape(K, 3)
        logits = X @ coef.T + (params[3 * K :] if fit_intercept else 0.0)
        logits = np.hstack([np.zeros((60, 1)), logits]) if K == 1 else logits
        losses = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(60), y]
        return (s @ losses + (coef**2).sum() / (2 * C)) / s.sum()

    best, _, _ = newton.minimum(X, y, C, fit_intercept, s)
    found = minimize(function, np.zeros(K * (3 + fit_intercept)), method="BFGS", options={"gtol": 1e-7})
    assert found.fun == pytest.approx(float(best), rel=1e-10)


def test_the_judge_knows_the_infimum_where_a_class_has_no_weight(rng):
    """The intercept of that class falls without an end, and the problem is that of the others."""
    X, y = rng.normal(size=(50, 2)), np.arange(50) % 4
    best, _, intercept = newton.minimum(X, y, 1.0, True, (y != 1).astype(float))
    others = y != 1
    assert best == pytest.approx(newton.minimum(X[others], np.array([0, 9, 1, 2])[y[others]], 1.0)[0], rel=1e-14)
    assert list(np.isfinite(intercept)) == [True, False, True, True]


def test_the_judge_finds_what_an_outlier_hides():
    """The example of a fit that called itself converged 70 % above the minimum."""
    rng = np.random.default_rng(4)
    X = rng.normal(size=(1000, 5))
    y = (X @ rng.normal(size=(5, 3)) + rng.gumbel(size=(1000, 3))).argmax(axis=1)
    X[rng.integers(1000), rng.integers(5)] = 999999
    assert newton.minimum(X, y, 1.0)[0] == pytest.approx(0.532608, abs=1e-6)
