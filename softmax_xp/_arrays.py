"""Arrays of any library: their namespace, their conversion, and the checks on arguments.

Every message of a check names the argument, the rule, the value found and the remedy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from numbers import Integral, Real
from typing import Any, TypeAlias, TypeVar, cast

import array_api_compat
import numpy as np

Array: TypeAlias = Any
Namespace: TypeAlias = Any
DType: TypeAlias = Any
Device: TypeAlias = Any
F = TypeVar("F", bound=Callable[..., Any])


# What is computed for each row and class exists for a block of rows at a time, of at most this many bytes, so that
# memory does not grow with the number of rows.
BLOCK_BYTES = 8 << 20
GPU_BLOCK_BYTES = 256 << 20  # its kernels want more rows at a time


def row_blocks(n_rows: int, row_bytes: int, block_bytes: int | None = None) -> Iterator[slice]:
    """Yield the slices of rows, in order, that fill at most `block_bytes` (BLOCK_BYTES) each, but one row at least."""
    step = max(1, (BLOCK_BYTES if block_bytes is None else block_bytes) // row_bytes)
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def is_gpu(device: Device) -> bool:
    """Return whether `device` is one that has to be made the current one: a GPU, as CuPy names it."""
    return hasattr(device, "use")


def block_bytes(device: Device) -> int:
    """Return how large the blocks of rows should be that are computed on `device`."""
    return GPU_BLOCK_BYTES if is_gpu(device) else BLOCK_BYTES


def is_array(x: object) -> bool:
    """Return whether `x` is an array of a library that follows the array API standard."""
    return not isinstance(x, type) and bool(array_api_compat.is_array_api_obj(x))


def is_numpy(x: object) -> bool:
    """Return whether `x` is a NumPy array (or scalar), the one kind that every machine can hold."""
    return isinstance(x, np.ndarray | np.generic)


def namespace(**arrays: Array) -> Namespace:
    """Return the one array API namespace that all of `arrays` (given by argument name) belong to.

    Arguments that are None are left out. TypeError when one is not an array, or when two libraries meet.
    """
    present = {name: x for name, x in arrays.items() if x is not None} or arrays
    for name, x in present.items():
        if not is_array(x):
            raise TypeError(
                f"`{name}` must be an array (NumPy, CuPy, torch or another array API library), "
                f"got {type(x).__name__}; convert it first, for example numpy.asarray({name})."
            )
    try:
        return array_api_compat.array_namespace(*present.values())
    except TypeError:
        kinds = ", ".join(f"`{name}`: {type(x).__module__}.{type(x).__name__}" for name, x in present.items())
        raise TypeError(
            f"all arrays must come from one library, got {kinds}; convert them to the library of the first."
        ) from None


def device_of(x: Array) -> Device:
    """Return the device of `x` as its library names it."""
    return array_api_compat.device(x)


def device_context(device: Device) -> AbstractContextManager[Any]:
    """Return a context in which new arrays are made on `device`.

    A CUDA library needs it: its kernels run on the current device, not on that of their arguments.
    """
    return device if is_gpu(device) else nullcontext()


def detached(x: Array) -> Array:
    """Return `x` without the autograd graph of its library, which would grow with every step of a solver."""
    return x.detach() if hasattr(x, "detach") else x


def to_numpy(x: Array) -> np.ndarray:
    """Return `x` as a NumPy array on the host; the memory is shared where the library allows it."""
    if is_numpy(x) or not is_array(x):
        return np.asarray(x)
    xp = array_api_compat.array_namespace(x)
    if dtype_name(x.dtype) == "bfloat16":  # NumPy has no such type; float32 holds each of its values
        x = xp.astype(x, xp.float32)
    try:
        x = array_api_compat.to_device(detached(x), "cpu")
    except (ValueError, TypeError):  # a library whose host is not called "cpu" exports it by DLPack
        return np.from_dlpack(x)
    return x if is_numpy(x) else np.from_dlpack(x)


def dtype_name(dtype: DType) -> str:
    """Return the bare name of a dtype of any library: "float32", "bfloat16", "int64"."""
    return dtype.__name__ if isinstance(dtype, type) else str(dtype).rsplit(".", 1)[-1]


def is_floating(xp: Namespace, dtype: DType) -> bool:
    """Return whether `dtype` is a real floating one; NumPy and CuPy do not know that of the bfloat16 of ml_dtypes."""
    return dtype_name(dtype) == "bfloat16" or bool(xp.isdtype(dtype, "real floating"))


def working_dtype(xp: Namespace, dtype: DType) -> DType:
    """Return the dtype in which arithmetic on `dtype` is done: itself, but float32 for 16-bit floats."""
    return xp.float32 if bytes_of(xp, dtype) < 4 else dtype


def accumulation_dtype(xp: Namespace, device: Device) -> DType:
    """Return the widest real floating dtype of `device`: float64, or float32 where that is missing."""
    real = xp.__array_namespace_info__().dtypes(device=device, kind="real floating")
    return real.get("float64", xp.float32)


def bytes_of(xp: Namespace, dtype: DType) -> int:
    """Return the size of one number of a real floating dtype."""
    return 2 if dtype_name(dtype) == "bfloat16" else int(xp.finfo(dtype).bits) // 8


def describe(x: object) -> str:
    """Return a short account of a value for an error message."""
    if is_array(x):
        return f"an array of shape {tuple(x.shape)} and dtype {dtype_name(x.dtype)}"  # type: ignore[attr-defined]
    text = repr(x)
    return text if len(text) <= 60 else text[:57] + "..."


def check_rank(x: Array, name: str, rank: int, shape: str) -> None:
    """Raise ValueError unless `x` has `rank` axes, none of them empty; `shape` is its form in words."""
    if x.ndim != rank:
        remedy = {
            1: f"flatten it with {name}.reshape(-1)",
            2: f"reshape it, for example {name}.reshape(len({name}), -1)",
        }.get(rank, "reshape it")
        raise ValueError(f"`{name}` must have shape {shape}, got {x.ndim}-d of shape {tuple(x.shape)}; {remedy}.")
    if 0 in x.shape:
        raise ValueError(
            f"`{name}` must have shape {shape} with no empty axis, got shape {tuple(x.shape)}; "
            f"pass at least one row and one column."
        )


def check_floating(xp: Namespace, x: Array, name: str) -> None:
    """Raise TypeError unless `x` has a real floating dtype."""
    if not is_floating(xp, x.dtype):
        raise TypeError(
            f"`{name}` must have a real floating dtype, got {dtype_name(x.dtype)}; "
            f"convert it first, for example to float32."
        )


def check_length(x: Array, name: str, n: int, of: str) -> None:
    """Raise ValueError unless the first axis of `x` has length `n`, the number of rows of argument `of`."""
    if x.shape[0] != n:
        raise ValueError(
            f"`{name}` must have one entry per row of `{of}` ({n}), got {x.shape[0]}; select the same rows from both."
        )


def _where_it_lies(check: F) -> F:
    """Run a check on the device of the array that it looks at, which need not be the one that is computed on."""

    @wraps(check)
    def on_its_device(xp: Namespace, x: Array, *args: Any, **kwargs: Any) -> Any:
        with device_context(device_of(x)):
            return check(xp, x, *args, **kwargs)

    return cast("F", on_its_device)


@_where_it_lies
def all_finite(xp: Namespace, x: Array) -> bool:
    """Return whether `x` holds neither a NaN nor an infinity."""
    # A finite sum proves every term finite, in one pass that allocates nothing. Where it overflows, look closer.
    with np.errstate(over="ignore", invalid="ignore"):
        return math.isfinite(float(xp.sum(x))) or bool(xp.all(xp.isfinite(x)))


@_where_it_lies
def check_finite(xp: Namespace, x: Array, name: str) -> None:
    """Raise ValueError where `x` (2-D) holds a NaN or an infinity, naming the first one's place."""
    if all_finite(xp, x):
        return
    bad = xp.logical_not(xp.isfinite(x))
    row = int(xp.argmax(xp.astype(xp.any(bad, axis=1), xp.int32)))
    column = int(xp.argmax(xp.astype(bad[row, :], xp.int32)))
    value = float(x[row, column])
    raise ValueError(
        f"`{name}` must be finite, got {'NaN' if math.isnan(value) else value} at row {row}, column {column}; "
        f"drop or impute such rows."
    )


