"""Labels that differ stay different, and come back from every container and file as they were."""

from __future__ import annotations

import csv
import datetime
import decimal
import io
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st

import softmax_xp as sx
from softmax_xp.cli import app, data
from softmax_xp.labels import class_indices, label_array, labels_from_text
from softmax_xp.readers import DataFileError, read_table
from softmax_xp.validation import encoded_labels

BIG = 2**53  # of this integer and the next, float64 has only the first
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
FORMATS = ["csv", "npz", "parquet"]
ROWS = 4  # of each class


def rows_of(labels: list) -> tuple[np.ndarray, list]:
    """Return features that tell the classes apart, and the label of each row."""
    return np.tile(10.0 * np.eye(len(labels)), (ROWS, 1)), list(labels) * ROWS


def fitted(X: np.ndarray, y: object) -> sx.SoftmaxClassifier:
    return sx.SoftmaxClassifier(C=10.0, tol=1e-2, device="cpu").fit(X, y)


def check_fit(y: object, expected: np.ndarray) -> None:
    """Fit with labels `y`, save and load; `expected` (n,) has their values in the dtype that they should have."""
    labels = list(dict.fromkeys(expected.tolist()))
    X = 10.0 * np.eye(len(labels))[[labels.index(label) for label in expected.tolist()]]
    model = fitted(X, y)
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model")
        back = sx.load(Path(folder) / "model", device="cpu")
    assert model.classes_.dtype == expected.dtype
    assert model.classes_.dtype.isnative
    for classifier in (model, back):
        np.testing.assert_array_equal(classifier.classes_, np.unique(expected), strict=True)
        np.testing.assert_array_equal(classifier.predict(X), expected, strict=True)
        assert classifier.score(X, y) == 1.0


# --- Containers ---


def pandas_series(values: list, dtype: str) -> object:
    return pytest.importorskip("pandas").Series(values, dtype=dtype)


def polars_series(values: list, dtype: str) -> object:
    polars = pytest.importorskip("polars")
    return polars.Series(values, dtype=getattr(polars, dtype))


def arrow_array(values: list, dtype: str) -> object:
    pa = pytest.importorskip("pyarrow")
    return pa.array(values).dictionary_encode() if dtype == "dictionary" else pa.array(values, type=dtype)


CONTAINERS = [
    (list, ["a", "b", ""], None, "U1"),
    (list, ["a", "a\0", "b"], None, object),
    (list, [3, 1, 2], None, np.int64),
    (list, [BIG, BIG + 1, -1], None, np.int64),
    (list, [2**63, 2**63 + 1, 0], None, np.uint64),
    (list, [np.int64(BIG + 1), np.uint64(BIG), np.int8(1)], None, np.int64),
    (list, [np.int8(3), np.int8(-1)], None, np.int8),
    (list, [True, False], None, bool),
    (list, [np.True_, np.False_], None, bool),
    (list, [1.0, 2.0], None, np.float64),
    (list, [1, 2.0], None, np.float64),
    (tuple, ["x", "y"], None, "U1"),
    (np.array, ["a", "bb"], ">U2", "U2"),
    (np.array, ["a", "b\0"], object, object),
    (np.array, ["a", "b"], np.dtypes.StringDType(), object),
    (np.array, [BIG, BIG + 1], object, np.int64),
    (np.array, [True, False], object, bool),
    (np.array, [1, 2], ">i8", np.int64),
    (np.array, [1, 2], ">u2", np.uint16),
    (np.array, [1, 2], ">f4", np.float32),
    (np.array, [1, 2], np.float16, np.float16),
    (pandas_series, [BIG, BIG + 1], "Int64", np.int64),
    (pandas_series, [2**63, 2**63 + 1], "UInt64", np.uint64),
    (pandas_series, [1, -2], "Int8", np.int8),
    (pandas_series, [True, False], "boolean", bool),
    (pandas_series, [1.0, 2.0], "Float64", np.float64),
    (pandas_series, ["a", "b"], "string", object),
    (pandas_series, ["a", "b"], None, object),
    (pandas_series, ["a", "b\0"], "category", object),
    (pandas_series, [BIG, BIG + 1], "category", np.int64),
    (pandas_series, [True, False], "category", bool),
    (pandas_series, [BIG, BIG + 1], "int64[pyarrow]", np.int64),
    (pandas_series, [True, False], "bool[pyarrow]", bool),
    (pandas_series, ["a", "b"], "string[pyarrow]", object),
    (polars_series, [BIG, BIG + 1], "Int64", np.int64),
    (polars_series, [2**63, 2**63 + 1], "UInt64", np.uint64),
    (polars_series, [1, 2], "UInt8", np.uint8),
    (polars_series, [True, False], "Boolean", bool),
    (polars_series, ["a", "b"], "String", "U1"),
    (polars_series, ["a", "a\0"], "String", object),
    (polars_series, ["a", "b"], "Categorical", object),
    (arrow_array, [BIG, BIG + 1], "int64", np.int64),
    (arrow_array, [True, False], "bool", bool),
    (arrow_array, ["a", "b"], "dictionary", object),
]


