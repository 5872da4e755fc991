"""Command sweep: a path of twenty penalties, each fit warm-started from the one before."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.competitors import MAX_ITER, TOL, ours, scikit_learn
from benchmarks.data import DataMissingError, Dataset, Name, train_and_test
from benchmarks.fit import timed_fit

VALUES = np.logspace(-4, 2, 20)
SLACK = 1e-6  # relative
OURS, THEIRS = "softmax_xp", "scikit-learn lbfgs"
REACHED = "softmax_xp to their objective"
TIGHT = 1e-6  # the tolerance that is not met before their objective is


def main(data: Name, dtype: str, n_rows: int, quick: bool, fashion: Path, output: Path) -> None:
    """Run the command."""
    if data not in (Name.FASHION, Name.DIGITS):
        raise SystemExit(
            f"sweep takes --data {Name.FASHION} or {Name.DIGITS}, which have rows to hold out; got {data}."
        )
    try:
        train, test = train_and_test(Name.DIGITS if quick else data, dtype, 300 if quick else n_rows, fashion)
    except DataMissingError as error:
        raise SystemExit(f"{data}: {error}, or --data {Name.DIGITS}.") from None
    rows = _swept(train, test)
    totals = {name: sum(row[name]["seconds"] for row in rows) for name in (OURS, THEIRS, REACHED)}
    summary = {
        "total_s": totals,
        "ratio": totals[OURS] / totals[THEIRS],
        "ratio_to_their_objective": totals[REACHED] / totals[THEIRS],
        "equal_or_better": {
            name: sum(row[name]["objective"] <= row[THEIRS]["objective"] * (1.0 + SLACK) for row in rows)
            for name in (OURS, REACHED)
        },
        "slack": SLACK,
    }
    _show(train, rows, summary)
    arguments = {
        "data": train.name,
        "rows": len(train.X),
        "dtype": dtype,
        "quick": quick,
        "tol": TOL,
        "max_iter": MAX_ITER,
    }
    report.save("sweep", output, arguments, rows=rows, **summary)
    report.figure(output / "sweep.png", lambda canvas: _draw(canvas, train, rows), (14, 4.5))


def _swept(train: Dataset, test: Dataset) -> list[dict[str, Any]]:
    """Return seconds, objective, iterations and held-out accuracy of both at each value of C, from small to large."""
    makers: dict[str, Callable[..., Any]] = {OURS: ours, THEIRS: scikit_learn}
    for make in makers.values():
        timed_fit(make(1.0, 2), Dataset(train.name, train.X[:200], np.unique(train.y[:200], return_inverse=True)[1]))
    models = {name: make(1.0, warm_start=True) for name, make in makers.items()}
    rows = []
    with report.progress(len(VALUES) * len(models)) as step:
        for C in VALUES:
            row: dict[str, Any] = {"C": float(C)}
            at_C = Dataset(train.name, train.X, train.y, float(C))
            for name, model in models.items():
                step(f"C = {C:.2g}: {name}")
                train.device.settle()
                fit = timed_fit(model.set_params(C=float(C)), at_C)
                row[name] = {
                    "seconds": fit.seconds,
                    "objective": fit.objective,
                    "n_iter": fit.n_iter,
                    "accuracy": float((model.predict(test.X) == test.y).mean()),
                    "warnings": fit.warnings,
                }
            rows.append(row)
    model = ours(1.0, warm_start=True, tol=TIGHT)
    for row in rows:
        at_C = Dataset(train.name, train.X, train.y, row["C"])
        reached = partial(_reaches, row[THEIRS]["objective"])
        train.device.settle()
        fit = timed_fit(model.set_params(C=row["C"]), at_C, trace=True, stop=reached)
        row[REACHED] = {"seconds": fit.seconds, "objective": fit.objective, "n_iter": fit.n_iter}
    return rows


def _reaches(target: float, seconds: float, objective: float) -> bool:
    return objective <= target


def _show(train: Dataset, rows: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    cells = []
    for row in rows:
        own, theirs = row[OURS], row[THEIRS]
        told = [f"{name}: {text.split(':')[0]}" for name in (OURS, THEIRS) for text in row[name]["warnings"]]
        cells.append(
            (
                report.number(row["C"]),
                report.number(own["seconds"]),
                report.number(row[REACHED]["seconds"]),
                report.number(theirs["seconds"]),
                f"{own['objective']:.9f}",
                f"{own['objective'] - theirs['objective']:+.1e}",
                f"{own['accuracy']:.4f}",
                f"{theirs['accuracy']:.4f}",
                "; ".join(told),
            )
        )
    report.table(
        f"Warm-started sweep: {train.name}, {len(train.X)} x {train.X.shape[1]}, {train.X.dtype.name}",
        ("C", "ours, s", "to theirs, s", "theirs, s", "our objective", "ours - theirs", "our accuracy", "theirs"),
        cells,
        f"theirs: {THEIRS}; both with tol={TOL:g}, max_iter={MAX_ITER}; accuracy on held-out rows; "
        f"to theirs: a sweep of ours that goes on to the next value as soon as it has their objective",
    )
    totals = summary["total_s"]
    for name in (OURS, REACHED):
        report.say(
            f"{name}: {report.number(totals[name])} s in all against {report.number(totals[THEIRS])} s, "
            f"{report.number(totals[THEIRS] / totals[name])} times sooner; equal or better objective "
            f"(relative {SLACK:g}) at {summary['equal_or_better'][name]} of {len(rows)} values"
        )


def _draw(canvas: Any, train: Dataset, rows: list[dict[str, Any]]) -> None:
    values = [row["C"] for row in rows]
    difference, accuracy, seconds = canvas.subplots(1, 3)
    difference.plot(values, [row[OURS]["objective"] - row[THEIRS]["objective"] for row in rows], "o-")
    difference.axhline(0.0, color="black", linewidth=0.8)
    difference.set_yscale("symlog", linthresh=1e-8)
    difference.set_ylabel("our objective - theirs (below 0: ours is better)")
    for name in (OURS, THEIRS):
        accuracy.plot(values, [row[name]["accuracy"] for row in rows], "o-", label=name)
    for name in (OURS, THEIRS, REACHED):
        seconds.plot(values, np.cumsum([row[name]["seconds"] for row in rows]), "o-", label=name)
    seconds.set_yscale("log")
    accuracy.set_ylabel("held-out accuracy")
    seconds.set_ylabel("seconds so far")
    for axes in (difference, accuracy, seconds):
        axes.set_xscale("log")
        axes.set_xlabel("C")
        axes.grid(alpha=0.3)
    accuracy.legend()
    seconds.legend()
    canvas.suptitle(f"Warm-started sweep: {train.name}, {len(train.X)} rows")
