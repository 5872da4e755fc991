"""Devices, streams, graphs, memory and transfers: what CUDA is to a program, in the memory of the host."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import numpy as np

N_DEVICES, MEMORY = 2, 140 << 30  # and the bytes of each
ALIGNMENT = 512  # bytes: CuPy's pool gives out blocks of so many
SHARED_BYTES = 232448  # that a block of threads may ask for
UNSAID_SHARED_BYTES = 48 << 10  # and without asking


class Usage:
    """What a program has made the device do.

    Attributes
    ----------
    launches : int
        Kernels and products, those in a replayed graph not counted.
    kernels, products, graphs : int
        Our own kernels, products by cuBLAS, and replays.
    allocating : int
        Products in graphs that have no workspace, for which cuBLAS lets the graph allocate memory.
    to_host, to_device : list of int
        Bytes of each transfer.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.launches = self.kernels = self.products = self.graphs = self.allocating = 0
        self.to_host: list[int] = []
        self.to_device: list[int] = []


class State(threading.local):
    """Of each thread: the current device, its streams, and the pool that memory comes from."""

    def __init__(self) -> None:
        self.device = 0
        self.streams: dict[int, Stream] = {}
        self.pool: MemoryPool | None = None


usage, state = Usage(), State()


# --- Streams and graphs ---


class Device:
    __hash__ = None  # type: ignore[assignment]  # as CuPy's
    compute_capability = "90"
    attributes = {"MaxSharedMemoryPerBlockOptin": SHARED_BYTES, "MultiProcessorCount": 132}  # noqa: RUF012

    def __init__(self, device: Any = None) -> None:
        self.id = state.device if device is None else int(device)
        self._outer: list[int] = []

    def __int__(self) -> int:
        return self.id

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def __enter__(self) -> Device:
        self._outer.append(state.device)
        self.use()
        return self

    def __exit__(self, *error: object) -> None:
        state.device = self._outer.pop()

    def use(self) -> None:
        if not 0 <= self.id < N_DEVICES:
            raise RuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        state.device = self.id

    def synchronize(self) -> None:
        pass

    @property
    def mem_info(self) -> tuple[int, int]:
        return MEMORY - sum(pool.used + pool.free for pool in MemoryPool.all), MEMORY


class Stream:
    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.ptr = 0 if null else id(self)
        self.device_id = -1 if null else state.device
        self.recorded: list[Callable[[], object]] | None = None
        self._outer: list[Stream | None] = []

    def __enter__(self) -> Stream:
        assert self.device_id in (-1, state.device)
        self._outer.append(state.streams.get(state.device))
        state.streams[state.device] = self
        return self

    def __exit__(self, *error: object) -> None:
        outer = self._outer.pop()
        if outer is None:
            del state.streams[state.device]
        else:
            state.streams[state.device] = outer

    def synchronize(self) -> None:
        if self.recorded is not None:
            raise RuntimeError("cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing")

    def begin_capture(self, mode: Any = None) -> None:
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        self.recorded = []

    def end_capture(self) -> Graph:
        assert self.recorded is not None
        graph, self.recorded = Graph(self.recorded), None
        return graph


class Graph:
    def __init__(self, recorded: list[Callable[[], object]]) -> None:
        self._recorded = recorded

    def launch(self, stream: Any = None) -> None:
        refuse_in_capture(RuntimeError, "cudaErrorStreamCaptureUnsupported")
        usage.graphs += 1
        for work in self._recorded:
            work()


Stream.null = Stream(null=True)  # type: ignore[attr-defined]


def get_current_stream(device_id: int = -1) -> Stream:
    return state.streams.get(state.device) or Stream.null  # type: ignore[attr-defined]


def launch(work: Callable[[], object], launches: int = 1) -> None:
    """Run work of the device, and record it where the current stream is captured."""
    work()
    usage.launches += launches
    recorded = get_current_stream().recorded
    if recorded is not None:
        recorded.append(work)


def refuse_in_capture(error: type[Exception], message: str) -> None:
    if get_current_stream().recorded is not None:
        raise error(message)


def transferred(sizes: list[int], n_bytes: int) -> None:
    """Take note of a transfer, which no graph can hold."""
    refuse_in_capture(RuntimeError, "the current stream is capturing, so synchronous transfers are disallowed")
    sizes.append(n_bytes)


# --- Memory ---


class MemoryPool:
    """Counts the bytes that arrays use, and those that are free again, which are held until they are given back.

    A pool that nobody holds any more goes on holding them.
    """

    all: list[MemoryPool] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.used = self.free = 0
        MemoryPool.all.append(self)

    def malloc(self, size: int) -> int:
        self.free -= min(self.free, size)
        self.used += size
        return size

    def returned(self, size: int) -> None:
        self.used -= size
        self.free += size

    def free_all_blocks(self, stream: Any = None) -> None:
        refuse_in_capture(RuntimeError, "cudaErrorStreamCaptureUnsupported")
        self.free = 0

    def free_bytes(self) -> int:
        return self.free

    def used_bytes(self) -> int:
        return self.used

    def total_bytes(self) -> int:
        return self.used + self.free


default_pool = MemoryPool()


@contextmanager
def using_allocator(allocator: Any = None) -> Any:
    outer, state.pool = state.pool, allocator.__self__
    try:
        yield
    finally:
        state.pool = outer


def allocated(shape: Any, dtype: Any, order: str = "C") -> np.ndarray:
    """Return memory for an array: aligned, and full of NaN."""
    dtype = np.dtype(dtype)
    n_bytes = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    memory = np.full(n_bytes + ALIGNMENT, 0xFF, dtype=np.uint8)
    pool, size = state.pool or default_pool, -(-n_bytes // ALIGNMENT) * ALIGNMENT
    pool.malloc(size)
    weakref.finalize(memory, pool.returned, size)
    return np.ndarray(shape, dtype, buffer=memory, offset=-memory.ctypes.data % ALIGNMENT, order=order)


class MemoryPointer:
    def __init__(self, array: np.ndarray, device: int) -> None:
        self.array, self.ptr, self.device_id = array, array.ctypes.data, device
