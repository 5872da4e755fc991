"""The array libraries that the suite runs on, as the fixture `xp`, and the assertion that goes with it."""

from __future__ import annotations

import importlib
import math
import os
import signal
import sys
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # the processes share the cores; BLAS reads this when it is loaded
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import array_api_compat
import numpy as np
import pytest
from cuda_on_host import COMPILER, Kernels
from tolerances import TOLERANCE

import softmax_xp


class Library:
    """One array library on one device. What is not defined here is the library's own: xp.exp, xp.float32."""

    def __init__(self, name: str):
        self.name = name
        self.device_flag = "cpu" if name.startswith("numpy") else "auto"  # where its arrays are computed with
        self.float_dtypes = ["float32", "float64"]
        if name.startswith("numpy"):
            self.namespace, self.device = importlib.import_module("array_api_compat.numpy"), "cpu"
        elif name.startswith("strict"):
            self.namespace = importlib.import_module("array_api_strict")
            self.device = self.namespace.Device(name.partition("-")[2])
            if name == "strict-no_float64":
                self.float_dtypes = ["float32"]
        elif name == "torch":
            importlib.import_module("torch")
            self.namespace, self.device = importlib.import_module("array_api_compat.torch"), "cpu"
            self.device = self.namespace.device("cpu")
        elif name == "cupy":
            cupy = importlib.import_module("cupy")
            cupy.zeros(1)  # raises without a driver
            self.namespace, self.device = importlib.import_module("array_api_compat.cupy"), cupy.cuda.Device(0)

    def __repr__(self):
        return self.name

    def __getattr__(self, name):
        return getattr(self.namespace, name)

    def asarray(self, x, dtype=None):
        """A NumPy array (or sequence) as a new array of this library; `dtype` is the name of one."""
        x = np.array(x)
        dtype = dtype or x.dtype.name
        if dtype == "float64" and "float64" not in self.float_dtypes:
            dtype = "float32"
        if dtype == "bfloat16" and self.name == "torch":
            return self.namespace.asarray(x.astype("float32"), device=self.device).to(self.namespace.bfloat16)
        dtype = importlib.import_module("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
        x = self.namespace.asarray(x.astype(dtype), device=self.device)
        if self.name == "numpy-readonly":
            x.flags.writeable = False
        return x

    def to_numpy(self, x):
        """An array of this library as a NumPy array."""
        if self.name.startswith("numpy"):
            return np.asarray(x)
        if self.name == "cupy":
            return x.get()
        if self.name == "torch":
            return (x.float() if str(x.dtype) == "torch.bfloat16" else x).detach().numpy()
        return np.from_dlpack(x)

    def assert_here(self, x, dtype, shape):
        """Assert the namespace, device, dtype and shape of an array."""
        assert array_api_compat.array_namespace(x) is self.namespace
        assert array_api_compat.device(x) == self.device
        assert str(x.dtype).rpartition(".")[2] == dtype
        assert tuple(x.shape) == tuple(shape)

    def assert_close(self, actual, expected, dtype, quantity, extra=0.0):
        """Assert where `actual` is, its dtype and shape, and its values within the table's tolerance."""
        expected = np.asarray(expected, dtype=np.float64)
        self.assert_here(actual, dtype, expected.shape)
        relative, absolute = TOLERANCE[quantity][dtype]
        bound = relative * np.abs(expected).max() + absolute + extra
        np.testing.assert_allclose(self.to_numpy(actual).astype(np.float64), expected, rtol=0, atol=bound)


SIMULATED = Path(__file__).parent / "simulated"
LIBRARIES = ["numpy", "numpy-readonly", "strict-device1", "strict-no_float64", "torch", "cupy"]
_ready: dict[str, Library] = {}
_missing: dict[str, str] = {}


def pytest_addoption(parser):
    parser.addoption(
        "--require",
        action="append",
        default=[],
        choices=["array_api_strict", "torch", "cupy"],
        help="fail, instead of skipping, where this library cannot be used",
    )
    parser.addoption(
        "--cuda",
        choices=["real", "simulated"],
        default="real",
        help="what the library cupy is: CuPy itself, or one made of NumPy, which needs g++ and no GPU; add `-k cupy`",
    )
    parser.addoption(
        "--trial",
        choices=["part", "whole"],
        default="part",
        help="how much of the trial of convergence runs: 60 problems, or all 500 and all seeds of outliers",
    )


def pytest_configure(config):
    # Run in the background, or by nohup, this process ignores signals, and so would the commands under test.
    for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:
            signal.signal(getattr(signal, name), handler)
    if config.getoption("--cuda") == "simulated":
        _simulate_cuda(config)
    for name in LIBRARIES:
        try:
            _ready[name] = Library(name)
        except Exception as error:  # an absent library, or one without its driver
            _missing[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
    wanted = {"strict" if name == "array_api_strict" else name for name in config.getoption("--require")}
    unmet = [f"{name} ({why})" for name, why in _missing.items() if name.partition("-")[0] in wanted]
    if unmet:
        raise pytest.UsageError(f"--require: cannot be used here: {', '.join(unmet)}")


def _simulate_cuda(config):
    """Let `import cupy` find the simulated one, in this process."""
    if "cupy" in sys.modules or COMPILER is None:
        raise pytest.UsageError("--cuda=simulated needs g++, and that nothing has imported CuPy")
    sys.path.insert(0, str(SIMULATED))
    simulated = importlib.import_module("cupy._kernels")
    simulated.kernels = Kernels(config.cache.mkdir("cuda_on_host"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter):
    yield  # to pytest's own summary of failures: these lines come after it
    simulated = terminalreporter.config.getoption("--cuda") == "simulated"
    names = [f"{name} (simulated)" if name == "cupy" and simulated else name for name in _ready]
    terminalreporter.write_line(f"array libraries that ran: {', '.join(names)}")
    for name, why in _missing.items():
        terminalreporter.write_line(f"array library that was skipped: {name} ({why})")


@pytest.fixture(params=LIBRARIES)
def xp(request):
    """Each array library in turn."""
    if request.param in _missing:
        pytest.skip(f"{request.param}: {_missing[request.param]}")
    return _ready[request.param]


@pytest.fixture(scope="session")
def kernel_folder(pytestconfig):
    """Where kernels are kept that have been compiled for the host."""
    if COMPILER is None:
        pytest.skip("no g++ to compile the kernels with")
    return pytestconfig.cache.mkdir("cuda_on_host")


@pytest.fixture
def rng():
    return np.random.default_rng(20260)


@pytest.fixture
def python():
    """The command line of a new interpreter that finds the package under test, and its environment."""
    path = os.pathsep.join([str(Path(softmax_xp.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    return [sys.executable], {**os.environ, "PYTHONPATH": path}


@pytest.fixture
def transfers(monkeypatch):
    """The sizes of what array-api-strict hands to the host, one after the other."""
    strict = pytest.importorskip("array_api_strict")
    kind, sizes = type(strict.zeros(1)), []

    def counting(own):
        def method(x, *arguments, **options):
            sizes.append(math.prod(x.shape))
            return own(x, *arguments, **options)

        return method

    for name in ("__float__", "__int__", "__bool__", "__index__", "__dlpack__"):
        monkeypatch.setattr(kind, name, counting(getattr(kind, name)))
    return sizes
