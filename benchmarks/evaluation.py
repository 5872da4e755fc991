"""Command eval: the time of one loss and gradient, and how it grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import report
from benchmarks.competitors import Evaluator, Problem, evaluators, missing, two_products
from benchmarks.measure import CPU, Device, interleaved, slope
from benchmarks.objective import value_and_grad

FLOOR = "two products"
REG = 1e-3
TOLERANCE = {"float32": 1e-3, "float64": 1e-9}  # float32 sums over 1e6 rows keep some five digits


class Shape(NamedTuple):
    """Rows, features and classes."""

    n: int
    d: int
    c: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Return the shape that "N,D,C" spells, with two classes at least; raise ValueError if there is none."""
        sizes = [int(part) for part in text.split(",")]
        if len(sizes) != 3 or min(sizes) < 1 or sizes[2] < 2:
            raise ValueError(f"a shape is N,D,C with two classes at least, got {text}")
        return cls(*sizes)

    @property
    def k(self) -> int:
        """Columns of coefficients."""
        return 1 if self.c == 2 else self.c

    def __str__(self) -> str:
        return f"{self.n} x {self.d} x {self.c}"


SHAPES = (
    Shape(60000, 784, 10),
    Shape(20000, 512, 1000),
    Shape(2000, 512, 20000),
    Shape(200000, 64, 10),
    Shape(1000000, 64, 2),
)
QUICK_SHAPES = (Shape(2000, 64, 10), Shape(500, 64, 500), Shape(5000, 32, 2))
LARGE = Shape(1280000, 1024, 1000)  # ImageNet: on a GPU
ROOM = 5  # times X and the logits: what the competitors may take of a GPU
BASE, LARGE_BASE, QUICK_BASE = Shape(20000, 128, 32), Shape(200000, 512, 256), Shape(1000, 32, 8)


def main(
    shapes: Sequence[Shape],
    dtype: str,
    rounds: int,
    workers: int | None,
    growth: bool,
    quick: bool,
    output: Path,
    device: Device = CPU,
    more: Sequence[Evaluator] = (),
) -> None:
    """Run the command; `more` is timed besides the table of the device. Exit status 1 if a competitor failed."""
    shapes = shapes or (QUICK_SHAPES if quick else SHAPES if device == CPU else (*SHAPES, LARGE))
    results = []
    for shape in shapes:
        if memory := _too_large(shape, dtype, device):
            report.say(f"{shape} is left out: {memory}")
        else:
            results.append(_measured(shape, dtype, rounds, workers, device, more))
    for result in results:
        _show(result)
    base = QUICK_BASE if quick else BASE if device == CPU else LARGE_BASE
    axes = _growth(base, 2 if quick else 4, dtype, rounds, workers, device) if growth else []
    if axes:
        _show_growth(axes)
    arguments = {
        "shapes": [list(shape) for shape in shapes],
        "dtype": dtype,
        "repeats": rounds,
        "workers": workers,
        "growth": growth,
        "quick": quick,
        "device": device.name,
    }
    report.save("eval", output, arguments, device, results=results, growth=axes)
    if results:
        name = f"eval-ratios{device.suffix}.png"
        report.figure(output / name, lambda canvas: _draw_ratios(canvas, results), (11, 5))
    if axes:
        name = f"eval-growth{device.suffix}.png"
        report.figure(output / name, lambda canvas: _draw_growth(canvas, axes), (14, 4.5))
    if any(note.startswith(report.FAILED) for result in results for note in result["missing"].values()):
        raise SystemExit(1)


def _too_large(shape: Shape, dtype: str, device: Device) -> str:
    """Return why the competitors would not fit into the memory of a GPU; empty if they should."""
    device.settle()
    memory, needed = device.memory(), ROOM * np.dtype(dtype).itemsize * shape.n * (shape.d + shape.c)
    if memory is None or needed <= memory[0]:
        return ""
    return f"it may take {needed / 2**30:.0f} GiB, and {memory[0] / 2**30:.0f} GiB are free"


