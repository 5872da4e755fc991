"""Command memory: the peak of extra memory, as a share of the N x C logits that need never exist at once."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.competitors import Problem, evaluators, ours, scikit_learn
from benchmarks.evaluation import REG, Shape
from benchmarks.objective import Array

STATUS, CLEAR, MEMINFO = Path("/proc/self/status"), Path("/proc/self/clear_refs"), Path("/proc/meminfo")
SHAPE, QUICK_SHAPE = Shape(200000, 64, 1000), Shape(20000, 16, 100)
ITEMSIZE = 4  # all of it in float32
ROOM = 6  # times the logits: what a case that forms them may come to


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes
    ----------
    prepare : callable
        Takes a few rows and their labels; warms up, and returns what `run` needs besides the data.
    run : callable
        Takes all rows, their labels, and what `prepare` returned.
    forms_logits : bool
        Whether the N x C logits are expected in memory, so that there has to be room for them.
    own_output : bool
        Whether the result itself has N x C numbers; they are not counted.
    """

    prepare: Callable[[Array, Array], Any]
    run: Callable[[Array, Array, Any], object]
    forms_logits: bool = False
    own_output: bool = False


def main(shape: Shape | None, max_iter: int, quick: bool, output: Path) -> None:
    """Run the command."""
    shape = shape or (QUICK_SHAPE if quick else SHAPE)
    names = list(_cases(max_iter))
    doubled = shape._replace(n=2 * shape.n)
    results: dict[str, dict[str, Any]] = {}
    with report.progress(2 * len(names)) as step:
        for name in names:
            results[name] = {}
            for key, size in (("once", shape), ("doubled", doubled)):
                step(f"{name}, N = {size.n}")
                results[name][key] = _in_fresh_process(name, size, max_iter)
    rows = [
        {
            "name": name,
            "extra_bytes": result["once"]["extra_bytes"],
            "share": result["once"]["share"],
            "extra_bytes_doubled": result["doubled"]["extra_bytes"],
            "share_doubled": result["doubled"]["share"],
            "note": result["once"]["note"] or result["doubled"]["note"],
        }
        for name, result in results.items()
    ]
    _show(shape, rows)
    report.save("memory", output, {"shape": list(shape), "max_iter": max_iter, "quick": quick}, rows=rows)
    if any(row["share"] is not None for row in rows):
        report.figure(output / "memory.png", lambda canvas: _draw(canvas, shape, rows), (9, 4.5))


