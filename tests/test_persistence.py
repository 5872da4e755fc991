"""A saved model comes back as it was; a file that is not whole is refused in one line; nothing is unpickled."""

import errno
import hashlib
import json
import os
import pickle
import stat
import struct
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save as safetensors_bytes
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

import softmax_xp as sx
from softmax_xp.files import model as model_file
from softmax_xp.files.model import ModelFileError

X, Y = load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])


def fitted(X: np.ndarray = X, y: np.ndarray = Y, **parameters: object) -> sx.SoftmaxClassifier:
    return sx.SoftmaxClassifier(**{"device": "cpu", "tol": 1e-2, **parameters}).fit(X, y)


def reloaded(model: object, folder: Path) -> object:
    sx.save(model, folder / "model.safetensors")
    return sx.load(folder / "model.safetensors", device="cpu")


def parts(path: Path) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """Return the arrays and the record of a file, read without the library."""
    with safe_open(path, framework="numpy") as handle:
        metadata = handle.metadata()
        assert list(metadata) == ["softmax_xp"]
        return {name: handle.get_tensor(name) for name in handle.keys()}, json.loads(metadata["softmax_xp"])  # noqa: SIM118


def sealed(arrays: dict[str, np.ndarray], record: dict[str, object]) -> bytes:
    """Return the content of a file with these parts and its digest, made without the library."""
    text = json.dumps({**record, "sha256": "0" * 64})
    content = safetensors_bytes(arrays, {"softmax_xp": text})
    return content.replace(b"0" * 64, hashlib.sha256(content).hexdigest().encode(), 1)


def refusal(path: Path, *mentions: str) -> str:
    with pytest.raises(ModelFileError) as caught:
        sx.load(path, device="cpu")
    message = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert message.startswith(f"{path}: ")
    assert message.splitlines() == [message]
    assert ", got " in message
    assert "; " in message
    for mention in mentions:
        assert mention in message
    return message


# --- Round trips ---


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_load_returns_the_same_classifier(tmp_path, dtype, n_classes):
    rows = n_classes > Y
    model = fitted(X[rows].astype(dtype), Y[rows])
    back = reloaded(model, tmp_path)
    assert type(back) is sx.SoftmaxClassifier
    for name in ("coef_", "intercept_", "classes_", "n_iter_"):
        np.testing.assert_array_equal(getattr(back, name), getattr(model, name), strict=True)
    assert back.coef_.dtype == dtype
    assert back.coef_.flags.writeable
    assert set(vars(back)) == set(vars(model))
    for name in ("objective_", "gradient_norm_", "converged_", "status_", "n_features_in_", "device_", "_host_device"):
        assert getattr(back, name) == getattr(model, name)
        assert type(getattr(back, name)) is type(getattr(model, name))
    assert back.get_params() == model.get_params()


def test_loaded_classifier_is_fully_usable(tmp_path):
    model = fitted()
    back = reloaded(model, tmp_path)
    check_is_fitted(back)
    np.testing.assert_array_equal(back.predict(X), model.predict(X), strict=True)
    np.testing.assert_array_equal(back.predict_proba(X), model.predict_proba(X), strict=True)
    assert back.score(X, Y) == model.score(X, Y) > 0.9
    assert back.to("cpu") is back
    again = reloaded(back, tmp_path)
    np.testing.assert_array_equal(again.coef_, model.coef_, strict=True)
    unpickled = pickle.loads(pickle.dumps(back))
    np.testing.assert_array_equal(unpickled.predict(X), model.predict(X))
    copy = clone(back)
    assert copy.get_params() == model.get_params()
    with pytest.raises(NotFittedError):
        check_is_fitted(copy)
    back.fit(X, Y)
    np.testing.assert_array_equal(back.coef_, model.coef_, strict=True)
    with pytest.raises(ValueError, match="expecting 4 features"):
        back.predict(X[:, :3])


def test_methods_of_the_classifier_save_and_load(tmp_path):
    path = tmp_path / "model.safetensors"
    model = fitted()
    model.save(str(path))
    back = sx.SoftmaxClassifier.load(str(path), device="cpu")
    np.testing.assert_array_equal(back.coef_, model.coef_, strict=True)
    sx.save(sx.Linear(4, 3), path)
    with pytest.raises(ValueError, match="holds a Linear"):
        sx.SoftmaxClassifier.load(path)