@pytest.mark.parametrize(("container", "values", "dtype", "expected"), CONTAINERS)
def test_labels_of_a_container_come_back_in_their_dtype(container, values, dtype, expected):
    y = container(values * ROWS) if container in (list, tuple) else container(values * ROWS, dtype=dtype)
    check_fit(y, np.array(values * ROWS, dtype=expected))


@pytest.mark.parametrize(("column", "dtype"), [([BIG, BIG + 1], "Int64"), (["a", "b"], "string")])
def test_a_frame_of_one_column_is_labels(column, dtype):
    pandas = pytest.importorskip("pandas")
    y = pandas.DataFrame({"y": pandas.Series(column * ROWS, dtype=dtype)})
    with pytest.warns(UserWarning, match="column-vector"):
        assert fitted(*rows_of(column)[:1], y).classes_.tolist() == column


def test_labels_may_be_scalars_of_another_library():
    torch = pytest.importorskip("torch")
    y = label_array([torch.tensor(2), torch.tensor(BIG + 1)])
    np.testing.assert_array_equal(y, np.array([2, BIG + 1]), strict=True)


@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        ([1, "a", 1], TypeError, "of one type, got integer 1 at row 0 and text 'a' at row 1; pass one type"),
        ([1, "1", 1], TypeError, "integer 1 at row 0 and text '1' at row 1"),
        ([1, 1, True], TypeError, "integer 1 at row 0 and boolean True at row 2"),
        (["True", True], TypeError, "text 'True' at row 0 and boolean True at row 1"),
        ([2.0, BIG + 1], TypeError, "float 2.0 at row 0 and integer 9007199254740993 at row 1"),
        (np.array([1, "1"], dtype=object), TypeError, "integer 1 at row 0"),
        ([-1, 2**63], ValueError, "int64 or uint64.*got -1 to 9223372036854775808; pass text"),
        ([0, 2**64], ValueError, "int64 or uint64"),
        ([b"a", b"b"], TypeError, "got bytes; decode"),
        (np.array([b"a", b"b"]), TypeError, "got bytes; decode"),
        ([1j, 2j], TypeError, "got complex"),
        ([datetime.date(2020, 1, 1)] * 2, TypeError, "got date"),
        ([decimal.Decimal(1)] * 2, TypeError, "got Decimal"),
        ([object(), object()], TypeError, "got object"),
        ([["a", "b"], ["c", "d"]], ValueError, r"shape \(2, 2\)"),
        (None, ValueError, r"shape \(\)"),
        ("ab", ValueError, r"shape \(\)"),
        (["a", None], ValueError, "row 1 has None; pass"),
        (["a", float("nan")], ValueError, "row 1 has NaN; pass"),
        ([1.0, 2.0, np.nan], ValueError, "row 2 has NaN; pass"),
        (np.array([1.0, np.inf]), ValueError, "row 1 has infinity; pass"),
        (np.array(["2020-01-01", "NaT"], "M8[D]"), ValueError, "row 1 has NaN; pass"),
    ],
)
def test_what_is_no_label_is_refused_in_one_line(y, error, message):
    with pytest.raises(error, match=f"`y` must be .*{message}") as caught:
        label_array(y)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("y", [[], np.array([]), np.array([], dtype=int), np.array([], dtype=object)])
def test_no_labels_are_no_classes(y):
    with pytest.raises(ValueError, match="`y` must hold at least two classes, got none"):
        encoded_labels(y)


@pytest.mark.parametrize("dtype", ["Int64", "UInt8", "boolean", "string", "category", "Float64", "int64[pyarrow]"])
def test_a_missing_nullable_label_is_refused_by_its_row(dtype):
    pandas = pytest.importorskip("pandas")
    values = {"boolean": [True, False, None], "string": ["a", "b", None], "category": ["a", "b", None]}
    y = pandas.Series(values.get(dtype, [1, 2, None]), dtype=dtype)
    with pytest.raises(ValueError, match="`y` must be one class label a row, and row 2 has "):
        sx.SoftmaxClassifier(device="cpu").fit(np.eye(3), y)


