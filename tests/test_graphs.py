"""Steps launched as CUDA graphs: on a GPU as they are, on NumPy with a recording that runs the function again."""

from __future__ import annotations

import gc
import weakref
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

import softmax_xp as sx
from softmax_xp.backend import Backend
from softmax_xp.kernels import graphs


@pytest.fixture
def recordings(xp, monkeypatch):
    """Let every device repeat steps as a GPU does; the number of recordings, as a list of so many entries."""
    made, recorded = [], graphs.recorded

    def replayed(function):
        outputs = graphs._mapped(np.array, function())

        def launch():
            for own, x in zip(leaves(outputs), leaves(function()), strict=True):
                own[...] = x

        return graphs.Recording(launch, outputs)

    def counting(function):
        result = (recorded if xp.name == "cupy" else replayed)(function)
        made.append(function)  # if it could be recorded
        return result

    monkeypatch.setattr(graphs, "recorded", counting)
    monkeypatch.setattr(Backend, "repeated", lambda self, function: graphs.Repeated(function))
    return made


def leaves(tree):
    found: list = []
    graphs._mapped(found.append, tree)
    return found


on_numpy_and_cupy = pytest.mark.parametrize("xp", ["numpy", "cupy"], indirect=True)


@on_numpy_and_cupy
def test_repeated_function_returns_what_it_returns(xp, recordings):
    def function(a, pair, factor):
        return {"sum": a + pair["b"][0] * factor, "pair": (a * 2.0, xp.sum(a))}

    repeated = graphs.Repeated(function)
    results = []
    for n, i in ((3, 1), (3, 2), (4, 3), (3, 4)):
        a, b = xp.asarray(np.arange(n) * float(i)), xp.asarray(np.full(n, 0.5 * i))
        results.append((repeated(a, {"b": (b,)}, 0.1 * i), function(a, {"b": (b,)}, 0.1 * i)))
    for actual, expected in results:  # after all: none may have been written over
        assert set(actual) == {"sum", "pair"}
        for x, y in zip(leaves(actual), leaves(expected), strict=True):
            xp.assert_here(x, "float64", y.shape)
            np.testing.assert_array_equal(xp.to_numpy(x), xp.to_numpy(y))
    assert len(recordings) == 2  # one for each shape


@pytest.mark.parametrize("xp", ["cupy"], indirect=True)
def test_a_recording_gives_its_memory_back(xp):
    cupy = pytest.importorskip("cupy")

    def free_bytes():
        gc.collect()
        cupy.get_default_memory_pool().free_all_blocks()
        return xp.device.mem_info[0]

    x, repeated = xp.asarray(np.ones(1 << 20)), graphs.Repeated(lambda x: {"sum": x + 1.0, "sums": (x * 2.0,)})
    before = free_bytes()
    repeated(x)
    assert free_bytes() <= before - 3 * x.nbytes  # a copy of x, and two outputs
    del repeated
    assert free_bytes() >= before


@on_numpy_and_cupy
def test_large_arguments_are_not_copied(xp, recordings, monkeypatch):
    monkeypatch.setattr(graphs, "MAX_BYTES", 100)
    seen = []
    repeated = graphs.Repeated(lambda x: seen.append(x) or x + 1.0)
    x = xp.asarray(np.ones(13))
    repeated(x)
    assert seen[0] is x
    assert not recordings


@pytest.mark.parametrize("error", [NotImplementedError, RuntimeError])
def test_what_cannot_be_recorded_is_called_as_it_is(monkeypatch, error):
    tried = []

    def recorded(function):
        tried.append(function)
        raise error("not while the stream is captured")

    monkeypatch.setattr(graphs, "recorded", recorded)
    repeated = graphs.Repeated(lambda x, factor: {"product": x * factor})
    results = []
    with pytest.warns(RuntimeWarning, match=f"launched kernel by kernel .{error.__name__}: not while") as caught:
        results += [repeated(np.ones(n), factor)["product"] for n, factor in ((3, 0.5), (3, 2.0), (4, 1.0))]
    for result, expected in zip(results, ([0.5] * 3, [2.0] * 3, [1.0] * 4), strict=True):
        np.testing.assert_array_equal(result, expected)
    assert len(tried) == len(caught) == 2  # once for each shape


