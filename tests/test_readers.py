"""Files come back as they were written, or are refused in one line that names them."""

import builtins
import datetime
import decimal
import gzip
import io
import pickle
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from softmax_xp.readers import DataFileError, Table, labels_file, read_table

X = np.array([[1.5, -2.0], [0.0, 4.25], [3.0, 1e-3]])
Y = np.array([2, 0, 1])
TEXT_Y = np.array(["cat", "dog", "cat"])
CSV = b"a,b,y\n1.5,-2,2\n0,4.25,0\n3,1e-3,1\n"
IMAGES = np.arange(3 * 2 * 4, dtype=np.uint8).reshape(3, 2, 4) * 10


def write(file: Path, content: bytes) -> Path:
    file.write_bytes(gzip.compress(content) if file.name.endswith(".gz") else content)
    return file


def npy_bytes(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=allow_pickle)
    return stream.getvalue()


def npz_bytes(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def idx_bytes(array: np.ndarray) -> bytes:
    code = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}[array.dtype.str[1:]]
    return (
        struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
        + array.astype(array.dtype.newbyteorder(">")).tobytes()
    )


def parquet_bytes(**columns: object) -> bytes:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    stream = io.BytesIO()
    parquet.write_table(pa.table(columns), stream)
    return stream.getvalue()


def refusal(path: object, *mentions: str, **options: object) -> str:
    """Read `path`, check that the refusal is one line naming it and every mention, and return it."""
    with pytest.raises(DataFileError) as caught:
        read_table(path, **options)
    message = str(caught.value)
    assert str(path) in message
    assert message.splitlines() == [message]
    for mention in mentions:
        assert mention in message
    assert "; " in message  # the remedy follows the rule
    return message


def check(table: Table, X: np.ndarray, y: np.ndarray | None, names: list[str] | None = None) -> None:
    assert table.X.dtype == X.dtype
    assert table.X.dtype.isnative
    assert table.X.flags.c_contiguous
    assert table.feature_names == names
    np.testing.assert_array_equal(table.X, X, strict=True)
    if y is None:
        assert table.y is None
    else:
        assert table.y.dtype.isnative
        np.testing.assert_array_equal(table.y, y, strict=True)


# --- npz and npy ---


@pytest.mark.parametrize("data", ["X", "data", "x", "features"])
@pytest.mark.parametrize("target", ["y", "labels", "target"])
def test_npz_returns_its_arrays(tmp_path, data, target):
    file = write(tmp_path / "a.npz", npz_bytes(**{data: X, target: Y, "other": Y}))
    table = read_table(file)
    check(table, X, Y)
    assert table.source == str(file)
    check(read_table(str(file), target="other", features=["ignored"]), X, Y)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ("f2", "f4"),
        ("f4", "f4"),
        (">f4", "f4"),
        ("u1", "f4"),
        ("f8", "f8"),
        (">f8", "f8"),
        ("g", "f8"),
        ("i1", "f8"),
        ("u2", "f8"),
        ("i8", "f8"),
        ("?", "f8"),
    ],
)
def test_features_become_floats_and_are_not_scaled(tmp_path, stored, expected):
    values = np.array([[0, 1, 1], [1, 0, 1]]).astype(stored)
    file = write(tmp_path / "a.npz", npz_bytes(X=np.asfortranarray(values), y=Y[:2]))
    check(read_table(file), values.astype(expected), Y[:2])


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (Y[:, None], Y),
        (Y.astype(np.uint8), Y.astype(np.uint8)),
        (Y.astype(">i4"), Y.astype(np.int32)),
        (Y.astype(np.float32), Y.astype(np.float32)),
        (Y.astype(">f8"), Y.astype(np.float64)),
        (np.array([True, False, True]), np.array([True, False, True])),
        (np.array([2**63, 2**64 - 1, 0], dtype=np.uint64), np.array([2**63, 2**64 - 1, 0], dtype=np.uint64)),
        (np.array(["007", "7", ""]), np.array(["007", "7", ""])),
        (TEXT_Y, TEXT_Y),
        (TEXT_Y.astype(">U5"), TEXT_Y.astype("U5")),
        (np.char.encode(np.array(["é", "b", "c"]), "utf-8"), np.array(["é", "b", "c"])),
    ],
)
def test_labels_keep_their_dtype_in_native_byte_order(tmp_path, stored, expected):
    check(read_table(write(tmp_path / "a.npz", npz_bytes(X=X, y=stored))), X, expected)


@pytest.mark.parametrize(
    ("data", "labels"),
    [
        ("X.npy", "y.npy"),
        ("x.npy", "y.npy"),
        ("X_train.npy", "y_train.npy"),
        ("train_X.npy", "train_y.npy"),
        ("MAX-X2.npy", "MAX-y2.npy"),
        ("features.npy", "labels.npy"),
        ("test.images.npy", "test.labels.npy"),
    ],
)
def test_npy_finds_its_partner(tmp_path, data, labels):
    write(tmp_path / data, npy_bytes(X))
    refusal(tmp_path / data, labels, "does not exist", "--target")
    check(read_table(tmp_path / data, need_target=False), X, None)
    write(tmp_path / labels, npy_bytes(Y))
    check(read_table(tmp_path / data), X, Y)
    check(read_table(tmp_path / data, need_target=False), X, Y)


def test_npy_takes_labels_by_path(tmp_path):
    file = write(tmp_path / "embeddings.npy", npy_bytes(X))
    refusal(file, "suggests none", "--target")
    check(read_table(file, need_target=False), X, None)
    check(read_table(file, target=str(write(tmp_path / "a.npy", npy_bytes(TEXT_Y)))), X, TEXT_Y)
    check(
        read_table(file, target=str(write(tmp_path / "b.idx.gz", idx_bytes(Y.astype("u1"))))),
        X,
        Y.astype("u1"),
    )
    refusal(file, "'y'", "no such file", target="y", need_target=False)
    table = write(tmp_path / "c.csv", CSV)
    with pytest.raises(DataFileError, match=r"c\.csv: the labels of embeddings\.npy must be \.npy or IDX"):
        read_table(file, target=str(table))