def test_labels_that_a_library_cannot_hold_come_back_in_numpy():
    torch = pytest.importorskip("torch")
    X, y = rows_of([2**63, 2**63 + 1])
    predicted = fitted(X, np.array(y, dtype=np.uint64)).predict(torch.asarray(X))
    np.testing.assert_array_equal(predicted, np.array(y, dtype=np.uint64), strict=True)
    X, y = rows_of([BIG, BIG + 1])
    predicted = fitted(X, y).predict(torch.asarray(X))
    assert isinstance(predicted, torch.Tensor)
    assert predicted.tolist() == y


@pytest.mark.parametrize(
    "classes",
    [
        np.array([1, 2], dtype=">i8"),
        np.array([0, 2**64 - 1], dtype=np.uint64),
        np.array([BIG, BIG + 1]),
        np.array(["a", "b"], dtype=">U1"),
        np.array(["", "a\0", "\ud800"], dtype=object),
        np.array([-0.5, 0.25, 1e300]),
        np.array([0.1, 0.5], dtype=np.float32),
        np.array([False, True]),
    ],
)
def test_classes_set_by_hand_are_saved(tmp_path, classes):
    X, y = rows_of(list(range(len(classes))))
    model = fitted(X, y)
    model.classes_ = classes
    model.save(tmp_path / "model")
    back = sx.load(tmp_path / "model", device="cpu").classes_
    np.testing.assert_array_equal(back, classes.astype(classes.dtype.newbyteorder("=")), strict=True)


@pytest.mark.parametrize(
    "classes", [np.array([0.0, np.inf]), np.array(["a", "\ud800\udc00"], dtype=object), np.array([b"a", b"b"])]
)
def test_classes_that_a_file_cannot_give_back_are_not_saved(tmp_path, classes):
    model = fitted(*rows_of([0, 1]))
    model.classes_ = classes
    with pytest.raises(TypeError, match="finite numbers, booleans or text"):
        model.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())


# --- Matching ---


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        (["b", "a"], ["a", "b"], [1, 0]),
        (["1", "2"], [1, 2], [0, 1]),
        (["01", "2"], [1, 2], [None, 1]),  # a number is not written so
        (["1.0"], [1, 2], [0]),
        (["1", "1.0"], [1, 2], [0, None]),  # two labels of a file are not one class
        (["1e0", "1.00", "x"], [1, 2], [None, None, None]),
        (["1"], [1.0, 2.0], [0]),
        ([str(BIG + 1)], [BIG, BIG + 1], [1]),
        ([1, 2], ["1", "2", "x"], [0, 1]),
        ([1, 2], ["01", "1", "2"], [None, 2]),  # 1 may be either
        ([1], ["01", "2"], [None]),
        ([1.0], ["1", "2"], [0]),
        ([BIG, BIG + 1], [str(BIG), str(BIG + 1)], [0, 1]),
        ([1.0, 2.0], [1, 2], [0, 1]),
        ([1, 3], [1.0, 2.0], [0, None]),
        ([True, False], ["False", "True"], [1, 0]),
        ([True], ["TRUE", "true"], [None]),
        (["true", "false"], [False, True], [1, 0]),
        (["true", "TRUE"], [False, True], [None, None]),
        ([0, 1], [False, True], [0, 1]),
        ([2**63], [str(2**63), "x"], [0]),
    ],
)
def test_labels_match_the_classes_that_they_are_for_certain(labels, classes, expected):
    assert class_indices(label_array(labels), label_array(classes)) == expected


def test_fractions_match_in_every_precision():
    classes = np.array(["0.1", "0.5"])
    for dtype in (np.float32, np.float64):
        assert class_indices(np.array([0.1, 0.5], dtype=dtype), classes) == [0, 1]


@given(st.lists(st.text(), min_size=1, unique=True))
def test_text_becomes_numbers_only_if_these_are_written_as_the_text_is(texts):
    labels = labels_from_text(texts)
    assert [str(label) for label in labels.tolist()] == texts
    assert len(set(labels.tolist())) == len(texts)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, unique=True))
def test_text_of_integers_becomes_integers(values):
    np.testing.assert_array_equal(labels_from_text(list(map(str, values))), np.array(values), strict=True)


# --- Files ---

