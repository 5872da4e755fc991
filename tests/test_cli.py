"""The command does what it prints, and every user's error is one line on stderr and exit status 2."""

import builtins
import csv
import io
import itertools
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from sklearn.datasets import load_digits, load_iris, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import softmax_xp as sx
from softmax_xp.cli import app, devices, evaluate, outputs, progress
from softmax_xp.objective import LinearObjective
from softmax_xp.solvers import State

ENVIRONMENT = {
    **os.environ,
    "PYTHONUNBUFFERED": "",
    "PYTHONPATH": str(Path(sx.__file__).parents[1]),
    "PYTHONWARNINGS": "default",
}
COMMAND = [sys.executable, "-m", "softmax_xp"]
IRIS = load_iris()
SPECIES = IRIS.target_names[IRIS.target]
NAMES = ["sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)"]
no_gpu = pytest.mark.skipif(any(d.usable for d in sx.devices()[1:]), reason="device 'cuda' is usable here")
WHY_NO_GPU = "CuPy is not installed" if find_spec("cupy") is None else "no CUDA driver answers (CUDARuntimeError: "


def process(folder: Path, *args: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, as a user does."""
    command = [*COMMAND, *map(str, args)]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command in this process, which is faster; return status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            app.main([str(arg) for arg in args])
        assert isinstance(caught.value.code, int)
        return caught.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def refused(run):
    """Run the command and check that it refuses in one line with every mention."""

    def refused(args: list[object], *mentions: str) -> None:
        status, out, err = run(*args)
        assert (status, out) == (2, "")
        check_error(err, *mentions)

    return refused


def check_error(err: str, *mentions: str) -> None:
    assert err.startswith("softmax-xp: error: ")
    assert err.endswith("\n")
    assert len(err.splitlines()) == 1, err
    for mention in mentions:
        assert mention in err


def write_csv(path: Path, header: list[str] | None, *columns: object) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        if header is not None:
            writer.writerow(header)
        writer.writerows(zip(*columns, strict=True))
    return path


def iris_csv(path: Path, rows: slice = slice(None)) -> Path:
    return write_csv(path, [*NAMES, "species"], *IRIS.data[rows].T, SPECIES[rows])


def frame(X: np.ndarray) -> object:
    return pytest.importorskip("pandas").DataFrame(X, columns=NAMES)


def idx_file(path: Path, array: np.ndarray) -> None:
    path.write_bytes(struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes())


def read_csv(text: str) -> tuple[list[str], list[list[str]]]:
    header, *rows = csv.reader(io.StringIO(text))
    return header, rows


def line(out: str, name: str) -> str:
    """Return what follows `name` in the line that starts with it."""
    (found,) = (text for text in out.splitlines() if text.startswith(name))
    return found.removeprefix(name).strip()


# --- From training to prediction, process by process ---


def test_digits_train_evaluate_predict_agree(tmp_path):
    done = process(tmp_path, "train", "--output", "digits.safetensors")
    assert (done.returncode, done.stderr) == (0, "")
    assert line(done.stdout, "data").endswith("1437 rows, 64 features, 10 classes")
    assert line(done.stdout, "device") in {"cpu", "cuda:0"}
    assert float(line(done.stdout, "gradient norm")) <= 1e-3
    assert float(line(done.stdout, "estimated gap").split()[0]) <= 1e-4 * float(line(done.stdout, "final loss"))
    assert re.fullmatch(r"\d\.\d{6}", line(done.stdout, "final loss"))
    assert re.fullmatch(r"\d+ in \d+\.\d\d s", line(done.stdout, "iterations"))
    assert re.fullmatch(r"0\.\d{4} \(1437 rows\)", line(done.stdout, "train accuracy"))
    accuracy = re.fullmatch(r"(0\.\d{4}) \(360 rows\)", line(done.stdout, "held-out accuracy"))[1]
    assert float(accuracy) > 0.95
    assert line(done.stdout, "model written to") == "digits.safetensors"

    model = sx.load(tmp_path / "digits.safetensors")
    X, y = load_digits(return_X_y=True)
    _, X, _, y = train_test_split(X / 16, y, test_size=0.2, stratify=y, random_state=0)
    assert f"{model.score(X, y):.4f}" == accuracy
    np.savez(tmp_path / "held_out.npz", X=X, y=y)

    done = process(tmp_path, "evaluate", "digits.safetensors", "held_out.npz")
    assert (done.returncode, done.stderr) == (0, "")
    assert line(done.stdout, "accuracy") == accuracy

    done = process(tmp_path, "predict", "digits.safetensors", "held_out.npz")
    assert (done.returncode, done.stderr) == (0, "")
    header, rows = read_csv(done.stdout)
    assert header == ["label"]
    assert f"{np.mean(np.array(rows, dtype=int)[:, 0] == y):.4f}" == accuracy


def test_the_error_of_a_process_is_one_line(tmp_path):
    for args in (["train", "missing.csv"], ["train", "--nonsense"], ["predict", "model"], ["evaluate", "a", "b"]):
        done = process(tmp_path, *args)
        assert (done.returncode, done.stdout) == (2, "")
        check_error(done.stderr)


def test_help_is_quick_and_loads_nothing_heavy(tmp_path):
    code = """
import sys, softmax_xp.cli.app
try:
    softmax_xp.cli.app.main(["train", "--help"])
except SystemExit as end:
    assert end.code == 0
heavy = {"numpy", "sklearn", "scipy", "cupy", "matplotlib", "safetensors"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "softmax-xp train iris.csv --target species --standardize" in done.stdout


def test_a_closed_pipe_ends_quietly(tmp_path):
    np.savez(tmp_path / "data.npz", X=np.random.default_rng(0).standard_normal((200_000, 2)))
    sx.SoftmaxClassifier(device="cpu").fit([[0.0, 1.0], [1.0, 0.0]], [0, 1]).save(tmp_path / "model")
    command = [*COMMAND, "predict", "model", "data.npz"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout.readline() == "label\n"
        running.stdout.close()
        assert running.stderr.read() == ""
        assert running.wait(30) == 1


def test_a_pipe_closed_before_the_first_line_ends_quietly(tmp_path):
    np.save(tmp_path / "X.npy", np.eye(2))
    sx.SoftmaxClassifier(device="cpu").fit([[0.0, 1.0], [1.0, 0.0]], [0, 1]).save(tmp_path / "model")
    read, write = os.pipe()
    os.close(read)
    command = [*COMMAND, "predict", "model", "X.npy"]
    with os.fdopen(write, "w") as pipe:
        done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, stdout=pipe, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (1, b"")


# --- train ---


def test_train_reports_in_json(run, tmp_path):
    status, out, err = run("train", iris_csv(tmp_path / "iris.csv"), "--target", "species", "--json", "-o", "m")
    assert (status, err, len(out.splitlines())) == (0, "", 1)
    report = json.loads(out)
    assert set(report) == {
        "device",
        "n_samples",
        "n_features",
        "classes",
        "objective",
        "gradient_norm",
        "estimated_gap",
        "n_iter",
        "converged",
        "seconds",
        "train_accuracy",
        "test_accuracy",
        "test_rows",
        "output",
    }
    assert (report["n_samples"], report["n_features"], report["test_rows"]) == (120, 4, 30)
    assert report["classes"] == ["setosa", "versicolor", "virginica"]
    assert report["converged"] is True
    assert report["output"] == "m"
    model = sx.load("m")
    assert model.feature_names_in_.tolist() == NAMES
    assert model.coef_.dtype == np.float32
    assert (report["objective"], report["n_iter"]) == (model.objective_, model.n_iter_[0])
    X, X_test, y, y_test = train_test_split(IRIS.data, SPECIES, test_size=0.2, stratify=SPECIES, random_state=0)
    same = sx.SoftmaxClassifier(dtype="float32", random_state=0).fit(X, y)
    np.testing.assert_array_equal(model.coef_, same.coef_)
    assert report["train_accuracy"] == same.score(X, y)
    assert report["test_accuracy"] == same.score(X_test, y_test)


def test_options_reach_the_estimator(run, tmp_path):
    iris_csv(tmp_path / "iris.csv")
    options = ["--target", "species", "--C", "inf", "--tol", "0.01", "--max-iter", "500", "--class-weight", "balanced"]
    options += ["--solver", "lbfgs", "--dtype", "float64", "--seed", "5", "--device", "cpu", "--holdout", "0"]
    options += ["--workers", "1", "--precision", "float32", "--loss", "gce", "--label-smoothing", "0.25"]
    status, out, err = run("train", "iris.csv", *options)
    assert (status, err) == (0, "")
    assert "held-out" not in out
    model = sx.load("model.safetensors")
    assert model.get_params() == {
        "C": np.inf,
        "callbacks": (),
        "tol": 0.01,
        "max_iter": 500,
        "class_weight": "balanced",
        "solver": "lbfgs",
        "dtype": "float64",
        "random_state": 5,
        "device": "cpu",
        "fit_intercept": True,
        "warm_start": False,
        "verbose": 0,
        "workers": 1,
        "max_memory": None,
        "precision": "float32",
        "label_smoothing": 0.25,
        "loss": "gce",
    }
    assert model.coef_.dtype == np.float64
    assert line(out, "data").startswith("iris.csv: 150 rows")


@pytest.mark.parametrize("loss", ["gce", "sce", "focal"])
def test_losses_train(run, tmp_path, loss):
    iris_csv(tmp_path / "iris.csv")
    status, out, err = run("train", "iris.csv", "--target", "species", "--loss", loss)
    assert (status, err) == (0, "")
    assert line(out, "final loss").endswith(f"({loss})")
    assert line(out, "estimated gap").endswith("above a local minimum")
    assert sx.load("model.safetensors").loss == loss
    status, _, err = run("train", "iris.csv", "--target", "species", "--label-smoothing", "1.5")
    assert status == 2
    assert "--label-smoothing" in err


@pytest.mark.parametrize("solver", ["sgd", "adam", "adamw"])
def test_stochastic_solvers_train(run, tmp_path, solver):
    iris_csv(tmp_path / "iris.csv")
    status, out, err = run("train", "iris.csv", "--target", "species", "--solver", solver, "--max-iter", 5)
    assert status == 0
    assert line(out, "iterations").startswith("5 in")
    assert err.startswith("warning: ")


def test_a_fit_that_has_not_converged_warns_in_one_line(run, tmp_path):
    status, out, err = run("train", iris_csv(tmp_path / "iris.csv"), "--target", "species", "--max-iter", 2)
    assert status == 0
    assert err.startswith("warning: SoftmaxClassifier has not converged: max_iter=2")
    assert len(err.splitlines()) == 1
    assert "model written to" in out
    assert run("train", "iris.csv", "--target", "species", "--max-iter", 2, "--json")[2] == err


def test_a_test_file_replaces_the_held_out_rows(run, tmp_path):
    train, test = slice(0, None, 2), slice(1, None, 2)
    iris_csv(tmp_path / "train.csv", train)
    shuffled = [NAMES[2], "extra", "species", NAMES[0], NAMES[3], NAMES[1]]
    X = IRIS.data[test].T
    write_csv(tmp_path / "test.csv", shuffled, X[2], X[0] * 9, SPECIES[test], X[0], X[3], X[1])
    status, out, err = run("train", "train.csv", "--test", "test.csv", "--target", "species")
    assert (status, err) == (0, "")
    model = sx.SoftmaxClassifier(dtype="float32").fit(IRIS.data[train], SPECIES[train])
    assert line(out, "data").startswith("train.csv: 75 rows")
    assert line(out, "test accuracy") == f"{model.score(IRIS.data[test], SPECIES[test]):.4f} (75 rows)"


def test_standardize_equals_a_pipeline_and_takes_raw_features(run, tmp_path):
    X, y = load_wine(return_X_y=True)
    X = np.column_stack([X, np.full(len(X), 7.0)])  # a column without variance
    np.savez(tmp_path / "wine.npz", X=X, y=y)
    options = ["--standardize", "--holdout", 0, "--dtype", "float64", "--tol", 1e-12]
    status, out, err = run("train", "wine.npz", *options)
    assert (status, err) == (0, "")
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-10, max_iter=10_000)).fit(X, y)
    model = sx.load("model.safetensors")
    np.testing.assert_allclose(model.predict_proba(X), pipeline.predict_proba(X), atol=1e-6)
    status, out, _ = run("predict", "model.safetensors", "wine.npz", "--proba")
    header, rows = read_csv(out)
    assert header == ["0", "1", "2"]
    np.testing.assert_allclose(np.array(rows, dtype=float), pipeline.predict_proba(X), atol=1e-6)
    standard = sx.SoftmaxClassifier(tol=1e-12).fit(StandardScaler().fit_transform(X), y)
    assert model.objective_ == pytest.approx(standard.objective_, rel=1e-9)


def test_standardize_keeps_the_accuracy_it_reports(run, tmp_path):
    X, y = load_wine(return_X_y=True)
    np.savez(tmp_path / "wine.npz", X=X, y=y)
    status, out, err = run("train", "wine.npz", "--standardize", "--holdout", 0)
    assert (status, err) == (0, "")
    model = sx.load("model.safetensors")
    assert model.coef_.dtype == model.intercept_.dtype == np.float64  # float32 may not hold the means and scales
    assert line(out, "train accuracy") == f"{model.score(X, y):.4f} (178 rows)"
    assert model.score(X, y) > 0.99


def test_two_classes_standardize_too(run, tmp_path):
    X, y = IRIS.data[:100], SPECIES[:100]
    iris_csv(tmp_path / "two.csv", slice(100))
    assert run("train", "two.csv", "--target", "species", "--standardize", "--holdout", 0)[0] == 0
    model = sx.load("model.safetensors")
    assert model.coef_.shape == (1, 4)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-6)).fit(X, y)
    np.testing.assert_allclose(model.predict_proba(frame(X)), pipeline.predict_proba(X), atol=1e-2)


