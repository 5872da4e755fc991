"""The benchmarks start, and compare what they say they compare; nothing here is timed."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import oracle
import pytest

from softmax_xp import select_backend

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("no benchmarks beside these tests: the package is installed without them", allow_module_level=True)
sys.path.append(str(ROOT))  # last, so that an installed package is what is tested
MODULES = "compiled", "competitors", "data", "evaluation", "fit", "kernel", "measure", "objective", "probe", "report"
compiled, competitors, data, evaluation, fit, kernel, measure, objective, probe, report = (
    pytest.importorskip(f"benchmarks.{name}") for name in MODULES
)
SLOW_TO_IMPORT = {"jax"}
EVALUATORS = [entry for entry in competitors.evaluators() if entry.library not in SLOW_TO_IMPORT]


def test_command_tells_what_it_can_measure(python, tmp_path):
    command, environment = python
    environment["PYTHONPATH"] = os.pathsep.join([environment["PYTHONPATH"], str(ROOT)])
    done = subprocess.run(
        [*command, "-m", "benchmarks", "--help"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in ("compiled", "eval", "fit", "kernel", "memory", "noise", "probe", "sweep"):
        assert f" {name} " in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["compiled", "eval", "fit", "kernel", "memory", "noise", "probe", "sweep"])
def test_every_command_tells_its_options(name):
    runner = pytest.importorskip("typer.testing").CliRunner()
    from benchmarks.__main__ import app

    shown = runner.invoke(app, [name, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert shown.exit_code == 0
    assert "--quick" in shown.output
    assert "--output" in shown.output
    assert runner.invoke(app, [name, "--nonsense"]).exit_code == 2


def test_shapes_are_spelled_as_three_numbers():
    assert evaluation.Shape.parse("20,3,4") == (20, 3, 4)
    assert (evaluation.Shape(5, 4, 2).k, evaluation.Shape(5, 4, 3).k) == (1, 3)
    for text in ("20,3", "20,3,1", "0,3,2", "20,3,4,5", "20,x,4"):
        with pytest.raises(ValueError, match=r"a shape is N,D,C|invalid literal"):
            evaluation.Shape.parse(text)


@pytest.mark.parametrize("k", [1, 3])
def test_objective_is_the_oracles(rng, k, monkeypatch):
    monkeypatch.setattr(objective, "BLOCK_BYTES", 500)  # several blocks
    X, y = rng.normal(size=(30, 4)), rng.integers(0, max(2, k), size=30)
    coef, intercept = rng.normal(size=(k, 4)), rng.normal(size=k)
    loss, grad = objective.value_and_grad(X, y, coef, intercept, 0.2)
    expected, expected_grad, _ = oracle.linear_sums(coef, intercept, X, y)
    assert loss == pytest.approx(expected / 30 + 0.1 * (coef**2).sum(), rel=1e-12)
    np.testing.assert_allclose(grad, expected_grad / 30 + 0.2 * coef, atol=1e-12)


@pytest.fixture(params=[("float32", 2), ("float32", 5), ("float64", 2), ("float64", 5)], ids=str)
def problem(request, rng):
    dtype, c = request.param
    X, y = rng.standard_normal((40, 6), dtype=dtype), rng.integers(0, c, size=40)
    coef = rng.standard_normal((1 if c == 2 else c, 6)).astype(dtype).astype("float64")
    return competitors.Problem(X, y, coef, c, 1e-2, workers=2)


@pytest.mark.parametrize("entry", EVALUATORS, ids=lambda entry: entry.name)
def test_competitors_compute_the_objective(entry, problem):
    if competitors.missing(entry.library):
        pytest.skip(f"{entry.library} is not installed")
    loss, grad = objective.value_and_grad(problem.X, problem.y, problem.coef, np.zeros(len(problem.coef)), problem.reg)
    run = entry.prepare(problem)
    for _ in range(2):  # also when it is called again
        errors = evaluation._parity(entry, problem, run(), loss, grad)
        assert max(errors.values()) <= {"float32": 1e-5, "float64": 1e-12}[problem.X.dtype.name]
    for wrong in ((loss * 1.01, grad), (loss, -grad), (math.nan, grad)):
        with pytest.raises(SystemExit, match=f"{entry.name} computes another function"):
            evaluation._parity(entry, problem, run(), *wrong)


def test_the_floor_does_the_two_products(problem):
    assert competitors.two_products(problem)() is None


def test_slope_is_the_exponent():
    sizes = [10, 20, 40]
    assert measure.slope(sizes, [3e-6 * n**1.7 for n in sizes]) == pytest.approx(1.7)


def test_rounds_call_every_case_in_turn(monkeypatch):
    monkeypatch.setattr(measure, "PAUSE", 0.0)
    monkeypatch.setattr(measure, "MAX_CALLS", 2)
    calls, told = [], []
    cases = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = measure.interleaved(cases, 3, told.append)
    assert calls == ["a", "b", *["a", "a", "a", "b", "b", "b"] * 3]  # once each to warm up, and once in each turn
    assert told == ["a", "b"] * 3
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 6, "b": 6}


def test_random_numbers_are_normal_and_known_by_their_index():
    xp = measure.CPU.backend.xp
    numbers = data.standard_normal(xp, 7, 0, 200_000)
    assert numbers.dtype == np.float32
    for power, moment in enumerate((0, 1, 0, 3), start=1):
        assert (numbers.astype("float64") ** power).mean() == pytest.approx(moment, abs=0.05)
    np.testing.assert_array_equal(data.standard_normal(xp, 7, 1000, 50), numbers[1000:1050])
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.01
    assert abs(np.corrcoef(data.standard_normal(xp, 8, 0, 200_000), numbers)[0, 1]) < 0.01


def test_embeddings_have_classes_that_overlap():
    X, y = data.embeddings(measure.CPU, 4000, 16, 8)
    assert (X.shape, X.dtype, X.flags.c_contiguous) == ((4000, 16), np.float32, True)
    assert np.bincount(y, minlength=8).min() > 400
    model = competitors.ours(1.0).fit(X[:3000], y[:3000])
    assert 0.8 < model.score(X[3000:], y[3000:]) < 0.95  # one label in ten says nothing
    few, again = data.Dataset("embeddings", X, y).few(), data.embeddings(measure.CPU, 5000, 16, 8)
    assert (few.X.shape, set(few.y)) == ((200, 16), set(range(few.n_classes)))
    np.testing.assert_array_equal(again[1][:4000], y)
    np.testing.assert_allclose(again[0][:4000], X, atol=1e-5)


@pytest.mark.parametrize("make", ["isotropic", "decaying", "badly_scaled"])
def test_synthetic_data_have_every_class(rng, make):
    X, y = getattr(data, make)(rng, 300, 12, 4)
    assert X.shape == (300, 12)
    assert np.isfinite(X).all()
    assert set(y) == set(range(4))


def test_data_that_are_not_there_say_how_to_get_them(tmp_path):
    iris = data.load(data.Name.IRIS, "float32")
    assert (iris.X.dtype, iris.X.shape, iris.n_classes) == (np.float32, (150, 4), 3)
    assert iris.strength == pytest.approx(1 / 150)
    with pytest.raises(data.DataMissingError, match="dataset-fashion-mnist"):
        data.load(data.Name.FASHION, "float32", tmp_path)


def test_fits_are_judged_by_the_objective_at_their_coefficients():
    iris = data.load(data.Name.IRIS, "float64")
    model = competitors.ours(iris.C)
    ours = fit.timed_fit(model, iris, trace=True)
    assert ours.objective == pytest.approx(model.objective_, rel=1e-12)
    assert (ours.n_iter, ours.warnings) == (model.n_iter_[0], [])
    assert ours.trace[-1] == (ours.seconds, ours.objective)
    assert ours.estimated_gap == model.estimated_gap_
    theirs = fit.timed_fit(competitors.scikit_learn(iris.C), iris)
    assert theirs.objective == pytest.approx(ours.objective, rel=1e-3)
    stopped = fit.timed_fit(competitors.ours(iris.C), iris, trace=True, stop=lambda seconds, objective: True)
    assert stopped.n_iter == 1
    assert "ended by the observer" in stopped.warnings[0]
    few = fit.timed_fit(competitors.scikit_learn(iris.C, 2), iris)
    assert few.warnings[0].startswith("ConvergenceWarning")
    assert not fit._ended(few, None, 2)
    assert fit._ended(theirs, None, competitors.MAX_ITER)
    assert fit._ended(few, few, 4)


def test_evaluations_are_counted_and_the_probe_is_judged_on_rows_held_out():
    train, test = probe.problem(evaluation.Shape(1000, 8, 5), measure.CPU)
    assert (len(train.X), len(test.X)) == (1000, 40)
    one = probe.fitted(competitors.ours(1.0), train, test, trace=True)
    assert len(one.evaluations.seconds) > one.fit.n_iter > 0
    assert one.accuracy == pytest.approx(competitors.ours(1.0).fit(train.X, train.y).score(test.X, test.y), abs=0.03)
    assert probe._reached([(1.0, 0.5), (2.0, 0.4)], 0.4) == 2.0
    assert probe._reached([(1.0, 0.5)], 0.4) is probe._reached([], None) is None


def test_logits_are_turned_into_their_gradient_by_every_competitor():
    z, y = kernel.problem(measure.CPU, 10, "float32", 4000)
    assert (z.shape, z.dtype, set(y)) == ((100, 10), np.float32, set(range(10)))
    assert kernel.bytes_moved(z) == 100 * (2 * 40 + 8 + 4)
    expected = kernel.exact(z, y)
    calls = {"ours": kernel.ours(measure.CPU, z, y)}
    if not competitors.missing("torch"):
        calls |= kernel.torch_calls(z, y, compiled=False)
    for call in calls.values():
        assert kernel.parity(call(), expected) < 1e-5
    wrong = kernel.exact(z, (y + 1) % 10)
    assert kernel.parity(calls["ours"](), wrong) > 0.1
    assert kernel._fault(calls["ours"], wrong, 1e-4).startswith("failed: relative error")
    assert kernel._fault(lambda: 1 / 0, expected, 1.0).startswith("failed: ZeroDivisionError")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_alternatives_cover_every_class_and_begin_with_the_choice(dtype):
    for n_classes in (8, 10, 100, 1024, 50257, 131072):
        launches = kernel.alternatives(n_classes, dtype, 1000, 232448)
        pack = next(pack for pack in (8, 4, 2, 1) if n_classes % pack == 0)
        options = {"pack": pack, "dense": True, "shared_bytes": 232448}
        assert launches[0] == kernel.cuda.launch_of(1000, n_classes, dtype, "GRADIENT", "LABELS", **options)
        assert len({kernel.shape_of(launch, n_classes) for launch in launches}) == len(launches) > 1
        assert (kernel.shape_of(launches[0], n_classes) == "a thread a row") == (n_classes <= 64)
        for launch in launches[n_classes <= 64 :]:
            *_, pack, group, held, more = launch.kernel.removesuffix(">").split(", ")
            assert (more == "true") == (int(pack) * int(group) * int(held) < n_classes)
            assert launch.grid * (launch.block // int(group)) >= 1000
    with kernel.forced(launches[-1]):
        assert kernel.cuda.launch_of(1, 2, dtype, "LOSS") == launches[-1]
    assert kernel.cuda.launch_of(1, 2, dtype, "LOSS") != launches[-1]
    launch = kernel.launches.row_launch(9, 100_000, "float32", "float, float, GRADIENT, LABELS", 4, 1024, 4, 14)
    assert kernel.shape_of(launch, 100_000) == "4 x 1024 x 4 and 14 +"
    assert kernel.shape_of(launch, 73_728) == "4 x 1024 x 4 and 14"


def test_what_the_assembler_reports_is_read():
    log = """ptxas info    : Compiling entry function '_Z1aIfEv' for 'sm_90'
