"""The simulated CuPy: that its names are those of CuPy, and what a fit asks of a device, counted on it."""

import importlib
import itertools
import json

import numpy as np
import pytest
from cupy_names import FILE, MODULES, names_of

import softmax_xp as sx

# Of a step with one trial: the decrement of its direction, its slope, three numbers of the trial and three of the pair.
# Each is float64.
MOST_TRANSFERS, MOST_BYTES = 4, 24


def test_names_are_those_of_cupy(pytestconfig):
    """Of the CuPy that is installed; `python tests/cupy_names.py` writes the file."""
    if pytestconfig.getoption("--cuda") == "simulated":
        pytest.skip("CuPy is the simulated one")
    cupy = pytest.importorskip("cupy", exc_type=ImportError)
    if not cupy.__version__.startswith("14.2."):
        pytest.skip(f"the file is that of CuPy 14.2, and this is {cupy.__version__}")
    known = json.loads(FILE.read_text())
    assert {name: names_of(importlib.import_module(name)) for name in MODULES} == known


@pytest.fixture
def cupy(pytestconfig):
    if pytestconfig.getoption("--cuda") != "simulated":
        pytest.skip("counts are those of the simulated CuPy: --cuda=simulated")
    return importlib.import_module("cupy")


def test_cupy_refuses_what_cupy_refuses(cupy):
    x = cupy.asarray(np.ones(3))
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(x)
    with pytest.raises(TypeError, match="Unsupported type"):
        x + np.ones(3)
    with pytest.raises(TypeError, match="out_of_place"):
        cupy.sum(x, out_of_place=True)
    with cupy.cuda.Device(1), pytest.raises(ValueError, match="array device = 0 while current = 1"):
        x + 1.0
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        with pytest.raises(RuntimeError, match="capturing"):
            float(x[0])
        with pytest.raises(NotImplementedError, match="cuBLAS"):
            x @ x
        doubled = x * 2.0
        graph = stream.end_capture()
    x[...] = 5.0
    graph.launch()
    assert doubled.tolist() == [10.0] * 3
    assert np.isnan(cupy.empty(3).get()).all()


@pytest.mark.parametrize("solver", ["auto", "lbfgs"])
def test_cupy_brings_only_scalars_of_the_line_search_to_the_host(cupy, rng, solver):
    X, coef = rng.normal(size=(3000, 20)), rng.normal(size=(20, 4))
    y = (X @ coef + rng.gumbel(size=(3000, 4))).argmax(axis=1)
    seen = []
    model = sx.SoftmaxClassifier(solver=solver, C=1e4)
    model.fit(cupy.asarray(X.astype("float32")), y, observe=lambda iterate: seen.append(tuple(cupy.usage.to_host)))
    assert model.device_ == "cuda:0"
    assert len(seen) > 5
    for before, after in list(itertools.pairwise(seen))[:4]:
        transfers = after[len(before) :]
        assert len(transfers) <= MOST_TRANSFERS
        assert max(transfers) <= MOST_BYTES
