"""Command kernel: the row pass that turns logits into their gradient, against the bandwidth of the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks import report
from benchmarks.competitors import missing, tensor
from benchmarks.data import standard_normal
from benchmarks.measure import CPU, Device
from benchmarks.objective import Array
from softmax_xp.arrays import block_bytes, row_blocks, to_numpy
from softmax_xp.kernels import cuda, kernels_for, launches, reference

CLASSES = (10, 100, 1000, 1024, 4096, 8192, 16384, 32768, 50257, 65536, 131072)
BOUNDARY_CLASSES = (8, 16, 32, 64, 128, 256, 512, 1000, 1024, 2048, 4096, 8192, 16384, 32768, 50257, 65536, 131072)
LOGITS_BYTES, QUICK_BYTES = 1 << 30, 1 << 22  # far more than a cache holds; a matter of compiling alone
SHARE_OF_MEMORY = 4  # the logits take one part in so many of what is free
QUICK_CLASSES = (10, 1000)
CALLS_A_TURN = 5
LABEL_BYTES = 8
CHECKED_ROWS = 64
TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}  # relative, of each loss and each entry of the gradient
COARSE = 10  # times as much where torch keeps the logarithms of the probabilities in the dtype of the logits
OURS, COPY, UNFUSED, EAGER = "softmax_xp", "copy", "unfused array API", "torch eager"
COMPILED, COMPILED_FORMULA = "torch.compile, autograd", "torch.compile, formula"
SHORT = {UNFUSED: "unfused", COMPILED: "compiled autograd", COMPILED_FORMULA: "compiled formula"}  # in a table
OTHERS = (UNFUSED, EAGER, COMPILED, COMPILED_FORMULA)

Call = Callable[[], tuple[Any, Any]]


def main(
    device: Device,
    classes: Sequence[int],
    dtypes: Sequence[str],
    rounds: int,
    compiled: bool,
    boundaries: bool,
    quick: bool,
    output: Path,
) -> None:
    """Run the command; its exit status is 1 if a competitor failed."""
    if boundaries and device == CPU:
        raise SystemExit("--boundaries chooses among launches of CUDA kernels: it needs --device cuda.")
    classes = classes or (QUICK_CLASSES if quick else BOUNDARY_CLASSES if boundaries else CLASSES)
    measure = (
        partial(_boundaries, rounds=rounds) if boundaries else partial(_measured, rounds=rounds, compiled=compiled)
    )
    n_bytes = QUICK_BYTES if quick else LOGITS_BYTES
    results: list[dict[str, Any]] = []
    for dtype in dtypes:
        if dtype == "bfloat16" and (reason := missing("ml_dtypes")):
            report.say(f"{dtype} is left out: CuPy needs ml_dtypes for it, which is {reason}")
            continue
        rows = []
        with report.progress(len(classes)) as step:
            for n_classes in classes:
                step(f"{dtype}, C = {n_classes}")
                rows.append(measure(device, n_classes, dtype, n_bytes))
        results.append({"dtype": dtype, "rows": rows})
        (_show_boundaries if boundaries else _show)(dtype, rows, device)
    name = "kernel-boundaries" if boundaries else "kernel"
    arguments = {"classes": list(classes), "dtypes": list(dtypes), "repeats": rounds, "quick": quick}
    report.save(name, output, {**arguments, "device": device.name}, device, results=results)
    if results:
        draw = _draw_boundaries if boundaries else _draw
        report.figure(output / f"{name}{device.suffix}.png", lambda canvas: draw(canvas, results), (11, 5))
    notes = [text for result in results for row in result["rows"] for text in row["notes"].values()]
    if any(text.startswith(report.FAILED) for text in notes):
        raise SystemExit(1)


# --- The problem ---


def problem(device: Device, n_classes: int, dtype: str, n_bytes: int) -> tuple[Array, Array]:
    """Return logits (N, C) of about `n_bytes`, independent standard normal numbers, and labels (N,)."""
    backend, xp = device.backend, device.backend.xp
    kind = np.dtype(import_module("ml_dtypes").bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    device.settle()
    memory = device.memory()
    n = max(1, min(n_bytes, memory[0] // SHARE_OF_MEMORY if memory else n_bytes) // (n_classes * kind.itemsize))
    z = xp.empty((n, n_classes), dtype=kind)
    for rows in row_blocks(n, 8 * n_classes, block_bytes(backend.device)):
        size = (rows.stop - rows.start) * n_classes
        z[rows] = standard_normal(xp, 0, rows.start * n_classes, size).reshape(-1, n_classes).astype(kind)
    return z, xp.arange(n, dtype=xp.int64) * 7919 % n_classes


def bytes_moved(z: Array) -> int:
    """Return the bytes that no pass can do without: logits read and written, labels read, losses written."""
    n, n_classes = z.shape
    return int(n * (2 * n_classes * z.itemsize + LABEL_BYTES + max(4, z.itemsize)))


# --- What is timed ---


def ours(device: Device, z: Array, y: Array) -> Call:
    """Return our pass: in place on a GPU; into new memory on a CPU, where the blocks of a fit need no such pass."""
    if device == CPU:
        return lambda: kernels_for(device.backend.xp, z.dtype).cross_entropy_with_grad(z, y)
    losses = device.backend.xp.empty(len(z), dtype=np.float32)

    def run() -> tuple[Any, Any]:
        return losses, cuda._run("GRADIENT", z, z, y, None, None, 0.0, losses)

    return run


def torch_calls(z: Array, y: Array, compiled: bool) -> dict[str, Call]:
    """Return the same in torch, step by step and compiled: loss per row, and the gradient of their sum."""
    torch = import_module("torch")
    functional = torch.nn.functional
    # By way of integers, which every version of torch and CuPy exchanges.
    logits = tensor(z.view(np.int16)).view(torch.bfloat16) if z.itemsize == 2 else tensor(z)
    leaf, labels = logits.detach().requires_grad_(), tensor(y)
    classes = torch.arange(z.shape[1], device=labels.device)

    def loss(logits: Any) -> Any:
        return functional.cross_entropy(logits, labels, reduction="none")

    def formula(logits: Any) -> tuple[Any, Any]:
        wide = logits.float()
        exps = torch.exp(wide - wide.amax(1, keepdim=True))
        total = exps.sum(1, keepdim=True)
        losses = torch.log(total[:, 0]) + wide.amax(1) - wide.gather(1, labels[:, None])[:, 0]
        return losses, (exps / total - (classes == labels[:, None]).float()).to(logits.dtype)

    def with_grad(loss: Callable[[Any], Any]) -> tuple[Any, Any]:
        losses = loss(leaf)
        return losses.detach(), torch.autograd.grad(losses.sum(), leaf)[0]

    calls: dict[str, Call] = {EAGER: partial(with_grad, loss)}
    if compiled:
        torch.compiler.reset()  # each shape is compiled for itself
        calls[COMPILED] = partial(with_grad, torch.compile(loss, dynamic=False))
        calls[COMPILED_FORMULA] = partial(torch.compile(formula, dynamic=False), logits)
    return calls


def _measured(device: Device, n_classes: int, dtype: str, n_bytes: int, rounds: int, compiled: bool) -> dict[str, Any]:
    """Return the timings of all competitors at one number of classes, once they agree on what they compute."""
    z, y = problem(device, n_classes, dtype, n_bytes)
    xp = device.backend.xp
    own = xp.asarray(z, copy=True)
    expected = exact(z, y)
    calls: dict[str, Call] = {OURS: ours(device, own, y), UNFUSED: partial(reference.cross_entropy_with_grad, z, y)}
    notes = {}
    if reason := missing("torch", device):
        notes["torch"] = reason
    else:
        calls |= torch_calls(z, y, compiled)
    timed: dict[str, Callable[[], object]] = {COPY: lambda: xp.copyto(own, z)}
    for name, call in calls.items():
        device.settle()
        allowed = TOLERANCE[dtype] * (COARSE if name in (EAGER, COMPILED) else 1)
        if fault := _fault(call, expected, allowed):
            notes[name] = fault
        else:
            timed[name] = call
    times: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(rounds):
        for name, run in timed.items():
            device.settle()
            run()
            times[name] += [device.seconds_of_work(run) for _ in range(CALLS_A_TURN)]
    best = {name: min(seconds) for name, seconds in times.items()}
    moved = bytes_moved(z)
    return {
        "n_classes": n_classes,
        "n_rows": len(z),
        "bytes": moved,
        "copy_gb_per_s": 2 * z.nbytes / best[COPY] / 1e9,
        "best_s": best,
        "median_s": {name: float(np.median(seconds)) for name, seconds in times.items()},
        "gb_per_s": {name: moved / best[name] / 1e9 for name in best if name != COPY},
        "notes": notes,
        "timings_s": times,
    }


def exact(z: Array, y: Array) -> tuple[Array, Array, Array]:
    """Return some rows, evenly spaced, and their losses and gradients in float64 on the host."""
    rows = np.unique(np.linspace(0, len(z) - 1, CHECKED_ROWS).astype(np.int64))
    wide = np.stack([to_numpy(z[int(row)]).astype(np.float64) for row in rows])
    return (rows, *reference.cross_entropy_with_grad(wide, np.array([int(y[int(row)]) for row in rows])))


def parity(result: tuple[Any, Any], expected: tuple[Array, Array, Array]) -> float:
    """Return the largest relative error of the losses, and of the entries of the gradient, at those rows.

    That of the label, p - 1, cancels: its error is relative to 1.
    """
    rows, losses, grad = expected
    own_losses = np.array([float(result[0][int(row)]) for row in rows])
    own_grad = np.stack([to_numpy(result[1][int(row)]).astype(np.float64) for row in rows])
    scale = np.where(grad < 0, 1.0, grad)
    return float(max((np.abs(own_losses - losses) / losses).max(), (np.abs(own_grad - grad) / scale).max()))


def _fault(call: Call, expected: tuple[Array, Array, Array], allowed: float) -> str:
    """Return why a competitor is not timed; empty where it is. One must not end the run."""
    try:
        error = parity(call(), expected)
    except Exception as failure:
        return report.failure(failure)
    if error <= allowed:
        return ""
    return f"{report.FAILED}: relative error {error:.1e} against float64, where {allowed:g} is allowed"


# --- The boundaries between the launches ---


def alternatives(n_classes: int, dtype: str, n_rows: int, shared_bytes: int) -> list[launches.Launch]:
    """Return the launches that could serve the gradient of row-major logits, the one that is chosen first.

    Those of rows that are not dense, and not aligned, are among them; and any number of threads a row, with as many of
    its classes in registers as there are, or as half or all of what may be held, and none or all of the others in
    shared memory.
    """
    kinds = launches.kinds_of(dtype, "GRADIENT", "LABELS")
    computed = launches.TYPES[dtype][1]
    size = launches.itemsize(dtype)
    widest = launches.widest_pack(n_classes, [(0, n_classes * size, size)])
    serving = [
        launches.launch_of(
            n_rows, n_classes, dtype, "GRADIENT", "LABELS", pack=pack, dense=dense, shared_bytes=shared_bytes
        )
        for pack, dense in ((widest, True), (widest, False), (1, False))
    ]
    pack = min(widest, launches.PACK_BYTES // size)
    most = [
        room // (launches.itemsize(computed) * pack) for room in (launches.HELD_BYTES_IN_BLOCK, launches.HELD_BYTES)
    ]
    for group in launches.GROUPS:
        if group >= 2 * max(-(-n_classes // pack), launches.GROUPS[0]):
            break  # half of the threads would have nothing to do
        needed = -(-n_classes // (pack * group))
        for wanted in sorted({min(needed, limit) for limit in most}):
            held = next(held for held in launches.HELD_PACKS if held >= wanted)
            serving += [
                launches.row_launch(n_rows, n_classes, dtype, kinds, pack, group, held, in_shared)
                for in_shared in (0, launches.room(group, pack, dtype, shared_bytes)[1])
            ]
    return list(dict.fromkeys(serving))


@contextmanager
def forced(launch: launches.Launch) -> Iterator[None]:
    """Let every pass be done by one launch meanwhile."""
    with patch.object(cuda, "launch_of", lambda *args, **options: launch):
        yield


def _boundaries(device: Device, n_classes: int, dtype: str, n_bytes: int, rounds: int) -> dict[str, Any]:
    """Return the time of every launch that could serve a number of classes, fastest first."""
    z, y = problem(device, n_classes, dtype, n_bytes)
    xp = device.backend.xp
    own, expected = xp.asarray(z, copy=True), exact(z, y)
    serving = alternatives(n_classes, dtype, len(z), cuda._shared_bytes(z))
    call = ours(device, own, y)
    best, notes = {}, {}
    for launch in serving:
        xp.copyto(own, z)
        with forced(launch):
            if fault := _fault(call, expected, TOLERANCE[dtype]):
                notes[shape_of(launch, n_classes)] = fault
            else:
                best[shape_of(launch, n_classes)] = min(device.seconds_of_work(call) for _ in range(rounds))
    ranked = sorted(best, key=lambda shape: best[shape])
    return {
        "n_classes": n_classes,
        "n_rows": len(z),
        "bytes": bytes_moved(z),
        "chosen": shape_of(serving[0], n_classes),
        "best_s": {shape: best[shape] for shape in ranked},
        "notes": notes,
    }


# --- What is shown ---


def _show(dtype: str, rows: Sequence[dict[str, Any]], device: Device) -> None:
    columns = [name for name in OTHERS if any(name in row["best_s"] for row in rows)]
    cells = []
    for row in rows:
        best, notes = row["best_s"], [f"{name} {text}" for name, text in row["notes"].items()]
        own = best.get(OURS)
        speed = row["gb_per_s"].get(OURS)
        cells.append(
            (
                row["n_classes"],
                row["n_rows"],
                report.number(own and 1e3 * own),
                report.number(own and 1e3 * row["median_s"][OURS]),
                report.number(speed),
                report.number(row["copy_gb_per_s"]),
                report.number(speed and speed / row["copy_gb_per_s"]),
                *(report.number(best[name] * 1e3 if name in best else None) for name in columns),
                "; ".join(notes),
            )
        )
    report.table(
        f"Loss and gradient of logits: {dtype}, {device.name}; times in ms",
        ("C", "N", "ours, best", "median", "GB/s", "copy GB/s", "/ copy", *(SHORT.get(name, name) for name in columns)),
        cells,
        "GB/s: logits read and written, labels read, losses written; copy: the logits read and written. "
        "/ copy: share of that speed; 1 is the most that memory allows.",
    )


def _show_boundaries(dtype: str, rows: Sequence[dict[str, Any]], device: Device) -> None:
    cells = []
    for row in rows:
        best = row["best_s"]
        fastest, own = next(iter(best), None), best.get(row["chosen"])
        cells.append(
            (
                row["n_classes"],
                row["chosen"],
                report.number(own and 1e3 * own),
                report.number(own and row["bytes"] / own / 1e9),
                fastest or "-",
                report.number(best[fastest] * 1e3 if fastest else None),
                report.number(own and own / best[fastest]),
                len(best),
                f"{len(row['notes'])} failed: see the JSON file" if row["notes"] else "",
            )
        )
    report.table(
        f"Launches: {dtype}, {device.name}",
        ("C", "chosen", "ms", "GB/s", "fastest", "ms", "chosen / fastest", "tried"),
        cells,
        "a launch: classes a pack x threads a row x packs held by each of them, + where more are read twice",
    )


def shape_of(launch: launches.Launch, n_classes: int) -> str:
    """Return pack x group x held of `row_major`, then what is kept in shared memory, and a + where there is more."""
    if launch.kernel.startswith("few_classes"):
        return "a thread a row"
    *_, pack, group, held, _ = launch.kernel.removesuffix(">").split(", ")
    more = int(pack) * int(group) * (int(held) + launch.kept) < n_classes
    return f"{pack} x {group} x {held}" + (f" and {launch.kept}" if launch.kept else "") + (" +" if more else "")


def _draw(canvas: Any, results: Sequence[dict[str, Any]]) -> None:
    panels = canvas.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for panel, result in zip(panels, results, strict=True):
        classes = [row["n_classes"] for row in result["rows"]]
        panel.plot(classes, [row["copy_gb_per_s"] for row in result["rows"]], "k--", label=COPY)
        for name in (OURS, *OTHERS):
            speeds = [row["gb_per_s"].get(name, np.nan) for row in result["rows"]]
            if not np.isnan(speeds).all():
                panel.plot(classes, speeds, "o-", label=name)
        panel.set_title(result["dtype"])
        panel.set_xscale("log")
        panel.set_ylim(bottom=0)
        panel.set_xlabel("classes")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("GB/s of the bytes that have to be moved")
    canvas.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    canvas.suptitle("Loss and gradient of logits")


def _draw_boundaries(canvas: Any, results: Sequence[dict[str, Any]]) -> None:
    panels = canvas.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for panel, result in zip(panels, results, strict=True):
        for row in result["rows"]:
            speeds = [row["bytes"] / seconds / 1e9 for seconds in row["best_s"].values()]
            panel.plot([row["n_classes"]] * len(speeds), speeds, ".", color="grey", markersize=3)
        chosen = [row["bytes"] / row["best_s"].get(row["chosen"], np.nan) / 1e9 for row in result["rows"]]
        panel.plot([row["n_classes"] for row in result["rows"]], chosen, "o-", label="chosen")
        panel.set_title(result["dtype"])
        panel.set_xscale("log")
        panel.set_xlabel("classes")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("GB/s; each dot a launch")
    panels[0].legend()
