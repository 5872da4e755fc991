"""What goes wrong from outside: forks, failed fits, signals, killed writers, full disks, readers that leave."""

from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LogisticRegression

import softmax_xp as sx
from softmax_xp.cli import app, data, terminal, train
from softmax_xp.cli.signals import SIGNALS
from softmax_xp.files import whole
from softmax_xp.files.whole import whole_file
from softmax_xp.objective import LinearObjective

X, Y = load_iris(return_X_y=True)
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command in this process and in `tmp_path`; return status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            app.main([str(arg) for arg in args])
        return caught.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def start(tmp_path, python):
    """Start Python code in `tmp_path`, in a process of its own."""
    command, environment = python

    def start(code, *args, **options):
        line = [*command, "-c", textwrap.dedent(code), *map(str, args)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen(line, cwd=tmp_path, env=environment, text=True, **pipes)

    return start


def names(folder):
    return sorted(file.name for file in folder.iterdir())


# --- Forks ---

FORKS = """
import os, random, sys, threading, time, warnings
import numpy as np
from threadpoolctl import threadpool_info
import softmax_xp as sx

def blas():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

def fit():
    return sx.SoftmaxClassifier(device="cpu", workers=2).fit(X, y)

def busy():
    while not over.is_set():
        fit()

warnings.simplefilter("ignore", DeprecationWarning)  # Python warns of forks beside threads
rng, over, moments = np.random.default_rng(0), threading.Event(), random.Random(0)
X, y = rng.normal(size=(3000, 20)), rng.integers(0, 4, 3000)
model, before = fit(), blas()
threads = [threading.Thread(target=busy) for _ in range(3)]
for thread in threads:
    thread.start()
statuses = []
for _ in range(int(sys.argv[1])):
    time.sleep(0.02 * moments.random())
    child = os.fork()
    if child == 0:
        as_before = blas() == before
        same = np.array_equal(fit().coef_, model.coef_) and np.array_equal(model.predict(X), fit().predict(X))
        os._exit(0 if as_before and same and blas() == before else 1)
    end = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < end:
        time.sleep(0.001)
    if ended[0] == 0:
        os.kill(child, 9)
        ended = os.waitpid(child, 0)
    statuses.append(ended[1])
over.set()
for thread in threads:
    thread.join()
print(set(statuses), blas() == before)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are POSIX")
def test_no_fork_beside_busy_threads_hangs(start):
    out, err = start(FORKS, 15).communicate()
    assert (out, err) == ("{0} True\n", "")


# --- Fits that fail ---


def bad_labels(model):
    model.fit(X, np.zeros(len(X)))


def bad_weights(model):
    model.fit(X[:, :2], Y, sample_weight=-np.ones(len(X)))


def other_features_and_a_callback_that_fails(model):
    def callback(state):
        raise RuntimeError("from the callback")

    try:
        model.set_params(callbacks=[callback]).fit(X[:, :2], Y)
    finally:
        model.set_params(callbacks=())


def a_warning_that_is_an_error(model):
    max_iter = model.max_iter
    try:
        model.set_params(max_iter=1).fit(X[:, :3], 1 - (Y == 1))  # warnings are errors here
    finally:
        model.set_params(max_iter=max_iter)


def ctrl_c_at_once(model):
    def interrupted(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        for method in ("value_and_grad", "batch_value_and_grad"):
            patch.setattr(LinearObjective, method, interrupted)
        model.fit(X[:, :3], Y)


FAILURES = {
    bad_labels: ValueError,
    bad_weights: ValueError,
    other_features_and_a_callback_that_fails: RuntimeError,
    a_warning_that_is_an_error: ConvergenceWarning,
    ctrl_c_at_once: KeyboardInterrupt,
}


@pytest.mark.parametrize("solver", ["auto", "newton-cg", "sgd"])
@pytest.mark.parametrize("fail", FAILURES)
def test_a_first_fit_that_fails_leaves_the_estimator_unfitted(fail, solver):
    model = sx.SoftmaxClassifier(device="cpu", solver=solver, random_state=0)
    before = dict(vars(model))
    with pytest.raises(FAILURES[fail]):
        fail(model)
    assert vars(model) == before
    for method in (model.predict, model.predict_proba, model.decision_function):
        with pytest.raises(NotFittedError):
            method(X)


@pytest.mark.parametrize("warm_start", [False, True])
@pytest.mark.parametrize("fail", FAILURES)
def test_a_refit_that_fails_leaves_the_estimator_as_it_was(fail, warm_start):
    frame = pytest.importorskip("pandas").DataFrame(X, columns=["a", "b", "c", "d"])
    model = sx.SoftmaxClassifier(device="cpu", warm_start=warm_start).fit(frame, Y)
    before, proba = dict(vars(model)), model.predict_proba(frame)
    with pytest.raises(FAILURES[fail]):
        fail(model)
    assert vars(model).keys() == before.keys()
    assert all(vars(model)[name] is value for name, value in before.items())
    np.testing.assert_array_equal(model.predict_proba(frame), proba)
    assert model.fit(frame, Y).score(frame, Y) > 0.9


# --- Attributes that are set by hand ---


def by_hand(coef, intercept, classes, **parameters):
    model = sx.SoftmaxClassifier(device="cpu", **parameters)
    model.coef_, model.intercept_, model.classes_ = coef, intercept, classes
    return model


@pytest.mark.parametrize("n_classes", [2, 3])
def test_attributes_set_by_hand_predict_as_those_of_a_fit(tmp_path, n_classes):
    rows = n_classes > Y
    given = LogisticRegression(max_iter=1000).fit(X[rows], Y[rows])
    model = by_hand(given.coef_, given.intercept_, given.classes_)
    proba = given.predict_proba(X)
    sx.save(model, tmp_path / "model")
    back = sx.load(tmp_path / "model", device="cpu")
    back.save(tmp_path / "again")
    assert not hasattr(back, "n_iter_")
    models = [model, back, sx.load(tmp_path / "again"), pickle.loads(pickle.dumps(model)), model.to("cpu")]
    for each in models:
        np.testing.assert_allclose(each.predict_proba(X), proba, rtol=0, atol=1e-12)
        np.testing.assert_allclose(each.decision_function(X), given.decision_function(X), rtol=1e-12)
        np.testing.assert_array_equal(each.predict(X), given.predict(X))
        assert each.score(X, Y) == given.score(X, Y)
        with pytest.raises(ValueError, match="expecting 4 features"):
            each.predict(X[:, :3])
    assert clone(model).fit(X, Y).score(X, Y) > 0.9


@pytest.mark.parametrize("intercept", [0.0, 2, np.float64(0.5), np.array(1.0), np.array([1, -1])], ids=repr)
def test_two_rows_and_a_number_as_intercept_predict(tmp_path, intercept):
    """As scikit-learn sets them in its cross-validation without an intercept."""
    model = by_hand(np.array([[1, 0, 0, 0], [0, 1, 0, 0]]), intercept, np.array(["a", "b"]))
    logits = X[:, :2] + np.asarray(intercept)
    proba = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    sx.save(model, tmp_path / "model")
    for each in (model, sx.load(tmp_path / "model", device="cpu"), model.to("cpu")):
        np.testing.assert_allclose(each.predict_proba(X), proba, rtol=0, atol=1e-12)
        assert each.predict(X).tolist() == np.where(logits[:, 1] > logits[:, 0], "b", "a").tolist()


def test_coefficients_set_after_a_fit_of_another_shape_predict(tmp_path):
    frame = pytest.importorskip("pandas").DataFrame(X, columns=["a", "b", "c", "d"])
    model = sx.SoftmaxClassifier(device="cpu").fit(frame, Y)
    model.coef_, model.intercept_, model.classes_ = model.coef_[:2, :3], model.intercept_[:2], np.array([5, 7])
    logits = X[:, :3] @ model.coef_.T + model.intercept_
    sx.save(model, tmp_path / "model")
    for each in (model, sx.load(tmp_path / "model", device="cpu")):
        assert each.predict(X[:, :3]).tolist() == np.where(logits[:, 1] > logits[:, 0], 7, 5).tolist()
        with pytest.raises(ValueError, match="expecting 3 features"):
            each.predict(X)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("coef_", [[1.0, 2.0], [3.0, 4.0]], TypeError),
        ("coef_", None, TypeError),
        ("coef_", np.array([["a", "b"]] * 2), TypeError),
        ("coef_", np.ones(2), ValueError),
        ("coef_", np.ones((3, 2)), ValueError),
        ("coef_", np.full((2, 2), np.nan), ValueError),
        ("intercept_", [0.0, 1.0], TypeError),
        ("intercept_", "0", TypeError),
        ("intercept_", np.zeros(3), ValueError),
        ("intercept_", np.array([0.0, np.inf]), ValueError),
        ("classes_", ["a", "b"], TypeError),
        ("classes_", np.array([["a", "b"]]), ValueError),
    ],
)
def test_attributes_that_cannot_predict_are_named(tmp_path, name, value, error):
    model = by_hand(np.eye(2), np.zeros(2), np.array(["a", "b"]))
    setattr(model, name, value)
    for method in (model.predict, model.predict_proba, lambda X: model.save(tmp_path / "model")):
        with pytest.raises(error, match=name.rstrip("_")):
            method(np.eye(2))
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["coef_", "intercept_", "classes_"])
def test_without_one_of_the_attributes_an_estimator_is_not_fitted(name):
    model = by_hand(np.eye(2), np.zeros(2), np.array(["a", "b"]))
    delattr(model, name)
    with pytest.raises(NotFittedError):
        model.predict(np.eye(2))


# --- Signals ---


def signal_at_evaluation(monkeypatch, number, evaluation):
    """Let a signal come in an evaluation of the objective."""
    evaluate, calls = LinearObjective.value_and_grad, []

    def interrupted(self, params):
        calls.append(params)
        if len(calls) == evaluation:
            signal.raise_signal(number)
        return evaluate(self, params)

    monkeypatch.setattr(LinearObjective, "value_and_grad", interrupted)


def signal_before(monkeypatch, number, place, name):
    """Let a signal come before a function is called."""
    function = getattr(place, name)

    def interrupted(*args, **options):
        signal.raise_signal(number)
        return function(*args, **options)

    monkeypatch.setattr(place, name, interrupted)


@pytest.fixture(params=SIGNALS, ids=lambda number: number.name)
def number(request):
    """Each of the signals, with the handlers of this process checked afterwards."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield request.param
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_signal_in_the_fit_ends_it_and_keeps_the_model(run, tmp_path, monkeypatch, number):
    signal_at_evaluation(monkeypatch, number, 5)
    status, out, err = run("train", "-o", "model")
    assert status == 128 + number
    assert err.splitlines()[-1] == "softmax-xp: interrupted"
    assert out.splitlines()[-1] == "model written to model"
    assert names(tmp_path) == ["model"]
    assert sx.load("model", device="cpu").coef_.shape == (10, 64)


@pytest.mark.parametrize("place", [(data, "training_table"), (data, "split"), (train, "check_writable")])
def test_a_signal_before_the_fit_leaves_nothing(run, tmp_path, monkeypatch, number, place):
    signal_before(monkeypatch, number, *place)
    assert run("train", "-o", "model") == (128 + number, "", "softmax-xp: interrupted\n")
    assert names(tmp_path) == []


def test_a_signal_at_the_first_evaluation_leaves_nothing(run, tmp_path, monkeypatch, number):
    signal_at_evaluation(monkeypatch, number, 1)
    assert run("train", "-o", "model") == (128 + number, "", "softmax-xp: interrupted\n")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "place",
    [(sx.SoftmaxClassifier, "score"), (train, "say"), (os, "fsync"), (os, "replace")],
    ids=lambda place: place[1],
)
def test_a_signal_after_the_fit_lets_the_model_be_written(run, tmp_path, monkeypatch, number, place):
    signalled = []
    function = getattr(*place)

    def once(*args, **options):
        if not signalled:
            signalled.append(number)
            signal.raise_signal(number)
        return function(*args, **options)

    monkeypatch.setattr(*place, once)
    status, out, err = run("train", "-o", "model")
    assert (status, err) == (128 + number, "softmax-xp: interrupted\n")
    assert out.splitlines()[-1] == "model written to model"
    assert names(tmp_path) == ["model"]
    sx.load("model", device="cpu")


