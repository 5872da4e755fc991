"""The functions of NumPy as CuPy has them: by the names in names.json, with its arguments, on arrays of a device."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from cupy._array import compute, ndarray, product, raw, stored
from cupy._device import refuse_in_capture, transferred, usage

NAMES = json.loads(Path(__file__).parent.with_name("names.json").read_text())
PRODUCTS = ("matmul", "dot", "vdot", "inner", "outer", "tensordot", "einsum", "vecdot", "kron")
WAITING = ("nonzero", "flatnonzero", "argwhere", "unique", "extract", "compress")  # for the size of their result
JOINING = ("concatenate", "stack", "hstack", "vstack", "column_stack")
OF_DTYPES = ("finfo", "iinfo", "result_type", "can_cast", "promote_types", "issubdtype", "isdtype", "isscalar", "ndim")
MANY = 8  # arrays whose addresses, to join them, are copied to the device
MISSING = "the library for it is not installed"  # cuSOLVER and cuFFT are in no extra of this package


def fill(module: ModuleType, ours: dict[str, Any], theirs: Any, refused: tuple[str, ...] = ()) -> None:
    """Give a module the names of CuPy's that NumPy's has too."""
    for name, form in NAMES[module.__name__].items():
        original = getattr(theirs, name, None)
        if name in ours or original is None:
            continue
        if name in refused:
            ours[name] = _refusing(f"{module.__name__}.{name}")
        elif form in ("type", "value") or name in OF_DTYPES:
            ours[name] = original if form in ("type", "value") else _of_dtypes(original)
        else:
            ours[name] = _function(name, original, "*args, **options" if form == "ufunc" else form)


def _refusing(name: str) -> Callable[..., Any]:
    def refuse(*args: Any, **options: Any) -> None:
        raise ImportError(f"{name}: {MISSING}")

    return refuse


def _of_dtypes(original: Any) -> Callable[..., Any]:
    return lambda *args: original(*(x.dtype if isinstance(x, ndarray) else x for x in args))


def _function(name: str, original: Any, arguments: str) -> Callable[..., Any]:
    takes = eval(f"lambda {arguments}: None")  # of names.json

    def function(*args: Any, **options: Any) -> Any:
        takes(*args, **options)  # raises TypeError for what CuPy's does not take
        if name in PRODUCTS:
            return product(original, *args, **options)
        if name in WAITING:
            transferred(usage.to_host, 8)
        if name == "take" and not isinstance(args[1] if len(args) > 1 else options["indices"], ndarray | int):
            transferred(usage.to_device, 8)
        launches = 1
        if name in JOINING:
            launches = len(args[0])
            if not all(isinstance(x, ndarray) for x in args[0]):
                raise TypeError("Only cupy arrays can be concatenated")
            if launches > MANY:
                refuse_in_capture(RuntimeError, "the current stream is capturing, so H2D transfers are disallowed")
        return compute(original, *args, launches=launches, **options)

    function.__name__ = name
    return function


# --- New arrays ---


def creator(name: str) -> Callable[..., ndarray]:
    """Return a function that makes arrays; what is `empty` is full of NaN, by no launch."""
    original, takes = getattr(np, name), eval(f"lambda {NAMES['cupy'][name]}: None")

    def make(*args: Any, **options: Any) -> ndarray:
        takes(*args, **options)
        if not name.startswith("empty"):
            made: ndarray = compute(lambda: original(*raw(args), **raw(options)))
            return made
        like = original(*raw(args), **raw(options))
        return ndarray(like.shape, like.dtype, order="C" if like.flags.c_contiguous else "F")

    make.__name__ = name
    return make


def array(
    obj: Any,
    dtype: Any = None,
    copy: bool = True,
    order: str = "K",
    subok: bool = False,
    ndmin: int = 0,
    *,
    blocking: bool = False,
) -> ndarray:
    """Return an array of the current device; of one number, CuPy launches a kernel that has it as an argument."""
    if isinstance(obj, ndarray):
        obj = obj if obj.device.id == ndarray(()).device.id else stored(obj._raw)
        return obj.astype(obj.dtype if dtype is None else dtype, order=order or "K", copy=bool(copy))
    if isinstance(obj, list | tuple) and any(isinstance(x, ndarray) for x in obj):
        joined: ndarray = compute(lambda *parts: np.stack(parts), *map(array, obj), launches=len(obj))
        return joined if dtype is None else joined.astype(dtype)
    host = np.array(obj, dtype=dtype, order="F" if order == "F" else "K")
    if host.dtype.kind in "OUSMm":
        raise ValueError(f"Unsupported dtype {host.dtype}")
    if host.ndim == 0:
        made: ndarray = compute(lambda: host)
        return made
    transferred(usage.to_device, host.nbytes)
    return stored(np.ascontiguousarray(host) if order == "C" else host)


def asarray(a: Any, dtype: Any = None, order: Any = None, *, blocking: bool = False) -> ndarray:
    return array(a, dtype, copy=False, order=order or "K")


def asnumpy(a: Any, *args: Any, **options: Any) -> np.ndarray:
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


def from_dlpack(x: Any, *, device: Any = None, copy: Any = None) -> ndarray:
    if isinstance(x, ndarray):
        return x
    host = np.from_dlpack(x)
    transferred(usage.to_device, host.nbytes)
    return stored(host)


def copyto(dst: ndarray, src: Any, casting: str = "same_kind", where: Any = None) -> None:
    dst[...] = src


def may_share_memory(a: ndarray, b: ndarray, max_work: Any = None) -> bool:
    return bool(np.may_share_memory(a._raw, b._raw))