def test_the_only_row_of_a_class_is_trained_on(run, tmp_path):
    labels = np.append(SPECIES[:-1], "unique")
    write_csv(tmp_path / "iris.csv", [*NAMES, "y"], *IRIS.data.T, labels)
    for seed in range(5):
        status, out, err = run("train", "iris.csv", "--tol", "0.1", "--seed", seed, "--json")
        assert (status, err) == (0, "")
        assert "unique" in json.loads(out)["classes"]


def test_holdout_that_leaves_nothing_is_refused_in_one_line(run, tmp_path):
    write_csv(tmp_path / "two.csv", ["a", "y"], [1, 2], ["u", "v"])
    for holdout in ("0.2", "0.99"):
        status, out, err = run("train", "two.csv", "--holdout", holdout)
        assert (status, out) == (2, "")
        assert re.fullmatch(r"softmax-xp: error: two.csv: --holdout must leave rows to train.*--holdout 0\n", err)


def test_a_target_without_data_is_refused(run):
    status, _, err = run("train", "--target", "species")
    assert status == 2
    assert "--target goes with a file of data" in err


def test_columns_are_dropped_and_need_not_be_there_to_predict(run, refused, tmp_path):
    names = [f"flower {index}" for index in range(150)]
    write_csv(tmp_path / "all.csv", ["name", *NAMES, "bed", "species"], names, *IRIS.data.T, range(150), SPECIES)
    refused(["train", "all.csv", "--target", "species"], "'flower 0' in line 2, column 'name'", "train --drop name")
    options = ["--drop", "name", "--drop", "bed", "-o", "model"]
    status, out, err = run("train", "all.csv", "--target", "species", *options, "--test", "all.csv")
    assert (status, err) == (0, "")
    assert line(out, "data") == "all.csv: 150 rows, 4 features, 3 classes"
    assert sx.load("model").feature_names_in_.tolist() == NAMES
    iris_csv(tmp_path / "iris.csv")
    assert run("predict", "model", "all.csv") == run("predict", "model", "iris.csv")
    assert run("evaluate", "model", "all.csv", "--target", "species")[0] == 0
    refused(["train", "all.csv", "--target", "species", "--drop", "Name"], "got 'Name'", "'name'")
    refused(["train", "--drop", "name"], "--drop goes with a file of data")