def test_a_signal_in_a_prediction_leaves_the_old_file(run, tmp_path, monkeypatch, number):
    by_hand(np.eye(2), np.zeros(2), np.array(["a", "b"])).save(tmp_path / "model")
    np.save(tmp_path / "X.npy", np.eye(2))
    (tmp_path / "old.csv").write_text("old")
    signal_before(monkeypatch, number, os, "replace")
    assert run("predict", "model", "X.npy", "-o", "old.csv") == (128 + number, "", "softmax-xp: interrupted\n")
    assert names(tmp_path) == ["X.npy", "model", "old.csv"]
    assert (tmp_path / "old.csv").read_text() == "old"


def test_an_error_that_a_library_makes_of_the_signal_is_not_told(run, tmp_path, monkeypatch, number):
    def swallow(*_, **options):
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt:
            raise ImportError("cannot import") from None

    monkeypatch.setattr(data, "training_table", swallow)
    assert run("train") == (128 + number, "", "softmax-xp: interrupted\n")


def test_an_error_after_the_fit_is_told_also_after_a_signal(run, tmp_path, monkeypatch, number):
    def full(*_):
        raise OSError(28, "No space left on device")

    signal_at_evaluation(monkeypatch, number, 5)
    monkeypatch.setattr(os, "fsync", full)
    status, _, err = run("train", "-o", "model")
    assert (status, err) == (2, "softmax-xp: error: model: No space left on device\n")
    assert names(tmp_path) == []