def test_an_error_of_the_function_is_not_taken_for_one_of_the_recording(monkeypatch):
    def broken(x):
        raise RuntimeError("broken")

    monkeypatch.setattr(graphs, "recorded", lambda function: graphs.Recording(function, function()))
    with pytest.raises(RuntimeError, match="broken"):
        graphs.Repeated(broken)(np.ones(3))
    with pytest.raises(ValueError, match="broadcast"):
        graphs.Repeated(lambda x: x + np.ones(2))(np.ones(3))


class Stream:
    """A stream of CUDA that ends a recording when it breaks off, and says so."""

    def __init__(self, non_blocking=True):
        self.capturing = self.broken = False

    def __enter__(self):
        return self

    def __exit__(self, *error):
        assert not self.capturing  # CUDA would refuse the next use of it

    def synchronize(self):
        assert not self.capturing

    def begin_capture(self):
        self.capturing = True

    def end_capture(self):
        self.capturing = False
        if self.broken:
            raise RuntimeError("cudaErrorStreamCaptureInvalidated")


@pytest.mark.parametrize("broken", [False, True])
def test_a_recording_that_fails_is_ended_and_its_error_told(monkeypatch, broken):
    stream = Stream()
    stream.broken = broken
    cuda = SimpleNamespace(
        MemoryPool=lambda: SimpleNamespace(malloc=None, free_all_blocks=lambda: None),
        Stream=lambda non_blocking: stream,
        get_current_stream=lambda: stream,
        using_allocator=lambda malloc: nullcontext(),
    )
    pool = SimpleNamespace(free_all_blocks=lambda: None)
    cupy = SimpleNamespace(cuda=cuda, get_default_memory_pool=lambda: pool, empty=np.empty, uint8=np.uint8)
    monkeypatch.setattr(graphs, "import_module", lambda name: cupy)

    def function():
        if stream.capturing:
            raise NotImplementedError("not while the stream is captured")

    with pytest.raises(NotImplementedError):
        graphs.recorded(function)
    assert not stream.capturing


OPTIMIZERS = [
    sx.SGD(0.1),
    sx.SGD(0.1, momentum=0.9, nesterov=True),
    sx.Adam(lambda n: 0.1 / (n + 1)),
    sx.AdamW(sx.CosineSchedule(0.1, 30)),
    sx.SGD(np.float64(0.1), momentum=np.float64(0.9)),
    sx.AdamW(lambda n: 0.1 / np.sqrt(n + 1), beta1=np.float64(0.9), weight_decay=np.float64(0.1)),
]


@on_numpy_and_cupy
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda optimizer: type(optimizer).__name__)
@pytest.mark.parametrize("sizes", [[5, 3], [5, 4, 3]])
def test_trainer_takes_the_same_steps(xp, rng, recordings, monkeypatch, optimizer, sizes):
    X, y = xp.asarray(rng.normal(size=(50, 5))), xp.asarray(rng.integers(0, 3, size=50))

    def train():
        model = sx.MLP(sizes, random_state=0) if len(sizes) > 2 else sx.Linear(5, 3)
        options = {"batch_size": 16, "max_steps": 20, "log_every": None, "reg": 0.01, "random_state": 1}
        trainer = sx.Trainer(model, optimizer, device=xp.device_flag, **options)
        return trainer.fit(X, y, validation_data=(X, y)), model

    history, model = train()
    assert len(recordings) == 2  # batches of 16, and of the two rows that are left
    monkeypatch.setattr(Backend, "repeated", lambda self, function: function)
    expected, plain = train()
    tolerance = {"rtol": 0, "atol": 0 if xp.name == "numpy" else 1e-12}
    np.testing.assert_allclose(history.loss, expected.loss, **tolerance)
    np.testing.assert_allclose(history.validation_loss, expected.validation_loss, **tolerance)
    for name in plain.params:
        np.testing.assert_allclose(xp.to_numpy(model.params[name]), xp.to_numpy(plain.params[name]), **tolerance)


