"""The simulated CuPy: that its names are those of CuPy, and what a fit asks of a device, counted on it."""

import importlib
import itertools
import json

import numpy as np
import pytest
from cupy_names import FILE, MODULES, names_of

import softmax_xp as sx
from softmax_xp import backend, estimator
from softmax_xp.arrays import block_bytes
from softmax_xp.objective import LinearObjective
from softmax_xp.penalties import Penalty
from softmax_xp.rows.dense import DenseRows

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


def test_cupy_graphs_bring_the_memory_of_their_products_along(cupy, rng):
    X, y = rng.normal(size=(300, 6)).astype("float32"), rng.integers(0, 3, size=300)
    cupy.usage.clear()
    sx.Trainer(sx.Linear(6, 3), optimizer=sx.Adam(), max_steps=20, log_every=None).fit(cupy.asarray(X), y)
    assert cupy.usage.graphs > 10
    assert cupy.usage.allocating == 0


def test_cupy_gets_a_large_array_in_pieces(cupy, tmp_path, monkeypatch):
    monkeypatch.setattr(backend, "UPLOAD_BYTES", 1 << 16)
    X = np.arange(300_000, dtype=np.float64).reshape(-1, 100)
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    gpu = sx.select_backend("cuda")
    for given, dtype in ((mapped, None), (mapped, "float32"), (X.T, None), (X[:, 0], None), (X.astype(">f8"), None)):
        cupy.usage.clear()
        there = gpu.asarray(given, dtype)
        assert there.dtype == (dtype or np.float64)
        np.testing.assert_array_equal(there.get(), given)
        assert sum(cupy.usage.to_device) == there.nbytes
        assert max(cupy.usage.to_device) <= 1 << 16


def test_cupy_multiplies_twice_a_block_and_no_more(cupy, rng):
    """The gradient of the intercept is a sum over rows by a kernel, not a product with ones."""
    X, y = cupy.asarray(rng.normal(size=(500, 8))), cupy.asarray(rng.integers(0, 3, size=500))
    objective = LinearObjective(DenseRows(X), y, 3, Penalty(0.1))
    params = cupy.asarray(rng.normal(size=objective.n_params))
    cupy.usage.clear()
    objective.value_and_grad(params)
    assert cupy.usage.products == 2
    assert cupy.usage.kernels == 2


def test_cupy_blocks_of_rows_stay_in_a_cache(cupy):
    cache = cupy.cuda.runtime.getDeviceProperties(0)["l2CacheSize"]
    assert block_bytes(cupy.cuda.Device(0)) <= 1.2 * cache  # a product and the kernel after it share what is left there


def test_cupy_is_left_alone_where_a_problem_is_small(cupy, rng):
    X, y = rng.normal(size=(150, 4)), rng.integers(0, 3, size=150)
    cupy.usage.clear()
    assert sx.SoftmaxClassifier().fit(X, y).device_ == "cpu"
    sx.Trainer(sx.Linear(4, 3), max_steps=3, log_every=None).fit(X, y)
    assert cupy.usage.launches == 0
    assert sx.SoftmaxClassifier(device="cuda").fit(X, y).device_ == "cuda:0"
    assert sx.SoftmaxClassifier().fit(cupy.asarray(X), y).device_ == "cuda:0"
    X, y = rng.normal(size=(30000, 100)), rng.integers(0, 5, size=30000)
    assert sx.SoftmaxClassifier().fit(X, y).device_ == "cuda:0"


def test_a_step_is_as_many_launches_as_the_choice_of_a_device_counts(cupy, rng):
    """The choice is of orders of magnitude: a step may be a third or three times as many."""
    X, y = rng.normal(size=(3000, 20)).astype("float32"), rng.integers(0, 4, size=3000)
    seen = []
    note = [lambda state: seen.append(cupy.usage.launches)]
    sx.SoftmaxClassifier(callbacks=note).fit(cupy.asarray(X), y)
    assert estimator.LAUNCHES / 3 < np.median(np.diff(seen)) < 3 * estimator.LAUNCHES


@pytest.mark.parametrize("solver", ["auto", "lbfgs"])
def test_cupy_brings_only_scalars_of_the_line_search_to_the_host(cupy, rng, solver):
    X, coef = rng.normal(size=(3000, 20)), rng.normal(size=(20, 4))
    y = (X @ coef + rng.gumbel(size=(3000, 4))).argmax(axis=1)
    seen = []
    note = [lambda state: seen.append(tuple(cupy.usage.to_host))]
    model = sx.SoftmaxClassifier(solver=solver, C=1e4, callbacks=note)
    model.fit(cupy.asarray(X.astype("float32")), y)
    assert model.device_ == "cuda:0"
    assert len(seen) > 5
    for before, after in list(itertools.pairwise(seen))[:4]:
        transfers = after[len(before) :]
        assert len(transfers) <= MOST_TRANSFERS
        assert max(transfers) <= MOST_BYTES