def _cases(max_iter: int) -> dict[str, Case]:
    """Return the table of what is measured."""
    cases = {}
    for name, entry in (
        ("softmax_xp", "softmax_xp objective"),
        ("softmax_xp.softmax_loss", "softmax_xp.softmax_loss"),
        ("scikit-learn", "scikit-learn, n_threads=1"),
    ):
        evaluate = partial(_evaluate, entry)
        cases[f"{name}: one evaluation"] = Case(evaluate, evaluate, forms_logits=name == "scikit-learn")
    for solver, steps in (("auto", max_iter), ("lbfgs", max_iter), ("newton-cg", max(1, max_iter // 10))):
        solving = partial(ours, solver=solver)
        cases[f"softmax_xp: fit, {solver}, max_iter={steps}"] = Case(
            partial(_fit, solving, 1), partial(_fit, solving, steps)
        )
    cases["scikit-learn: fit, lbfgs, max_iter=2"] = Case(
        partial(_fit, scikit_learn, 1), partial(_fit, scikit_learn, 2), forms_logits=True
    )
    makers: dict[str, Callable[..., Any]] = {"softmax_xp": ours, "scikit-learn": scikit_learn}
    for name, make in makers.items():
        fitted = partial(_fitted, make)
        cases[f"{name}: predict"] = Case(
            fitted, lambda X, y, model: model.predict(X), forms_logits=name == "scikit-learn"
        )
        cases[f"{name}: predict_proba"] = Case(
            fitted, lambda X, y, model: model.predict_proba(X), forms_logits=True, own_output=True
        )
    return cases


def _evaluate(name: str, X: Array, y: Array, _: object = None) -> object:
    """Do the evaluation of this name once at random coefficients, preparations included."""
    entry = next(entry for entry in evaluators() if entry.name == name)
    n_classes = int(y.max()) + 1
    coef = np.random.default_rng(0).standard_normal((1 if n_classes == 2 else n_classes, X.shape[1]))
    return entry.prepare(Problem(X, y, coef / np.sqrt(X.shape[1]), n_classes, REG))()


def _fit(make: Callable[..., Any], max_iter: int, X: Array, y: Array, _: object = None) -> object:
    return make(1.0, max_iter).fit(X, y)


def _fitted(make: Callable[..., Any], X: Array, y: Array) -> Any:
    """Return a model fitted to a few rows that has predicted before, so that only its work is left to be seen."""
    model = make(1.0, 1).fit(X, y)
    model.predict(X)
    model.predict_proba(X)
    return model


def _in_fresh_process(name: str, shape: Shape, max_iter: int) -> dict[str, Any]:
    """Return the extra bytes of a case and their share of the logits, or a note why there are none."""
    logits = ITEMSIZE * shape.n * shape.c
    note = ""
    if not (STATUS.exists() and CLEAR.exists()):
        note = "not available: this system has no /proc with peak memory"
    elif _cases(max_iter)[name].forms_logits and ROOM * logits > (free := _kilobytes(MEMINFO, "MemAvailable")):
        note = f"not run: may need {ROOM * logits / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"
    else:
        # Spawned, not forked: nothing of this process counts, neither its memory nor its threads.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            try:
                extra = pool.submit(peak, name, shape, max_iter).result()
                return {"extra_bytes": extra, "share": extra / logits, "note": ""}
            except Exception as error:  # also a process that was killed for its memory
                note = f"failed: {type(error).__name__}: {error}"
    return {"extra_bytes": None, "share": None, "note": note}


def peak(name: str, shape: Shape, max_iter: int) -> int:
    """Return the bytes by which a case raises the peak of this process above what it has before."""
    warnings.simplefilter("ignore")  # fits are cut short by max_iter
    case = _cases(max_iter)[name]
    X = np.random.default_rng(0).standard_normal((shape.n, shape.d), dtype=np.float32)
    y = np.arange(shape.n) % shape.c
    few = slice(0, max(2000, 2 * shape.c))  # has every class
    prepared = case.prepare(X[few], y[few])
    CLEAR.write_text("5")  # the peak begins anew
    before = _kilobytes(STATUS, "VmRSS")
    result = case.run(X, y, prepared)
    extra = _kilobytes(STATUS, "VmHWM") - before
    return extra - (result.nbytes if case.own_output and isinstance(result, np.ndarray) else 0)


def _kilobytes(path: Path, field: str) -> int:
    """Return the bytes that a file of /proc gives as `field: <number> kB`."""
    found = re.search(rf"^{field}:\s*(\d+) kB", path.read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{path} does not tell {field}")
    return 1024 * int(found[1])


def _show(shape: Shape, rows: list[dict[str, Any]]) -> None:
    def megabytes(extra: int | None) -> str:
        return report.number(None if extra is None else extra / 1e6)

    report.table(
        f"Peak of extra memory: {shape}, float32; logits of {ITEMSIZE * shape.n * shape.c / 1e6:.0f} MB",
        ("", "extra MB", "share of N C floats", "extra MB at 2N", "share at 2N"),
        [
            (
                row["name"],
                megabytes(row["extra_bytes"]),
                report.number(row["share"]),
                megabytes(row["extra_bytes_doubled"]),
                report.number(row["share_doubled"]),
                row["note"],
            )
            for row in rows
        ],
        "predict_proba: without its own output. A share that halves at 2N: the memory does not grow with N.",
    )


def _draw(canvas: Any, shape: Shape, rows: list[dict[str, Any]]) -> None:
    axes = canvas.subplots()
    names = [row["name"] for row in rows]
    for key, label, offset in (("share", "N", -0.2), ("share_doubled", "2 N", 0.2)):
        axes.barh(np.arange(len(rows)) + offset, [row[key] or 0.0 for row in rows], 0.4, label=label)
    axes.set_yticks(range(len(rows)), names)
    axes.invert_yaxis()
    axes.set_xlabel("peak of extra memory / N x C floats")
    axes.set_title(f"{shape} (rows x features x classes), float32")
    axes.legend()
