"""The rules of arguments, and their messages: each names the argument, the rule, the value and a remedy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

from softmax_xp.arrays import (
    Array,
    DType,
    Namespace,
    accumulation_dtype,
    all_finite,
    check_dense,
    describe,
    detached,
    device_of,
    dtype_name,
    is_array,
    is_floating,
    is_integral,
    on_its_device,
    range_of,
    to_numpy,
    working_dtype,
)


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


@on_its_device
def check_finite(xp: Namespace, x: Array, name: str, weight: Array | None = None) -> bool:
    """Return whether all of `x` (2-D) is finite.

    Raise ValueError where a row of another `weight` (n,) than 0 holds a NaN or an infinity, naming the first one's
    place. The weights may be of another library.
    """
    if all_finite(xp, x):
        return True
    bad = xp.logical_not(xp.isfinite(x))
    bad_rows = to_numpy(xp.any(bad, axis=1))
    if weight is not None:
        bad_rows = bad_rows & (to_numpy(weight) != 0)
    if not bad_rows.any():
        return False
    row = int(np.argmax(bad_rows))
    column = int(xp.argmax(xp.astype(bad[row, :], xp.int32)))
    value = float(x[row, column])
    raise ValueError(
        f"`{name}` must be finite, got {'NaN' if math.isnan(value) else value} at row {row}, column {column}; "
        f"drop or impute such rows."
    )


@on_its_device
def check_labels(xp: Namespace, labels: Array, n_classes: int, name: str = "labels") -> Array:
    """Return `labels` as int64; raise unless they are integers (TypeError) in [0, n_classes) (ValueError)."""
    if not is_integral(xp, labels.dtype):
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


def are_probabilities(xp: Namespace, targets: Array, n_classes: int, name: str = "labels") -> bool:
    """Return whether targets are probabilities, and not labels; raise unless their rank and dtype are those of one."""
    if targets.ndim == 2 and (targets.shape[1] == n_classes or is_floating(xp, targets.dtype)):
        check_floating(xp, targets, name)
        return True
    check_rank(targets, name, 1, "(n_samples,)")
    return False


@on_its_device
def check_probabilities(xp: Namespace, targets: Array, n_classes: int, name: str = "labels") -> None:
    """Raise ValueError unless `targets` (n, n_classes) are finite, non-negative rows that sum to one."""
    targets = detached(targets)
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


@on_its_device
def check_weights(xp: Namespace, weights: Array, n: int, name: str = "sample_weight", of: str = "X") -> None:
    """Raise unless `weights` (n,) are finite, none negative, and not all zero."""
    check_rank(weights, name, 1, "(n_samples,)")
    check_length(weights, name, n, of)
    check_floating(xp, weights, name)
    weights = detached(weights)
    # Nothing is added: finite weights may have a sum that is not.
    least, greatest = float(xp.min(weights)), float(xp.max(weights))
    if not (math.isfinite(least) and math.isfinite(greatest)):
        row = int(np.argmax(to_numpy(xp.logical_not(xp.isfinite(weights)))))
        raise ValueError(f"`{name}` must be finite, got {float(weights[row])}; drop or repair rows like row {row}.")
    if least < 0:
        raise ValueError(
            f"`{name}` must not be negative, got {least} at row {int(xp.argmin(weights))}; use 0 to leave a row out."
        )
    if greatest == 0:
        raise ValueError(f"`{name}` must not be all zero, got {n} zeros; give at least one row a positive weight.")


@on_its_device
def scaled_weights(xp: Namespace, weights: Array) -> tuple[Array, int]:
    """Return `weights`, not all zero, as ratios to a power of two, and its exponent.

    The ratios are in the widest floating dtype of the device and the largest lies in [1, 2), so that sums of them
    neither overflow nor underflow. Dividing by a power of two is exact.
    """
    exponent = math.frexp(float(xp.max(detached(weights))))[1] - 1
    weights = xp.astype(weights, accumulation_dtype(xp, device_of(weights)), copy=False)
    half = exponent // 2  # in two steps, as the inverse of a power of two may overflow
    return weights * 2.0**-half * 2.0 ** (half - exponent), exponent


def check_real(
    value: Any,
    name: str,
    *,
    remedy: str,
    low: float = -math.inf,
    high: float = math.inf,
    include_low: bool = True,
    include_high: bool = True,
) -> float:
    """Return `value` as a float; raise unless it is one real number (TypeError) in the interval (ValueError).

    A 0-d real array of any library counts as a number. `remedy` ends the message, for example "choose a value such
    as 1.0".
    """
    check_dense(value, name)
    if is_array(value) and value.ndim == 0:
        value = to_numpy(value).item()
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise TypeError(f"`{name}` must be a real number, got {describe(value)}; pass a float; {remedy}.")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isinf(number) and value not in (math.inf, -math.inf):
        raise ValueError(f"`{name}` must be a number that float64 can hold, got {describe(value)}; {remedy}.")
    above = number >= low if include_low else number > low
    below = number <= high if include_high else number < high
    if not (above and below):
        left, right = "[" if include_low else "(", "]" if include_high else ")"
        raise ValueError(f"`{name}` must lie in {left}{low:g}, {high:g}{right}, got {number}; {remedy}.")
    return number


def check_integer(value: Any, name: str, *, low: int, remedy: str, high: int = 2**63 - 1) -> int:
    """Return `value` as an int; raise unless it is an integer (TypeError) from `low` to `high` (ValueError).

    `remedy` ends the message, for example "choose a value such as 100".
    """
    check_dense(value, name)
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be an integer, got {describe(value)}; pass an int; {remedy}.")
    number = int(value)
    if not low <= number <= high:
        rule = f"at least {low}" if number < low else f"at most {high}"
        raise ValueError(f"`{name}` must be {rule}, got {describe(number)}; {remedy}.")
    return number


def check_bool(value: Any, name: str) -> bool:
    """Return `value` as a bool; raise TypeError unless it is one, of Python or NumPy."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"`{name}` must be True or False, got {describe(value)}; pass a bool.")
    return bool(value)


def check_random_state(value: Any, name: str = "random_state") -> np.random.Generator:
    """Return the generator that a seed stands for, or that `value` is; raise, naming the argument, if it is neither."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError("a bool is no seed")
        return np.random.default_rng(value)
    except (TypeError, ValueError) as error:
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(
            f"`{name}` must be None, a non-negative integer or a numpy.random.Generator, got {describe(value)}; "
            f"choose a seed such as 0."
        ) from error


def check_held(xp: Namespace, value: float, name: str, dtype: DType) -> None:
    """Raise ValueError unless a number that is not negative is 0, or one that `dtype` holds to its full precision."""
    least, greatest = range_of(xp, dtype)
    if value and not least <= value <= greatest:
        raise ValueError(
            f"`{name}` must be 0 or lie in [{least:.3g}, {greatest:.3g}], which {dtype_name(dtype)} can hold, "
            f"got {value}; choose a value in between, or pass wider arrays."
        )


def check_option(value: Any, name: str, options: Sequence[str]) -> str:
    """Return `value`; raise ValueError unless it is one of `options`."""
    if not isinstance(value, str) or value not in options:
        known = ", ".join(repr(option) for option in options)
        raise ValueError(f"`{name}` must be one of {known}, got {describe(value)}; choose one of them.")
    return value
