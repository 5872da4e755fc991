"""Command fit: the objective against seconds, and the time to what other libraries reach."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks import report
from benchmarks.competitors import MAX_ITER, TOL, Fitter, fitters, missing, ours
from benchmarks.data import DataMissingError, Dataset, Name, decaying, load
from benchmarks.measure import CPU, MIN_SECONDS, Device, interleaved, slope
from benchmarks.objective import Array, value_and_grad
from softmax_xp.arrays import to_numpy
from softmax_xp.solvers import State

Curve: TypeAlias = list[tuple[float, float]]  # (seconds, objective)

TARGETS = ("scikit-learn lbfgs", "scikit-learn newton-cg", "scikit-learn-intelex lbfgs")
TOLS = (TOL, 1e-6, 1e-8)  # the tolerances at which we race to a competitor's objective
TURNS = 10  # of full fits, at most
BUDGET = 5.0  # seconds of full fits, after which a competitor is not repeated
RACE_BUDGET = 1.0  # seconds of fits at another tolerance, after which they are not repeated
FITS_A_TURN = 10
SLACK = 1e-8  # relative: the noise of an objective in float32
QUICK_DATA = (Name.DIGITS, Name.DECAYING, Name.IRIS)
GROWING = ("softmax_xp auto", "scikit-learn lbfgs")
SMALLEST_GAP = 1e-14  # what a figure shows of a gap of zero


@dataclass
class Fit:
    """One fit, as it was timed.

    Attributes
    ----------
    seconds : float
        Of the call of `fit` alone.
    objective : float
        At the model's coefficients, in float64.
    n_iter : int
    warnings : list of str
    coef, intercept : numpy.ndarray
    trace : list of (seconds since the call of fit, objective), of softmax_xp alone
    estimated_gap : float, optional
        What softmax_xp says is left.
    """

    seconds: float
    objective: float
    n_iter: int
    warnings: list[str]
    coef: Array
    intercept: Array
    trace: Curve = field(default_factory=list)
    estimated_gap: float | None = None


@dataclass
class Result:
    """What one competitor did on one data set."""

    fitter: Fitter
    curve: Curve = field(default_factory=list)
    fits: list[Fit] = field(default_factory=list)
    max_iter: int = 0
    note: str = ""
    failed: bool = False

    @property
    def best(self) -> Fit:
        """The fastest of the full fits."""
        return min(self.fits, key=lambda fit: fit.seconds)


def main(
    data: Sequence[Name],
    dtype: str,
    limit: float,
    growth: bool,
    quick: bool,
    fashion: Path,
    output: Path,
    device: Device = CPU,
) -> None:
    """Run the command; its exit status is 1 if a fit failed."""
    names = data or (QUICK_DATA if quick else tuple(Name))
    arguments = {
        "dtype": dtype,
        "limit": limit,
        "quick": quick,
        "tol": TOL,
        "max_iter": MAX_ITER,
        "device": device.name,
    }
    records, absent = [], {}
    for name in names:
        try:
            dataset = load(name, dtype, fashion, quick)
        except DataMissingError as error:
            absent[name.value] = str(error)
            report.say(f"{name.value}: {error}")
            continue
        record = _measured(dataset.on(device), limit, budget=0.05 if quick else BUDGET)
        records.append(record)
        _show(record)
        report.save(f"fit-{name.value}", output, arguments, device, results=record)
        report.figure(output / f"fit-{name.value}{device.suffix}.png", partial(_draw, record=record), (9, 6))
    axes = _growth(quick, dtype, device) if growth else []
    _show_summary(records, absent)
    if axes:
        _show_growth(axes)
        report.save("fit-growth", output, arguments, device, growth=axes)
    if any(row["failed"] for record in records for row in record["rows"]):
        raise SystemExit(1)


def timed_fit(
    model: Any, data: Dataset, *, trace: bool = False, stop: Callable[[float, float], bool] | None = None
) -> Fit:
    """Fit a model and return how that went.

    With `trace`, the model is ours and calls back after each step; `stop`, given the seconds so far and the objective,
    ends the fit.
    """
    points: Curve = []

    def note(state: State) -> bool:
        points.append((time.perf_counter() - start, state.objective))
        return stop is not None and stop(*points[-1])

    if trace:
        model.set_params(callbacks=[note])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data.device.synchronize()
        start = time.perf_counter()
        model.fit(data.X, data.y)
        data.device.synchronize()
        seconds = time.perf_counter() - start
    if trace:
        model.set_params(callbacks=())
    coef, intercept = to_numpy(model.coef_), to_numpy(model.intercept_)
    with threadpool_limits(1, user_api="blas"):  # its threads would go on spinning beside the next fit
        objective, _ = value_and_grad(data.X, data.y, coef, intercept, data.strength)
    if trace:
        # What it says of itself is off by the rounding of float32, much the same at every step near the end.
        error = objective - model.objective_
        points = [*((at, value + error) for at, value in points[:-1]), (seconds, objective)]
    return Fit(
        seconds,
        objective,
        int(np.max(model.n_iter_)),
        sorted({f"{w.category.__name__}: {' '.join(str(w.message).split())}" for w in caught}),
        coef,
        intercept,
        points,
        getattr(model, "estimated_gap_", None),
    )


def _measured(data: Dataset, limit: float, budget: float) -> dict[str, Any]:
    """Return the curves, the full fits and the times to the targets of all competitors on one data set."""
    results = [Result(fitter) for fitter in fitters(data.device)]
    with report.progress(len(results) + sum(result.fitter.ours for result in results) + 2) as step:
        for result in results:
            step(f"{data.name}: {result.fitter.name}")
            attempt(result, partial(first_fits, result, data, limit))
        done = [result for result in results if result.fits]
        step(f"{data.name}: repetitions")
        _repeat(done, data, limit, budget)
        step(f"{data.name}: reference")
        reference = _reference(data, limit)
        optimum = min([reference["objective"], *(value for result in done for _, value in result.curve)])
        racers = [result for result in done if result.fitter.ours]
        races = {}
        for racer in racers:
            step(f"{data.name}: {racer.fitter.name} at other tolerances")
            races[racer.fitter.name] = {tol: _traces(racer, tol, data, limit, budget) for tol in TOLS}
        rivals = [rival for name in TARGETS for rival in done if rival.fitter.name == name]
        targets = [_race(rival.fitter.name, rival.best, races) for rival in rivals]
    return {
        "data": data.name,
        "title": data.title,
        "shape": [*data.X.shape, data.n_classes],
        "dtype": data.X.dtype.name,
        "C": data.C,
        "optimum": optimum,
        "reference": reference,
        "rows": [_row(result, optimum) for result in results],
        "targets": targets,
    }


def attempt(result: Result, measure: Callable[[], None]) -> None:
    """Call `measure`, and keep the reason where that is left out or fails: one competitor must not end the run."""
    result.note = missing(result.fitter.library, result.fitter.device)
    if result.note:
        return
    try:
        measure()
    except Exception as error:
        result.note = report.failure(error)
        result.failed = True


def first_fits(result: Result, data: Dataset, limit: float) -> None:
    """Fill in the curve and the first full fit: one observed fit of ours, growing max_iter for others."""
    fitter = result.fitter
    result.note = fitter.refuse(data)
    if result.note:
        return
    data = data.on(fitter.device)
    timed_fit(fitter.make(data.C, 2), data.few())
    if fitter.ours:
        result.max_iter = MAX_ITER
        result.fits = _turn(result, data, limit)
        return
    for max_iter in fitter.iterations:
        # A fit cannot be stopped from outside: it gets as many iterations as should fit into the limit.
        last = result.best if result.fits else None
        affordable = int(result.max_iter * limit / last.seconds) if last else max_iter
        if affordable < max_iter:
            result.note = f"no more iterations in {limit:g} s"
        if min(max_iter, affordable) <= result.max_iter:
            break
        result.max_iter = min(max_iter, affordable)
        result.fits = _turn(result, data, limit)
        result.curve.append((result.best.seconds, result.best.objective))
        if result.note or _ended(result.best, last, result.max_iter):
            break


def _ended(fit: Fit, last: Fit | None, max_iter: int) -> bool:
    """Return whether a fit of a competitor ended by itself, so that more iterations would change nothing."""
    if last is not None and (fit.n_iter, fit.objective) == (last.n_iter, last.objective):
        return True
    return fit.n_iter < max_iter and not any(text.startswith("ConvergenceWarning") for text in fit.warnings)


def _turn(result: Result, data: Dataset, limit: float, **options: Any) -> list[Fit]:
    """Return one fit to `max_iter`, or where that is short as many as fill MIN_SECONDS."""
    data = data.on(result.fitter.device)
    data.device.settle()
    taken: list[Fit] = []
    while sum(fit.seconds for fit in taken) < MIN_SECONDS and len(taken) < FITS_A_TURN:
        model = result.fitter.make(data.C, result.max_iter, **options)
        if result.fitter.ours:
            taken.append(timed_fit(model, data, trace=True, stop=lambda seconds, objective: seconds > limit))
        else:
            taken.append(timed_fit(model, data))
    return taken


def _repeat(results: Sequence[Result], data: Dataset, limit: float, budget: float) -> None:
    """Repeat the full fits, each competitor in turn until its own fill `budget` seconds, ours three times at least.

    The last point of each curve moves to the fastest fit.
    """
    for turn in range(1, TURNS):
        for result in results:
            if turn < (3 if result.fitter.ours else 1) or sum(fit.seconds for fit in result.fits) < budget:
                result.fits += _turn(result, data, limit)
    for result in results:
        result.curve = result.best.trace or [*result.curve[:-1], (result.best.seconds, result.best.objective)]


def _reference(data: Dataset, limit: float) -> dict[str, float]:
    """Fit in float64 to a gradient norm of 1e-12, or as near to it as `limit` seconds allow."""
    wide = replace(data, X=data.X.astype(np.float64))
    model = ours(data.C, 100 * MAX_ITER, tol=1e-12, device=data.device.name)
    fit = timed_fit(model, wide, trace=True, stop=lambda seconds, objective: seconds > limit)
    return {"objective": fit.objective, "gradient_norm": model.gradient_norm_, "seconds": fit.seconds}


def _traces(racer: Result, tol: float, data: Dataset, limit: float, budget: float) -> list[Curve]:
    """Return the traces of fits of one of our solvers at a tolerance, which fill RACE_BUDGET or `budget` seconds."""
    fits = list(racer.fits) if tol == TOL else []
    while sum(fit.seconds for fit in fits) < min(budget, RACE_BUDGET):
        fits += _turn(racer, data, limit, tol=tol)
    return [fit.trace for fit in fits]


def _race(name: str, rival: Fit, races: dict[str, dict[float, list[Curve]]]) -> dict[str, Any]:
    """Return how long each of our solvers takes to a rival's own final objective.

    That is the shortest time of all fits at all tolerances. A looser tolerance may end above the objective, or reach it
    by its last step alone, before which the gap is estimated; a tighter one passes it on the way.
    """
    times = {}
    for solver, traces in races.items():
        reached = [
            (seconds, tol)
            for tol, curves in traces.items()
            for curve in curves
            for seconds in [next((at for at, value in curve if value <= rival.objective * (1.0 + SLACK)), None)]
            if seconds is not None
        ]
        seconds, tol = min(reached, default=(None, None))
        ratio = None if seconds is None else seconds / rival.seconds
        times[solver] = {"seconds": seconds, "ratio": ratio, "tol": tol}
    return {"rival": name, "objective": rival.objective, "seconds": rival.seconds, "ours": times}


def _row(result: Result, optimum: float) -> dict[str, Any]:
    row = {"name": result.fitter.name, "note": result.note, "failed": result.failed, "curve": result.curve}
    if not result.fits:
        return row
    gap, estimated = result.best.objective - optimum, result.best.estimated_gap
    return {
        **row,
        "max_iter": result.max_iter,
        "seconds": result.best.seconds,
        "n_iter": result.best.n_iter,
        "objective": result.best.objective,
        "gap": gap,
        "estimated_gap": estimated,
        "estimated_to_true": None if estimated is None or gap <= 0.0 else estimated / gap,
        "warnings": result.best.warnings,
        "timings_s": [fit.seconds for fit in result.fits],
    }


def _show(record: dict[str, Any]) -> None:
    rows = []
    for row in record["rows"]:
        if "seconds" in row:
            cells = (
                report.number(row["seconds"]),
                row["n_iter"],
                f"{row['objective']:.9f}",
                report.number(row["gap"], 2),
                report.number(row["estimated_to_true"], 2),
            )
            # The first sentence of a warning is enough on the terminal; the JSON has all of it.
            told = [text.split(". ")[0][:90] for text in row["warnings"]]
        else:
            cells, told = ("-",) * 5, []
        rows.append((row["name"], *cells, "; ".join([row["note"], *told] if row["note"] else told)))
    report.table(
        f"Full fits: {record['title']}, {record['dtype']}",
        ("", "seconds", "iterations", "objective", "gap", "estimated / true gap"),
        rows,
        f"gap: objective - {record['optimum']:.12f}, the lowest reached; objectives in float64 for every row",
    )
    report.table(
        f"Seconds to a competitor's own final objective: {record['title']}",
        ("", "objective", "seconds", "ratio", "tol"),
        [row for target in record["targets"] for row in _race_rows(target)],
        "ratio: our seconds / its own; below 1 is faster. -: not reached",
    )


def _race_rows(target: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield a competitor's objective and seconds, and then those that our solvers take to it."""
    yield target["rival"], f"{target['objective']:.9f}", report.number(target["seconds"]), "", ""
    for name, race in target["ours"].items():
        tol = "" if race["tol"] is None else f"{race['tol']:g}"
        yield name, "", report.number(race["seconds"]), report.number(race["ratio"]), tol


