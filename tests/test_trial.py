"""A trial of convergence: random problems of many families, each fit judged by an independent Newton method.

The whole of it, `pytest tests/test_trial.py --trial=whole`, takes two minutes on two cores; otherwise a part runs.
"""

from __future__ import annotations

import families
import newton
import numpy as np
import pytest
import trial
from scipy.optimize import minimize

LEAST_CONVERGED = 0.9  # share of the fits that must converge, so that the trial is not passed by excuses


@pytest.fixture(scope="module")
def whole(request):
    return request.config.getoption("--trial") == "whole"


def assert_trusted(found, capsys, whole):
    """Print the table of a whole trial, and assert that no fit says of itself what is not so."""
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
        assert sum("converged" in verdict.findings for verdict in own) >= LEAST_CONVERGED * len(own), solver


def test_fits_to_outliers_and_heavy_tails_say_of_themselves_what_is_so(whole, capsys):
    assert_trusted(trial.run_outliers(20 if whole else 1), capsys, whole)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_judge_finds_the_same_minimum_from_another_start_and_no_other_method_finds_less(family):
    for seed in range(2):
        problem = families.problem(family, seed)
        data = problem.X, problem.y, problem.C, problem.fit_intercept, problem.sample_weight
        best, coef, intercept = newton.minimum(*data)
        assert newton.minimum(*data, start=seed)[0] == pytest.approx(best, rel=1e-12)
        rng = np.random.default_rng(seed)
        size = abs(coef).max() * 1e-3
        for _ in range(20):
            near = coef + size * rng.normal(size=coef.shape), intercept
            value, _ = newton.value_and_size(problem.X, problem.y, *near, problem.C, problem.sample_weight)
            assert value > best


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_the_judge_agrees_with_a_trust_region_method(rng, n_classes, fit_intercept):
    X = rng.normal(size=(60, 3))
    y, s, C = rng.integers(n_classes, size=60), rng.exponential(size=60), 2.0
    K = 1 if n_classes == 2 else n_classes

    def function(params):
        coef = params[: 3 * K].reshape(K, 3)
        intercept = params[3 * K :] if fit_intercept else np.zeros(K)
        logits = X @ coef.T + intercept
        logits = np.hstack([np.zeros((60, 1)), logits]) if K == 1 else logits
        losses = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(60), y]
        return (s @ losses + (coef**2).sum() / (2 * C)) / s.sum()

    best, _, _ = newton.minimum(X, y, C, fit_intercept, s)
    found = minimize(function, np.zeros(K * (3 + fit_intercept)), method="BFGS", options={"gtol": 1e-8})
    assert found.fun == pytest.approx(float(best), rel=1e-10)
