"""Which backend is chosen, what is refused, and how arrays travel."""

from __future__ import annotations

import numpy as np
import pytest

import softmax_xp as sx
from softmax_xp import backend as backend_module
from softmax_xp.kernels import PROVIDERS, blocked, cuda, kernels_for, reference


@pytest.fixture
def no_gpu(monkeypatch):
    """A machine whose every GPU has the fault "it is on fire"."""
    monkeypatch.setattr(backend_module, "_cuda_count", lambda: 0)
    monkeypatch.setattr(backend_module, "_cuda_fault", lambda index: "it is on fire; put it out")


def test_auto_on_host_data_without_a_gpu_is_the_cpu(no_gpu):
    for like in (None, np.zeros(2), [1, 2], "anything"):
        chosen = sx.select_backend("auto", like)
        assert chosen.name == "cpu"
        assert chosen.xp.__name__ == "array_api_compat.numpy"


def test_auto_on_host_data_takes_the_first_usable_gpu(monkeypatch):
    monkeypatch.setattr(backend_module, "_cuda_count", lambda: 3)
    monkeypatch.setattr(backend_module, "_cuda_fault", lambda index: "broken" if index == 0 else "")
    monkeypatch.setattr(backend_module, "_cuda", lambda index: f"backend {index}")
    assert sx.select_backend("auto", np.zeros(2)) == "backend 1"
    assert sx.select_backend("cuda:2") == "backend 2"
    with pytest.raises(sx.DeviceUnavailableError, match="broken"):
        sx.select_backend("cuda")


def test_auto_leaves_an_array_in_its_library(xp):
    x = xp.asarray([1.0, 2.0])
    chosen = sx.select_backend("auto", x)
    if xp.name.startswith("numpy"):
        assert chosen == sx.select_backend("auto")
    else:
        assert chosen.xp is xp.namespace
        assert chosen.device == xp.device


def test_cuda_without_a_gpu_is_refused_with_cause_and_remedy(no_gpu):
    for device in ("cuda", "cuda:1"):
        with pytest.raises(sx.DeviceUnavailableError, match=f"'{device}'.*on fire; put it out.*device='cpu'"):
            sx.select_backend(device)
        with pytest.raises(sx.DeviceUnavailableError, match="on fire"):
            sx.Trainer(sx.Linear(2, 2), device=device)
        with pytest.raises(sx.DeviceUnavailableError, match="on fire"):
            sx.SoftmaxClassifier(device=device).fit([[0.0], [1.0]], [0, 1])


def test_cuda_without_cupy_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(backend_module, "find_spec", lambda name: None)
    backend_module._cuda_fault.cache_clear()
    with pytest.raises(sx.DeviceUnavailableError, match=r"CuPy is not installed.*pip install 'cupy-cuda13x>="):
        sx.select_backend("cuda")
    backend_module._cuda_fault.cache_clear()


@pytest.mark.parametrize("device", ["gpu7", "cuda:x", "", "cuda:", "cuda:-1", "CPU", 3.5, None, 0, "cpu "])
def test_an_unknown_device_is_refused_by_name(device):
    for call in (
        lambda: sx.select_backend(device),
        lambda: sx.Trainer(sx.Linear(2, 2), device=device),
        lambda: sx.SoftmaxClassifier(device=device).fit([[0.0], [1.0]], [0, 1]),
    ):
        with pytest.raises(ValueError, match="`device` must be 'auto', 'cpu', 'cuda' or 'cuda:<index>', got ") as error:
            call()
        assert repr(device) in str(error.value)


def test_devices_lists_the_cpu_and_says_why_a_gpu_is_not_usable(no_gpu):
    cpu, cuda = sx.devices()
    assert (cpu.name, cpu.usable, cpu.reason) == ("cpu", True, "")
    assert cpu.memory > 1e8
    assert (cuda.name, cuda.usable, cuda.reason) == ("cuda", False, "it is on fire; put it out")


def test_devices_are_accepted_by_select_backend_as_they_say():
    for info in sx.devices():
        if info.usable:
            assert sx.select_backend(info.name).name == info.name
        else:
            with pytest.raises(sx.DeviceUnavailableError):
                sx.select_backend(info.name)


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
def test_asarray_brings_any_library_to_the_cpu_and_back(xp, dtype):
    x = np.array([[0, 1], [2, 3]]).astype(dtype)
    host = sx.select_backend("cpu").asarray(xp.asarray(x))
    assert isinstance(host, np.ndarray)
    np.testing.assert_array_equal(host, x)
    back = backend_module.backend_of(xp.asarray(x)).asarray(host)
    xp.assert_here(back, dtype, x.shape)
    np.testing.assert_array_equal(xp.to_numpy(back), x)


def test_asarray_converts_on_the_way_to_a_device_without_the_dtype(xp):
    there = backend_module.backend_of(xp.asarray([1.0]))
    xp.assert_here(there.asarray(np.array([1.5, 2.5]), "float32"), "float32", (2,))


def test_asarray_does_not_write_to_read_only_memory(xp):
    x = np.arange(3.0, dtype="float32")
    x.flags.writeable = False
    there = backend_module.backend_of(xp.asarray(np.zeros(1, dtype="float32"))).asarray(x)
    np.testing.assert_array_equal(xp.to_numpy(there), [0, 1, 2])


def test_asarray_leaves_the_autograd_graph():
    torch = pytest.importorskip("torch")
    x = torch.ones(3, requires_grad=True)
    np.testing.assert_array_equal(sx.select_backend("cpu").asarray(x), [1, 1, 1])
    half = torch.ones(3, dtype=torch.bfloat16)
    assert sx.select_backend("cpu").asarray(half).dtype == np.float32


def test_providers_are_chosen_by_library_and_dtype(xp):
    for dtype in xp.float_dtypes:
        provider = kernels_for(xp.namespace, xp.asarray([1.0], dtype).dtype)
        own = {"numpy": blocked, "cupy": cuda}
        assert provider is own.get(xp.name.partition("-")[0], reference)
    assert kernels_for(np, np.dtype("float16")) is reference
    dtypes = {"numpy": ("float32", "float64"), "cupy": ("float32", "float64", "float16", "bfloat16")}
    assert set(PROVIDERS) == {(library, dtype) for library in dtypes for dtype in dtypes[library]}