# Without line breaks, blank labels (no .csv has them) and a null character at the end (no array of NumPy has it).
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\r\n")
SPELLINGS = "01|1|1.0|1e2|100|+1|-0|0| a|a |a|A|ä|a\u0308|True|true|nan|NA|None|inf|1_0|0x1|a,b|a;b|#|\t"
TRICKY = ['"', "'", *SPELLINGS.split("|")]
TRICKY += [str(BIG), str(BIG + 1), f"{BIG + 1}.0", str(2**64)]
TEXTS = st.lists(
    (st.sampled_from(TRICKY) | st.text(CHARACTERS, min_size=1, max_size=6)).filter(
        lambda text: text.strip() and not text.endswith("\0")
    ),
    min_size=2,
    max_size=5,
    unique=True,
)


def typed_lists(dtype: str) -> st.SearchStrategy[list]:
    limits = np.iinfo(dtype)
    return st.lists(st.integers(int(limits.min), int(limits.max)), min_size=2, max_size=5, unique=True)


NUMBERS = st.sampled_from(INTEGERS).flatmap(lambda dtype: st.tuples(st.just(dtype), typed_lists(dtype)))
WHOLE = st.tuples(
    st.sampled_from(["float32", "float64"]),
    st.lists(st.integers(-(2**20), 2**20).map(float), min_size=2, max_size=5, unique=True),
)
TYPED = NUMBERS | WHOLE | st.tuples(st.just("bool"), st.just([True, False]))