ptxas info    : Function properties for _Z1aIfEv
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers
ptxas info    : Compiling entry function '_Z1bIfEv' for 'sm_90'
ptxas info    : Function properties for _Z1bIfEv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers"""
    expected = {"_Z1aIfEv": {"spilled": 4, "registers": 40}, "_Z1bIfEv": {"spilled": 0, "registers": 32}}
    assert compiled.resources_of(log) == expected


@pytest.mark.parametrize(
    ("n_classes", "dtype", "n_bytes"),
    [
        *((10, "float32", 16), (100, "float32", 16), (50257, "float32", 4), (10, "bfloat16", 8), (100, "bfloat16", 8)),
        *((1000, "bfloat16", 16), (1002, "bfloat16", 4), (50257, "bfloat16", 2)),
    ],
)
def test_loads_are_as_wide_as_rows_allow(n_classes, dtype, n_bytes):
    assert compiled.load_bytes(compiled.kernel_of(90, n_classes, dtype)) == n_bytes


def test_kernels_are_compared_with_those_of_before():
    row = {"architecture": 90, "n_classes": 100, "dtype": "bfloat16", "kernel": "row_major<BFloat16, ..., 4>"}
    now = row | {"load_bytes": 8, "registers": 40, "spilled_bytes": 0, "instructions": None}
    earlier = now | {"load_bytes": 2, "registers": 38}
    expected = ["sm_90 row_major", "100", "bfloat16", "2 -> 8", "38 -> 40", "0 -> 0", "- -> -"]
    assert compiled.cells_of(now, earlier, True) == expected
    assert compiled.cells_of(now, None, False)[3:] == ["8", "40", "0", "-"]


SCRIPT = ROOT / "benchmarks" / "gpu.sh"


def test_steps_for_a_gpu_end_within_nine_minutes():
    limits = re.findall(r"^(?:step|benchmark) \S+ (\d+) ", SCRIPT.read_text(), re.MULTILINE)
    assert len(limits) == 10
    assert sum(map(int, limits)) < 510


@pytest.mark.skipif(select_backend("auto").name != "cpu", reason="this machine has a GPU")
def test_steps_for_a_gpu_are_not_begun_without_one(python, tmp_path):
    command, environment = python
    done = subprocess.run(
        ["bash", str(SCRIPT), str(tmp_path / "out")],
        env=environment | {"PYTHON": command[0]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "device 'cuda' cannot be used" in done.stderr
    assert done.stdout == ""


def test_tables_are_as_wide_as_a_page(monkeypatch, capsys):
    """Not on a terminal they have 120 columns, and cut nothing off."""
    monkeypatch.setattr(report, "out", report.Console(width=120, file=sys.stdout))
    names = (kernel.OURS, kernel.COPY, *kernel.OTHERS)
    row = {"n_classes": 131072, "n_rows": 26843545, "copy_gb_per_s": 4321.9, "notes": {"torch": "x " * 99}}
    row |= {key: dict.fromkeys(names, 0.123456) for key in ("best_s", "median_s", "gb_per_s")}
    kernel._show("bfloat16", [row], measure.Cuda("cuda"))
    target = {"rival": "scikit-learn newton-cholesky", "objective": 0.123456789, "seconds": 123.456}
    target["ours"] = {"softmax_xp newton-cg, CPU": {"seconds": 123.4, "ratio": 1e-5, "tol": 1e-6}}
    fit._show({"title": "t", "dtype": "float32", "optimum": 0.1, "rows": [], "targets": [target]})
    one = {"name": "softmax_xp bfloat16", "seconds": 123.4, "n_iter": 1000, "evaluations": 12345, "products_s": 1.0}
    one |= {"evaluation_s": 0.01, "objective": 1.2345678, "to_first": -1.2e-5, "accuracy": 0.1234, "extra_bytes": 1e12}
    one |= {"ours_to_its_objective": {"softmax_xp bfloat16": 1.0}, "note": "a note of some words"}
    train = data.Dataset("embeddings", np.zeros((2, 2)), np.zeros(2))
    probe._show(train, [one], [one])
    probe._show_sweep(train, {"bfloat16": [one | {"C": 1e-4}]})
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 120


def test_a_gpu_has_its_own_competitors(monkeypatch):
    gpu = measure.Cuda("cuda")
    assert gpu.suffix == "-cuda"
    assert [entry.name for entry in competitors.evaluators(gpu)][:1] == ["softmax_xp objective"]
    table = {fitter.name: fitter for fitter in competitors.fitters(gpu)}
    assert table["softmax_xp auto, CPU"].device == measure.CPU
    assert {fitter.device.name for fitter in table.values()} == {"cpu", "cuda"}
    iris = data.load(data.Name.IRIS, "float32")
    monkeypatch.delenv("SCIPY_ARRAY_API", raising=False)
    assert "takes no arrays of a GPU" in table["scikit-learn saga"].refuse(iris)
    assert table["scikit-learn lbfgs"].refuse(iris)  # the setting is missing, or scikit-learn is too old
    assert competitors.missing("torch", gpu) or not competitors.missing("torch")


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (math.nan, "-"), (0.0, "0.00"), (1.2345, "1.23"), (12345.6, "12346"), (1e-9, "1.00e-09")],
)
def test_numbers_are_short(value, text):
    assert report.number(value) == text


def test_results_are_plain_json(tmp_path, capsys):
    rows = [
        {"name": "a", "best_s": np.float64(0.5), "gap": math.nan, "timings_s": [np.float32(1), 2.0], "at": tmp_path}
    ]
    report.save("eval", tmp_path / "new", {"dtype": "float32"}, rows=rows)
    content = json.loads((tmp_path / "new" / "eval.json").read_text())
    assert content["rows"] == [{"name": "a", "best_s": 0.5, "gap": None, "timings_s": [1.0, 2.0], "at": str(tmp_path)}]
    assert (content["command"], content["arguments"]) == ("eval", {"dtype": "float32"})
    assert content["environment"]["cores"] >= 1
    assert content["environment"]["versions"]["numpy"] == np.__version__