@_where_it_lies
def check_labels(xp: Namespace, labels: Array, n_classes: int, name: str = "labels") -> Array:
    """Return `labels` as int64; raise unless they are integers (TypeError) in [0, n_classes) (ValueError)."""
    if not xp.isdtype(labels.dtype, "integral"):
        raise TypeError(
            f"`{name}` must be integer class indices, got dtype {dtype_name(labels.dtype)}; "
            f"encode them first, for example numpy.unique({name}, return_inverse=True)[1], "
            f"or pass probabilities of shape (n_samples, n_classes)."
        )
    labels = xp.astype(labels, xp.int64, copy=False)  # not every library computes with every integer dtype
    if int(xp.min(labels)) < 0 or int(xp.max(labels)) >= n_classes:
        row = int(xp.argmax(xp.astype(xp.logical_or(labels < 0, labels >= n_classes), xp.int32)))
        raise ValueError(
            f"`{name}` must lie in [0, {n_classes}), got {int(labels[row])} at row {row}; encode them first, "
            f"for example numpy.unique({name}, return_inverse=True)[1]."
        )
    return labels


@_where_it_lies
def check_probabilities(xp: Namespace, targets: Array, n_classes: int, name: str = "labels") -> None:
    """Raise ValueError unless `targets` (n, n_classes) are finite, non-negative rows that sum to one."""
    if targets.ndim != 2 or targets.shape[1] != n_classes:
        raise ValueError(
            f"`{name}` as probabilities must have shape (n_samples, {n_classes}), got {tuple(targets.shape)}; "
            f"give one column per class."
        )
    check_finite(xp, targets, name)
    if float(xp.min(targets)) < 0:
        raise ValueError(
            f"`{name}` as probabilities must not be negative, got {float(xp.min(targets))}; "
            f"normalise each row to probabilities."
        )
    wide = working_dtype(xp, targets.dtype)
    excess = xp.abs(xp.sum(xp.astype(targets, wide), axis=1) - 1.0)
    # Probabilities in float64 have often been float32 before.
    own = 2.0**-7 if dtype_name(targets.dtype) == "bfloat16" else float(xp.finfo(targets.dtype).eps)
    eps = max(own, float(xp.finfo(xp.float32).eps))
    if float(xp.max(excess)) > 8 * n_classes**0.5 * eps:
        row = int(xp.argmax(excess))
        raise ValueError(
            f"`{name}` as probabilities must sum to 1 in each row, got "
            f"{float(xp.sum(xp.astype(targets[row, :], wide)))} at row {row}; divide each row by its sum."
        )


