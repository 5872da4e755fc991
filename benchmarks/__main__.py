"""The command line of the benchmarks: `python -m benchmarks`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from benchmarks.data import FASHION, Name
from benchmarks.evaluation import Shape
from benchmarks.measure import device_named
from softmax_xp.cli.options import DType

RESULTS = Path(__file__).with_name("results")


class Where(StrEnum):
    """What --device takes."""

    CPU = "cpu"
    CUDA = "cuda"


class Logits(StrEnum):
    """What --dtype takes of `kernel`."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Products(StrEnum):
    """What --precision takes."""

    FLOAT32 = "float32"
    TF32 = "tf32"
    BFLOAT16 = "bfloat16"


Quick: TypeAlias = Annotated[
    bool, typer.Option("--quick", help="Small sizes: within half a minute, to see that it works.")
]
Dtype: TypeAlias = Annotated[DType, typer.Option(help="Of X.")]
Growth: TypeAlias = Annotated[bool, typer.Option(help="Also measure how the time grows with N, D and C.")]
Fashion: TypeAlias = Annotated[Path, typer.Option("--fashion-dir", help="Where Fashion-MNIST's four IDX files are.")]
Device: TypeAlias = Annotated[Where, typer.Option(help="Where to compute.")]
Output: TypeAlias = Annotated[
    Path, typer.Option("--output", "-o", help="Folder for JSON and figures.", show_default="benchmarks/results")
]

app = typer.Typer(
    add_completion=False,
    rich_markup_mode="rich",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root() -> None:
    r"""Measure softmax_xp against scikit-learn, its Intel extension, torch and JAX, on a CPU or a GPU.

    Run it in a clone, after pip install -e '.\[bench]'. Each command prints
    tables, and writes figures and one JSON file with the environment, the
    arguments and all raw timings. A library that is not installed is listed as
    such. Leave the machine alone meanwhile.

    [bold]Examples[/bold]

    python -m benchmarks eval --quick

    python -m benchmarks fit --data fashion-mnist --limit 120
    """


@app.command(name="eval")
def evaluate(
    shape: Annotated[
        list[Shape] | None,
        typer.Option(
            parser=Shape.parse, metavar="N,D,C", help="Rows, features, classes; repeatable.", show_default=False
        ),
    ] = None,
    dtype: Dtype = DType.FLOAT32,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds in which every competitor has its turn.")] = 7,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads of softmax_xp; all cores by default.", show_default=False)
    ] = None,
    growth: Growth = True,
    device: Device = Where.CPU,
    host: Annotated[bool, typer.Option("--host", help="With --device cuda: also time ours on the CPU.")] = False,
    block_mib: Annotated[
        list[int] | None,
        typer.Option(min=1, help="With --device cuda: also time ours in blocks of so many MiB; repeatable."),
    ] = None,
    quick: Quick = False,
    output: Output = RESULTS,
) -> None:
    """Time one loss and gradient, next to the two matrix products it cannot do without.

    Every competitor is first checked against float64; one that computes another
    function ends the command.

    [bold]Examples[/bold]

    python -m benchmarks eval

    python -m benchmarks eval --shape 60000,784,10 --shape 2000,512,20000 --no-growth

    python -m benchmarks eval --dtype float64 --workers 1 --repeats 15

    python -m benchmarks eval --device cuda --block-mib 16 --block-mib 256
    """
    from benchmarks import evaluation
    from benchmarks.competitors import in_blocks, on_host

    rounds = 1 if quick else repeats
    on, own = device_named(device.value), []
    if device is not Where.CPU:
        own = [*([on_host()] if host else []), *map(in_blocks, block_mib or [])]
    evaluation.main(shape or [], dtype.value, rounds, workers, growth, quick, output, on, own)


@app.command()
def fit(
    data: Annotated[
        list[Name] | None, typer.Option(help="Data set; repeatable. All by default.", show_default=False)
    ] = None,
    dtype: Dtype = DType.FLOAT32,
    limit: Annotated[float, typer.Option(min=0.1, help="Seconds that one fit of a competitor may take.")] = 300.0,
    growth: Growth = True,
    device: Device = Where.CPU,
    quick: Quick = False,
    fashion_dir: Fashion = FASHION,
    output: Output = RESULTS,
) -> None:
    """Draw the objective against seconds, and time ours to what the others reach.

    [bold]Examples[/bold]

    python -m benchmarks fit

    python -m benchmarks fit --data fashion-mnist --data badly-scaled --limit 60 --no-growth

    python -m benchmarks fit --quick --output results-here

    SCIPY_ARRAY_API=1 python -m benchmarks fit --device cuda
    """
    from benchmarks import fit as command

    limit, on = min(limit, 2.0) if quick else limit, device_named(device.value)
    command.main(data or [], dtype.value, limit, growth, quick, fashion_dir, output, on)


@app.command()
def memory(
    shape: Annotated[
        Shape | None,
        typer.Option(
            parser=Shape.parse, metavar="N,D,C", help="Rows, features, classes.", show_default="200000,64,1000"
        ),
    ] = None,
    max_iter: Annotated[int, typer.Option(min=1, help="Iterations of our fits; a tenth for newton-cg.")] = 30,
    quick: Quick = False,
    output: Output = RESULTS,
) -> None:
    """Find the peak of extra memory, as a share of the N x C logits; Linux only.

    Every case runs in a process of its own, at N rows and at 2 N.

    [bold]Examples[/bold]

    python -m benchmarks memory

    python -m benchmarks memory --shape 1000000,32,200 --max-iter 10
    """
    from benchmarks import memory as command

    command.main(shape, min(max_iter, 3) if quick else max_iter, quick, output)