@posix
def test_a_signal_that_is_ignored_stays_so(run, monkeypatch):
    """As SIGHUP after nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signal_at_evaluation(monkeypatch, signal.SIGHUP, 2)
        assert run("train")[0] == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_command_in_another_thread_handles_no_signal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before, seen, statuses = [signal.getsignal(number) for number in SIGNALS], [], []
    monkeypatch.setattr(train, "say", lambda *_: seen.append([signal.getsignal(number) for number in SIGNALS]) or True)

    def command():
        try:
            app.main(["train"])
        except SystemExit as end:
            statuses.append(end.code)

    thread = threading.Thread(target=command)
    thread.start()
    thread.join()
    assert statuses == [0]
    assert seen
    assert all(handlers == before for handlers in seen)


TWO_SIGNALS = """
import os, signal, sys
from softmax_xp import __main__
from softmax_xp.files import whole

def signals(*_):
    print("writing", *[name for name in os.listdir() if name.startswith(".softmax_xp-")], sep="|", flush=True)
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGHUP)

os.fsync = signals
sys.argv = ["softmax-xp", "train"]
__main__.main()
"""


@posix
def test_a_second_signal_ends_at_once(start, tmp_path):
    running = start(TWO_SIGNALS)
    out, err = running.communicate()
    assert (running.returncode, err) == (128 + signal.SIGHUP, "")
    assert out.splitlines()[-1].startswith("writing|.softmax_xp-")
    assert names(tmp_path) == []


@posix
def test_sigterm_at_random_moments_leaves_a_usable_model_or_none(tmp_path, python, rng):
    command, environment = python
    features = rng.standard_normal((5000, 100)) * np.logspace(-2, 2, 100)  # no solver is soon done with these
    np.savez(tmp_path / "data.npz", X=features, y=rng.integers(0, 10, 5000))
    options = ["--solver", "lbfgs", "--C", "inf", "--tol", "1e-12", "--max-iter", "1000000", "--dtype", "float64"]
    line, moments = [*command, "-m", "softmax_xp", "train", "data.npz", *options, "-o", "model"], random.Random(0)
    for _ in range(5):
        running = subprocess.Popen(line, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(4 * moments.random())
        running.send_signal(signal.SIGTERM)
        out, err = running.communicate()
        is_written = b"model written" in out
        # -15: it came before a handler was there
        assert running.returncode == 143 or (running.returncode, is_written) == (-15, False), err
        assert names(tmp_path) == (["data.npz", "model"] if is_written else ["data.npz"])
        if is_written:
            sx.load(tmp_path / "model", device="cpu").predict(features[:2])
            (tmp_path / "model").unlink()


LEADER = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # who has this terminal gets SIGHUP when it hangs up
os.execv(sys.argv[1], sys.argv[1:])
"""


