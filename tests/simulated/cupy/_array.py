"""The array: memory of a device that NumPy computes on, and that comes to the host only when it is asked for."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from cupy import _device
from cupy._device import allocated, launch, refuse_in_capture, state, transferred, usage

METHODS = (
    *("all", "any", "argmax", "argmin", "argsort", "clip", "conj", "cumsum", "diagonal", "dot", "flatten", "max"),
    *("mean", "min", "nonzero", "prod", "ravel", "repeat", "reshape", "round", "squeeze", "std", "sum", "swapaxes"),
    *("take", "trace", "transpose", "var"),
)
OPERATORS = {
    **{"add": np.add, "sub": np.subtract, "mul": np.multiply, "truediv": np.true_divide, "matmul": np.matmul},
    **{"floordiv": np.floor_divide, "mod": np.mod, "pow": np.power, "and": np.bitwise_and, "or": np.bitwise_or},
    **{"xor": np.bitwise_xor, "lshift": np.left_shift, "rshift": np.right_shift},
}
COMPARISONS = {
    **{"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal},
    **{"eq": np.equal, "ne": np.not_equal},
}


class ndarray:  # noqa: N801  # CuPy's name
    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self, shape: Any, dtype: Any = float, memptr: Any = None, strides: Any = None, order: str = "C"
    ) -> None:
        self._device = state.device
        if memptr is None:
            self._raw = allocated(shape, dtype, order)
            return
        memory = memptr.array
        while isinstance(memory.base, np.ndarray):
            memory = memory.base
        start = memptr.ptr - memory.ctypes.data
        self._raw = np.ndarray(shape, dtype, buffer=memory, offset=start, strides=strides)

    dtype = property(lambda self: self._raw.dtype)
    strides = property(lambda self: self._raw.strides)
    ndim = property(lambda self: self._raw.ndim)
    size = property(lambda self: self._raw.size)
    nbytes = property(lambda self: self._raw.nbytes)
    itemsize = property(lambda self: self._raw.itemsize)
    flags = property(lambda self: self._raw.flags)
    T = property(lambda self: of(self._raw.T, self._device))
    mT = property(lambda self: of(self._raw.mT, self._device))  # noqa: N815
    data = property(lambda self: _device.MemoryPointer(self._raw, self._device))
    device = property(lambda self: _device.Device(self._device))

    @property
    def shape(self) -> tuple[int, ...]:
        return self._raw.shape

    @shape.setter
    def shape(self, shape: Any) -> None:
        seen = self._raw.reshape(shape)
        if seen.size and not np.may_share_memory(seen, self._raw):
            raise AttributeError("incompatible shape for a non-contiguous array")
        self._raw = seen

    def __array__(self, *args: Any, **options: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`.")

    def __array_function__(self, function: Any, *args: Any) -> Any:
        raise TypeError(f"numpy.{function.__name__} was called with an array of the device")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return compute(ufunc, *inputs, **options) if method == "__call__" else NotImplemented

    # To the host.
    def get(self, *args: Any, **options: Any) -> np.ndarray:
        transferred(usage.to_host, self.nbytes)
        return np.array(self._raw, order="K")

    def item(self, *args: int) -> Any:
        return self.get().item(*args)

    def tolist(self) -> Any:
        return self.get().tolist()

    __float__ = __int__ = __bool__ = __index__ = __complex__ = None  # type: ignore[assignment]

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self._device

    def __dlpack__(self, **options: Any) -> Any:
        return self._raw.__dlpack__()

    def __reduce__(self) -> Any:
        return _from_host, (self.get(),)

    # Views and copies.
    def __len__(self) -> int:
        return len(self._raw)

    def __iter__(self) -> Iterator[ndarray]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"simulated {self._raw!r}"

    def view(self, dtype: Any = None) -> ndarray:
        return of(self._raw.view(self.dtype if dtype is None else dtype), self._device)

    def copy(self, order: str = "C") -> ndarray:
        with _device.Device(self._device):
            return compute(lambda x: np.array(x, order=order), self)

    def astype(
        self, dtype: Any, order: str = "K", casting: Any = None, subok: Any = None, copy: bool = True
    ) -> ndarray:
        laid_out = order == "K" or self.flags[f"{order}_CONTIGUOUS"]
        if not copy and np.dtype(dtype) == self.dtype and laid_out:
            return self
        return compute(lambda x: x.astype(dtype, order=order), self)

    def fill(self, value: Any) -> None:
        self[...] = value

    def __getitem__(self, key: Any) -> ndarray:
        key = _key(key)
        if not any(isinstance(part, np.ndarray) for part in key):
            return of(self._raw[(*key, ...) if Ellipsis not in key else key], self._device)
        return compute(lambda x: x[key], self)

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim):
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        to, key, value = raw(self), _key(key), value[()] if isinstance(value, np.ndarray) else raw(value)
        launch(lambda: to.__setitem__(key, value))


def of(memory: np.ndarray, device: int | None = None) -> ndarray:
    """Return an array in memory that there is."""
    out: ndarray = object.__new__(ndarray)
    out._raw, out._device = memory, state.device if device is None else device
    return out


def _from_host(x: np.ndarray) -> ndarray:
    transferred(usage.to_device, x.nbytes)
    return stored(x)


def stored(x: np.ndarray) -> ndarray:
    """Return a copy of a NumPy array in memory of the current device, laid out as it is."""
    order = "F" if x.flags.f_contiguous and not x.flags.c_contiguous else "C"
    out = of(allocated(x.shape, x.dtype, order))
    out._raw[...] = x
    return out


def raw(x: Any) -> Any:
    """Return the memory of each array in a tree; a kernel takes those of the current device, and numbers."""
    if isinstance(x, ndarray):
        if x._device != state.device:
            where = f"array device = {x._device} while current = {state.device}"
            raise ValueError(f"Array device must be same as the current device: {where}.")
        return x._raw
    if isinstance(x, np.ndarray):
        raise TypeError(f"Unsupported type {type(x)}")
    if isinstance(x, list | tuple):
        return type(x)(raw(entry) for entry in x)
    return {name: raw(entry) for name, entry in x.items()} if isinstance(x, dict) else x


def compute(function: Callable[..., Any], *args: Any, launches: int = 1, **options: Any) -> Any:
    """Return what a function of NumPy makes of arrays: views of them, or new arrays by so many launches."""
    given, named = raw(args), raw(options)

    def run() -> Any:
        with np.errstate(all="ignore"):
            return function(*given, **named)

    if isinstance(options.get("out"), ndarray):
        launch(run, launches)
        return options["out"]
    results = run()
    several = isinstance(results, list | tuple)
    raws = [x for x in (results if several else (results,)) if isinstance(x, np.ndarray | np.generic)]
    if not raws:
        return results
    inputs = [x for x in (*given, *named.values()) if isinstance(x, np.ndarray)]
    if all(isinstance(x, np.ndarray) and any(np.may_share_memory(x, y) for y in inputs) for x in raws):
        outputs = [of(x) for x in raws]
    else:
        outputs = [stored(np.asarray(x)) for x in raws]

        def again() -> None:
            values = run()
            for own, value in zip(outputs, values if several else (values,), strict=True):
                own._raw[...] = value

        launch(again, launches)
    return type(results)(outputs) if type(results) in (list, tuple) else tuple(outputs) if several else outputs[0]


def product(function: Callable[..., Any], *args: Any, **options: Any) -> ndarray:
    """Return a product that CuPy leaves to cuBLAS; of vectors, it multiplies and sums."""
    refuse_in_capture(NotImplementedError, "calling cuBLAS API during stream capture is currently unsupported")
    usage.products += 1
    vectors = any(isinstance(x, ndarray) and x.ndim == 1 for x in args)
    return compute(function, *args, launches=2 if vectors else 1, **options)


def _key(key: Any) -> tuple[Any, ...]:
    """Return an index as NumPy takes it; a mask, or indices of the host, make the two wait for each other."""
    parts = []
    for part in key if isinstance(key, tuple) else (key,):
        if isinstance(part, ndarray) and part.dtype == np.bool_:
            transferred(usage.to_host, 8)
        if isinstance(part, list | np.ndarray):
            transferred(usage.to_device, np.asarray(part).nbytes)
        parts.append(np.asarray(part) if isinstance(part, list | np.ndarray) else raw(part))
    return tuple(parts)


def _operator(function: Any, swapped: bool = False, in_place: bool = False) -> Callable[..., Any]:
    def method(self: ndarray, other: Any) -> Any:
        if other is None or isinstance(other, str | types.ModuleType):
            return NotImplemented
        if isinstance(other, list | tuple):
            raise TypeError(f"Unsupported type {type(other)}")
        pair = (other, self) if swapped else (self, other)
        options = {"out": self, "casting": "same_kind"} if in_place else {}
        return (product if function is np.matmul else compute)(function, *pair, **options)

    return method


for _name, _function in OPERATORS.items():
    setattr(ndarray, f"__{_name}__", _operator(_function))
    setattr(ndarray, f"__r{_name}__", _operator(_function, swapped=True))
    setattr(ndarray, f"__i{_name}__", _operator(_function, in_place=True))
for _name, _function in COMPARISONS.items():
    setattr(ndarray, f"__{_name}__", _operator(_function))
for _name, _function in {"neg": np.negative, "pos": np.positive, "abs": np.abs, "invert": np.invert}.items():
    setattr(ndarray, f"__{_name}__", lambda self, function=_function: compute(function, self))
for _name in ("float", "int", "bool", "index", "complex"):
    setattr(ndarray, f"__{_name}__", lambda self, name=f"__{_name}__": getattr(self.get(), name)())
for _name in METHODS:
    setattr(ndarray, _name, lambda self, *args, name=_name, **options: _method(self, name, args, options))


def _method(x: ndarray, name: str, args: Any, options: Any) -> Any:
    if name == "dot":
        return product(np.dot, x, *args, **options)
    if name == "nonzero":
        transferred(usage.to_host, 8)
    return compute(lambda memory, *rest, **named: getattr(memory, name)(*rest, **named), x, *args, **options)