@app.command()
def sweep(
    data: Annotated[Name, typer.Option(help="fashion-mnist or digits.")] = Name.FASHION,
    dtype: Dtype = DType.FLOAT32,
    rows: Annotated[int, typer.Option(min=100, help="Rows to train on.")] = 20000,
    quick: Quick = False,
    fashion_dir: Fashion = FASHION,
    output: Output = RESULTS,
) -> None:
    """Fit at twenty values of C, each from the last one's solution, against scikit-learn's lbfgs.

    [bold]Examples[/bold]

    python -m benchmarks sweep

    python -m benchmarks sweep --data digits
    """
    from benchmarks import sweep as command

    command.main(data, dtype.value, rows, quick, fashion_dir, output)


@app.command()
def noise(
    share: Annotated[float, typer.Option(min=0.0, max=1.0, help="Of the training labels, drawn at random.")] = 0.4,
    seeds: Annotated[int, typer.Option(min=1, help="Of the random numbers; the mean over them is told.")] = 5,
    quick: Quick = False,
    fashion_dir: Fashion = FASHION,
    output: Output = RESULTS,
) -> None:
    """Train with wrong labels by each loss, and test on clean rows.

    [bold]Examples[/bold]

    python -m benchmarks noise

    python -m benchmarks noise --share 0.2 --seeds 3
    """
    from benchmarks import noise as command

    command.main(share, seeds, quick, fashion_dir, output)


@app.command()
def kernel(
    classes: Annotated[
        list[int] | None, typer.Option(min=2, help="Classes; repeatable. 10 to 131072 by default.", show_default=False)
    ] = None,
    dtype: Annotated[
        list[Logits] | None, typer.Option(help="Of the logits; repeatable. All by default.", show_default=False)
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds in which every competitor has its turn.")] = 5,
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="Also measure torch.compile.")] = True,
    boundaries: Annotated[
        bool, typer.Option("--boundaries", help="Instead: every launch that could serve a number of classes.")
    ] = False,
    device: Device = Where.CUDA,
    quick: Quick = False,
    output: Output = RESULTS,
) -> None:
    """Time the pass that turns logits into their gradient, next to a copy of them.

    [bold]Examples[/bold]

    python -m benchmarks kernel

    python -m benchmarks kernel --classes 1000 --classes 50257 --dtype bfloat16 --no-compile

    python -m benchmarks kernel --boundaries
    """
    from benchmarks import kernel as command

    rounds = 1 if quick else repeats
    dtypes = [one.value for one in dtype or (Logits if device is Where.CUDA else [Logits.FLOAT32])]
    command.main(device_named(device.value), classes or [], dtypes, rounds, compiled, boundaries, quick, output)


@app.command()
def probe(
    rows: Annotated[int, typer.Option(min=100, help="Rows to train on.")] = 1280000,
    features: Annotated[int, typer.Option(min=2, help="Features.")] = 1024,
    classes: Annotated[int, typer.Option(min=3, help="Classes.")] = 1000,
    precision: Annotated[
        list[Products] | None,
        typer.Option(help="Of our matrix products; repeatable. All by default.", show_default=False),
    ] = None,
    limit: Annotated[float, typer.Option(min=0.1, help="Seconds that one fit of a competitor may take.")] = 120.0,
    path: Annotated[bool, typer.Option(help="Also fit the path of penalties.")] = True,
    device: Device = Where.CUDA,
    quick: Quick = False,
    output: Output = RESULTS,
) -> None:
    """Fit a linear probe of the size of ImageNet, and a path of ten penalties.

    [bold]Examples[/bold]

    SCIPY_ARRAY_API=1 python -m benchmarks probe

    python -m benchmarks probe --rows 200000 --features 512 --classes 100 --limit 30 --no-path

    python -m benchmarks probe --quick --device cpu
    """
    from benchmarks import probe as command
    from benchmarks.probe import VALUES

    shape = Shape(2000, 32, 10) if quick else Shape(rows, features, classes)
    precisions = [one.value for one in precision or (Products if device is Where.CUDA else [Products.FLOAT32])]
    limit = min(limit, 2.0) if quick else limit
    command.main(shape, precisions, limit, VALUES if path else (), output, device_named(device.value))


@app.command()
def compiled(
    architecture: Annotated[
        list[int] | None, typer.Option(help="Compute capability, as 90 for 9.0; repeatable.", show_default=False)
    ] = None,
    before: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A compiled.json to compare with.")
    ] = None,
    quick: Quick = False,
    output: Output = RESULTS,
) -> None:
    """Compile the gradient's kernels: registers, spills, and bytes that a thread loads at a time. It needs no GPU.

    [bold]Examples[/bold]

    python -m benchmarks compiled

    python -m benchmarks compiled --architecture 90 --before old/compiled.json --output new
    """
    from benchmarks import compiled as command

    command.main(architecture or command.ARCHITECTURES, quick, before, output)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