def test_labels_have_a_file_of_their_own_beside_npy_and_idx(tmp_path):
    file, other = write(tmp_path / "X.npy", npy_bytes(X)), write(tmp_path / "other.npy", npy_bytes(Y))
    assert labels_file(file) is None
    labels = write(tmp_path / "y.npy", npy_bytes(Y))
    assert labels_file(file) == labels
    assert labels_file(file, str(other)) == other
    assert labels_file(other) is None
    table = write(tmp_path / "X.csv", CSV)
    assert labels_file(table) is labels_file(table, str(other)) is None  # there the target is a column
    with pytest.raises(DataFileError, match="no such file"):
        labels_file(tmp_path / "missing.npy")


@pytest.mark.parametrize(
    ("array", "mentions"),
    [
        (X[:, 0], ["(3,)", "reshape"]),
        (np.zeros((3, 2, 2)), ["(3, 2, 2)", "reshape(len(X), -1)"]),
        (np.array(1.0), ["()"]),
        (X[:0], ["(0, 2)", "at least one"]),
        (X[:, :0], ["(3, 0)", "at least one"]),
        (X.astype(complex), ["complex128"]),
        (X.astype(str), ["<U32"]),
        (np.zeros((3, 2), "M8[s]"), ["datetime64"]),
        (np.zeros((3, 2), "m8[s]"), ["timedelta64"]),
        (np.zeros((3, 2), [("a", float)]), ["[('a', '<f8')]"]),
    ],
)
def test_features_that_are_no_matrix_are_refused(tmp_path, array, mentions):
    refusal(write(tmp_path / "X.npy", npy_bytes(array)), *mentions, need_target=False)
    refusal(write(tmp_path / "a.npz", npz_bytes(X=array, y=Y)), "array 'X'", *mentions)


@pytest.mark.parametrize(
    ("labels", "mentions"),
    [
        (np.eye(3), ["(3, 3)"]),
        (np.array(1), ["()"]),
        (np.array([1, 0.5, 2]), ["0.5 at row 1", "--labels text"]),
        (np.array([1, 2, np.nan]), ["row 2 has NaN"]),
        (np.array([np.inf, 1, 2]), ["row 0 has infinity"]),
        (np.array([1, 2, 1e300]), ["1e+300 at row 2"]),
        (Y.astype(complex), ["complex128"]),
        (Y.astype("M8[s]"), ["datetime64"]),
        (np.array([b"\xff", b"a", b"b"]), ["UTF-8"]),
        (Y[:2], ["got 3 and 2"]),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path, labels, mentions):
    refusal(write(tmp_path / "a.npz", npz_bytes(X=X, y=labels)), *mentions)


def test_npz_lists_its_arrays_where_one_is_missing(tmp_path):
    refusal(write(tmp_path / "a.npz", npz_bytes(x_train=X, y_train=Y)), "'x_train', 'y_train'", "'X'")
    file = write(tmp_path / "b.npz", npz_bytes(X=X, z=Y))
    refusal(file, "'X', 'z'", "--target")
    refusal(file, "'X', 'z'", "'w'", "--target", target="w", need_target=False)
    check(read_table(file, need_target=False), X, None)


# --- IDX ---


@pytest.mark.parametrize("code", ["u1", "i1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-images.idx3-ubyte.gz", "emnist-images-idx3-ubyte"])
def test_idx_returns_flat_images_with_bytes_scaled(tmp_path, name, code):
    images = (IMAGES // 2).astype(code)
    file = write(tmp_path / name, idx_bytes(images))
    partner = tmp_path / name.replace("images", "labels").replace("idx3", "idx1")
    refusal(file, partner.name, "--target")
    check(read_table(file, need_target=False), expected := flat(images), None)
    write(partner, idx_bytes(Y.astype("u1")))
    check(read_table(file), expected, Y.astype("u1"))
    other = write(tmp_path / "other.npy", npy_bytes(TEXT_Y))
    check(read_table(file, target=str(other)), expected, TEXT_Y)


def flat(images: np.ndarray) -> np.ndarray:
    rows = images.reshape(3, 8)
    if images.dtype == np.uint8:
        return rows.astype(np.float32) / np.float32(255)
    return rows.astype(np.float32 if images.dtype == np.float32 else np.float64)


@pytest.mark.parametrize("name", ["images.idx", "images.idx.gz", "images", "images.bin", "images.gz"])
def test_idx_is_known_by_content(tmp_path, name):
    file = write(tmp_path / name, idx_bytes(IMAGES))
    write(tmp_path / name.replace("images", "labels"), idx_bytes(Y.astype("i4")))
    check(read_table(file), flat(IMAGES), Y.astype("i4"))


def test_idx_is_unzipped_whatever_its_name(tmp_path):
    file = tmp_path / "train-images-idx3-ubyte"
    file.write_bytes(gzip.compress(idx_bytes(IMAGES)))
    check(read_table(file, need_target=False), flat(IMAGES), None)


def test_idx_matrix_is_taken_as_it_is(tmp_path):
    file = write(tmp_path / "X.idx", idx_bytes(X.astype("f4")))
    check(read_table(file, need_target=False), X.astype("f4"), None)


def test_idx_labels_given_as_data_are_refused(tmp_path):
    for dot in "-.":
        file = write(tmp_path / f"train-labels{dot}idx1-ubyte", idx_bytes(Y.astype("u1")))
        refusal(file, "3 labels", f"give the images file, train-images{dot}idx3-ubyte")
    refusal(write(tmp_path / "a.idx", idx_bytes(Y.astype("u1"))), "give the images file")


@pytest.mark.parametrize("name", ["a.idx", "a.idx.gz"])
@pytest.mark.parametrize(
    ("content", "mentions"),
    [
        (idx_bytes(IMAGES)[:-1], ["(3, 2, 4)", "24 bytes", "fewer"]),
        (idx_bytes(IMAGES) + b"\0", ["(3, 2, 4)", "24 bytes", "more"]),
        (idx_bytes(IMAGES)[:10], ["error"]),
        (struct.pack(">BBBBIII", 0, 0, 14, 3, *[2**32 - 1] * 3) + bytes(99), ["fewer"]),
        (struct.pack(">BBBB200I", 0, 0, 8, 200, *[1] * 200) + b"\1", ["ValueError"]),
        (struct.pack(">BBBBIII", 0, 0, 8, 3, 0, 2, 4), ["(0, 8)"]),
        (b"\0\0\7\3" + idx_bytes(IMAGES)[4:], ["00 00 07 03"]),
        (b"\0\0\x08\0" + idx_bytes(IMAGES)[4:], ["00 00 08 00"]),
        (b"\0\0", ["00 00"]),
        (b"hello world", ["68 65 6c 6c"]),
    ],
)
def test_idx_unlike_its_header_is_refused(tmp_path, name, content, mentions):
    refusal(write(tmp_path / name, content), *mentions, need_target=False)


# --- csv ---


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "A.CSV"])
@pytest.mark.parametrize(
    "content",
    [
        CSV,
        b"\xef\xbb\xbf" + CSV,
        CSV.replace(b"\n", b"\r\n"),
        CSV.rstrip(),
        CSV.replace(b"\n", b"\n\n"),
        CSV.replace(b"y", b'" y"').replace(b"4.25", b'"4.25"'),
        CSV.decode().encode("utf-16"),
        CSV.decode().encode("utf-32"),
        CSV.replace(b",", b", "),
    ],
)
def test_csv_returns_its_columns(tmp_path, name, content):
    check(read_table(write(tmp_path / name, content)), X, Y, ["a", "b"])


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv", "A.TSV.gz"])
@pytest.mark.parametrize("delimiter", [b",", b";", b"\t"])
def test_csv_fields_may_be_separated_by_semicolons_or_tabs(tmp_path, name, delimiter):
    content = CSV.replace(b",", delimiter)
    check(read_table(write(tmp_path / name, content)), X, Y, ["a", "b"])
    without = content.split(b"\n", 1)[1]
    check(read_table(write(tmp_path / name, without), target="2"), X, Y)
    quoted = content.replace(b"a", b'"a, of b, c; or d"', 1)
    check(read_table(write(tmp_path / name, b"\n" + quoted)), X, Y, ["a, of b, c; or d", "b"])
    refusal(write(tmp_path / name, content + delimiter * 2), "empty", "line 5", "'a'")
    refusal(write(tmp_path / name, content + b"1"), "3 fields", "got 1 in line 5")
    header, rest = content.split(b"\n", 1)
    refusal(write(tmp_path / name, header + b"\n" + delimiter * 2 + b"\n" + rest), "empty", "line 2", "'a'")


