"""Choose where to compute: the array library and the device, and whether the device can be used."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import array_api_compat
import array_api_compat.numpy
import numpy as np

from softmax_xp.arrays import (
    Array,
    Device,
    DType,
    Namespace,
    describe,
    detached,
    device_context,
    device_of,
    dtype_name,
    is_array,
    is_gpu,
    is_numpy,
    namespace,
    native,
    row_blocks,
    to_numpy,
)
from softmax_xp.kernels import Provider, kernels_for

# Multiplications that a CPU does in the time that a kernel's launch takes from Python: some 5 microseconds. A guess.
LAUNCH_WORK = 1 << 17
UPLOAD_BYTES = 64 << 20  # of an array on the host that are sent to a GPU at a time
INSTALL_CUPY = "pip install 'cupy-cuda13x>=14.2' 'cuda-toolkit[cublas,cudart,nvrtc]==13.*'"  # the extra cuda13


class DeviceUnavailableError(RuntimeError):
    """The requested device cannot be used; the message has the cause and a remedy."""


@dataclass(frozen=True)
class DeviceInfo:
    """One device in the list of `devices()`.

    Attributes
    ----------
    name : "cpu", "cuda:0", ...; what to pass as `device`. "cuda" alone stands for a GPU that cannot be reached
    description : the model of the device, if it is known
    memory : total memory in bytes, or None if it is unknown
    usable : whether a small computation has just run there
    reason : why it is not usable, and the remedy; empty if it is usable
    """

    name: str
    description: str
    memory: int | None
    usable: bool
    reason: str = ""


@dataclass(frozen=True)
class Backend:
    """A library and one of its devices.

    Attributes
    ----------
    xp : array API namespace
    device : the device, an object of that library
    name : the device's name in this package: "cpu", "cuda:0", ...
    """

    xp: Namespace
    device: Device
    name: str

    @property
    def is_host(self) -> bool:
        """Whether arrays are NumPy's."""
        return self.xp is array_api_compat.numpy

    def context(self) -> AbstractContextManager[Any]:
        """Return the context in which every computation on this backend has to run."""
        return device_context(self.device)

    def asarray(self, x: Array, dtype: DType | str | None = None) -> Array:
        """Return `x` (an array of any library, or a sequence) on this backend, copied only if it must be.

        `dtype` may be a dtype of this backend or the name of one; None keeps that of `x`.
        """
        if isinstance(dtype, str):
            dtype = getattr(self.xp, dtype)
        x = native(detached(x))
        with self.context():
            if is_array(x) and array_api_compat.array_namespace(x) is self.xp:
                x = x if device_of(x) == self.device else array_api_compat.to_device(x, self.device)
            elif is_array(x) and self.name.startswith("cuda") and _on_cuda(x):
                x = array_api_compat.to_device(self.xp.from_dlpack(x), self.device)
            else:
                host = to_numpy(x)
                large = is_gpu(self.device) and host.nbytes > UPLOAD_BYTES
                x = self._uploaded(host, dtype) if large else self._copied(host, dtype)
            return x if dtype is None else self.xp.astype(x, dtype, copy=False)

    def _copied(self, host: np.ndarray, dtype: DType | None) -> Array:
        """Return a NumPy array here, in `dtype` where NumPy has that."""
        if dtype is not None and dtype_name(dtype) != "bfloat16":
            host = host.astype(dtype_name(dtype), copy=False)  # before, as not every device has its dtype
        if not (host.flags.writeable or self == _cpu()):
            host = host.copy()  # not every library takes read-only memory
        return self.xp.asarray(host, device=self.device)

    def _uploaded(self, host: np.ndarray, dtype: DType | None) -> Array:
        """Return the same for a large array on a GPU, in pieces: CuPy copies what it sends to pinned memory first."""
        out = None
        for part in row_blocks(len(host), host.nbytes // len(host), UPLOAD_BYTES):
            piece = self._copied(np.ascontiguousarray(host[part]), dtype)
            if out is None:
                out = self.xp.empty(host.shape, dtype=piece.dtype)
            out[part] = piece
        return out

    def repeated(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """On a GPU, wrap `function` so that calls with small arrays replay a CUDA graph; else return it unchanged.

        `kernels.graphs.Repeated` says what the function must and must not do.
        """
        return import_module("softmax_xp.kernels.graphs").Repeated(function) if is_gpu(self.device) else function

    def kernels(self, dtype: DType) -> Provider:
        """Return the provider of the row pass for arrays of `dtype` here."""
        return kernels_for(self.xp, dtype)


def backend_of(x: Array, name: str = "X") -> Backend:
    """Return the backend of `x`; `name` is the name of the argument in error messages."""
    xp, device = namespace(**{name: x}), device_of(x)
    if hasattr(device, "id"):  # CuPy numbers its devices
        return Backend(xp, device, f"cuda:{device.id}")
    return Backend(xp, device, str(device))


def select_backend(device: str = "auto", like: Array | None = None, *, small: bool = False) -> Backend:
    """Return the backend for `device`.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda", "cuda:<index>"}
        "cpu" is NumPy, and "cuda" is CuPy. "auto" leaves an array of another library than NumPy in that library and on
        its device, and sends anything else to the first usable GPU, or to the CPU if there is none.
    like : array, optional
        The data; "auto" depends on where they are.
    small : bool
        Whether the problem is one that `small_for_gpu` calls small: "auto" then sends it to the CPU.

    Returns
    -------
    Backend

    Raises
    ------
    ValueError
        When `device` has another value.
    DeviceUnavailableError
        When the device cannot be used. The message has the cause and a remedy; no other device is used instead.
    """
    match = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", device) if isinstance(device, str) else None
    if match is None:
        raise ValueError(
            f"`device` must be 'auto', 'cpu', 'cuda' or 'cuda:<index>', got {describe(device)}; "
            f"softmax_xp.devices() lists what this machine has."
        )
    if device == "cpu":
        return _cpu()
    if device != "auto":
        index = int(match[1] or 0)
        if reason := _cuda_fault(index):
            raise DeviceUnavailableError(f"device {device!r} cannot be used: {reason}; or choose device='cpu'.")
        return _cuda(index)
    if like is not None and is_array(like) and not is_numpy(like):
        return backend_of(like)
    for index in () if small else range(_cuda_count()):
        if not _cuda_fault(index):
            return _cuda(index)
    return _cpu()


def small_for_gpu(multiplications: int, launches: int) -> bool:
    """Return whether a CPU does a step of a fit sooner than a GPU launches it.

    Such a fit would also wait for CuPy to compile its kernels when it is the first.

    Parameters
    ----------
    multiplications : of one evaluation of the gradient: rows times parameters
    launches : of kernels in one step
    """
    return multiplications < launches * LAUNCH_WORK


def devices() -> list[DeviceInfo]:
    """Return every device of this machine, and the reason why one cannot be used.

    Returns
    -------
    list of DeviceInfo
        The CPU first, then each CUDA device. If there is none, one entry "cuda" says why.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    found = [DeviceInfo("cpu", f"NumPy, {os.cpu_count()} logical cores", memory, usable=True)]
    count = _cuda_count()
    if count == 0:
        return [*found, DeviceInfo("cuda", "NVIDIA GPU", None, usable=False, reason=_cuda_fault(0))]
    runtime = import_module("cupy").cuda.runtime
    for index in range(count):
        properties = runtime.getDeviceProperties(index)
        model, fault = properties["name"].decode(), _cuda_fault(index)
        found.append(DeviceInfo(f"cuda:{index}", model, properties["totalGlobalMem"], not fault, reason=fault))
    return found


def _cpu() -> Backend:
    return Backend(array_api_compat.numpy, "cpu", "cpu")


def _cuda(index: int) -> Backend:
    device = import_module("cupy").cuda.Device(index)
    return Backend(import_module("array_api_compat.cupy"), device, f"cuda:{index}")


def _on_cuda(x: Array) -> bool:
    """Return whether the DLPack device type of `x` is CUDA (2) or managed CUDA memory (13)."""
    return hasattr(x, "__dlpack_device__") and int(x.__dlpack_device__()[0]) in (2, 13)


@cache
def _cuda_count() -> int:
    """Return how many CUDA devices CuPy can see; 0 without CuPy or a driver."""
    if find_spec("cupy") is None:
        return 0
    try:
        return int(import_module("cupy").cuda.runtime.getDeviceCount())
    except Exception:  # CuPy does not load; _cuda_fault gives the reason
        return 0


@cache
def _cuda_fault(index: int) -> str:
    """Return why CUDA device `index` cannot be used, and the remedy; empty if a computation has run on it."""
    if find_spec("cupy") is None:
        return f"CuPy is not installed (for a CUDA 13 driver: {INSTALL_CUPY}; for CUDA 12, with 12 in place of 13)"
    try:
        cupy = import_module("cupy")
    except Exception as error:  # CuPy raises more than ImportError where its libraries do not load
        return f"CuPy does not import ({_one_line(error)}); reinstall it: {INSTALL_CUPY}"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        return (
            f"no CUDA driver answers ({_one_line(error)}); install or update the NVIDIA driver "
            f"(CUDA 13 needs 580 or newer); a container needs the NVIDIA Container Toolkit and --gpus all"
        )
    if index >= count:
        return f"this machine has {count} CUDA device(s), numbered from 0; choose a lower index"
    try:
        with cupy.cuda.Device(index):
            float((cupy.arange(4, dtype=cupy.float32) * 2.0).sum())
    except Exception as error:
        return f"a test kernel does not run ({_one_line(error)}); install the CUDA wheels: {INSTALL_CUPY}"
    try:
        with cupy.cuda.Device(index):
            square = cupy.ones((4, 4), dtype=cupy.float32)
            float((square @ square)[0, 0])
    except Exception as error:
        return f"a small matrix product fails ({_one_line(error)}); install cuBLAS: {INSTALL_CUPY}"
    return ""


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