@on_numpy_and_cupy
@pytest.mark.parametrize("solver", ["sgd", "adam", "adamw"])
def test_estimator_takes_the_same_steps(xp, rng, recordings, monkeypatch, solver):
    X, y = xp.asarray(rng.normal(size=(600, 5)), "float32"), rng.integers(0, 3, size=600)

    def fitted():
        options = {"max_iter": 3, "tol": 1e-1, "device": xp.device_flag, "random_state": 0}
        return sx.SoftmaxClassifier(solver=solver, **options).fit(X, y)

    coef = fitted().coef_
    assert len(recordings) == 2
    monkeypatch.setattr(Backend, "repeated", lambda self, function: function)
    np.testing.assert_allclose(xp.to_numpy(coef), xp.to_numpy(fitted().coef_), rtol=0, atol=1e-6)


@pytest.mark.parametrize("xp", ["numpy"], indirect=True)
def test_what_is_recorded_goes_with_its_function(recordings):
    """No circle keeps the arrays of a fit until a collection of circles."""

    class Held:
        def __call__(self, x):
            return x + 1.0

    held = Held()
    alive, repeated = weakref.ref(held), graphs.Repeated(held)
    gc.disable()
    try:
        repeated(np.ones(3))
        recordings.clear()
        del held, repeated
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numpy_numbers_of_an_optimizer_do_not_change_the_dtype(xp, rng, dtype):
    if dtype not in xp.float_dtypes:
        pytest.skip(f"{xp} has no {dtype}")
    params = {"W": xp.asarray(rng.normal(size=(3, 2)), dtype)}
    for optimizer in OPTIMIZERS:
        new, _ = optimizer.step(params, params, optimizer.start(params), 3)
        xp.assert_here(new["W"], dtype, (3, 2))


def test_a_step_that_is_overridden_is_taken(rng, recordings_on_numpy):
    class Still(sx.SGD):
        def step(self, params, grads, state, n):
            return params, state

    X, y, model = rng.normal(size=(50, 5)), rng.integers(0, 3, size=50), sx.Linear(5, 3)
    sx.Trainer(model, Still(0.1), batch_size=16, max_steps=4, log_every=None, device="cpu").fit(X, y)
    assert (model.params["W"] == 0).all()
    assert not recordings_on_numpy


def test_an_update_that_is_overridden_is_called_at_each_step(rng, recordings_on_numpy):
    class Counting(sx.SGD):
        def update(self, *arguments):
            calls.append(arguments)
            return super().update(*arguments)

    X, y, calls = rng.normal(size=(50, 5)), rng.integers(0, 3, size=50), []
    sx.Trainer(sx.Linear(5, 3), Counting(0.1), batch_size=16, max_steps=4, log_every=None, device="cpu").fit(X, y)
    assert len(calls) == 4
    assert not recordings_on_numpy


def test_a_model_of_ones_own_is_called_at_each_step(rng, recordings_on_numpy):
    class Noisy(sx.Linear):
        """Its features get other noise each time, from the host."""

        def value_and_grad(self, params, X, *arguments):
            calls.append(X)
            return super().value_and_grad(params, X + 0.1 * rng.normal(size=X.shape), *arguments)

    X, y, calls = rng.normal(size=(50, 5)), rng.integers(0, 3, size=50), []
    sx.Trainer(Noisy(5, 3), batch_size=16, max_steps=4, log_every=None, device="cpu").fit(X, y)
    assert len(calls) == 5  # and for the objective at the end
    assert not recordings_on_numpy


def test_an_optimizer_of_ones_own_is_not_recorded(rng, recordings_on_numpy):
    class Own:
        """A step that depends on its number in a way of its own."""

        def start(self, params):
            return {}

        def step(self, params, grads, state, n):
            return {k: x - 0.1 / (n + 1) * grads[k] for k, x in params.items()}, state

    X, y = rng.normal(size=(50, 5)), rng.integers(0, 3, size=50)
    sx.Trainer(sx.Linear(5, 3), Own(), batch_size=16, max_steps=4, log_every=None, device="cpu").fit(X, y)
    assert not recordings_on_numpy


@pytest.fixture
def recordings_on_numpy(monkeypatch):
    """The functions that were to be repeated."""
    asked: list = []
    monkeypatch.setattr(Backend, "repeated", lambda self, function: asked.append(function) or function)
    return asked