def test_csv_with_as_many_commas_as_semicolons_is_separated_by_commas(tmp_path):
    check(read_table(write(tmp_path / "a.csv", b"a;b,y\n1.5,2\n0,0\n3,1\n")), X[:, :1], Y, ["a;b"])


def test_csv_with_decimal_commas_is_refused(tmp_path):
    file = write(tmp_path / "a.csv", b"a;b;y\n1;2;0\n1,5;2;1\n")
    refusal(file, "numbers with a decimal point, got '1,5' in line 3, column 'a'")


def test_csv_separated_by_something_else_is_one_column(tmp_path):
    refusal(write(tmp_path / "a.csv", b"a|y\n1|0\n"), "got 'a|y'", "--target")


def test_csv_true_and_false_are_one_and_zero(tmp_path):
    file = write(tmp_path / "a.csv", b"a,b,y\nTrue,1.5,True\n false ,2,False\nTRUE,3,True\n")
    expected = np.array([[1, 1.5], [0, 2], [1, 3]])
    text = np.array(["True", "False", "True"])
    check(read_table(file), expected, text, ["a", "b"])
    check(read_table(file, features=["b", "a"]), expected[:, ::-1].copy(), text, ["b", "a"])
    write(file, file.read_bytes().split(b"\n", 1)[1])  # without a header
    check(read_table(file, target="2"), expected, text)
    message = refusal(write(file, b"a,y\nTrue,1\nyes,0\n"), "'yes' in line 3, column 'a'", "True or False", "--drop")
    assert "numbers" not in message
    refusal(write(file, b"a,y\nTrue,1\n1,0\n"), "got '1' in line 3, column 'a'")
    refusal(write(file, b"a,y\nTrue,1\n,0\n"), "no value may be missing, got an empty cell in line 3, column 'a'")
    refusal(write(file, b"a,y\n1,1\nTrue,0\n"), "must be numbers, got 'True' in line 3, column 'a'")


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_columns_are_dropped_by_name(tmp_path, name):
    columns = {"id": ["u", "v", "w"], "a": X[:, 0], "label": TEXT_Y, "b": X[:, 1], "y": Y}
    if name == "a.csv":
        rows = [columns, *zip(*columns.values(), strict=True)]
        file = write(tmp_path / name, "\n".join(",".join(map(str, row)) for row in rows).encode())
    else:
        file = write(tmp_path / name, parquet_bytes(**columns))
    check(read_table(file, drop=["id", "label"]), X, Y, ["a", "b"])  # and only y is left to be the target
    check(read_table(file, drop=("id", "y")), X, TEXT_Y, ["a", "b"])
    check(read_table(file, drop=["y", "label", "id"], need_target=False), X, None, ["a", "b"])
    refusal(file, "column 'id'", "leave out the columns (`drop=`): train --drop id --drop label", target="y")
    assert "--drop" not in refusal(file, "column 'id'", target="y", features=["id"])
    refusal(file, "among 'id', 'a', 'label', 'b', 'y', got 'c'", "--drop", drop=["id", "c"])
    refusal(file, "'y' as both", drop=["y"], target="y")
    refusal(file, "features 'a'", drop=["a"], features=["a"], target="y")


def test_columns_without_names_cannot_be_dropped(tmp_path):
    for name, content in (("a.npz", npz_bytes(X=X, y=Y)), ("X.npy", npy_bytes(X)), ("a.csv", b"1,2,0\n3,4,1\n")):
        file = write(tmp_path / name, content)
        refusal(file, "must have names, got '0'", "header", drop=["0"], need_target=False)