def test_a_spreadsheet_with_semicolons_and_booleans_trains(run, tmp_path):
    rows = [f"{a > 2.5};{b};{label}" for a, b, label in zip(*IRIS.data.T[2:], SPECIES, strict=True)]
    (tmp_path / "iris.csv").write_text("\n".join(["long petal;petal width;species", *rows]))
    status, out, err = run("train", "iris.csv", "--target", "species")
    assert (status, err) == (0, "")
    assert line(out, "data") == "iris.csv: 120 rows, 2 features, 3 classes"
    assert float(line(out, "held-out accuracy").split()[0]) > 0.9


def test_predict_leaves_out_the_label_column_of_a_file_without_names(run, tmp_path):
    rows = [f"{a},{b},{int(a > 0)}" for a, b in np.random.default_rng(0).normal(size=(40, 2))]
    (tmp_path / "plain.csv").write_text("\n".join(rows))
    assert run("train", "plain.csv", "--target", "2")[0] == 0
    status, out, _ = run("predict", "model.safetensors", "plain.csv", "--target", "2")
    assert status == 0
    assert len(out.splitlines()) == 41
    status, _, err = run("predict", "model.safetensors", "plain.csv")
    assert status == 2
    assert "the model takes 2 features, got 3; name the column with the labels by --target" in err