@_where_it_lies
def check_weights(xp: Namespace, weights: Array, n: int, name: str = "sample_weight", of: str = "X") -> None:
    """Raise unless `weights` (n,) are finite, none negative, and not all zero."""
    check_rank(weights, name, 1, "(n_samples,)")
    check_length(weights, name, n, of)
    check_floating(xp, weights, name)
    wide = accumulation_dtype(xp, device_of(weights))
    total, least = float(xp.sum(weights, dtype=wide)), float(xp.min(weights))
    if not (math.isfinite(total) and math.isfinite(least)):
        raise ValueError(f"`{name}` must be finite, got a sum of {total}; drop or repair such rows.")
    if least < 0:
        raise ValueError(
            f"`{name}` must not be negative, got {least} at row {int(xp.argmin(weights))}; use 0 to leave a row out."
        )
    if total == 0:
        raise ValueError(f"`{name}` must not be all zero, got {n} zeros; give at least one row a positive weight.")


def check_real(
    value: Any,
    name: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    include_low: bool = True,
    include_high: bool = True,
) -> float:
    """Return `value` as a float; raise unless it is one real number (TypeError) in the interval (ValueError).

    A 0-d real array of any library counts as a number.
    """
    if is_array(value) and value.ndim == 0:
        value = to_numpy(value).item()
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a real number, got {describe(value)}; pass a float.")
    number = float(value)
    above = number >= low if include_low else number > low
    below = number <= high if include_high else number < high
    if not (above and below):
        left, right = "[" if include_low else "(", "]" if include_high else ")"
        raise ValueError(
            f"`{name}` must lie in {left}{low:g}, {high:g}{right}, got {number}; choose a value in that range."
        )
    return number


def check_integer(value: Any, name: str, *, low: int) -> int:
    """Return `value` as an int; raise unless it is an integer (TypeError) of at least `low` (ValueError)."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be an integer, got {describe(value)}; pass an int.")
    if value < low:
        raise ValueError(f"`{name}` must be at least {low}, got {int(value)}; choose a value in that range.")
    return int(value)


def check_option(value: Any, name: str, options: Sequence[str]) -> str:
    """Return `value`; raise ValueError unless it is one of `options`."""
    if not isinstance(value, str) or value not in options:
        known = ", ".join(repr(option) for option in options)
        raise ValueError(f"`{name}` must be one of {known}, got {describe(value)}; choose one of them.")
    return value