@pytest.mark.parametrize("name", ["target", "label", "Labels", "CLASS", "Y"])
def test_csv_knows_the_usual_targets(tmp_path, name):
    content = CSV.replace(b"a,b,y", f"a,b,{name}".encode())
    check(read_table(write(tmp_path / "a.csv", content)), X, Y, ["a", "b"])


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "-2", "3"], np.array([1, -2, 3])),
        (["1", "18446744073709551615", "3"], np.array([1, 2**64 - 1, 3], dtype=np.uint64)),
        (["-1", "18446744073709551615", "3"], np.array(["-1", "18446744073709551615", "3"])),
        (["1.0", "-2.0", "1e+16"], np.array([1.0, -2.0, 1e16])),
        (["0.0", "-0.0", "1.0"], np.array(["0.0", "-0.0", "1.0"])),
        (["1", "01", "3"], np.array(["1", "01", "3"])),
        (["1", "+1", "3"], np.array(["1", "+1", "3"])),
        (["1", "2.0", "3e2"], np.array(["1", "2.0", "3e2"])),
        (["1.0", "2.00", "3.0"], np.array(["1.0", "2.00", "3.0"])),
        (["9007199254740993.0", "9007199254740992.0", "1.0"], None),
        (["cat", '"dog, or ""wolf"""', " cat "], np.array(["cat", 'dog, or "wolf"', " cat "])),
        (["1", "2", "nan"], np.array(["1", "2", "nan"])),
        (["1", "2", "three"], np.array(["1", "2", "three"])),
        (["nan", "a", "b"], np.array(["nan", "a", "b"])),
        (["1_0", "#2", "3"], np.array(["1_0", "#2", "3"])),
        (["1", "2", "99999999999999999999"], np.array(["1", "2", "99999999999999999999"])),
    ],
)
def test_csv_labels_are_numbers_where_all_are_written_so(tmp_path, cells, expected):
    expected = np.array(cells) if expected is None else expected
    rows = "".join(f"{cell},{value}\n" for cell, value in zip(cells, X[:, 0], strict=True))
    check(read_table(write(tmp_path / "a.csv", f"y,a\n{rows}".encode())), X[:, :1], expected, ["a"])


def test_csv_without_header_takes_the_target_by_index(tmp_path):
    file = write(tmp_path / "a.csv", CSV.split(b"\n", 1)[1])
    check(read_table(file, target="2"), X, Y)
    check(read_table(file, target="2", features=["ignored"]), X, Y)
    check(read_table(file, need_target=False), np.column_stack([X, Y]), None)
    refusal(file, "'0', '1', '2'", "--target")
    refusal(file, "'3'", "--target", target="3", need_target=False)


def test_csv_features_are_picked_in_order(tmp_path):
    file = write(tmp_path / "a.csv", b"name,b,a,y,note\nann,-2,1.5,2,\nbob,4.25,0,0,hm\ncy,1e-3,3,1,-\n")
    check(read_table(file, features=["a", "b"]), X, Y, ["a", "b"])
    check(read_table(file, features=("b",)), X[:, 1:], Y, ["b"])
    names = np.array(["ann", "bob", "cy"])
    check(read_table(file, features=["y", "a"], target="name"), np.column_stack([Y, X[:, 0]]), names, ["y", "a"])
    check(read_table(file, features=["y"], need_target=False), Y[:, None].astype(float), None, ["y"])
    refusal(file, "'c', 'd'", "'name', 'b', 'a'", features=["a", "c", "d"])
    refusal(file, "'a' as both", features=["a", "b"], target="a")


def test_csv_of_one_row_or_one_feature_is_read(tmp_path):
    check(read_table(write(tmp_path / "a.csv", b"a,b,y\n1,2,0\n")), np.array([[1.0, 2.0]]), Y[1:2], ["a", "b"])
    check(
        read_table(write(tmp_path / "b.csv", b"a\n1\n2"), need_target=False),
        np.array([[1.0], [2.0]]),
        None,
        ["a"],
    )
    check(read_table(write(tmp_path / "c.csv", b"7"), need_target=False), np.array([[7.0]]), None)


def test_csv_values_that_are_not_finite_are_kept(tmp_path):
    table = read_table(write(tmp_path / "a.csv", b"a,b,y\nnan,-inf,1\n"))
    check(table, np.array([[np.nan, -np.inf]]), np.array([1]), ["a", "b"])


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
@pytest.mark.parametrize(
    ("content", "mentions"),
    [
        (b"a,b,y\n", ["no rows"]),
        (b"\n\n", ["no rows"]),
        (b"a,b,y\n1,2,0\n1,2\n", ["3 fields", "got 2 in line 3"]),
        (b"a,b,y\n1,2,0\n\n1,2,3,4\n", ["3 fields", "got 4 in line 4"]),
        (b"a,b,y\n1,2\n1,2\n", ["3 fields", "got 2 in line 2"]),
        (b"a,b,y\n1,2,3,4\n1,2,3,4\n", ["3 fields", "got 4 in line 2"]),
        (b"a,b,y\n1,2,0\n1,,0\n", ["empty", "line 3", "'b'"]),
        (b"a,b,y\n1,2,0\n1,2, \n", ["empty", "line 3", "'y'"]),
        (b"a,b,y\n1,2,0\n1,red,0\n", ["'red'", "line 3", "'b'"]),
        (b"a,b,y\n1,2,0.5\n1,red,0\n", ["'red'", "line 3", "'b'"]),
        (b"a,b,y\n1,1_0,0\n", ["'1_0'", "line 2", "'b'"]),
        (b"a,b,y\n1,2,0\n1,2,0.5\n", ["0.5 at row 1", "'y'"]),
        (b'a,b,y\n1,2,"cat\n1,2,dog\n', ["one line", "quote"]),
        (b"a,a,y\n1,2,0\n", ["'a' twice"]),
        (b"a,,y\n0,1,2\n", ["column 1", "--drop ''"]),
        (b"a,b,c\n1,2,0\n", ["'a', 'b', 'c'", "--target"]),
        (b"a,label,y\n1,2,0\n", ["'label', 'y'", "--target"]),
        (b"y\n1\n", ["(1, 0)"]),
        (b"a,b,y\n1,\xff,0\n", ["UTF-8", "0xff"]),
        (bytes(range(256)) * 9, ["UTF-8"]),
    ],
)
def test_csv_that_is_no_table_is_refused(tmp_path, name, content, mentions):
    refusal(write(tmp_path / name, content), *mentions)


def test_csv_with_no_or_two_usual_targets_serves_prediction(tmp_path):
    file = write(tmp_path / "a.csv", b"a,b\n1,2\n")
    check(read_table(file, need_target=False), np.array([[1.0, 2.0]]), None, ["a", "b"])
    file = write(tmp_path / "b.csv", b"a,label,y\n1,2,0\n")
    check(read_table(file, need_target=False, features=["a"]), np.array([[1.0]]), None, ["a"])
    refusal(file, "'z'", target="z", need_target=False)


