"""What a fit is given: its labels are those that numpy.unique finds."""

from __future__ import annotations

import numpy as np
import pytest

from softmax_xp import validation

INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("end", ["lowest", "highest", "both"])
@pytest.mark.parametrize("span", [2, 100, 10**6])
def test_labels_are_those_of_unique(rng, dtype, end, span):
    limits = np.iinfo(dtype)
    span = min(span, int(limits.max) - int(limits.min))
    offsets = rng.integers(0, span + 1, size=300)
    low = int(limits.min) if end == "lowest" else int(limits.max) - span
    y = [low + int(k) for k in offsets]
    if end == "both":
        y += [int(limits.min), int(limits.max)]
    y = np.array(y, dtype=dtype)
    y = np.concatenate([y, y, y])
    classes, labels = validation.encoded_labels(y)
    expected_classes, expected_labels = np.unique(y, return_inverse=True)
    assert classes.dtype == y.dtype
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(classes, expected_classes)
    np.testing.assert_array_equal(labels, expected_labels)


@pytest.mark.parametrize("y", [[True, False, True], [2.0, 0.0, 2.0], ["b", "a", "b"], [np.float32(1), np.float32(0)]])
def test_labels_of_other_kinds_are_those_of_unique(y):
    y = np.array(y)
    classes, labels = validation.encoded_labels(y)
    assert classes.dtype == y.dtype
    np.testing.assert_array_equal(classes, np.unique(y))
    np.testing.assert_array_equal(classes[labels], y)


def test_integers_that_may_be_sorted_are_not(rng, monkeypatch):
    monkeypatch.setattr(validation.np, "unique", None)
    classes, labels = validation.encoded_labels(rng.integers(3, 7, size=1000))
    assert classes.tolist() == [3, 4, 5, 6]
    assert set(labels) == {0, 1, 2, 3}


def test_integers_far_apart_take_no_memory_for_what_is_between():
    classes, labels = validation.encoded_labels(np.array([2**62, -(2**62), 2**62, 0] * 10))
    assert classes.tolist() == [-(2**62), 0, 2**62]
    assert labels[:4].tolist() == [2, 0, 2, 1]


@pytest.mark.parametrize("n_classes", [11, 12, 24])
def test_a_target_that_looks_like_one_of_a_regression_is_told_of(n_classes):
    y = np.arange(22) % n_classes  # scikit-learn's rule: more classes than half of the rows
    if n_classes == 11:
        assert len(validation.encoded_labels(y)[0]) == 11
    else:
        with pytest.warns(UserWarning, match="could represent a regression problem"):
            validation.encoded_labels(y)