def _measured(
    shape: Shape, dtype: str, rounds: int, workers: int | None, device: Device = CPU, more: Sequence[Evaluator] = ()
) -> dict[str, Any]:
    """Return the timings of all competitors at one shape, once they agree on what they compute."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((shape.n, shape.d), dtype=dtype)  # type: ignore[call-overload]
    y = rng.integers(0, shape.c, shape.n)
    coef = rng.standard_normal((shape.k, shape.d)) / np.sqrt(shape.d)
    problem = Problem(X, y, coef.astype(dtype).astype(np.float64), shape.c, REG, workers).on(device)
    table = [*evaluators(device), *more]
    with report.progress(2 + len(table) + rounds * (1 + len(table))) as step:
        step(f"{shape}: reference")
        loss, grad = value_and_grad(problem.X, problem.y, problem.coef, np.zeros(shape.k), REG)
        cases: dict[str, Callable[[], object]] = {FLOOR: two_products(problem)}
        errors: dict[str, Any] = {}
        absent: dict[str, str] = {}
        for entry in table:
            step(f"{shape}: {entry.name}")
            if reason := missing(entry.library, device):
                absent[entry.name] = reason
                continue
            device.settle()
            try:
                run = entry.prepare(problem)
                result = run()
            except Exception as error:  # out of memory, for one: the others are measured
                absent[entry.name] = report.failure(error)
                continue
            errors[entry.name] = _parity(entry, problem, result, loss, grad)
            cases[entry.name] = run
        times = interleaved(cases, rounds, lambda name: step(f"{shape}: {name}"), device)
    best = {name: min(seconds) for name, seconds in times.items()}
    others = [best[name] for name in best if name != FLOOR and not name.startswith(report.OURS)]
    itemsize = X.itemsize
    flops = 4 * shape.n * shape.d * shape.k
    moved = itemsize * (shape.n * shape.d + shape.d * shape.k) + y.nbytes
    return {
        "shape": list(shape),
        "dtype": dtype,
        "device": device.name,
        "rows": [
            {
                "name": name,
                "best_s": best[name],
                "median_s": float(np.median(times[name])),
                "to_floor": best[name] / best[FLOOR],
                "to_fastest_other": None if name == FLOOR or not others else best[name] / min(others),
                "gflops": flops / best[name] / 1e9,
                "gb_per_s": moved / best[name] / 1e9,
                **errors.get(name, {}),
                "timings_s": times[name],
            }
            for name in times
        ],
        "missing": absent,
    }


def _parity(entry: Evaluator, problem: Problem, result: tuple[Any, Any], loss: float, grad: Any) -> dict[str, float]:
    """Return the relative errors of a loss and a gradient, which are small, or end the command."""
    own = entry.gradient(result[1], problem)
    errors = {
        "loss_error": abs(float(result[0]) - loss) / abs(loss),
        "grad_error": float(np.linalg.norm(own - grad) / np.linalg.norm(grad)),
    }
    tolerance = TOLERANCE[problem.X.dtype.name]
    if not max(errors.values()) <= tolerance:
        raise SystemExit(
            f"{entry.name} computes another function: relative error {errors['loss_error']:.1e} of the loss and "
            f"{errors['grad_error']:.1e} of the gradient against float64, where {tolerance:g} is allowed."
        )
    return errors


def _show(result: dict[str, Any]) -> None:
    rows = [
        (
            row["name"],
            report.number(1e3 * row["best_s"]),
            report.number(1e3 * row["median_s"]),
            report.number(row["to_floor"]),
            report.number(row["to_fastest_other"]),
            report.number(row["gflops"]),
            report.number(row["gb_per_s"]),
            "",
        )
        for row in result["rows"]
    ]
    rows += [(name, *("-",) * 6, reason) for name, reason in result["missing"].items()]
    report.table(
        f"One loss and gradient: {Shape(*result['shape'])}, {result['dtype']}, {result['device']}",
        ("", "best ms", "median ms", "/ floor", "/ fastest other", "GFLOP/s", "GB/s"),
        rows,
        "GFLOP/s: 4 N D K operations of the two products; GB/s: one read of X, labels and coefficients. "
        "K = C, or 1 for two classes. The floor is the two products.",
    )


def _growth(
    base: Shape, factor: int, dtype: str, rounds: int, workers: int | None, device: Device
) -> list[dict[str, Any]]:
    """Return the best times at three sizes of each axis around `base`, and their log-log slopes."""
    axes = []
    for field in Shape._fields:
        middle = getattr(base, field)
        sizes = [middle // factor, middle, middle * factor]
        results = [_measured(base._replace(**{field: size}), dtype, rounds, workers, device) for size in sizes]
        best = {
            name: [next(row["best_s"] for row in result["rows"] if row["name"] == name) for result in results]
            for name in (row["name"] for row in results[0]["rows"])
        }
        axes.append(
            {
                "axis": field.upper(),
                "base": list(base),
                "sizes": sizes,
                "best_s": best,
                "slope": {name: slope(sizes, seconds) for name, seconds in best.items()},
                "results": results,
            }
        )
    return axes


def _show_growth(axes: list[dict[str, Any]]) -> None:
    sizes = "; ".join(f"{axis['axis']} = {', '.join(map(str, axis['sizes']))}" for axis in axes)
    report.table(
        f"Growth around {Shape(*axes[0]['base'])}: the exponent p of time ~ size^p",
        ("", *(axis["axis"] for axis in axes)),
        [(name, *(report.number(axis["slope"][name]) for axis in axes)) for name in axes[0]["slope"]],
        sizes,
    )


def _draw_ratios(canvas: Any, results: list[dict[str, Any]]) -> None:
    axes = canvas.subplots()
    names = [row["name"] for row in results[0]["rows"] if row["name"] != FLOOR]
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        ratios = [{row["name"]: row["to_floor"] for row in result["rows"]}.get(name, np.nan) for result in results]
        axes.bar(np.arange(len(results)) + (i - (len(names) - 1) / 2) * width, ratios, width, label=name)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(results)), [f"{Shape(*result['shape'])}" for result in results])
    axes.set_yscale("log")
    axes.set_ylabel("time / time of the two products")
    axes.set_title(f"One loss and gradient, {results[0]['dtype']} (rows x features x classes)")
    canvas.legend(loc="outside right upper", fontsize="small")


def _draw_growth(canvas: Any, axes: list[dict[str, Any]]) -> None:
    panels = canvas.subplots(1, len(axes), sharey=True)
    for panel, axis in zip(panels, axes, strict=True):
        for name, seconds in axis["best_s"].items():
            style = "k--" if name == FLOOR else "o-"
            panel.plot(axis["sizes"], [1e3 * s for s in seconds], style, label=name)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xticks(axis["sizes"], axis["sizes"])
        panel.minorticks_off()
        panel.set_xlabel(axis["axis"])
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("best ms of one loss and gradient")
    canvas.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    canvas.suptitle(f"Growth around {Shape(*axes[0]['base'])} (rows x features x classes)")