def test_csv_shortens_a_long_list_of_columns(tmp_path):
    header = ",".join(f"column_{i}" for i in range(784)).encode()
    file = write(tmp_path / "a.csv", header + b"\n" + b",".join([b"1"] * 784))
    message = refusal(file, "'column_0'", "784 in all", "--target")
    assert len(message) < 400 + len(str(file))


# --- parquet ---


def test_parquet_returns_its_columns(tmp_path):
    file = write(tmp_path / "a.parquet", parquet_bytes(a=X[:, 0], b=X[:, 1], label=Y))
    check(read_table(file), X, Y, ["a", "b"])
    check(read_table(file, features=["b"]), X[:, 1:], Y, ["b"])
    refusal(file, "'c'", features=["a", "c"])
    refusal(file, "'c'", "--target", target="c", need_target=False)
    file = write(tmp_path / "b.parquet", parquet_bytes(a=X[:, 0], b=X[:, 1]))
    refusal(file, "'a', 'b'", "--target")
    check(read_table(file, need_target=False), X, None, ["a", "b"])


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (["f2", "f4"], "f4"),
        (["u1", "f4"], "f4"),
        (["u1", "u1"], "f4"),
        (["f4", "f8"], "f8"),
        (["f4", "i4"], "f8"),
        (["?", "i8"], "f8"),
    ],
)
def test_parquet_features_become_one_float_type(tmp_path, kinds, expected):
    a, b = (np.array([0, 1, 1]).astype(kind) for kind in kinds)
    file = write(tmp_path / "a.parquet", parquet_bytes(a=a, b=b, y=Y))
    check(read_table(file), np.column_stack([a, b]).astype(expected), Y, ["a", "b"])


def test_parquet_labels_may_be_text_or_categories(tmp_path):
    pa = pytest.importorskip("pyarrow")
    text = pa.array(TEXT_Y.tolist())
    for labels in (text, text.cast(pa.large_string()), text.dictionary_encode(), text.cast(pa.string_view())):
        file = write(tmp_path / "a.parquet", parquet_bytes(a=X[:, 0], y=labels))
        check(read_table(file), X[:, :1], TEXT_Y, ["a"])
    for labels in (text.cast(pa.binary()), text.cast(pa.large_binary()), text.cast(pa.binary(3))):
        file = write(tmp_path / "a.parquet", parquet_bytes(a=X[:, 0], y=labels))
        check(read_table(file), X[:, :1], TEXT_Y, ["a"])
    for labels in (Y, Y.astype(float), Y.astype(np.uint8), Y == 1, np.array([2**63, 0, 1], dtype=np.uint64)):
        file = write(tmp_path / "a.parquet", parquet_bytes(a=X[:, 0], y=labels))
        check(read_table(file), X[:, :1], labels, ["a"])
    file = write(tmp_path / "a.parquet", parquet_bytes(a=X[:, 0], y=pa.array(Y).dictionary_encode()))
    check(read_table(file), X[:, :1], Y, ["a"])
    file = write(tmp_path / "a.parquet", parquet_bytes(a=X[:, 0], y=["a", "a\0", ""]))
    assert read_table(file).y.tolist() == ["a", "a\0", ""]


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_parquet_of_data_frames_is_read(tmp_path, library):
    frames = pytest.importorskip(library)
    file = tmp_path / "a.parquet"
    if library == "pandas":  # rows were dropped: pandas stores the index that is left
        frame = frames.DataFrame({"a": X[:, 0], "y": frames.Categorical(TEXT_Y)}, index=[0, 3, 5])
        frame.to_parquet(file)
    else:
        frames.DataFrame({"a": X[:, 0], "y": frames.Series(TEXT_Y.tolist(), dtype=frames.Categorical)}).write_parquet(
            file
        )
    check(read_table(file), X[:, :1], TEXT_Y, ["a"])


@pytest.mark.parametrize(
    ("columns", "mentions"),
    [
        ({"a": ["1", "2"], "y": [0, 1]}, ["string", "'a'"]),
        ({"a": [[1], [2]], "y": [0, 1]}, ["list", "'a'"]),
        ({"a": [1.0, None], "y": [0, 1]}, ["null at row 1, column 'a'", "--drop a"]),
        ({"a": [1.0, 2.0], "y": ["a", None]}, ["null at row 1, column 'y'"]),
        ({"a": [1.0, 2.0], "y": [0.5, 1.0]}, ["'y'", "0.5 at row 0"]),
        ({"a": [1.0, 2.0], "y": [[0], [1]]}, ["'y'", "got ndarray"]),
        ({"a": [1.0, 2.0], "y": [datetime.date(2020, 1, 1)] * 2}, ["'y'", "datetime64"]),
        ({"a": [1.0, 2.0], "y": [decimal.Decimal(1)] * 2}, ["'y'", "Decimal"]),
        ({"a": [1.0, 2.0], "y": [b"\xff", b"a"]}, ["UTF-8"]),
        ({"a": [1.0], "label": [1], "Y": [1]}, ["'label', 'Y'", "--target"]),
        ({"a": np.array([]), "y": np.array([], int)}, ["(0, 1)"]),
        ({"y": [1, 2]}, ["(2, 0)"]),
    ],
)
def test_parquet_that_is_no_table_is_refused(tmp_path, columns, mentions):
    refusal(write(tmp_path / "a.parquet", parquet_bytes(**columns)), *mentions)


def test_parquet_with_repeated_names_is_refused(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.Table.from_arrays([pa.array([1])] * 3, names=["a", "a", "y"]), tmp_path / "a.parquet")
    refusal(tmp_path / "a.parquet", "'a' twice")


def test_parquet_without_pyarrow_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    file = write(tmp_path / "a.parquet", b"PAR1")
    with pytest.raises(ImportError, match=r"a\.parquet.*pip install 'pyarrow>=17'"):
        read_table(file)


# --- Files that are not what they say ---