def test_a_closed_stdout_is_no_fault_of_the_program(python, tmp_path):
    command, environment = python
    line = " ".join([*command, "-m", "softmax_xp", "devices", ">&-"])
    done = subprocess.run(["bash", "-c", line], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_few_rows_are_split_without_classes(run, tmp_path):
    iris_csv(tmp_path / "iris.csv", slice(0, None, 15))
    status, out, _ = run("train", "iris.csv", "--target", "species", "--tol", "0.1")
    assert status == 0
    assert "(8 rows)" in line(out, "train accuracy")
    assert "(2 rows)" in line(out, "held-out accuracy")


def test_plot_draws_a_picture(run, tmp_path):
    pytest.importorskip("matplotlib")
    iris_csv(tmp_path / "iris.csv")
    status, out, err = run("train", "iris.csv", "--target", "species", "--plot", "curves.png")
    assert (status, err) == (0, "")
    content = (tmp_path / "curves.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 5000
    assert "curves written to curves.png" in out
    assert run("train", "iris.csv", "--target", "species", "--plot", "curves.svg")[0] == 0
    assert "<svg" in (tmp_path / "curves.svg").read_text()


def test_plot_shows_each_iteration(tmp_path):
    figure = outputs.empty_figure(tmp_path / "curves.png")
    outputs.drawn_curves(
        figure, [State(None, 2.0, 0.5, 0.3, 1, 1), State(None, 1.0, 0.05, 0.02, 2, 2)], tmp_path / "curves.png"
    )
    above, below = figure.axes
    np.testing.assert_array_equal(above.lines[0].get_xydata(), [[1, 2.0], [2, 1.0]])
    np.testing.assert_array_equal(below.lines[0].get_xydata(), [[1, 0.5], [2, 0.05]])
    np.testing.assert_array_equal(below.lines[1].get_xydata(), [[1, 0.3], [2, 0.02]])
    assert below.get_yscale() == "log"


def test_idx_files_train_and_test(run, tmp_path):
    rng = np.random.default_rng(0)
    for name, n in (("train", 60), ("t10k", 20)):
        labels = np.arange(n, dtype=np.uint8) % 3
        images = rng.integers(0, 100, (n, 4, 4), dtype=np.uint8)
        images[np.arange(n), labels] += 150
        idx_file(tmp_path / f"{name}-images-idx3-ubyte", images)
        idx_file(tmp_path / f"{name}-labels-idx1-ubyte", labels)
    images = ["train-images-idx3-ubyte", "--test", "t10k-images-idx3-ubyte"]
    status, out, err = run("train", *images, "-o", "a")
    assert (status, err) == (0, "")
    assert line(out, "test accuracy") == "1.0000 (20 rows)"
    status, again, _ = run("train", *images, "--target", "train-labels-idx1-ubyte", "-o", "b")
    assert status == 0
    assert line(again, "test accuracy") == line(out, "test accuracy")
    status, out, _ = run("evaluate", "a", "t10k-images-idx3-ubyte", "--json")
    assert json.loads(out)["accuracy"] == 1.0


# --- predict ---


@pytest.fixture
def iris_model(run, tmp_path):
    assert run("train", iris_csv(tmp_path / "iris.csv"), "--target", "species", "--holdout", 0, "-o", "iris")[0] == 0
    return sx.load("iris")


def test_predict_finds_columns_by_name(run, tmp_path, iris_model):
    X = IRIS.data.T
    write_csv(tmp_path / "new.csv", [NAMES[3], "id", NAMES[0], NAMES[2], NAMES[1]], X[3], range(150), X[0], X[2], X[1])
    status, out, err = run("predict", "iris", "new.csv")
    assert (status, err) == (0, "")
    header, rows = read_csv(out)
    assert header == ["label"]
    expected = sx.load("iris").predict(frame(IRIS.data))
    assert [row[0] for row in rows] == expected.tolist()
    assert run("predict", "iris", "iris.csv")[1] == out  # with the labels in the file


def test_predict_writes_probabilities_to_a_file(run, tmp_path, iris_model):
    status, out, err = run("predict", "iris", "iris.csv", "--proba", "--output", "proba.csv")
    assert (status, out, err) == (0, "", "")
    header, rows = read_csv((tmp_path / "proba.csv").read_text())
    assert header == ["setosa", "versicolor", "virginica"]
    proba = np.array(rows, dtype=np.float32)
    np.testing.assert_array_equal(proba, iris_model.predict_proba(frame(IRIS.data)))  # not a digit is lost
    status, out, _ = run("predict", "iris", "iris.csv", "--proba")
    assert out == (tmp_path / "proba.csv").read_text()


def test_predict_quotes_labels_with_commas(run, tmp_path):
    labels = np.where(IRIS.target == 0, 'a, "b"', "ü")
    sx.SoftmaxClassifier(device="cpu").fit(IRIS.data, labels).save(tmp_path / "model")
    np.save(tmp_path / "X.npy", IRIS.data)
    status, out, _ = run("predict", "model", "X.npy")
    assert status == 0
    assert {row[0] for row in read_csv(out)[1]} == {'a, "b"', "ü"}
    assert read_csv(run("predict", "model", "X.npy", "--proba")[1])[0] == ['a, "b"', "ü"]


def test_a_failed_predict_keeps_the_old_file(refused, tmp_path, iris_model):
    (tmp_path / "old.csv").write_text("label\n")
    write_csv(tmp_path / "bad.csv", NAMES, *np.where(IRIS.data > 7, np.nan, IRIS.data).T)
    refused(["predict", "iris", "bad.csv", "-o", "old.csv"], "no value may be missing, got 'nan' in line 104")
    assert (tmp_path / "old.csv").read_text() == "label\n"


def test_an_interrupted_predict_keeps_the_old_file(run, tmp_path, monkeypatch, iris_model):
    class Interrupted:
        """A csv.writer for which Ctrl-C comes between two rows."""

        def __init__(self, stream, **options):
            self.writer = csv_writer(stream, **options)
            self.writerow = self.writer.writerow

        def writerows(self, rows):
            self.writerow(rows[0])
            assert len(list(tmp_path.glob(".softmax_xp-*"))) == 1  # what is written has another name as yet
            raise KeyboardInterrupt

    csv_writer = csv.writer
    (tmp_path / "old.csv").write_text("label\n")
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(csv, "writer", Interrupted)
    assert run("predict", "iris", "iris.csv", "-o", "old.csv") == (130, "", "softmax-xp: interrupted\n")
    assert (tmp_path / "old.csv").read_text() == "label\n"
    assert sorted(tmp_path.iterdir()) == before


# --- evaluate ---


def test_evaluate_reports_the_scores_of_scikit_learn(run, iris_model):
    predicted = iris_model.predict(frame(IRIS.data))
    status, out, err = run("evaluate", "iris", "iris.csv", "--target", "species", "--json")
    assert (status, err, len(out.splitlines())) == (0, "", 1)
    report = json.loads(out)
    assert report["n_samples"] == 150
    assert report["accuracy"] == np.mean(predicted == SPECIES) > 0.9
    assert report["log_loss"] == pytest.approx(log_loss(SPECIES, iris_model.predict_proba(frame(IRIS.data))), rel=1e-5)
    for row, name in zip(report["classes"], IRIS.target_names, strict=True):
        true, found = name == SPECIES, name == predicted
        assert row["label"] == name
        assert row["precision"] == pytest.approx(true[found].mean())
        assert row["recall"] == pytest.approx(found[true].mean())
        assert row["f1"] == pytest.approx(2 / (1 / row["precision"] + 1 / row["recall"]))
        assert row["support"] == 50
    for pair in report["confusion"]:
        assert pair["rows"] == np.sum((pair["true"] == SPECIES) & (pair["predicted"] == predicted)) > 0
    assert sum(pair["rows"] for pair in report["confusion"]) == 150


def test_evaluate_prints_tables(run, iris_model):
    status, out, err = run("evaluate", "iris", "iris.csv", "--target", "species")
    assert (status, err) == (0, "")
    assert line(out, "data") == "iris.csv: 150 rows"
    assert re.fullmatch(r"0\.9\d{3}", line(out, "accuracy"))
    cells = [[cell.strip() for cell in text.split("│")[1:-1]] for text in out.splitlines() if text.startswith("│")]
    assert "Confusion: true classes down, predicted ones across" in out.splitlines()
    assert len(cells) == 6
    assert all(row[0] in {"setosa", "versicolor", "virginica"} for row in cells)
    assert cells[0] == ["setosa", "1.0000", "1.0000", "1.0000", "50"]
    matrix = np.array([row[1:] for row in cells[3:]], dtype=int)
    assert matrix.sum() == 150
    assert matrix[0].tolist() == [50, 0, 0]
    assert f"{np.trace(matrix) / 150:.4f}" == line(out, "accuracy")


def test_evaluate_of_many_classes_prints_the_most_confused_pairs(run, tmp_path):
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((600, 5)), np.arange(600) % 30
    sx.SoftmaxClassifier(device="cpu").fit(X, y).save(tmp_path / "model")
    np.savez(tmp_path / "data.npz", X=X, y=y)
    status, out, _ = run("evaluate", "model", "data.npz")
    assert status == 0
    predicted = sx.load("model").predict(X)
    pairs = np.zeros((30, 30), dtype=int)
    np.add.at(pairs, (y, predicted), 1)
    np.fill_diagonal(pairs, 0)
    cells = [[cell.strip() for cell in text.split("│")[1:-1]] for text in out.splitlines() if text.startswith("│")]
    assert len(cells) == 30 + 10
    shown = [tuple(map(int, row)) for row in cells[30:]]
    assert [n for _, _, n in shown] == sorted(pairs.ravel(), reverse=True)[:10]
    assert all(pairs[true, guess] == n for true, guess, n in shown)


def test_evaluate_counts_a_class_without_rows_as_zero(run, tmp_path, iris_model):
    iris_csv(tmp_path / "some.csv", slice(0, 50))
    status, out, err = run("evaluate", "iris", "some.csv", "--target", "species", "--json")
    assert (status, err) == (0, "")
    assert [row["support"] for row in json.loads(out)["classes"]] == [50, 0, 0]


@pytest.mark.parametrize("trained", [np.int64, np.uint8, np.float64, "U", "O"])
@pytest.mark.parametrize("given", [np.int64, np.uint8, "U"])
def test_equal_labels_match_whatever_their_dtype(run, tmp_path, trained, given):
    y = IRIS.target.astype("U").astype(trained) if trained in ("U", "O") else IRIS.target.astype(trained)
    sx.SoftmaxClassifier(device="cpu", tol=1e-2).fit(IRIS.data, y).save(tmp_path / "model")
    np.savez(tmp_path / "data.npz", X=IRIS.data, y=IRIS.target.astype(given))
    status, out, err = run("evaluate", "model", "data.npz", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["accuracy"] > 0.9


def test_labels_never_seen_are_named(refused, tmp_path, iris_model):
    labels = SPECIES.copy()
    labels[[3, 7]] = "rosa", "tulipa"
    write_csv(tmp_path / "data.csv", [*NAMES, "y"], *IRIS.data.T, labels)
    refused(["evaluate", "iris", "data.csv"], "data.csv: ", "got 'rosa', 'tulipa'; ", "'setosa'")
    refused(["train", "iris.csv", "--target", "species", "--test", "data.csv"], "data.csv")
    write_csv(tmp_path / "test.csv", [*NAMES, "species"], *IRIS.data.T, labels)
    refused(["train", "iris.csv", "--target", "species", "--test", "test.csv", "-o", "new"], "got 'rosa', 'tulipa'")
    assert not (tmp_path / "new").exists()


def test_many_unseen_labels_are_not_all_named(refused, tmp_path, iris_model):
    write_csv(tmp_path / "data.csv", [*NAMES, "y"], *IRIS.data.T, range(150))
    refused(["evaluate", "iris", "data.csv"], "got '0', '1', '10', '100', '101', '102', '103', '104', ... (150 in all)")


# --- devices, version, help ---


def test_devices_lists_what_the_library_lists(run):
    status, out, err = run("devices", "--json")
    assert (status, err) == (0, "")
    assert [device["name"] for device in json.loads(out)["devices"]] == [device.name for device in sx.devices()]
    status, out, err = run("devices")
    assert (status, err) == (0, "")
    for device in sx.devices():
        (row,) = (text for text in out.splitlines() if text.startswith(f"│ {device.name} "))
        assert device.description in row
        assert device.reason in row
        assert ("yes" if device.usable else "no") in row


def test_devices_fails_where_a_required_one_is_unusable(run, monkeypatch):
    assert run("devices", "--require", "cpu")[0] == 0
    status, out, err = run("devices", "--require", "cuda:99", "--json")
    assert status == 2
    assert json.loads(out)["devices"][0]["name"] == "cpu"  # all the same
    assert err.startswith("softmax-xp: error: device 'cuda:99' cannot be used: ")
    assert err.count("\n") == 1


@no_gpu
def test_a_container_says_by_a_variable_what_it_is_for(run, monkeypatch):
    """Then nothing falls back to the CPU."""
    monkeypatch.setenv("SOFTMAX_XP_DEVICE", "cuda")
    for command in (["devices"], ["train"]):
        status, _, err = run(*command)
        assert status == 2
        assert f"device 'cuda' cannot be used: {WHY_NO_GPU}" in err
    assert run("train", "--device", "cpu")[0] == 0


def test_version_and_help(run):
    assert run("--version") == (0, f"softmax-xp {sx.__version__}\n", "")
    for args in ([], ["--help"], ["-h"]):
        status, out, err = run(*args)
        assert (status, err) == (0, "")
        assert all(command in out for command in ("train", "predict", "evaluate", "devices"))
    for command in ("train", "predict", "evaluate", "devices"):
        status, out, _ = run(command, "--help")
        assert status == 0
        assert f"softmax-xp {command}" in out.split("Examples")[1]


# --- Errors: two, and one line ---


def test_usage_errors(refused):
    refused(["nonsense"], "nonsense")
    refused(["train", "--nonsense"], "--nonsense")
    refused(["train", "--tol"], "--tol")
    refused(["train", "a.csv", "b.csv"], "b.csv")
    refused(["train", "--C", "much"], "--C")
    refused(["train", "--C", "0"], "--C", "(0, inf]")
    refused(["train", "--C", "nan"], "--C")
    refused(["train", "--tol", "-1"], "--tol")
    refused(["train", "--tol", "inf"], "--tol")
    refused(["train", "--max-iter", "0"], "--max-iter")
    refused(["train", "--max-iter", "1.5"], "--max-iter")
    refused(["train", "--holdout", "1"], "--holdout", "[0, 1)")
    refused(["train", "--holdout", "-0.1"], "--holdout")
    refused(["train", "--seed", "-1"], "--seed")
    refused(["train", "--solver", "newton"], "--solver", "lbfgs")
    refused(["train", "--dtype", "float16"], "--dtype", "float32")
    refused(["train", "--class-weight", "heavy"], "--class-weight", "balanced")
    refused(["train", "--device", "tpu"], "`device`", "'tpu'")
    refused(["predict"], "model")
    refused(["predict", "model"], "data")
    refused(["evaluate", "model", "data", "--proba"], "--proba")


def test_bad_data_are_refused(refused, tmp_path):
    refused(["train", "missing.csv"], "missing.csv", "no such file")
    (tmp_path / "text.csv").write_text("a,b,y\n1,x,0\n2,3,1\n")
    refused(["train", "text.csv"], "text.csv", "'x'", "line 2")
    refused(["train", iris_csv(tmp_path / "iris.csv")], "iris.csv", "--target")
    refused(["train", "iris.csv", "--target", "genus"], "'genus'")
    X = IRIS.data.copy()
    X[5, 2] = np.nan
    write_csv(tmp_path / "nan.csv", [*NAMES, "y"], *X.T, SPECIES)
    refused(["train", "nan.csv"], "got 'nan' in line 7, column 'petal length (cm)'")
    refused(["train", "nan.csv", "--standardize"], "got 'nan' in line 7, column 'petal length (cm)'")
    X[5, 2] = np.inf
    np.savez(tmp_path / "inf.npz", X=X, y=SPECIES)
    refused(["train", "inf.npz"], "got inf at row 5")
    refused(["train", "inf.npz", "--standardize"], "got inf at row 5")
    np.savez(tmp_path / "one.npz", X=IRIS.data, y=np.zeros(150, int))
    refused(["train", "one.npz"], "at least two classes")
    np.savez(tmp_path / "row.npz", X=IRIS.data[:1], y=[1])
    refused(["train", "row.npz"])
    write_csv(tmp_path / "short.csv", [*NAMES[:3], "species"], *IRIS.data[:, :3].T, SPECIES)
    refused(["train", "iris.csv", "--target", "species", "--test", "short.csv"], "short.csv", NAMES[3])


def test_a_fault_of_the_files_leaves_nothing_behind(refused, tmp_path):
    iris_csv(tmp_path / "iris.csv")
    refused(["train", "missing.csv"])
    refused(["train", "iris.csv"])
    assert [file.name for file in tmp_path.iterdir()] == ["iris.csv"]


def test_bad_models_are_refused(refused, tmp_path):
    iris_csv(tmp_path / "iris.csv")
    refused(["predict", "missing", "iris.csv"], "missing: No such file")
    refused(["predict", tmp_path, "iris.csv"], str(tmp_path))
    refused(["predict", "iris.csv", "iris.csv"], "iris.csv: must be a model")
    sx.save(sx.Linear(4, 3), tmp_path / "network")
    refused(["predict", "network", "iris.csv"], "holds a Linear")
    sx.SoftmaxClassifier(device="cpu").fit(IRIS.data[:, :3], SPECIES).save(tmp_path / "three")
    np.savez(tmp_path / "four.npz", X=IRIS.data, y=SPECIES)
    refused(["predict", "three", "four.npz"], "takes 3 features, got 4")
    refused(["evaluate", "three", "missing.npz"], "missing.npz")


def test_an_output_that_cannot_be_written_is_refused_before_the_fit(refused, tmp_path, monkeypatch):
    monkeypatch.setattr(sx.SoftmaxClassifier, "fit", lambda *_, **__: pytest.fail("must not be reached"))
    refused(["train", "--output", "nowhere/model"], "nowhere: No such file or directory")
    refused(["train", "--output", tmp_path], f"{tmp_path}: Is a directory")
    (tmp_path / "file").write_text("")
    refused(["train", "--output", "file/model"], "file: Not a directory")
    refused(["train", "--plot", "nowhere/curves.png"], "nowhere")
    refused(["train", "--plot", "curves.mp3"], "--plot", "curves.mp3")
    refused(["train", "--plot", "curves"], "--plot")
    refused(["predict", "model", "data", "--output", "nowhere/p.csv"], "nowhere")
    monkeypatch.setattr(outputs.os, "access", lambda *_: False)
    refused(["train"], "Permission denied")


def test_no_file_that_is_read_is_overwritten(run, refused, tmp_path):
    pytest.importorskip("matplotlib")
    iris_csv(tmp_path / "iris.csv")
    iris_csv(tmp_path / "test.csv")
    for name in ("X", "X_test"):
        np.save(tmp_path / f"{name}.npy", IRIS.data)
        np.save(tmp_path / f"{name.replace('X', 'y')}.npy", IRIS.target)
    np.save(tmp_path / "labels.npy", IRIS.target)
    os.link(tmp_path / "iris.csv", tmp_path / "link.png")
    (tmp_path / "model").symlink_to("iris.csv")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    train = ["train", "iris.csv", "--target", "species"]
    for output in ("iris.csv", tmp_path / "iris.csv", "test.csv", "model"):
        refused([*train, "--test", "test.csv", "-o", output], "--output must not be a file to be read", str(output))
    refused([*train, "--plot", "link.png"], "--plot must not be a file to be read", "link.png")
    refused([*train, "--plot", "new.png", "-o", tmp_path / "new.png"], "--plot must not be that of --output")
    refused(["train", "X.npy", "-o", "y.npy"], "y.npy")
    refused(["train", "X.npy", "--target", "labels.npy", "-o", "labels.npy"], "labels.npy")
    refused(["train", "X.npy", "--test", "X_test.npy", "-o", "y_test.npy"], "y_test.npy")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before

    (tmp_path / "model").unlink()
    assert run(*train, "-o", "species")[0] == 0  # the name of a column is no file to be read
    assert run(*train, "-o", "species")[0] == 0
    before["species"] = (tmp_path / "species").read_bytes()
    refused(["predict", "species", "iris.csv", "-o", "species"], "--output must not be a file to be read")
    refused(["predict", "species", "iris.csv", "-o", "iris.csv"], "--output must not be a file to be read")
    assert (tmp_path / "species").read_bytes() == before["species"]
    assert (tmp_path / "iris.csv").read_bytes() == before[tmp_path / "iris.csv"]


@pytest.mark.skipif(os.name == "nt", reason="named pipes are POSIX")
def test_a_pipe_can_be_the_output(run, tmp_path):
    iris_csv(tmp_path / "iris.csv")
    os.mkfifo(tmp_path / "pipe")  # never a real device: broken code could replace it
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert run("train", "iris.csv", "--target", "species", "--output", "pipe")[0] == 0
        (tmp_path / "model").write_bytes(os.read(reader, 1 << 16))
    finally:
        os.close(reader)
    assert sx.load("model").classes_.tolist() == ["setosa", "versicolor", "virginica"]


def test_plot_without_matplotlib_is_refused_before_the_fit(refused, monkeypatch):
    monkeypatch.setattr(sx.SoftmaxClassifier, "fit", lambda *_, **__: pytest.fail("must not be reached"))
    real = builtins.__import__

    def without(name: str, *args: object) -> object:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    refused(["train", "--plot", "curves.png"], "matplotlib", "pip install 'matplotlib>=3.9'")


@no_gpu
def test_a_device_that_is_not_there_is_refused(refused, tmp_path):
    for device in ("cuda", "cuda:1"):
        refused(["train", "missing.csv", "--device", device], device, WHY_NO_GPU, "install")
    refused(["predict", "model", "data", "--device", "cuda"], WHY_NO_GPU)
    refused(["evaluate", "model", "data", "--device", "cuda"], "device='cpu'")


@pytest.mark.parametrize(
    ("error", "mention"),
    [
        (MemoryError(), "out of memory"),
        (MemoryError("Unable to allocate 1. TiB\nfor an array"), "Unable to allocate 1. TiB"),
        (OSError(28, "No space left on device", "model"), "model: No space left on device"),
        (OSError("of no number"), "of no number"),
        (ValueError("first\nsecond"), "first"),
        (ImportError("needs pyarrow"), "needs pyarrow"),
    ],
    ids=repr,
)
def test_errors_in_the_fit_are_one_line(refused, monkeypatch, error, mention):
    def fit(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(sx.SoftmaxClassifier, "fit", fit)
    refused(["train"], mention)


def test_a_fault_of_the_program_is_not_hidden(monkeypatch, tmp_path):
    def fit(*_: object, **__: object) -> None:
        raise AttributeError("a bug")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sx.SoftmaxClassifier, "fit", fit)
    with pytest.raises(AttributeError, match="a bug"):
        app.main(["train"])


def test_ctrl_c_outside_of_the_fit_is_one_word(run, monkeypatch):
    def fit(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sx.SoftmaxClassifier, "fit", fit)
    assert run("train") == (130, "", "softmax-xp: interrupted\n")
    monkeypatch.setattr(app.typer.main, "get_command", fit)
    assert run("train") == (130, "", "softmax-xp: interrupted\n")


def test_ctrl_c_in_the_fit_keeps_the_model_that_it_leaves(run, monkeypatch):
    evaluate, calls = LinearObjective.value_and_grad, []

    def interrupted(self: LinearObjective, params: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        calls.append(params)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return evaluate(self, params)

    monkeypatch.setattr(LinearObjective, "value_and_grad", interrupted)
    status, out, err = run("train", "--output", "model")
    warning, last = err.splitlines()
    assert (status, last) == (130, "softmax-xp: interrupted")
    assert warning.startswith("warning: SoftmaxClassifier has not converged: interrupted")
    assert line(out, "model written to") == "model"
    assert 0 < float(line(out, "final loss")) < np.log(10)
    assert sx.load("model").coef_.shape == (10, 64)


# --- Terminals and Ctrl-C ---


def read_until(descriptor: int, pattern: str, seconds: float = 600.0) -> str:
    """Read a terminal until `pattern` has appeared or its other end is closed.

    `seconds` is how long a test may hang that has gone wrong; no test passes or fails by it on a slow machine.
    """
    data, text, end = b"", "", time.monotonic() + seconds
    while not re.search(pattern, text) and time.monotonic() < end:
        if select.select([descriptor], [], [], 0.1)[0]:
            try:
                chunk = os.read(descriptor, 4096)
            except OSError:  # how Linux says that the process has ended
                break
            if not chunk:
                break
            data += chunk
            text = data.decode(errors="replace")  # a chunk may end within a character
    return text


@contextmanager
def on_a_terminal(
    folder: Path, *args: object, code: str = "", whole: bool = False, **variables: str
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run the command with a terminal for its stderr; yield the process and the other end of the terminal.

    Where `whole` is true, the terminal is its stdout too. `code` is run before the command, in the same process.
    A process inherits that Ctrl-C is ignored, as after `nohup`, but not that it is handled: so it is, meanwhile.
    """
    pty = pytest.importorskip("pty")  # POSIX
    master, slave = pty.openpty()
    environment = {**ENVIRONMENT, "TERM": "xterm", "COLUMNS": "120", "NO_COLOR": "", **variables}
    command = [sys.executable, "-c", f"{code}\nfrom softmax_xp.cli import app\napp.main()", *map(str, args)]
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        stdout = slave if whole else subprocess.PIPE
        running = subprocess.Popen(command, cwd=folder, env=environment, stdout=stdout, stderr=slave, text=True)
    finally:
        signal.signal(signal.SIGINT, handler)
        os.close(slave)
    with running:
        try:
            yield running, master
        finally:
            running.kill()
            os.close(master)


def terminal_text(folder: Path, *args: object, **variables: str) -> str:
    """Run the command on a terminal and return all that it has shown there."""
    with on_a_terminal(folder, *args, whole=True, **variables) as (_, terminal):
        return read_until(terminal, "(?!)").replace("\r\n", "\n")


# The fit waits in its second iteration for Ctrl-C, so that nothing depends on how fast the machine is.
WAIT_FOR_CTRL_C = """
import time
import softmax_xp as sx
fit = sx.SoftmaxClassifier.fit
def wait(self, X, y):
    record, = self.callbacks
    def record_and_wait(state):
        record(state)
        while state.n_iter == 2:
            time.sleep(0.05)
            record(state)
    self.callbacks = [record_and_wait]
    return fit(self, X, y)
sx.SoftmaxClassifier.fit = wait
"""


@pytest.mark.parametrize("solver", ["lbfgs", "sgd"])
def test_progress_is_shown_on_a_terminal_and_ctrl_c_keeps_the_model(tmp_path, solver):
    options = ["--solver", solver, "--tol", "1e-12", "--output", "model"]
    with on_a_terminal(tmp_path, "train", *options, code=WAIT_FOR_CTRL_C, COLUMNS="60") as (running, terminal):
        shown = read_until(terminal, r"iteration 2  objective \d+\.\d{6}  gradient norm \d\.\de[-+]\d\d")
        assert "iteration 2  objective" in shown
        assert "…" not in shown
        assert all(len(text) < 60 for text in shown.split("\r"))
        running.send_signal(signal.SIGINT)
        rest = read_until(terminal, "softmax-xp: interrupted")
        out, _ = running.communicate()
        assert running.returncode == 130
    assert "softmax-xp: interrupted" in rest
    assert "iteration " not in out
    assert line(out, "model written to") == "model"
    assert sx.load(tmp_path / "model", device="cpu").coef_.shape == (10, 64)


def test_json_shows_no_progress_on_a_terminal(tmp_path):
    with on_a_terminal(tmp_path, "train", "--json") as (running, terminal):
        out, _ = running.communicate()
        assert json.loads(out)["converged"] is True
        assert running.returncode == 0
        assert read_until(terminal, ".") == ""


def test_reading_shows_the_fraction_on_a_terminal_only_when_it_takes_long(monkeypatch):
    def start(thread: threading.Thread) -> None:  # progress needs no thread
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    for delay, quiet, shown in ((0.0, False, "\rreading 50%\r           \r"), (1000.0, False, ""), (0.0, True, "")):
        monkeypatch.setattr(progress, "LONG_READING", delay)
        monkeypatch.setattr(sys, "stderr", stream := Screen(io.BytesIO(), encoding="ascii"))
        with progress.reading(quiet) as show:
            show(0.5)
        assert stream.text == shown


def test_the_fraction_of_a_csv_is_shown_and_erased(tmp_path):
    iris_csv(tmp_path / "iris.csv")
    code = "from softmax_xp.cli import progress; progress.LONG_READING = 0.0"
    options = ["--target", "species", "--tol", "0.1"]
    with on_a_terminal(tmp_path, "train", "iris.csv", *options, code=code) as (_, terminal):
        shown = read_until(terminal, "(?!)")
    assert re.match(r"\rreading (\d+)%\r +\r\rfitting\r", shown)


@contextmanager
def stderr_that_hangs_up(monkeypatch) -> Iterator[Callable[[], None]]:
    """Let stderr be a terminal, and yield a function that hangs it up."""
    pty = pytest.importorskip("pty")  # POSIX
    master, slave = pty.openpty()
    with open(slave, "w") as stream:  # closing it flushes it: a rest that cannot be written raises OSError
        monkeypatch.setattr(sys, "stderr", stream)
        yield lambda: os.close(master)


def test_a_terminal_that_hangs_up_does_not_end_a_fit(run, monkeypatch):
    progress_line, calls = progress.progress_line, []
    with monkeypatch.context() as patch, stderr_that_hangs_up(patch) as hang_up:

        def hang_up_first(*args):
            if not calls:
                hang_up()
            calls.append(args)
            return progress_line(*args)

        patch.setattr(progress, "PROGRESS_SECONDS", 0.0)
        patch.setattr(progress, "progress_line", hang_up_first)
        status, out, _ = run("train", "--max-iter", 3)  # with a warning, which cannot be shown either
    assert (status, len(calls)) == (0, 3)
    assert line(out, "model written to") == "model.safetensors"


def test_a_terminal_that_hangs_up_does_not_end_reading(monkeypatch):
    monkeypatch.setattr(progress, "LONG_READING", 0.0)
    with monkeypatch.context() as patch, stderr_that_hangs_up(patch) as hang_up, progress.reading() as show:
        hang_up()
        show(0.5)


@pytest.mark.parametrize(
    ("gap", "number", "text"), [(np.inf, None, "unknown"), (0.25, 0.25, "2.5e-01 above the lowest loss")]
)
def test_an_unknown_gap_is_no_number(run, monkeypatch, gap, number, text):
    fit = sx.SoftmaxClassifier.fit

    def fit_with_gap(self, *args, **options):
        fit(self, *args, **options)
        self.estimated_gap_ = gap
        return self

    monkeypatch.setattr(sx.SoftmaxClassifier, "fit", fit_with_gap)
    assert json.loads(run("train", "--json")[1])["estimated_gap"] == number
    assert line(run("train")[1], "estimated gap") == text


def test_values_beyond_float32_are_named_by_line_and_column(run, refused, tmp_path):
    X = IRIS.data.copy()
    X[17, 2] = 1e39
    write_csv(tmp_path / "iris.csv", [*NAMES, "y"], *X.T, SPECIES)
    why = "iris.csv: features must be finite in float32 (for larger ones use --dtype float64)"
    refused(["train", "iris.csv"], why, "got '1e+39' in line 19, column 'petal length (cm)'")
    write_csv(tmp_path / "small.csv", [*NAMES, "y"], *IRIS.data.T, SPECIES)
    refused(["train", "small.csv", "--test", "iris.csv", "-o", "new"], "float32", "line 19")
    assert not (tmp_path / "new").exists()
    run("train", "small.csv", "-o", "new")
    for name in ("predict", "evaluate"):
        refused([name, "new", "iris.csv"], "finite in float32 (for larger ones train with --dtype float64)", "line 19")


def test_headers_are_as_said(run, tmp_path):
    rows = np.column_stack([IRIS.data, IRIS.target]).tolist()
    text = "".join(",".join(map(str, [*row[:-1], int(row[-1])])) + "\n" for row in rows)
    (tmp_path / "plain.csv").write_text(text)
    (tmp_path / "counted.csv").write_text("1,2,3,4,5\n" + text)
    options = ["--holdout", "0", "--json", "-o", "m"]
    for name, target, header in (("plain.csv", "4", "auto"), ("counted.csv", "5", "yes")):
        status, out, err = run("train", name, "--target", target, "--header", header, *options)
        assert (status, err, json.loads(out)["n_samples"]) == (0, "", 150)
    status, out, _ = run("evaluate", "m", "counted.csv", "--target", "5", "--header", "yes", "--json")
    assert (status, json.loads(out)["n_samples"]) == (0, 150)
    status, out, _ = run("predict", "m", "counted.csv", "--target", "5", "--header", "yes")
    assert (status, out.count("\n")) == (0, 151)


def test_no_progress_without_a_terminal(tmp_path):
    environment = {**ENVIRONMENT, "FORCE_COLOR": "1"}
    done = subprocess.run(
        [*COMMAND, "train"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    ("variables", "color"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)], ids=str
)
def test_colour_can_be_forbidden(tmp_path, variables, color):
    """On a terminal, errors, warnings, tables and the progress line have escape codes only where they may."""
    error = terminal_text(tmp_path, "train", "missing.csv", **variables)
    assert "softmax-xp: error: missing.csv" in error
    iris_csv(tmp_path / "iris.csv")
    warning = terminal_text(tmp_path, "train", "iris.csv", "--target", "species", "--max-iter", 2, **variables)
    assert "warning: SoftmaxClassifier has not converged" in warning
    table = terminal_text(tmp_path, "evaluate", "model.safetensors", "iris.csv", "--target", "species", **variables)
    assert "Confusion" in table
    for text in (error, warning, table):
        assert ("\x1b" in text) == color


@given(
    n_iter=st.integers(0, 10**7),
    objective=st.floats(allow_subnormal=False),
    norm=st.floats(0),
    seconds=st.floats(0, 1e7),
    width=st.integers(1, 130),
)
def test_the_progress_line_is_as_long_as_the_terminal_allows(n_iter, objective, norm, seconds, width):
    state = State(None, objective, norm, np.nan, n_iter, n_iter)
    full = progress.progress_line(state, seconds, 10**6)
    assert re.fullmatch(r"iteration \d+  objective \S+  gradient norm \S+  \d+:\d\d", full)
    shown = progress.progress_line(state, seconds, width)
    parts = re.split(r"  (?=objective|gradient|\d+:)", full)
    starts = ["  ".join(parts[:n]) for n in range(1, 5)]
    assert shown == max([text for text in starts if len(text) <= width], key=len, default=starts[0])


class Screen(io.TextIOWrapper):
    """A terminal in memory, of the encoding that it is made with."""

    def isatty(self):
        return True

    @property
    def text(self):
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)


@pytest.fixture
def screen(monkeypatch):
    """Run a function that prints with stdout being a terminal of some width; return what it shows."""

    def screen(function, *args, width, encoding="utf-8"):
        stream = Screen(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        for name, value in {"COLUMNS": str(width), "TERM": "xterm", "NO_COLOR": "1"}.items():
            monkeypatch.setenv(name, value)
        function(*args)
        return stream.text

    return screen


@pytest.mark.parametrize("width", [20, 80, 400])
def test_devices_show_every_reason_whole(screen, width):
    reasons = [
        f"CuPy does not import (ImportError: libcublas.so.13); reinstall it: {sx.backend.INSTALL_CUPY}",
        "",
        "no",
    ]
    found = [sx.DeviceInfo(f"cuda:{n}", "NVIDIA H200 NVL", 1 << 37, not why, why) for n, why in enumerate(reasons)]
    shown = screen(devices.show_devices, found, width=width)
    assert all(reason in shown for reason in reasons)  # in one line, so that the command in it can be copied
    assert "…" not in shown
    for device in found:
        assert device.name in shown
        assert shown.count("NVIDIA H200 NVL") == 3


@pytest.mark.parametrize("width", [20, 60, 80, 130])
@pytest.mark.parametrize("n_classes", [3, 15])
def test_tables_lose_nothing_on_a_narrow_terminal(screen, width, n_classes):
    labels = [f"a class with number {n} of a long name" for n in range(n_classes)]
    report = {
        "classes": [
            {"label": label, "precision": 0.5, "recall": 0.25, "f1": 0.125, "support": 1234} for label in labels
        ],
        "confusion": [
            {"true": true, "predicted": predicted, "rows": 100_000 + n}
            for n, (true, predicted) in enumerate(itertools.product(labels, labels))
        ],
    }
    shown = screen(evaluate.print_scores, report, width=width)
    scores, confusion = shown.split("onfus")
    assert "…" not in shown
    for number in ("0.5000", "0.2500", "0.1250", "1234"):
        assert scores.count(number) == n_classes
    counts = re.findall(r"\b1\d{5}\b", confusion)
    assert len(counts) == (n_classes**2 if "true classes down" in confusion else min(n_classes * (n_classes - 1), 10))
    assert all(name in shown for name in ("class", "number", "long", "name"))


LABELS = np.array(["Grün", "日本", "plain"])


@pytest.fixture
def foreign(tmp_path):
    """Data with labels that not every terminal can show, and a model of them."""
    write_csv(tmp_path / "iris.csv", [*NAMES, "y"], *IRIS.data.T, LABELS[IRIS.target])
    model = sx.SoftmaxClassifier(device="cpu", tol=1e-2).fit(frame(IRIS.data), LABELS[IRIS.target])
    model.save(tmp_path / "model")
    return model.predict(frame(IRIS.data))


def test_labels_that_stdout_cannot_encode_are_shown_with_escapes(tmp_path, foreign):
    def run(*args):
        environment = {**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}
        command = [*COMMAND, *map(str, args)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout.decode("ascii")

    escaped = [label.encode("ascii", "backslashreplace").decode() for label in foreign]
    assert run("predict", "model", "iris.csv").splitlines() == ["label", *escaped]
    assert run("predict", "model", "iris.csv", "--proba").splitlines()[0] == r"Gr\xfcn,plain,\u65e5\u672c"
    assert run("predict", "model", "iris.csv", "--output", "p.csv") == ""
    assert (tmp_path / "p.csv").read_text(encoding="utf-8").splitlines() == ["label", *foreign]
    table = run("evaluate", "model", "iris.csv").splitlines()
    assert all(any(label in text for text in table) for label in (r"Gr\xfcn", r"\u65e5\u672c", "plain"))
    assert len({len(text) for text in table[-5:]}) == 1  # the edges of the table are straight
    assert r"written to m\xf6del" in run("train", "iris.csv", "--tol", "0.1", "--output", "mödel")
    assert (tmp_path / "mödel").exists()


def test_a_shell_completes_commands_options_and_values(tmp_path):
    def completions(text):
        environment = {
            **ENVIRONMENT,
            "_SOFTMAX_XP_COMPLETE": "complete_bash",
            "COMP_WORDS": f"softmax-xp {text}",
            "COMP_CWORD": str(text.count(" ") + 1),
        }
        done = subprocess.run(COMMAND, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.split()

    assert completions("t") == ["train"]
    assert completions("train --sol") == ["--solver"]
    assert completions("train --solver ne") == ["newton-cg"]
    assert completions("predict --device c") == ["cpu", "cuda"]
