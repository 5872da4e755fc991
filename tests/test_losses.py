"""Losses: their scalar functions, and what every provider makes of them, against the oracle and differences."""

from __future__ import annotations

import math
import pickle

import numpy as np
import oracle
import pytest

import softmax_xp as sx
from softmax_xp.losses import LOSSES, checked_loss

# A loss, and what the oracle calls it.
CASES = [
    pytest.param(sx.CrossEntropy(), None, id="ce"),
    pytest.param(sx.GeneralizedCrossEntropy(), ("gce", 0.7), id="gce"),
    pytest.param(sx.GeneralizedCrossEntropy(q=0.05), ("gce", 0.05), id="gce0.05"),
    pytest.param(sx.GeneralizedCrossEntropy(q=1), ("gce", 1.0), id="gce1"),
    pytest.param(sx.SymmetricCrossEntropy(), ("sce", 0.1, 1.0, -4.0), id="sce"),
    pytest.param(sx.SymmetricCrossEntropy(0, 0.5, -6), ("sce", 0.0, 0.5, -6.0), id="sce0"),
    pytest.param(sx.Focal(), ("focal", 2.0), id="focal"),
    pytest.param(sx.Focal(gamma=0.5), ("focal", 0.5), id="focal0.5"),
    pytest.param(sx.Focal(gamma=1), ("focal", 1.0), id="focal1"),
    pytest.param(sx.Focal(gamma=0), ("focal", 0.0), id="focal0"),
]
LOG_P = [-80.0, -20.0, -3.0, -1.0, -0.3, -1e-3, -1e-6]


@pytest.mark.parametrize(("loss", "known"), CASES)
def test_the_scalar_functions_are_the_oracles(xp, loss, known):
    for dtype in xp.float_dtypes:
        log_p = xp.asarray(LOG_P, dtype)
        given = xp.to_numpy(log_p).astype(np.float64)
        costs, slopes = np.array([oracle.phi(known, float(x)) for x in given]).T
        h = 1e-4
        bends = [(oracle.phi(known, x + x * h)[1] - oracle.phi(known, x - x * h)[1]) / (2 * x * h) for x in given]
        scale = {"float64": 1e-13, "float32": 1e-6}[dtype]
        for actual, expected, tol in ((loss.value(log_p), costs, scale), (loss.slope(log_p), -slopes, scale)):
            assert actual.dtype == log_p.dtype
            np.testing.assert_allclose(xp.to_numpy(actual), expected, rtol=20 * tol, atol=20 * tol)
        assert loss.bend(log_p).dtype == log_p.dtype
        np.testing.assert_allclose(xp.to_numpy(loss.bend(log_p)), bends, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("loss", "known"), CASES)
def test_probabilities_of_zero_and_one_have_their_limits(xp, loss, known):
    for dtype in xp.float_dtypes:
        log_p = xp.asarray([0.0, -math.inf], dtype)
        value, slope, bend = (xp.to_numpy(f(log_p)) for f in (loss.value, loss.slope, loss.bend))
        assert value[0] == 0.0
        assert value[1] == pytest.approx(float(loss.value(np.array(-1e6))), rel=1e-2) or np.isinf(value[1])
        assert np.isfinite(slope).all()
        assert slope[1] == pytest.approx(float(loss.slope(np.array(-700.0))), abs=1e-6)
        assert np.isfinite(bend[1])


@pytest.mark.parametrize(("loss", "known"), CASES)
def test_a_slope_is_not_negative_and_below_its_bound(loss, known):
    slopes = loss.slope(-np.geomspace(1e-9, 500.0, 100_001))
    assert slopes.min() >= 0.0
    assert slopes.max() <= loss.slope_bound * (1.0 + 1e-5)
    assert loss.slope_bound <= slopes.max() * 1.001 + 1e-12


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_name_stands_for_the_default_parameters(name):
    assert checked_loss(name) == LOSSES[name]()
    assert pickle.loads(pickle.dumps(checked_loss(name))) == checked_loss(name)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: checked_loss("hinge"), ValueError, "`loss` must be one of 'cross_entropy', 'gce', .* got 'hinge'; "),
        (lambda: checked_loss(sx.Focal), TypeError, "`loss` must be one of .* or an instance of a loss, got "),
        (lambda: checked_loss(None), TypeError, "`loss` must be one of .* got None"),
        (lambda: sx.GeneralizedCrossEntropy(q=0), ValueError, r"`q` must lie in \(0, 1\], got 0.0; choose"),
        (lambda: sx.GeneralizedCrossEntropy(q=1.5), ValueError, r"`q` must lie in \(0, 1\], got 1.5; choose"),
        (lambda: sx.GeneralizedCrossEntropy(q="much"), TypeError, "`q` must be a real number"),
        (lambda: sx.SymmetricCrossEntropy(alpha=-1), ValueError, r"`alpha` must lie in \[0, inf\), got -1.0; choose"),
        (lambda: sx.SymmetricCrossEntropy(beta=0), ValueError, r"`beta` must lie in \(0, inf\), got 0.0; choose"),
        (lambda: sx.SymmetricCrossEntropy(log_zero=1), ValueError, "`log_zero` must lie in .* got 1.0; choose"),
        (lambda: sx.Focal(gamma=-1), ValueError, r"`gamma` must lie in \[0, inf\), got -1.0; choose"),
        (lambda: sx.Focal(gamma=math.nan), ValueError, r"`gamma` must lie in \[0, inf\), got nan; choose"),
    ],
)
def test_what_is_no_loss_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