NAMES = ["a.npz", "X.npy", "a.csv", "a.csv.gz", "a.parquet", "a-images-idx3-ubyte", "a.idx.gz"]


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("name", [*NAMES, "a.pkl"])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_in_disguise_is_not_run(tmp_path, name, protocol):
    trace = tmp_path / "trace"
    content = pickle.dumps(Bomb(trace), protocol)
    file = tmp_path / name
    file.write_bytes(content)
    refusal(file, need_target=False)
    refusal(write(file, content), need_target=False)
    assert not trace.exists()
    pickle.loads(content)
    assert trace.exists()  # the bomb works


@pytest.mark.parametrize("where", ["X", "y"])
def test_python_objects_are_not_loaded(tmp_path, where):
    trace = tmp_path / "trace"
    objects = npy_bytes(np.array([Bomb(trace)] * 3, dtype=object), allow_pickle=True)
    write(tmp_path / "X.npy", npy_bytes(X))
    write(tmp_path / "y.npy", npy_bytes(Y))
    file = write(tmp_path / f"{where}.npy", objects)
    with pytest.raises(DataFileError, match=rf"{where}\.npy: the array .* Python objects .* never loaded; .*astype"):
        read_table(tmp_path / "X.npy")
    archive = {"X": X, "y": Y, where: np.load(file, allow_pickle=True)}
    trace.unlink()
    refusal(write(tmp_path / "a.npz", npz_bytes(**archive)), f"array '{where}'", "never loaded")
    assert not trace.exists()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"just, some text\nof two lines\n",
        b"PK\3\4",
        b"PAR1PAR1",
        b"\x93NUMPY\1\0",
        b"\x1f\x8b\x08",
    ],
)
def test_file_of_another_kind_is_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refusal(tmp_path / name, need_target=False)


@pytest.mark.parametrize("name", ["a.txt", "a.npy.bak", "a.gz", "a"])
@pytest.mark.parametrize("content", [b"hello", b"\0\0\x08", b"\x1f\x8b\x08", gzip.compress(b"hello")])
def test_unknown_kind_lists_what_can_be_read(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    refusal(tmp_path / name, ".npz, .npy, .csv, .tsv, .csv.gz, .tsv.gz, .parquet and IDX")


@pytest.mark.parametrize("name", NAMES)
def test_path_without_a_file_is_refused(tmp_path, name):
    refusal(tmp_path / name, "no such file")
    (tmp_path / name).mkdir()
    refusal(tmp_path / name, "a directory")
    with pytest.raises(DataFileError, match="null"):
        read_table(f"\0{name}")


def test_empty_file_is_refused_as_such(tmp_path):
    refusal(write(tmp_path / "a.csv", b""), "empty (0 bytes)")


def test_file_without_permission_is_refused(tmp_path, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    file = write(tmp_path / "a.csv", CSV)
    monkeypatch.setattr(builtins, "open", denied)  # root, in a container, may read anything
    try:
        read_table(file)
    except DataFileError as error:
        message = str(error)
    finally:
        monkeypatch.undo()
    assert "a.csv: cannot be opened" in message
    assert "permission" in message


def test_path_of_two_lines_gives_a_message_of_one(tmp_path):
    with pytest.raises(DataFileError) as caught:
        read_table(tmp_path / "a\nb.csv")
    assert "\n" not in str(caught.value)


def test_npy_header_cannot_claim_memory(tmp_path):
    stream = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**9, 10**6)}
    np.lib.format.write_array_header_1_0(stream, header)
    refusal(write(tmp_path / "X.npy", stream.getvalue() + bytes(16)), "fewer", need_target=False)
    for shape, more in (((1, 1), "more"), ((-1, 2), "more"), ((-1, -2), "ValueError")):
        stream = io.BytesIO()
        np.lib.format.write_array_header_1_0(stream, header | {"shape": shape})
        refusal(write(tmp_path / "X.npy", stream.getvalue() + bytes(16)), more, need_target=False)


def test_npy_header_of_rubbish_is_not_quoted_at_length(tmp_path):
    content = b"\x93NUMPY\1\0" + struct.pack("<H", 5000) + b"[" + b"1," * 2499 + b"]"
    file = write(tmp_path / "X.npy", content)
    assert len(refusal(file, need_target=False)) < 400 + len(str(file))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_checksum_is_compared(tmp_path, save):
    rows = np.random.default_rng(0).integers(0, 3, (1 << 13, 64)) / 2  # 4 MiB: read in many pieces
    file = tmp_path / "a.npz"
    save(file, X=rows)
    content = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        checksum = struct.pack("<I", archive.getinfo("X.npy").CRC)
    check(read_table(file, need_target=False), rows, None)
    assert content.count(checksum) >= 1
    refusal(write(file, content.replace(checksum, b"\1\2\3\4")), "BadZipFile", "CRC", need_target=False)


SAMPLES = {
    "a.npz": lambda: npz_bytes(X=X, y=Y),
    "X.npy": lambda: npy_bytes(X),
    "X.idx": lambda: idx_bytes(IMAGES),
    "X.idx.gz": lambda: gzip.compress(idx_bytes(IMAGES)),
    "a.csv.gz": lambda: gzip.compress(CSV),
    "a.parquet": lambda: parquet_bytes(a=X[:, 0], b=X[:, 1], y=Y),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_truncated_file_is_refused_at_every_cut(tmp_path, name):
    content = SAMPLES[name]()
    file = tmp_path / name
    for cut in range(len(content)):
        file.write_bytes(content[:cut])
        refusal(file, need_target=False)
    file.write_bytes(content)
    assert len(read_table(file, need_target=False).X) == 3


@pytest.mark.parametrize("name", SAMPLES)
def test_damaged_file_is_refused_or_read(tmp_path, name):
    content = SAMPLES[name]()
    file = tmp_path / name
    file.write_bytes(content)
    whole = read_table(file, need_target=False)
    for position in range(len(content)):
        for flip in (0x01, 0x80, 0xFF):
            damaged = bytearray(content)
            damaged[position] ^= flip
            file.write_bytes(damaged)
            try:
                table = read_table(file, need_target=False)
            except DataFileError:  # any other type fails the test
                continue
            if name.endswith((".npz", ".gz")):  # these have checksums
                np.testing.assert_array_equal(table.X, whole.X, strict=True)
            assert table.X.ndim == 2


# --- Headers, indices, bad columns ---

ASK = ["may be a header or a row", "--header yes or --header no"]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("0,1,2\n0.5,1.5,1\n2.5,1.25,0\n", ["0", "1"]),  # pandas: DataFrame(X).to_csv(index=False)
        ("0,1,2,target\n1,2,3,0\n", ["0", "1", "2"]),
        (",".join(map(str, range(12))) + "\n" + ",".join("1" * 12) + "\n", [str(i) for i in range(12) if i != 2]),
        ("5,1,2\n0.5,1.5,1\n2.5,1.25,0\n", None),
        ("0.0,1.0,2\n0.5,1.5,1\n", None),
        ("3,4,5\n1,2,0\n", None),
        ("0,1,2\n3,1,0\n", ASK),
        ("0,1,2\n", ASK),
        ("1,2,3\n0.5,1.5,1\n", ASK),
        ("2019,2020,2021\n0.5,1.5,1\n", ASK),
        (",".join(map(str, range(12))) + "\n" + ",".join(map(str, range(12, 24))) + "\n", ASK),
    ],
)
def test_csv_header_of_numbers_is_known_or_asked_for(tmp_path, content, names):
    file = write(tmp_path / "a.csv", content.encode())
    target = "target" if "target" in content else "2"
    n_rows = content.count("\n")
    if names is ASK:
        refusal(file, *ASK, target=target)
    else:
        table = read_table(file, target=target)
        assert table.feature_names == names
        assert len(table.X) == n_rows - (names is not None)
    if "target" not in content:
        target = content.split("\n")[0].split(",")[2]
        if n_rows > 1:
            table = read_table(file, target=target, header="yes")
            assert (len(table.X), len(table.feature_names)) == (n_rows - 1, content.split("\n")[0].count(","))
        table = read_table(file, target="2", header="no")
        assert (len(table.X), table.feature_names) == (n_rows, None)


