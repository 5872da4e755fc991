"""Command eval: the time of one loss and gradient, and how it grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import report
from benchmarks.competitors import Evaluator, Problem, evaluators, missing, two_products
from benchmarks.measure import interleaved, slope
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
BASE, QUICK_BASE = Shape(20000, 128, 32), Shape(1000, 32, 8)


def main(
    shapes: Sequence[Shape], dtype: str, rounds: int, workers: int | None, growth: bool, quick: bool, output: Path
) -> None:
    """Run the command."""
    shapes = shapes or (QUICK_SHAPES if quick else SHAPES)
    results = [_measured(shape, dtype, rounds, workers) for shape in shapes]
    for result in results:
        _show(result)
    axes = _growth(QUICK_BASE if quick else BASE, 2 if quick else 4, dtype, rounds, workers) if growth else []
    if axes:
        _show_growth(axes)
    arguments = {
        "shapes": [list(shape) for shape in shapes],
        "dtype": dtype,
        "repeats": rounds,
        "workers": workers,
        "growth": growth,
        "quick": quick,
    }
    report.save("eval", output, arguments, results=results, growth=axes)
    report.figure(output / "eval-ratios.png", lambda canvas: _draw_ratios(canvas, results), (11, 5))
    if axes:
        report.figure(output / "eval-growth.png", lambda canvas: _draw_growth(canvas, axes), (14, 4.5))


def _measured(shape: Shape, dtype: str, rounds: int, workers: int | None) -> dict[str, Any]:
    """Return the timings of all competitors at one shape, once they agree on what they compute."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((shape.n, shape.d), dtype=dtype)  # type: ignore[call-overload]
    y = rng.integers(0, shape.c, shape.n)
    coef = rng.standard_normal((shape.k, shape.d)) / np.sqrt(shape.d)
    problem = Problem(X, y, coef.astype(dtype).astype(np.float64), shape.c, REG, workers)
    table = evaluators()
    with report.progress(2 + len(table) + rounds * (1 + len(table))) as step:
        step(f"{shape}: reference")
        loss, grad = value_and_grad(X, y, problem.coef, np.zeros(shape.k), REG)
        cases: dict[str, Callable[[], object]] = {FLOOR: two_products(problem)}
        errors: dict[str, Any] = {}
        for entry in table:
            step(f"{shape}: {entry.name}")
            if not missing(entry.library):
                run = entry.prepare(problem)
                errors[entry.name] = _parity(entry, problem, run(), loss, grad)
                cases[entry.name] = run
        times = interleaved(cases, rounds, lambda name: step(f"{shape}: {name}"))
    best = {name: min(seconds) for name, seconds in times.items()}
    other = min(best[name] for name in best if name != FLOOR and not name.startswith(report.OURS))
    itemsize = X.itemsize
    flops = 4 * shape.n * shape.d * shape.k
    moved = itemsize * (shape.n * shape.d + shape.d * shape.k) + y.nbytes
    return {
        "shape": list(shape),
        "dtype": dtype,
        "rows": [
            {
                "name": name,
                "best_s": best[name],
                "median_s": float(np.median(times[name])),
                "to_floor": best[name] / best[FLOOR],
                "to_fastest_other": None if name == FLOOR else best[name] / other,
                "gflops": flops / best[name] / 1e9,
                "gb_per_s": moved / best[name] / 1e9,
                **errors.get(name, {}),
                "timings_s": times[name],
            }
            for name in times
        ],
        "missing": [entry.name for entry in table if missing(entry.library)],
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
    rows += [(name, *("-",) * 6, report.INSTALL) for name in result["missing"]]
    report.table(
        f"One loss and gradient: {Shape(*result['shape'])}, {result['dtype']}",
        ("", "best ms", "median ms", "/ floor", "/ fastest other", "GFLOP/s", "GB/s"),
        rows,
        "GFLOP/s: 4 N D K operations of the two products; GB/s: one read of X, labels and coefficients. "
        "K = C, or 1 for two classes. The floor is the two products.",
    )


def _growth(base: Shape, factor: int, dtype: str, rounds: int, workers: int | None) -> list[dict[str, Any]]:
    """Return the best times at three sizes of each axis around `base`, and their log-log slopes."""
    axes = []
    for field in Shape._fields:
        middle = getattr(base, field)
        sizes = [middle // factor, middle, middle * factor]
        results = [_measured(base._replace(**{field: size}), dtype, rounds, workers) for size in sizes]
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
        ratios = [next(row["to_floor"] for row in result["rows"] if row["name"] == name) for result in results]
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