def written(folder: str, kind: str, X: np.ndarray, y: np.ndarray) -> Path:
    file = Path(folder) / f"data.{kind}"
    if kind == "csv":
        with open(file, "w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow([*(f"x{i}" for i in range(X.shape[1])), "y"])
            writer.writerows([*row, label] for row, label in zip(X.tolist(), y.tolist(), strict=True))
    elif kind == "npz":
        np.savez(file, X=X, y=y)
    else:
        pa = pytest.importorskip("pyarrow")
        columns = {f"x{i}": X[:, i] for i in range(X.shape[1])}
        pytest.importorskip("pyarrow.parquet").write_table(
            pa.table(columns | {"y": pa.array(y.tolist() if y.dtype.kind in "OU" else y)}), file
        )
    return file


def check_files(X: np.ndarray, y: np.ndarray, trained_on: str, tested_on: str, labels: str = "auto") -> None:
    """Train on one file, save, load, and compare the predictions with the labels in another."""
    with tempfile.TemporaryDirectory() as folder:
        table = read_table(written(folder, trained_on, X, y), labels=labels)
        fitted(table.X, table.y).save(Path(folder) / "model")
        file = written(folder, tested_on, X, y)
        model, table = data.model_and_table(Path(folder) / "model", file, "cpu")
    predicted = model.predict(table.X)
    true = data.class_indices(table, model.classes_)
    np.testing.assert_array_equal(model.classes_[true], predicted)
    assert len(np.unique(true)) == len(np.unique(y))
    if trained_on == "csv" or labels == "text":
        assert [str(label) for label in predicted.tolist()] == [str(label) for label in y.tolist()]
    else:
        assert predicted.tolist() == y.tolist()
        if trained_on == "npz":
            assert predicted.dtype == y.dtype


@pytest.mark.parametrize("tested_on", FORMATS)
@pytest.mark.parametrize("trained_on", FORMATS)
class TestFiles:
    """From one format to another, and back."""

    @settings(max_examples=15, deadline=None)
    @given(texts=TEXTS, labels=st.sampled_from(["auto", "text"]))
    def test_text_comes_back(self, trained_on, tested_on, texts, labels):
        X, y = rows_of(texts)
        assume(labels == "text" or not all_numbers_and_a_fraction(texts))
        check_files(X, np.array(y), trained_on, tested_on, labels)

    @settings(max_examples=15, deadline=None)
    @given(drawn=TYPED, labels=st.sampled_from(["auto", "text"]))
    def test_numbers_and_booleans_come_back(self, trained_on, tested_on, drawn, labels):
        dtype, values = drawn
        X, y = rows_of(values)
        check_files(X, np.array(y, dtype=dtype), trained_on, tested_on, labels)


def all_numbers_and_a_fraction(texts: list[str]) -> bool:
    try:
        return any(float(text) % 1.0 > 0.0 for text in texts if float(text) or True)
    except ValueError:
        return False


@settings(max_examples=15, deadline=None)
@given(
    drawn=st.one_of(
        st.tuples(st.just("Int64"), typed_lists("int64")),
        st.tuples(st.just("UInt64"), typed_lists("uint64")),
        st.tuples(st.just("Int8"), typed_lists("int8")),
        st.tuples(st.just("boolean"), st.just([True, False])),
        st.tuples(st.sampled_from(["string", "category", "object"]), TEXTS),
        st.tuples(st.just("category"), typed_lists("int64")),
    ),
    in_file=st.booleans(),
)
def test_nullable_and_categorical_labels_come_back(drawn, in_file):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    dtype, values = drawn
    X, y = rows_of(values)
    frame = pandas.DataFrame(X, columns=[f"x{i}" for i in range(X.shape[1])])
    frame["y"] = pandas.Series(y, dtype=dtype)
    with tempfile.TemporaryDirectory() as folder:
        labels = frame["y"]
        if in_file:
            frame.to_parquet(Path(folder) / "a.parquet")
            labels = read_table(Path(folder) / "a.parquet").y
        fitted(X, labels).save(Path(folder) / "model")
        predicted = sx.load(Path(folder) / "model", device="cpu").predict(X)
    assert predicted.tolist() == y
    assert set(map(type, predicted.tolist())) == {type(y[0])}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command; return its JSON, or its error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOFTMAX_XP_DEVICE", "cpu")

    def run(*args: object) -> dict:
        with pytest.raises(SystemExit) as caught:
            app.main([*map(str, args), "--json"])
        out, err = capsys.readouterr()
        return json.loads(out) if caught.value.code == 0 else {"error": err}

    return run


def test_evaluate_and_test_read_labels_as_the_training_did(run, tmp_path):
    X, y = rows_of(["01", "1", "x"])
    written(str(tmp_path), "csv", X, np.array(y)).rename("all.csv")
    ones = np.array(y) == "1"
    written(str(tmp_path), "csv", X[ones], np.array(y)[ones]).rename("ones.csv")
    report = run("train", "all.csv", "--test", "ones.csv", "--C", "10")
    assert report["classes"] == ["01", "1", "x"]
    assert report["test_accuracy"] == 1.0
    assert run("evaluate", "model.safetensors", "ones.csv")["accuracy"] == 1.0
    np.savez("ones.npz", X=X[ones], y=np.ones(ROWS, dtype=int))
    assert "got 1; leave out" in run("evaluate", "model.safetensors", "ones.npz")["error"]  # "01" or "1"


def test_labels_are_text_if_wanted(run, tmp_path):
    X, y = rows_of([1, 2])
    written(str(tmp_path), "csv", X, np.array(y))
    assert run("train", "data.csv", "--labels", "text")["classes"] == ["1", "2"]
    np.savez("data.npz", X=X, y=y)
    assert run("evaluate", "model.safetensors", "data.npz")["accuracy"] == 1.0
    assert run("train", "data.npz", "--labels", "text")["classes"] == ["1", "2"]
    assert run("train", "data.csv")["classes"] == [1, 2]
    X, y = rows_of([0.1, 2.5])
    for dtype in ("float32", "float64"):
        np.savez("half.npz", X=X, y=np.array(y, dtype=dtype))
        assert "--labels text" in run("train", "half.npz")["error"]
        assert run("train", "half.npz", "--labels", "text")["classes"] == ["0.1", "2.5"]
        assert run("evaluate", "model.safetensors", "half.npz")["accuracy"] == 1.0


def test_prices_are_no_classes(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("x,y\n1,12.50\n2,3.99\n")
    with pytest.raises(DataFileError, match=r"'y' must be classes.*got 12\.50 at row 0; .*--labels text"):
        read_table(file)
    assert read_table(file, labels="text").y.tolist() == ["12.50", "3.99"]


def test_a_space_after_each_separator_is_no_part_of_a_label(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text("a, b, y\n1, 2, cat\n3, 4, dog\n")
    assert read_table(file).y.tolist() == ["cat", "dog"]
    file.write_text("a,b,y\n1, 2, 7\n3, 4, 8\n")
    assert read_table(file).y.tolist() == [7, 8]
    file.write_text("a,y\n1, cat\n2, dog\n3,cat\n")
    assert read_table(file).y.tolist() == [" cat", " dog", "cat"]


@pytest.mark.parametrize("kind", FORMATS)
def test_labels_come_from_standard_input_too(run, tmp_path, monkeypatch, kind):
    X, y = rows_of([BIG, BIG + 1])
    content = written(str(tmp_path), kind, X, np.array(y)).read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert run("train", "-")["classes"] == [BIG, BIG + 1]