def test_csv_header_of_numbers_is_known_by_the_features_wanted(tmp_path):
    file = write(tmp_path / "a.csv", b"0,1,2\n7,8,9\n")
    check(read_table(file, features=["2", "0"], need_target=False), np.array([[9.0, 7.0]]), None, ["2", "0"])
    check(read_table(file, features=["a"], need_target=False), np.array([[0.0, 1, 2], [7, 8, 9]]), None)


def test_csv_without_a_header_says_what_was_taken_for_one(tmp_path):
    hint = "the first line was taken as the header: if it is a row, say --header no"
    file = write(tmp_path / "iris.data.csv", b"5.1,3.5,setosa\n4.9,3.0,setosa\n7.0,3.2,virginica\n")
    refusal(file, hint)
    refusal(file, hint, "'5.1', '3.5', 'setosa', got '2'", target="2")
    species = np.array(["setosa", "setosa", "virginica"])
    check(read_table(file, target="2", header="no"), np.array([[5.1, 3.5], [4.9, 3.0], [7.0, 3.2]]), species)
    refusal(write(tmp_path / "a.csv", b"p,x,s,x,p,x\ne,x,s,y,p,x\n"), "got 'p' twice, 'x' 3 times", hint)
    refusal(write(tmp_path / "a.csv", b"1,2\n3,4\n"), "taken as a row: if it is the header, say --header yes")


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_csv_index_is_left_out_with_a_warning(tmp_path, name):
    file = write(tmp_path / "a.csv", f"{name},a,b,y\n17,1.5,-2,2\n4,0,4.25,0\n5,3,1e-3,1\n".encode())
    with pytest.warns(UserWarning, match=r"a\.csv: the first column .* is left out, as an index"):
        check(read_table(file), X, Y, ["a", "b"])
    check(read_table(file, drop=[name]), X, Y, ["a", "b"])
    check(read_table(file, features=["b"]), X[:, 1:], Y, ["b"])
    file = write(tmp_path / "a.csv", f"{name},0,1,2\n0,1.5,-2,2\n1,0,4.25,0\n2,3,1e-3,1\n".encode())
    with pytest.warns(UserWarning, match="left out"):
        check(read_table(file, target="2"), X, Y, ["0", "1"])


def test_parquet_index_of_pandas_is_no_feature(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"a": X[:, 0], "y": Y}, index=pandas.Index([3, 1, 2], name="id"))
    frame.to_parquet(tmp_path / "a.parquet")
    with pytest.warns(UserWarning, match=r"a\.parquet: 'id' is the index of pandas and is left out"):
        check(read_table(tmp_path / "a.parquet"), X[:, :1], Y, ["a"])
    check(read_table(tmp_path / "a.parquet", drop=["id"]), X[:, :1], Y, ["a"])
    check(read_table(tmp_path / "a.parquet", target="id", drop=["y"]), X[:, :1], np.array([3, 1, 2]), ["a"])
    check(read_table(tmp_path / "a.parquet", features=["id"]), np.array([[3.0], [1], [2]]), Y, ["id"])
    levels = pandas.MultiIndex.from_arrays([[3, 1, 2], list("uvw")], names=["id", None])
    frame.set_index(levels).to_parquet(tmp_path / "a.parquet")
    with pytest.warns(UserWarning, match="'id' is the index"):
        check(read_table(tmp_path / "a.parquet"), X[:, :1], Y, ["a"])


def test_all_bad_columns_are_named_with_the_line_that_drops_them(tmp_path):
    content = "id,my name,age,ok,city,flag,y\nu1,Bob,,1,Rome,True,0\nu2,Ann,31,2,Oslo,,1\nu3,Cy,NA,3,Rome,maybe,1\n"
    file = write(tmp_path / "a.csv", content.encode())
    line = "train --drop id --drop 'my name' --drop age --drop city --drop flag"
    message = refusal(file, "numbers, got 'u1' in line 2, column 'id' (rows: 'id' 3, 'my name' 3, 'city' 3)")
    assert "no value may be missing, got an empty cell in line 2, column 'age' (rows: 'age' 2, 'flag' 1)" in message
    assert "hold nothing else, got 'maybe' in line 4, column 'flag'" in message
    assert message.endswith(line)
    table = read_table(file, drop=["id", "my name", "age", "city", "flag"])
    check(table, np.array([[1.0], [2], [3]]), np.array([0, 1, 1]), ["ok"])
    message = refusal(file, "no value may be missing", features=["age", "ok"])
    assert "--drop" not in message
    file = write(tmp_path / "b.csv", b"1,red\n2,blue\n")
    assert "--drop" not in refusal(file, "'red' in line 1", target="0", header="no")