@pytest.mark.parametrize(
    "labels",
    [
        np.array([-5, 0, 2**40]),
        np.array([0, 1, 255], dtype=np.uint8),
        np.array([0.0, 1.0, 2.0]),
        np.array([1.0, 2.0, 3.0], dtype=np.float32),
        NAMES,
        NAMES.astype(object),
        np.array(["", "ä, ö", '"\n\U0001f600']),
    ],
    ids=lambda labels: f"{labels.dtype}",
)
def test_labels_keep_values_and_dtype(tmp_path, labels):
    model = fitted(y=labels[Y])
    back = reloaded(model, tmp_path)
    np.testing.assert_array_equal(back.classes_, model.classes_, strict=True)
    np.testing.assert_array_equal(back.predict(X), model.predict(X), strict=True)


def test_boolean_labels_keep_their_dtype(tmp_path):
    back = reloaded(fitted(y=Y == 1), tmp_path)
    assert back.classes_.dtype == bool
    assert back.predict(X).dtype == bool


def test_save_refuses_labels_that_are_no_plain_values(tmp_path):
    model = fitted()
    for labels in (np.array([1, "a", None], dtype=object), np.array(["a", "b", "c"], dtype="S1")):
        model.classes_ = labels
        with pytest.raises(TypeError, match="numbers, booleans or text"):
            sx.save(model, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_constructor_parameters_come_back(tmp_path):
    weight = {0: 1, 1: 2.5, 2: np.float64(3.0)}
    model = fitted(
        C=np.float32(0.5),
        class_weight=weight,
        max_iter=np.int64(77),
        solver="lbfgs",
        dtype="float32",
        random_state=3,
        warm_start=True,
        fit_intercept=False,
    )
    back = reloaded(model, tmp_path)
    assert back.get_params() == model.get_params()
    assert reloaded(fitted(class_weight="balanced", C=np.inf), tmp_path).get_params()["C"] == np.inf
    named = fitted(y=NAMES[Y], class_weight=dict(zip(NAMES, (1.0, 2.0, 3.0), strict=True)))
    assert reloaded(named, tmp_path).class_weight == named.class_weight


def test_callbacks_are_left_out_of_the_file(tmp_path):
    model = fitted(callbacks=[lambda state: None], C=0.5)
    back = reloaded(model, tmp_path)
    assert back.callbacks == ()
    assert back.C == 0.5
    assert len(model.callbacks) == 1


def test_objects_among_the_parameters_are_described_not_restored(tmp_path):
    optimizer = sx.SGD(learning_rate=1e-2)
    with pytest.warns(UserWarning, match="not converged"):
        model = fitted(solver=optimizer, random_state=np.random.default_rng(0), max_iter=2)
    back = reloaded(model, tmp_path)
    assert back.solver == "auto"
    assert back.random_state is None
    assert parts(tmp_path / "model.safetensors")[1]["solver_repr"] == repr(optimizer)
    assert model.solver is optimizer


def test_names_of_features_come_back_and_are_checked(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=["a", "b", "c", "d"])
    model = fitted(frame)
    back = reloaded(model, tmp_path)
    np.testing.assert_array_equal(back.feature_names_in_, model.feature_names_in_, strict=True)
    np.testing.assert_array_equal(back.predict(frame), model.predict(frame))
    with pytest.raises(ValueError, match="feature names"):
        back.predict(frame[["b", "a", "c", "d"]])


def test_arrays_of_other_libraries_are_saved_from_the_host(tmp_path):
    torch = pytest.importorskip("torch")
    model = fitted(torch.asarray(X), torch.asarray(Y), device="auto")
    assert isinstance(model.coef_, torch.Tensor)
    back = reloaded(model, tmp_path)
    np.testing.assert_array_equal(back.coef_, model.coef_.numpy(), strict=True)
    assert back.predict(torch.asarray(X)).tolist() == model.predict(torch.asarray(X)).tolist()


def test_arrays_in_any_memory_order_are_saved(tmp_path):
    model = fitted()
    model.coef_ = np.asfortranarray(model.coef_)
    np.testing.assert_array_equal(reloaded(model, tmp_path).coef_, model.coef_)


@pytest.mark.parametrize(
    "model",
    [sx.Linear(4, 3), sx.MLP([4, 5, 3]), sx.MLP([4, 6, 5, 3], activation="tanh", random_state=7)],
    ids=repr,
)
def test_load_returns_the_same_network(tmp_path, model):
    rng = np.random.default_rng(0)
    model.params = {name: rng.standard_normal(w.shape).astype(np.float32) for name, w in model.params.items()}
    back = reloaded(model, tmp_path)
    assert type(back) is type(model)
    assert (repr(back), back.init, list(back.params)) == (repr(model), model.init, list(model.params))
    for name, value in model.params.items():
        np.testing.assert_array_equal(back.params[name], value, strict=True)
    np.testing.assert_array_equal(back(X), model(X), strict=True)
    sx.Trainer(back, max_steps=2, log_every=None, device="cpu").fit(X, Y)


def test_a_model_loads_in_another_process(tmp_path):
    path = tmp_path / "model.safetensors"
    model = fitted()
    model.save(path)
    code = "import sys, softmax_xp as sx; print(sx.load(sys.argv[1]).predict([[5.0, 3.4, 1.5, 0.2]]))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, path],
        env={**os.environ, "PYTHONPATH": str(Path(sx.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[0]\n", "")


def test_the_file_says_what_it_holds(tmp_path):
    model = fitted()
    sx.save(model, tmp_path / "model")
    arrays, record = parts(tmp_path / "model")
    assert sorted(arrays) == ["coef", "intercept"]
    assert record["format"] == 2
    assert (tmp_path / "model").read_bytes() == sealed(arrays, record)
    assert record["version"] == sx.__version__
    assert record["kind"] == "SoftmaxClassifier"
    assert record["device"] == "cpu"
    assert record["objective"] == model.objective_


# --- Saving ---


def test_save_takes_fitted_models_of_this_library_only(tmp_path):
    class Special(sx.SoftmaxClassifier):
        pass

    with pytest.raises(NotFittedError):
        sx.save(sx.SoftmaxClassifier(), tmp_path / "model")
    for model in ({"coef": 1}, None, sx.SoftmaxClassifier, Special().fit(X, Y)):
        with pytest.raises(TypeError, match="`model` must be a SoftmaxClassifier, Linear or MLP"):
            sx.save(model, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_save_refuses_what_load_would_refuse(tmp_path):
    model = fitted()
    model.coef_[0, 0] = np.nan
    with pytest.raises(ValueError, match="`coef` must be finite"):
        sx.save(model, tmp_path / "model")
    with pytest.raises(ValueError, match="`C`"):
        sx.save(fitted().set_params(C=-1.0), tmp_path / "model")
    network = sx.Linear(4, 3)
    network.params["W"] = network.params["W"].astype(np.float16)
    with pytest.raises(TypeError, match="`W` must be float32 or float64, got float16"):
        sx.save(network, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_saved_file_has_the_permissions_of_any_new_file(tmp_path, umask):
    model = sx.Linear(4, 3)
    before = os.umask(umask)
    try:
        sx.save(model, tmp_path / "model")
        (tmp_path / "plain").write_bytes(b"")
    finally:
        os.umask(before)
    mode = stat.S_IMODE((tmp_path / "model").stat().st_mode)
    assert mode == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    (tmp_path / "model").chmod(0o640)
    sx.save(model, tmp_path / "model")
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o640


def test_save_writes_through_a_symbolic_link(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "model")
    sx.save(sx.Linear(4, 3), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["model"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("fault", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")], ids=repr)
def test_an_interrupted_save_leaves_the_old_file_whole(tmp_path, monkeypatch, step, fault):
    path = tmp_path / "model"
    sx.save(fitted(), path)
    old = path.read_bytes()

    def broken(*_: object) -> None:
        assert len(list(tmp_path.iterdir())) == 2  # the new bytes are elsewhere
        raise fault

    monkeypatch.setattr(model_file.os, step, broken)
    with pytest.raises(type(fault)) as caught:
        sx.save(sx.Linear(4, 3), path)
    if isinstance(fault, OSError):
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == str(path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    model = sx.Linear(4, 3)
    missing = tmp_path / "nowhere" / "model"
    with pytest.raises(FileNotFoundError) as caught:
        sx.save(model, missing)
    assert caught.value.filename == str(missing)
    with pytest.raises(IsADirectoryError) as caught:
        sx.save(model, tmp_path)
    assert caught.value.filename == str(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError) as caught:
        sx.save(model, tmp_path / "file" / "model")
    assert caught.value.filename == str(tmp_path / "file" / "model")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="named pipes are POSIX")
def test_what_is_no_regular_file_is_written_not_replaced(tmp_path):
    # A pipe of our own stands for /dev/null: broken code that runs as root would replace the machine's.
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        sx.save(sx.Linear(4, 3), tmp_path / "pipe")
        sx.save(sx.Linear(4, 3), tmp_path / "file")
        assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
        assert os.read(reader, 1 << 16) == (tmp_path / "file").read_bytes()
    finally:
        os.close(reader)


@pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX")
def test_a_folder_that_cannot_be_written_is_named():
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path, which only its owner may enter
        path = os.path.join(folder, "model")
        os.chmod(folder, 0o555)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)  # root may write anywhere
        try:
            with pytest.raises(PermissionError) as caught:
                sx.save(sx.Linear(4, 3), path)
        finally:
            if root:
                os.seteuid(0)
            os.chmod(folder, 0o755)
    assert caught.value.filename == path


# --- Loading what is not whole ---


def test_load_looks_at_the_device_before_the_file(tmp_path):
    if find_spec("cupy") is not None:
        pytest.skip("CuPy is installed, device 'cuda' may be usable")
    with pytest.raises(sx.DeviceUnavailableError):
        sx.load(tmp_path / "missing", device="cuda")
    with pytest.raises(ValueError, match="`device` must be"):
        sx.load(tmp_path / "missing", device="tpu")


def test_a_model_of_a_gpu_loads_without_one(tmp_path):
    model = fitted()
    model.device = "cuda"
    model.device_ = model._host_device = "cuda:0"
    back = reloaded(model, tmp_path)
    assert back.device == "cuda"
    assert back.device_ == back._host_device == "cpu"
    np.testing.assert_array_equal(back.predict(X), fitted().predict(X))
    assert parts(tmp_path / "model.safetensors")[1]["device"] == "cuda:0"


def test_a_missing_file_is_no_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        sx.load(tmp_path / "missing")
    assert str(tmp_path / "missing") in str(caught.value)
    with pytest.raises(IsADirectoryError):
        sx.load(tmp_path)


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "model"
    sx.save(fitted(), path)
    content = path.read_bytes()
    cut = tmp_path / "cut"
    for length in [*range(0, 80), *range(80, len(content), 7), len(content) - 1]:
        cut.write_bytes(content[:length])
        refusal(cut)
    cut.write_bytes(content + b"\0")
    refusal(cut)


@pytest.mark.parametrize("kind", ["classifier", "network"])
def test_every_changed_bit_is_refused(tmp_path, kind, rng):
    path = tmp_path / "model"
    sx.save(fitted(y=NAMES[Y]) if kind == "classifier" else sx.MLP([4, 5, 3]), path)
    content = path.read_bytes()
    sx.load(path, device="cpu")
    for bit in [*range(64), *rng.integers(64, 8 * len(content), 500)]:  # the first 64 are the length of the header
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        refusal(path)


def test_a_file_without_its_digest_is_refused(tmp_path):
    path = tmp_path / "model"
    sx.save(fitted(), path)
    arrays, record = parts(path)
    del record["sha256"]
    path.write_bytes(safetensors_bytes(arrays, {"softmax_xp": json.dumps(record)}))
    refusal(path, "sha256")
    for digest in ("", "0" * 64, "0" * 63, "x", None):
        path.write_bytes(safetensors_bytes(arrays, {"softmax_xp": json.dumps({"sha256": digest, **record})}))
        refusal(path)
    path.write_bytes(sealed(arrays, record))
    refusal(path, "must begin with sha256")  # where its place is known
    path.write_bytes(sealed(arrays, {"sha256": "", **record}))
    sx.load(path, device="cpu")


def test_a_file_of_the_version_before_the_digest_loads_with_a_warning(tmp_path):
    model, path = fitted(), tmp_path / "model"
    sx.save(model, path)
    arrays, record = parts(path)
    del record["sha256"]
    path.write_bytes(safetensors_bytes(arrays, {"softmax_xp": json.dumps(record | {"format": 1})}))
    with pytest.warns(UserWarning, match=r"no digest.*save the model again") as caught:
        back = sx.load(path, device="cpu")
    assert str(path) in str(caught[0].message)
    assert len(str(caught[0].message).splitlines()) == 1
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(back.predict_proba(X), model.predict_proba(X))
    back.save(path)
    sx.load(path, device="cpu")  # warnings are errors here


@pytest.mark.skipif(os.name == "nt", reason="named pipes are POSIX")
def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it: to open it would take for ever
    refusal(tmp_path / "pipe", "a device or a pipe")
    refusal(Path(os.devnull), "a device or a pipe")


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "model"
    rng = np.random.default_rng(0)
    for content in (
        b"",
        b"\0" * 7,
        pickle.dumps(fitted()),
        rng.bytes(1000),
        struct.pack("<Q", 2**63) + rng.bytes(100),
        b"{" * 1000,
    ):
        path.write_bytes(content)
        refusal(path, "save it again")


def test_a_pickle_is_never_executed(tmp_path):
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "executed"),)

    (tmp_path / "model").write_bytes(pickle.dumps(Bomb()))
    refusal(tmp_path / "model")
    assert not (tmp_path / "executed").exists()


def test_safetensors_of_someone_else_are_refused(tmp_path):
    path = tmp_path / "model"
    path.write_bytes(safetensors_bytes({"coef": np.zeros((3, 4))}))
    refusal(path, "the metadata must have the key 'softmax_xp'")
    for text in ("", "[]", "1", "{", "null", "{}", '"text"', "[" * 100_000):
        path.write_bytes(safetensors_bytes({"coef": np.zeros((3, 4))}, {"softmax_xp": text}))
        refusal(path)


def tampered(path: Path, arrays: dict[str, np.ndarray], record: dict[str, object], *mentions: str) -> None:
    path.write_bytes(sealed(arrays, record))
    assert "SHA-256" not in refusal(path, *mentions)  # but for the change itself


def test_a_newer_format_asks_for_an_upgrade(tmp_path):
    path = tmp_path / "model"
    sx.save(fitted(), path)
    arrays, record = parts(path)
    mentions = ("format 3", "'9.9'", sx.__version__, "upgrade: pip install -U softmax-xp")
    tampered(path, arrays, record | {"format": 3, "version": "9.9"}, *mentions)


CHANGES = {
    "format": [0, -1, True, "1", 1.0, None],
    "kind": ["Pipeline", "os.system", "MLP", None, 1],
    "parameters": [None, [], {"C": 1.0}],
    "parameters.C": [-1.0, "1", None, True],
    "parameters.tol": [0.0],
    "parameters.max_iter": [0, 1.5],
    "parameters.solver": ["newton", None, {}],
    "parameters.device": [1],
    "parameters.dtype": ["float16", 1],
    "parameters.fit_intercept": [1, None],
    "parameters.random_state": ["0", 1.5],
    "parameters.class_weight": ["heavy", [1], [[0]], [[[0], 1.0]], [[0, "x"]], {"0": 1.0}],
    "parameters.unheard_of": [1],
    "parameters.callbacks": [[], None],
    "classes": [None, [0, 1, 2], {}],
    "classes.dtype": ["O", "V8", "i4,i4", "datetime64[s]", None, 5],
    "classes.values": [
        [],
        [0],
        [0, 1],
        [0, 1, 2, 3],
        [0, 2, 1],
        [0, 1, 1],
        [0, 1, 2.0],
        [False, True, 2],
        ["0", "1", "2"],
        [0, 1, 2**70],
        [0, 1, None],
        "012",
    ],
    "n_features": [3, 0, -4, 4.0, "4", 2**62, None, True],
    "feature_names": [["a", "b", "c"], [1, 2, 3, 4], "abcd", {}],
    "n_iter": [-1, 2**40, 1.5, None, [3]],
    "objective": ["0.5", None, 1],
    "gradient_norm": ["0.5", None],
    "converged": [1, "true", None],
    "device": [None, 0],
}


@pytest.mark.parametrize("field", CHANGES)
def test_a_changed_field_is_refused(tmp_path, field):
    path = tmp_path / "model"
    sx.save(fitted(), path)
    arrays, record = parts(path)
    name, _, inner = field.partition(".")
    for value in CHANGES[field]:
        changed = json.loads(json.dumps(record))
        if inner:
            changed[name][inner] = value
        else:
            changed[name] = value
        tampered(path, arrays, changed)
    if not inner:
        tampered(path, arrays, {key: value for key, value in record.items() if key != name}, name)


def test_why_a_fit_ended_is_told_where_the_file_knows(tmp_path):
    path = tmp_path / "model"
    model = fitted()
    assert model.status_ == "converged"
    model.save(path)
    arrays, record = parts(path)
    assert record.pop("status") == "converged"
    path.write_bytes(sealed(arrays, record))  # as earlier versions have written it
    back = sx.load(path, device="cpu")
    assert not hasattr(back, "status_")
    assert reloaded(back, tmp_path).converged_
    for value in (None, "ended", 1):
        tampered(path, arrays, record | {"status": value}, "status")


def test_labels_that_their_dtype_cannot_hold_are_refused(tmp_path):
    path = tmp_path / "model"
    sx.save(fitted(), path)
    arrays, record = parts(path)
    for dtype, values in (("float32", [0.1, 0.2, 0.3]), ("str", ["a", "b\0", "c"]), ("uint8", [0, 1, 256])):
        tampered(path, arrays, record | {"classes": {"dtype": dtype, "values": values}})


def test_changed_arrays_are_refused(tmp_path):
    path = tmp_path / "model"
    sx.save(fitted(), path)
    arrays, record = parts(path)
    coef, intercept = arrays["coef"], arrays["intercept"]
    infinite = coef.copy()
    infinite[1, 2] = np.inf
    for changed, mention in (
        ({}, "the arrays must be coef, intercept"),
        ({"coef": coef}, "the arrays must be coef, intercept"),
        ({**arrays, "more": intercept}, "'more'"),
        ({"coef": np.ascontiguousarray(coef.T), "intercept": intercept}, "shape (3, 4), got (4, 3)"),
        ({"coef": coef[:2], "intercept": intercept}, "shape (3, 4), got (2, 4)"),
        ({"coef": coef.ravel(), "intercept": intercept}, "shape (3, 4), got (12,)"),
        ({"coef": coef, "intercept": intercept[:1]}, "shape (3,), got (1,)"),
        ({"coef": coef.astype(np.float16), "intercept": intercept}, "float32 or float64, got F16"),
        ({"coef": coef.astype(np.int64), "intercept": intercept}, "float32 or float64, got I64"),
        ({"coef": coef.astype(np.float32), "intercept": intercept}, "one dtype, got float32 and float64"),
        ({"coef": infinite, "intercept": intercept}, "array coef must be finite"),
        ({"coef": coef, "intercept": np.full(3, np.nan)}, "array intercept must be finite"),
    ):
        tampered(path, changed, record, mention)


def test_changed_networks_are_refused(tmp_path):
    path = tmp_path / "model"
    sx.save(sx.MLP([4, 5, 3]), path)
    arrays, record = parts(path)
    for change in (
        {"sizes": [4, 3]},
        {"sizes": [4, 6, 3]},
        {"sizes": [4]},
        {"sizes": []},
        {"sizes": [4, -5, 3]},
        {"sizes": [4, 5.0, 3]},
        {"sizes": [10**9, 10**9]},
        {"sizes": None},
        {"activation": "softplus"},
        {"activation": 1},
        {"init": "ones"},
        {"kind": "Linear"},
        {"kind": "SoftmaxClassifier"},
    ):
        tampered(path, arrays, record | change)
    tampered(path, {**arrays, "W1": arrays["W1"] * np.nan}, record, "array W1 must be finite")


def test_a_parameter_that_an_older_version_lacked_takes_its_default(tmp_path):
    path = tmp_path / "model"
    sx.save(fitted(), path)
    arrays, record = parts(path)
    del record["parameters"]["verbose"]
    path.write_bytes(sealed(arrays, record))
    assert sx.load(path).verbose == 0


def test_a_parameter_that_this_version_lacks_is_named(tmp_path):
    path = tmp_path / "model"
    sx.save(fitted(), path)
    arrays, record = parts(path)
    record["parameters"]["unheard_of"] = 1
    tampered(path, arrays, record, f"parameters must be what softmax_xp {sx.__version__} knows, got ['unheard_of']")


def test_a_message_stays_one_line_whatever_the_file_says(tmp_path):
    path = tmp_path / "model"
    sx.save(fitted(), path)
    arrays, record = parts(path)
    tampered(path, arrays, record | {"kind": "a\nb\x1b[31m" + "c" * 1000})
    tampered(path, arrays, record | {"format": 3, "version": "a\nb"})
    assert len(refusal(path)) < 400
    tampered(path, {"a\nb": arrays["coef"]}, record)
    (tmp_path / "a\nb").write_bytes(b"")
    with pytest.raises(ModelFileError) as caught:
        sx.load(tmp_path / "a\nb")
    assert len(str(caught.value).splitlines()) == 1