@posix
def test_a_terminal_that_hangs_up_does_not_keep_the_model_from_being_written(tmp_path, python, rng):
    pty = pytest.importorskip("pty")
    command, environment = python
    np.savez(tmp_path / "data.npz", X=rng.standard_normal((5000, 100)) * np.logspace(-2, 2, 100), y=np.arange(5000) % 7)
    options = ["--solver", "lbfgs", "--C", "inf", "--tol", "1e-12", "--max-iter", "1000000", "--dtype", "float64"]
    master, slave = pty.openpty()
    line = [*command, "-m", "softmax_xp", "train", "data.npz", *options, "-o", "model"]
    running = subprocess.Popen(
        [*command, "-c", LEADER, *line], cwd=tmp_path, env=environment, stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    text = b""
    while b"objective" not in text:
        text += os.read(master, 4096)
    os.close(master)
    assert running.wait() == 128 + signal.SIGHUP
    assert names(tmp_path) == ["data.npz", "model"]
    sx.load(tmp_path / "model", device="cpu")


# --- Writers that are killed, and those that live ---

WRITER = """
import sys, time
from softmax_xp.files.whole import whole_file

with whole_file(sys.argv[1]) as stream:
    stream.write("half")
    stream.flush()
    print("writing", flush=True)
    sys.stdin.read()
    stream.write(" and half")
"""


def test_the_next_write_removes_what_a_killed_writer_left(start, tmp_path):
    with (
        start(WRITER, "killed", stdin=subprocess.PIPE) as killed,
        start(WRITER, "alive", stdin=subprocess.PIPE) as alive,
    ):
        for writer in (killed, alive):
            assert writer.stdout.readline() == "writing\n"
        assert len(names(tmp_path)) == 2
        killed.kill()
        killed.wait()
        for other in (".softmax_xp-notes", ".softmax_xp-0123456789abcde", "softmax_xp-0123456789abcdef"):
            (tmp_path / other).write_text("somebody's own")
        with whole_file(tmp_path / "new") as stream:
            stream.write("new")
            assert len(names(tmp_path)) == 2 + 3
            with whole_file(tmp_path / "inner") as inner:  # a writer in this process is alive, too
                inner.write("inner")
        assert (tmp_path / "new").read_text() == "new"
        alive.stdin.close()
        assert alive.wait() == 0
    assert (tmp_path / "alive").read_text() == "half and half"
    kept = [".softmax_xp-0123456789abcde", ".softmax_xp-notes", "alive", "inner", "new", "softmax_xp-0123456789abcdef"]
    assert names(tmp_path) == kept


@posix
def test_a_temporary_file_that_is_removed_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    flock, taken = whole.fcntl.flock, []

    def first_taken(descriptor, operation):
        if not taken:
            taken.extend(tmp_path.glob(".softmax_xp-*"))
            taken[0].unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(whole.fcntl, "flock", first_taken)
    sx.save(sx.Linear(4, 3), tmp_path / "model")
    assert taken
    assert names(tmp_path) == ["model"]


@posix
def test_without_locks_nothing_is_removed(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(whole.fcntl, "flock", none)
    other = tmp_path / f"{whole.PREFIX}{'0' * 16}"
    other.write_text("may be alive")
    sx.save(sx.Linear(4, 3), tmp_path / "model")
    assert names(tmp_path) == [other.name, "model"]


# --- Where the output goes ---


@pytest.fixture
def model_and_rows(tmp_path):
    by_hand(np.eye(2), np.zeros(2), np.array(["a", "b"])).save(tmp_path / "model")
    np.save(tmp_path / "X.npy", np.eye(2))


@posix
@pytest.mark.parametrize("redirection", ["| cat", "> out", ">> out"])
def test_predict_writes_to_dev_stdout(tmp_path, python, model_and_rows, redirection):
    command, environment = python
    if not os.path.exists("/dev/stdout"):
        pytest.skip("no /dev/stdout")
    (tmp_path / "out").write_text("before\n")
    line = f"{' '.join(command)} -m softmax_xp predict model X.npy -o /dev/stdout {redirection}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    text = done.stdout or (tmp_path / "out").read_text()
    assert text == ("before\n" if ">>" in redirection else "") + "label\na\nb\n"


@pytest.mark.parametrize("name", ["p.parquet", "p.npz", "p.npy", "p.tsv", "p.csv.gz", "p.json", "p.XLSX"])
def test_predict_writes_csv_only_to_what_may_be_csv(run, tmp_path, model_and_rows, name):
    status, out, err = run("predict", "model", "X.npy", "-o", name)
    assert (status, out) == (2, "")
    assert err.startswith("softmax-xp: error: --output must end in .csv")
    assert repr(name) in err
    assert len(err.splitlines()) == 1
    assert names(tmp_path) == ["X.npy", "model"]


@pytest.mark.parametrize("name", ["p.csv", "p.CSV", "p.txt", "p", os.devnull])
def test_predict_writes_csv_to_the_rest(run, tmp_path, model_and_rows, name):
    assert run("predict", "model", "X.npy", "-o", name) == (0, "", "")
    if name != os.devnull:
        assert (tmp_path / name).read_text() == "label\na\nb\n"


# --- train: what can fail is done before a file is replaced ---


def test_train_replaces_nothing_when_the_held_out_rows_fail(run, tmp_path):
    rows = np.tile(X, (2, 1)).astype(np.float32)
    np.savez(tmp_path / "train.npz", X=rows, y=np.tile(Y, 2))
    rows[0] = 3e38
    np.savez(tmp_path / "test.npz", X=rows, y=np.tile(Y, 2))
    (tmp_path / "model").write_text("old")
    status, out, err = run("train", "train.npz", "--test", "test.npz", "-o", "model", "--C", "1e4")
    assert (status, out) == (2, "")
    assert "overflow" in err
    assert (tmp_path / "model").read_text() == "old"
    assert names(tmp_path) == ["model", "test.npz", "train.npz"]


@posix
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_train_prints_names_that_the_terminal_cannot_show(tmp_path, python, encoding):
    command, environment = python
    environment = {**environment, "PYTHONIOENCODING": encoding}
    line = [*command, "-m", "softmax_xp", "train", "-o", os.fsencode("modèle ☃") + b"\xff"]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    shown = done.stdout.splitlines()[-1]
    assert shown.startswith(b"model written to mod")
    assert shown.endswith(b"\\udcff")
    assert [os.fsencode(name) for name in os.listdir(tmp_path)] == [os.fsencode("modèle ☃") + b"\xff"]


@posix
def test_train_to_a_full_output_replaces_nothing(tmp_path, python):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    command, environment = python
    (tmp_path / "model").write_text("old")
    with open("/dev/full", "w") as full:
        line = [*command, "-m", "softmax_xp", "train", "-o", "model"]
        done = subprocess.run(line, cwd=tmp_path, env=environment, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("softmax-xp: error: ")
    assert "No space left" in done.stderr
    assert (tmp_path / "model").read_text() == "old"
    assert names(tmp_path) == ["model"]


@posix
def test_train_writes_the_model_although_the_reader_has_gone(tmp_path, python):
    command, environment = python
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        line = [*command, "-m", "softmax_xp", "train", "-o", "model"]
        done = subprocess.run(line, cwd=tmp_path, env=environment, stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (terminal.UNREAD, "")
    sx.load(tmp_path / "model", device="cpu")


def test_train_replaces_nothing_when_the_plot_fails(run, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    for name in ("model", "curves.png"):
        (tmp_path / name).write_text("old")

    def savefig(self, stream, **options):
        stream.write(b"half a picture")
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", savefig)
    status, out, err = run("train", "-o", "model", "--plot", "curves.png")
    assert (status, out) == (2, "")
    assert "Input/output error" in err
    assert names(tmp_path) == ["curves.png", "model"]
    assert {(tmp_path / name).read_text() for name in names(tmp_path)} == {"old"}


def test_train_writes_the_model_last(run, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    (tmp_path / "model").write_text("old")

    def full(model, path):
        assert names(tmp_path) == ["curves.png", "model"]
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(sx.SoftmaxClassifier, "save", full)
    status, out, err = run("train", "-o", "model", "--plot", "curves.png")
    assert (status, err) == (2, "softmax-xp: error: model: No space left on device\n")
    assert "written" not in out
    assert (tmp_path / "model").read_text() == "old"


def test_train_says_that_a_model_is_replaced(run, tmp_path):
    assert run("train", "-o", "model")[1].splitlines()[-1] == "model written to model"
    assert run("train", "-o", "model")[1].splitlines()[-1] == "model written to model, in place of the old one"
    assert '"replaced": true' in run("train", "-o", "model", "--json")[1]
    assert '"replaced"' not in run("train", "-o", "new", "--json")[1]


@posix
def test_train_does_not_mix_model_and_report(run, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "standard_stream", lambda path: 1 if str(path) == "/dev/stdout" else None)
    status, out, err = run("train", "-o", "/dev/stdout")
    assert (status, out) == (2, "")
    assert "--output must not be where the report is printed" in err


def test_progress_is_done_without_where_no_thread_starts(run, monkeypatch):
    def refused(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(threading.Thread, "start", refused)
    status, out, _ = run("train")
    assert status == 0
    assert "model written to" in out


def test_signals_are_handled_anew_by_each_command(run, monkeypatch, number):
    with monkeypatch.context() as patch:
        signal_at_evaluation(patch, number, 2)
        assert run("train")[0] == 128 + number
    assert run("train")[0] == 0