def test_all_bad_columns_of_a_parquet_file_are_named(tmp_path):
    columns = {"id": ["u", "v", "w"], "age": [1.0, None, None], "ok": [1, 2, 3], "when": [[1], [2], [3]], "y": Y}
    file = write(tmp_path / "a.parquet", parquet_bytes(**columns))
    message = refusal(file, "got string in column 'id' (rows: 'id' 3, 'when' 3)", "null at row 1, column 'age'")
    assert message.endswith("train --drop id --drop age --drop when")
    check(read_table(file, drop=["id", "age", "when"]), np.array([[1.0], [2], [3]]), Y, ["ok"])


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.npz", "X.npy", "X.idx"])
def test_features_that_are_not_finite_are_named_by_their_place(tmp_path, name):
    values = np.array([[1.0, 2.0], [3.0, 1e39], [-1e39, 5.0]])
    content = {
        "a.csv": lambda: b"a,b,y\n1,2,0\n3,1e39,1\n-1e39,5,1\n",
        "a.parquet": lambda: parquet_bytes(a=values[:, 0], b=values[:, 1], y=Y),
        "a.npz": lambda: npz_bytes(X=values, y=Y),
        "X.npy": lambda: npy_bytes(values),
        "X.idx": lambda: idx_bytes(values),
    }[name]()
    file = write(tmp_path / name, content)
    places = {
        "a.csv": ["'1e39' in line 3, column 'b' (rows: 'b' 1, 'a' 1)", "--drop a --drop b"],
        "a.parquet": ["-1e+39 at row 2, column 'a'", "--drop a --drop b"],
        "a.npz": ["-1e+39 at row 2, column 0 of array 'X'"],
        "X.npy": ["-1e+39 at row 2, column 0"],
        "X.idx": ["-1e+39 at image 2, pixel 0"],
    }[name]
    options = {"need_target": False, "features": None}
    refusal(file, "finite in float32", "use --dtype float64", *places, dtype="float32", **options)
    np.testing.assert_array_equal(read_table(file, dtype="float64", **options).X, values)
    np.testing.assert_array_equal(read_table(file, **options).X, values)


def test_csv_cells_that_are_not_finite_are_told_apart(tmp_path):
    file = write(tmp_path / "a.csv", b"a,b,c,y\n1,2,3,0\nnan,-inf,1e400,1\n")
    message = refusal(file, "'nan' in line 3, column 'a'", dtype="float64")
    assert "must be finite, got '-inf' in line 3, column 'b' (rows: 'b' 1, 'c' 1)" in message
    refusal(file, "got '1e400', beyond float64, in line 3, column 'c'", features=["c"], dtype="float64")
    largest = write(tmp_path / "b.csv", b"a,y\n3.4028235e38,0\n1,1\n")  # rounded, it is the largest float32
    assert read_table(largest, dtype="float32").X[0, 0] == 3.4028235e38
    refusal(write(tmp_path / "b.csv", b"a,y\n3.4028236e38,0\n1,1\n"), "train with", dtype="float32", features=["a"])


# --- Encodings, standard input, progress ---


def test_text_in_another_encoding_says_how_to_convert_it(tmp_path):
    content = "größe,b,y\n1.5,-2,2\n0,4.25,0\n3,1e-3,1\n"
    file = write(tmp_path / "a b.csv", content.encode("latin-1"))
    message = refusal(file, "UTF-8", "byte 0xf6", f"iconv -f windows-1252 -t UTF-8 '{file}' > utf8.csv")
    assert "damaged" not in message
    file = write(tmp_path / "a.csv.gz", content.encode("latin-1"))
    refusal(file, f"gzip -dc {file} | iconv -f windows-1252")
    for encoding in ("utf-16-le", "utf-16-be"):
        assert "damaged" not in refusal(write(tmp_path / "a.csv", content.encode(encoding)), "null bytes, as UTF-16")
    check(read_table(write(tmp_path / "a.csv", content.encode("utf-16"))), X, Y, ["größe", "b"])


def test_csv_is_unzipped_whatever_its_name(tmp_path):
    (tmp_path / "a.csv").write_bytes(gzip.compress(CSV))
    (tmp_path / "b.csv.gz").write_bytes(CSV)
    for name in ("a.csv", "b.csv.gz"):
        check(read_table(tmp_path / name), X, Y, ["a", "b"])


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet", "npz", "npy", "idx", "idx.gz"])
def test_standard_input_is_known_by_its_content(tmp_path, monkeypatch, kind):
    content = {
        "csv": lambda: CSV,
        "csv.gz": lambda: gzip.compress(CSV),
        "parquet": lambda: parquet_bytes(a=X[:, 0], b=X[:, 1], y=Y),
        "npz": lambda: npz_bytes(X=X, y=Y),
        "npy": lambda: npy_bytes(X),
        "idx": lambda: idx_bytes(X),
        "idx.gz": lambda: gzip.compress(idx_bytes(X)),
    }[kind]()
    target = str(write(tmp_path / "y.npy", npy_bytes(Y))) if kind in ("npy", "idx", "idx.gz") else None
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    table = read_table("-", target=target)
    check(table, X, Y, ["a", "b"] if kind in ("csv", "csv.gz", "parquet") else None)
    assert table.source == "standard input"
    assert labels_file("-", target) == (None if target is None else Path(target))
    for broken, mention in ((b"", "empty (0 bytes)"), (b"a,y\nred,0\n", "'red' in line 2, column 'a'")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(broken)))
        with pytest.raises(DataFileError, match=r"^standard input: ") as caught:
            read_table("-")
        assert mention in str(caught.value)


def test_csv_reading_reports_its_progress(tmp_path, monkeypatch):
    monkeypatch.setattr("softmax_xp.readers.columns.LINES_A_REPORT", 100)
    rows = b"".join(b"%d.5,%d,%d\n" % (i, i, i % 3) for i in range(50_000))
    for name in ("a.csv", "a.csv.gz"):
        parts: list[float] = []
        file = write(tmp_path / name, b"a,b,y\n" + rows)
        table = read_table(file, progress=parts.append)
        assert table.X.shape == (50_000, 2)
        assert len(parts) == 500
        assert parts == sorted(parts)
        assert 0.0 < parts[0] < 0.5 < parts[-1] <= 1.0