def _show_summary(records: list[dict[str, Any]], absent: dict[str, str]) -> None:
    rows: list[tuple[object, ...]] = []
    for record in records:
        seconds = {row["name"]: row.get("seconds") for row in record["rows"]}
        own, theirs = seconds["softmax_xp auto"], seconds[TARGETS[0]]
        race = next((t["ours"].get("softmax_xp auto") for t in record["targets"] if t["rival"] == TARGETS[0]), None)
        ratio = own / theirs if own and theirs else None
        rows.append(
            (
                record["data"],
                report.number(own),
                report.number(theirs),
                report.number(ratio),
                report.number(race["ratio"] if race else None),
                "",
            )
        )
    rows += [(name, *("-",) * 4, reason) for name, reason in absent.items()]
    report.table(
        "SoftmaxClassifier() against scikit-learn lbfgs",
        ("", "ours, s", "scikit-learn, s", "ratio of full fits", "ratio to its objective"),
        rows,
        f"both with tol={TOL:g}, max_iter={MAX_ITER}; a ratio below 1: ours is faster",
    )


def _growth(quick: bool, dtype: str, device: Device) -> list[dict[str, Any]]:
    """Return the times of full fits at three sizes of each axis, and their log-log slopes."""
    base = {"N": 400, "D": 16, "C": 4} if quick else {"N": 4000, "D": 64, "C": 10}
    rounds, axes = (1 if quick else 3), []
    growing = [fitter for fitter in fitters(device) if fitter.name in GROWING and not missing(fitter.library, device)]
    with report.progress(len(base) * 3 * len(growing) * rounds) as step:
        for axis, middle in base.items():
            sizes, best = [middle // 2, middle, 2 * middle], dict[str, list[float]]()
            for size in sizes:
                X, y = decaying(np.random.default_rng(0), *({**base, axis: size}).values())
                data = Dataset("growth", np.ascontiguousarray(X, dtype=dtype), y).on(device)
                cases = {
                    fitter.name: partial(_quiet_fit, fitter, data) for fitter in growing if not fitter.refuse(data)
                }
                for name, seconds in interleaved(cases, rounds, lambda name: step(f"growth: {name}"), device).items():
                    best.setdefault(name, []).append(min(seconds))
            slopes = {name: slope(sizes, seconds) for name, seconds in best.items()}
            axes.append({"axis": axis, "base": base, "sizes": sizes, "best_s": best, "slope": slopes})
    return axes


def _quiet_fit(fitter: Fitter, data: Dataset) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the sizes are compared at a fixed tol and max_iter, whatever they end by
        fitter.make(data.C, MAX_ITER).fit(data.X, data.y)


def _show_growth(axes: list[dict[str, Any]]) -> None:
    base = ", ".join(f"{axis}={size}" for axis, size in axes[0]["base"].items())
    report.table(
        f"Growth of a full fit around {base} (decaying spectrum): the exponent p of time ~ size^p",
        ("", *(axis["axis"] for axis in axes)),
        [(name, *(report.number(axis["slope"][name]) for axis in axes)) for name in axes[0]["slope"]],
        "; ".join(f"{axis['axis']} = {', '.join(map(str, axis['sizes']))}" for axis in axes),
    )


def _draw(canvas: Any, record: dict[str, Any]) -> None:
    axes = canvas.subplots()
    for row in record["rows"]:
        if row["curve"]:
            own = row["name"].startswith(report.OURS)
            seconds, objectives = zip(*row["curve"], strict=True)
            gaps = [max(value - record["optimum"], SMALLEST_GAP) for value in objectives]
            axes.plot(seconds, gaps, "-" if own else "o--", linewidth=2 if own else 1, markersize=4, label=row["name"])
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("seconds")
    axes.set_ylabel("objective - optimum")
    axes.set_title(f"{record['title']}, {record['dtype']}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
