"""Command compiled: what the kernels compile to, by NVRTC. It needs no GPU."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import report
from softmax_xp.backend import INSTALL_CUPY
from softmax_xp.kernels import cuda, launches

ARCHITECTURES = (75, 80, 90, 100, 120)
CLASSES = (10, 100, 1000, 8192, 32768, 50257, 131072)
QUICK_CLASSES = (10, 100)
DTYPES = ("float32", "bfloat16")
SHARED_BYTES = {75: 65536, 80: 166912, 90: 232448, 100: 232448, 120: 101376}  # that a block may take
OF_CUPY = ("--device-as-default-execution-space", "-ftz=true")  # options that CuPy adds
DISASSEMBLER = "cuobjdump"


def main(architectures: Sequence[int], quick: bool, before: Path | None, output: Path) -> None:
    """Run the command."""
    if find_spec("cupy_backends") is None:
        raise SystemExit(
            f"the kernels are compiled by the NVRTC that CuPy brings, which is not installed: {INSTALL_CUPY}"
        )
    earlier = {} if before is None else {key_of(row): row for row in json.loads(before.read_text())["results"]}
    rows = []
    with report.progress(len(architectures)) as step:
        for architecture in architectures:
            step(f"sm_{architecture}")
            rows += compiled(architecture, QUICK_CLASSES if quick else CLASSES)
    cells = [cells_of(row, earlier.get(key_of(row)), bool(earlier)) for row in rows]
    columns = ("kernel", "C", "dtype", "bytes a load", "registers", "bytes spilled", "instructions")
    report.table(
        "The gradient's kernels as NVRTC compiles them" + (": before -> now" if earlier else ""),
        columns,
        cells,
        f"bytes a load: of logits, by one thread. instructions: of the whole kernel, where {DISASSEMBLER} is there.",
    )
    output.mkdir(parents=True, exist_ok=True)
    lines = [columns, ["---"] * len(columns), *cells]
    (output / "compiled.md").write_text("".join(f"| {' | '.join(map(str, line))} |\n" for line in lines))
    report.save("compiled", output, {"architectures": list(architectures), "quick": quick}, results=rows)


def compiled(architecture: int, classes: Sequence[int]) -> list[dict[str, Any]]:
    """Return registers, spills, loads and instructions of the kernel for each number of classes and each dtype."""
    nvrtc = import_module("cupy_backends.cuda.libs.nvrtc")
    kernels = {(c, dtype): kernel_of(architecture, c, dtype) for c in classes for dtype in DTYPES}
    program = nvrtc.createProgram(cuda.source(), "cross_entropy.cu", [], [])
    for name in set(kernels.values()):
        nvrtc.addNameExpression(program, name)
    options = [*cuda.OPTIONS, *OF_CUPY, f"-arch=sm_{architecture}", "--ptxas-options=-v"]
    try:
        nvrtc.compileProgram(program, options)
    except nvrtc.NVRTCError:
        raise SystemExit(f"the kernels do not compile for sm_{architecture}:\n{nvrtc.getProgramLog(program)}") from None
    lowered = {name: nvrtc.getLoweredName(program, name) for name in set(kernels.values())}
    resources = resources_of(nvrtc.getProgramLog(program))
    instructions = instructions_of(nvrtc.getCUBIN(program) + b"\0")  # CuPy cuts the last byte off
    return [
        {
            "architecture": architecture,
            "n_classes": c,
            "dtype": dtype,
            "kernel": kernel,
            "load_bytes": load_bytes(kernel),
            "registers": resources[lowered[kernel]]["registers"],
            "spilled_bytes": resources[lowered[kernel]]["spilled"],
            "instructions": instructions.get(lowered[kernel]),
        }
        for (c, dtype), kernel in kernels.items()
    ]


def kernel_of(architecture: int, n_classes: int, dtype: str) -> str:
    """Return the kernel that serves dense, row-major logits."""
    size = launches.itemsize(dtype)
    pack = launches.widest_pack(n_classes, [(0, n_classes * size, size)])
    shared = SHARED_BYTES[architecture]
    launch = launches.launch_of(
        10**6, n_classes, dtype, "GRADIENT", "LABELS", pack=pack, dense=True, shared_bytes=shared
    )
    return launch.kernel


def load_bytes(kernel: str) -> int:
    """Return how many bytes of logits one thread loads at a time: a pack of them, or four where it takes them all."""
    template, _, arguments = kernel.removesuffix(">").partition("<")
    stored, _, _, _, _, pack, *_ = arguments.split(", ")
    numbers = 4 if template == "few_classes" else int(pack)
    return min(launches.PACK_BYTES, numbers * launches.itemsize(stored))


def resources_of(log: str) -> dict[str, dict[str, int]]:
    """Return registers and bytes of spill stores of each function, by the log of ptxas."""
    found: dict[str, dict[str, int]] = {}
    function = ""
    for line in log.splitlines():
        if named := re.search(r"(?:Compiling entry function '|Function properties for )(\w+)", line):
            function = named[1]
        own = found.setdefault(function, {})
        if spilled := re.search(r"(\d+) bytes spill stores", line):
            own["spilled"] = int(spilled[1])
        if used := re.search(r"Used (\d+) registers", line):
            own["registers"] = int(used[1])
    return found


def instructions_of(cubin: bytes) -> Counter[str]:
    """Return how many instructions each function has; nothing without the disassembler of the CUDA toolkit."""
    counts: Counter[str] = Counter()
    tool = shutil.which(DISASSEMBLER)
    if tool is None:
        return counts
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        listing = subprocess.run([tool, "-sass", file.name], capture_output=True, text=True, check=True).stdout  # noqa: S603
    function = ""
    for line in listing.splitlines():
        if named := re.search(r"Function : (\w+)", line):
            function = named[1]
        elif re.search(r"/\*[0-9a-f]{4,}\*/ +(?!NOP)[@A-Z]", line):
            counts[function] += 1
    return counts


def key_of(row: dict[str, Any]) -> tuple[int, int, str]:
    """Return what a kernel was compiled for."""
    return row["architecture"], row["n_classes"], row["dtype"]


def cells_of(row: dict[str, Any], earlier: dict[str, Any] | None, compared: bool) -> list[str]:
    """Return a row of the table, with what there was earlier before what there is now."""

    def cell(name: str) -> str:
        now = report.number(row[name], 4).partition(".")[0]
        if not compared:
            return now
        return f"{'-' if earlier is None else report.number(earlier[name], 4).partition('.')[0]} -> {now}"

    template = row["kernel"].partition("<")[0]
    numbers = (cell(name) for name in ("load_bytes", "registers", "spilled_bytes", "instructions"))
    return [f"sm_{row['architecture']} {template}", str(row["n_classes"]), row["dtype"], *numbers]
