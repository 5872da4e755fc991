"""Command probe: a linear probe on embeddings of the size of ImageNet, one fit and a path of penalties."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks import report
from benchmarks.competitors import MAX_ITER, TOL, Problem, fitters, ours, two_products
from benchmarks.data import Dataset, embeddings
from benchmarks.evaluation import Shape
from benchmarks.fit import SLACK, Fit, Result, attempt, first_fits, timed_fit
from benchmarks.measure import CPU, Device, interleaved
from benchmarks.objective import Array
from softmax_xp.arrays import block_bytes, row_blocks
from softmax_xp.kernels import cublas, cuda
from softmax_xp.objective import LinearObjective

VALUES = tuple(np.logspace(-4, 2, 10).tolist())
SWEEP_TOL = 0.1 * TOL  # of each value, so that precisions whose objectives are compared stop within it of the minimum
HELD_OUT = 25  # one row in so many more
RIVALS = ("scikit-learn lbfgs", "torch LBFGS")
ROUNDS = 3  # of the two products


@dataclass
class Evaluations:
    """How many evaluations of value and gradient there were, and the seconds of each."""

    seconds: list[float] = field(default_factory=list)


@dataclass
class Fitted:
    """One fit of the probe.

    Attributes
    ----------
    fit : Fit
    accuracy : float
        On held-out rows.
    evaluations : Evaluations
        Of softmax_xp alone.
    extra_bytes : int, optional
        Of the device's memory, beyond the data.
    """

    fit: Fit
    accuracy: float
    evaluations: Evaluations
    extra_bytes: int | None


def main(
    shape: Shape, precisions: Sequence[str], limit: float, values: Sequence[float], output: Path, device: Device
) -> None:
    """Run the command, with a path over `values` of C; its exit status is 1 if a fit failed."""
    train, test = problem(shape, device)
    rivals = [Result(fitter) for fitter in fitters(device) if fitter.name in RIVALS]
    rows, sweep = [], {}
    with report.progress(len(precisions) * (2 + len(values)) + len(rivals)) as step:
        for precision in precisions:
            step(f"{precision}: two products")
            floor = min(interleaved({precision: products(train, precision)}, ROUNDS, device=device)[precision])
            step(f"{precision}: one fit")
            timed_fit(_model(precision, device, max_iter=2), train)  # to warm up
            rows.append(_own_row(precision, fitted(_model(precision, device), train, test, trace=True), floor))
            model, sweep[precision] = _model(precision, device, warm_start=True, tol=SWEEP_TOL), list[dict[str, Any]]()
            for C in values:
                step(f"{precision}: C = {C:.2g}")
                at_C = replace(train, C=float(C))
                sweep[precision].append(_swept(fitted(model.set_params(C=float(C)), at_C, test), float(C)))
        for rival in rivals:
            step(rival.fitter.name)
            rows.append(_rival_row(rival, train, test, limit))
    reference = rows[0]["objective"]
    for row in rows:
        row["to_first"] = None if row["objective"] is None else (row["objective"] - reference) / abs(reference)
        row["ours_to_its_objective"] = {
            own["name"]: _reached(own["curve"], row["objective"]) for own in rows[: len(precisions)]
        }
    _show(train, rows, rows[: len(precisions)])
    if len(values):
        _show_sweep(train, sweep)
    arguments = {"shape": list(shape), "precisions": list(precisions), "limit": limit, "values": values}
    limits = {"tol": TOL, "sweep_tol": SWEEP_TOL, "max_iter": MAX_ITER}
    report.save("probe", output, arguments | limits | {"device": device.name}, device, rows=rows, sweep=sweep)
    report.figure(output / f"probe{device.suffix}.png", lambda canvas: _draw(canvas, train, rows, sweep), (11, 4.5))
    if any(rival.failed for rival in rivals):
        raise SystemExit(1)


def problem(shape: Shape, device: Device) -> tuple[Dataset, Dataset]:
    """Return rows to train on, and as many as a HELD_OUT-th of them that are held out, made on the device."""
    X, y = embeddings(device, shape.n + shape.n // HELD_OUT, shape.d, shape.c)
    train = Dataset("embeddings", X[: shape.n], y[: shape.n], device=device)
    return train, replace(train, X=X[shape.n :], y=y[shape.n :])


def fitted(model: Any, train: Dataset, test: Dataset, *, trace: bool = False) -> Fitted:
    """Fit one of our models and return how that went."""
    device = train.device
    device.settle()
    before = device.memory()
    with counted(device) as evaluations:
        fit = timed_fit(model, train, trace=trace)
    extra = _extra(before, device)
    return Fitted(fit, accuracy(fit, test), evaluations, extra)


@contextmanager
def counted(device: Device) -> Iterator[Evaluations]:
    """Record the evaluations of our objective meanwhile."""
    evaluations, value_and_grad = Evaluations(), LinearObjective.value_and_grad

    def timed(self: LinearObjective, params: Array) -> Any:
        result: list[Any] = []
        evaluations.seconds.append(device.seconds(lambda: result.append(value_and_grad(self, params))))
        return result[0]

    with patch.object(LinearObjective, "value_and_grad", timed):
        yield evaluations


def accuracy(fit: Fit, data: Dataset) -> float:
    """Return the share of rows whose most probable class is theirs, a block at a time."""
    backend, right = data.device.backend, 0
    coef, intercept = (backend.asarray(part, "float32") for part in (fit.coef, fit.intercept))
    for rows in row_blocks(len(data.X), 4 * len(coef), block_bytes(backend.device)):
        right += int((backend.xp.argmax(data.X[rows] @ coef.T + intercept, axis=1) == data.y[rows]).sum())
    return right / len(data.X)


def products(train: Dataset, precision: str) -> Callable[[], None]:
    """Return the two products that every evaluation needs, in a precision, with factors that are there."""
    coef = np.random.default_rng(0).standard_normal((train.n_classes, train.X.shape[1]))
    if train.device == CPU:
        return two_products(Problem(train.X, train.y, coef, train.n_classes, 0.0))
    backend, factor = train.device.backend, cuda.bfloat16_bits if precision == "bfloat16" else lambda x: x
    X, coef = factor(train.X), factor(backend.asarray(coef, "float32"))
    logits = backend.xp.empty((len(X), len(coef)), dtype="float32")
    grad, tf32 = backend.xp.empty(coef.shape, dtype="float32"), precision == "tf32"
    cublas.matmul(X, coef.T, logits, tf32=tf32)
    of_logits = factor(logits)  # numbers like those of a gradient: products of zeros take less power, and so less time

    def run() -> None:
        cublas.matmul(X, coef.T, logits, tf32=tf32)
        cublas.matmul(of_logits.T, X, grad, tf32=tf32)

    return run


def _model(precision: str, device: Device, **options: Any) -> Any:
    """Return our unfitted model; a CPU has no precision to choose."""
    if precision != "float32":
        options["precision"] = precision
    return ours(1.0, device=device.name, **options)


def _extra(before: tuple[int, int] | None, device: Device) -> int | None:
    """Return by how much free memory has shrunk: what CuPy and torch have taken, they keep until `settle`."""
    after = device.memory()
    return before[0] - after[0] if before and after else None


def _own_row(precision: str, one: Fitted, products_s: float) -> dict[str, Any]:
    seconds = one.evaluations.seconds
    return {
        **_row(f"{report.OURS} {precision}", one.fit, one.accuracy, one.extra_bytes),
        "evaluations": len(seconds),
        "evaluation_s": float(np.median(seconds)),
        "products_s": products_s,
        "evaluations_s": seconds,
        "note": "; ".join(one.fit.warnings),
    }


def _rival_row(rival: Result, train: Dataset, test: Dataset, limit: float) -> dict[str, Any]:
    """Return what a competitor reaches with as many iterations as fit into `limit` seconds."""
    train.device.settle()
    before = train.device.memory()
    attempt(rival, partial(first_fits, rival, train, limit))
    extra = _extra(before, train.device)
    if not rival.fits:
        empty = dict.fromkeys(("seconds", "n_iter", "objective", "accuracy", "extra_bytes"))
        return {"name": rival.fitter.name, **empty, "curve": [], "note": rival.note}
    row = _row(rival.fitter.name, rival.best, accuracy(rival.best, test), extra)
    return {**row, "curve": rival.curve, "note": "; ".join([rival.note, *rival.best.warnings]).strip("; ")}


def _row(name: str, fit: Fit, accuracy: float, extra: int | None) -> dict[str, Any]:
    return {
        "name": name,
        "seconds": fit.seconds,
        "n_iter": fit.n_iter,
        "objective": fit.objective,
        "accuracy": accuracy,
        "extra_bytes": extra,
        "curve": fit.trace,
    }


def _swept(one: Fitted, C: float) -> dict[str, Any]:
    evaluations = len(one.evaluations.seconds)
    return {"C": C, **_row(report.OURS, one.fit, one.accuracy, one.extra_bytes), "evaluations": evaluations}


def _reached(curve: Sequence[tuple[float, float]], target: float | None) -> float | None:
    """Return the seconds after which a curve is at or below an objective."""
    if target is None:
        return None
    return next((seconds for seconds, value in curve if value <= target + SLACK * abs(target)), None)


def _show(train: Dataset, rows: Sequence[dict[str, Any]], own: Sequence[dict[str, Any]]) -> None:
    cells = []
    for row in rows:
        evaluation, extra = row.get("evaluation_s"), row["extra_bytes"]
        cells.append(
            (
                row["name"],
                report.number(row["seconds"]),
                row["n_iter"] if row["n_iter"] is not None else "-",
                row.get("evaluations", "-"),
                report.number(evaluation and 1e3 * evaluation),
                report.number(evaluation and evaluation / row["products_s"]),
                "-" if row["objective"] is None else f"{row['objective']:.7f}",
                report.number(row["to_first"], 2),
                "-" if row["accuracy"] is None else f"{row['accuracy']:.4f}",
                report.number(None if extra is None else extra / 2**30),
                row["note"].split(". ")[0][:120],
            )
        )
    columns = ("", "s", "steps", "evaluations", "ms each", "/ products", "objective", "difference", "accuracy", "GiB")
    report.table(
        f"Linear probe: {train.title}",
        columns,
        cells,
        f"ours: tol={TOL:g}. / products: an evaluation over its two matrix products alone, in the same precision. "
        f"difference: relative, of the objective in float64, to the first row's. accuracy: on held-out rows. "
        f"GiB: of the device, beyond the data.",
    )
    names = [one["name"] for one in own]
    report.table(
        f"Seconds until a fit of ours is at a row's objective: {train.title}",
        ("", *names),
        [(row["name"], *(report.number(row["ours_to_its_objective"][name]) for name in names)) for row in rows],
        "-: not reached",
    )


def _show_sweep(train: Dataset, sweep: dict[str, list[dict[str, Any]]]) -> None:
    cells: list[tuple[object, ...]] = [
        (precision, report.number(row["C"]), *_sweep_cells(row, at_C[0]["objective"]))
        for at_C in zip(*sweep.values(), strict=True)
        for precision, row in zip(sweep, at_C, strict=True)
    ]
    for precision, rows in sweep.items():
        seconds, steps = (sum(row[key] for row in rows) for key in ("seconds", "n_iter"))
        cells.append((precision, "all", report.number(seconds), steps, "", "", ""))
    report.table(
        f"Warm-started sweep: {train.title.partition(', C=')[0]})",
        ("", "C", "s", "steps", "objective", "difference", "accuracy"),
        cells,
        f"small C to large, tol={SWEEP_TOL:g}. difference: relative, of the objective in float64, to the first's",
    )


def _sweep_cells(row: dict[str, Any], reference: float) -> tuple[object, ...]:
    difference = (row["objective"] - reference) / abs(reference)
    objective, accuracy = f"{row['objective']:.7f}", f"{row['accuracy']:.4f}"
    return report.number(row["seconds"]), row["n_iter"], objective, report.number(difference, 2), accuracy


def _draw(canvas: Any, train: Dataset, rows: Sequence[dict[str, Any]], sweep: dict[str, list[dict[str, Any]]]) -> None:
    curves, *path = canvas.subplots(1, 2 if any(sweep.values()) else 1, squeeze=False)[0]
    lowest = min(value for row in rows for _, value in row["curve"])
    for row in rows:
        if row["curve"]:
            seconds, values = zip(*row["curve"], strict=True)
            gaps = [max((value - lowest) / abs(lowest), SLACK) for value in values]
            curves.plot(seconds, gaps, "-" if row["name"].startswith(report.OURS) else "o--", label=row["name"])
    curves.set_xscale("log")
    curves.set_yscale("log")
    curves.set_xlabel("seconds")
    curves.set_ylabel("objective above the lowest reached, relative")
    for axes in path:
        for precision, fits in sweep.items():
            axes.plot([fit["C"] for fit in fits], [fit["accuracy"] for fit in fits], "o-", label=precision)
        axes.set_xscale("log")
        axes.set_xlabel("C")
        axes.set_ylabel("held-out accuracy")
    for axes in (curves, *path):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    canvas.suptitle(train.title)
