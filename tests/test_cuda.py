"""The kernels for CuPy where there is no GPU: which one serves which shape, what they compile to, what they compute.

A compiler for CPUs builds them with `cuda_on_host.h`, and the provider runs on NumPy arrays. On a GPU every parity test
of the suite runs them as they are.
"""

import itertools
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from cuda_on_host import Kernels, gemm, parsed
from sklearn.datasets import load_digits
from tolerances import LOGIT_ROUNDING, TOLERANCE

import softmax_xp as sx
from softmax_xp import kernels
from softmax_xp.kernels import blocked, cublas, cuda, launches, reference
from softmax_xp.kernels.row_pass import RowPass
from softmax_xp.kernels.workspace import usable_cores
from softmax_xp.losses import CROSS_ENTROPY, Focal, GeneralizedCrossEntropy
from softmax_xp.objective import LinearObjective
from softmax_xp.penalties import Penalty
from softmax_xp.rows.dense import DenseRows

ARCHITECTURES = (75, 80, 90, 100, 120)
CLASSES = (1, 2, 3, 8, 10, 12, 16, 24, 31, 64, 100, 300, 1000, 1023, 3000, 3003, 5000)
SHARED_BYTES = (65536, 101376, 232448)  # that a block may take: of compute capability 7.5, 12.0, 9.0
MANY_CLASSES = (33000, 33001)  # more than registers hold
DTYPES = ("float32", "float64", "float16", "uint16")  # the latter: bits of bfloat16


# --- What is launched ---


@pytest.mark.parametrize("dtype", launches.TYPES)
@pytest.mark.parametrize("widest", [1, 2, 4, 8])
@pytest.mark.parametrize("n_rows", [1, 7, 10**8])
@pytest.mark.parametrize("shared_bytes", [0, *SHARED_BYTES])
def test_every_class_and_row_has_its_thread(n_rows, widest, dtype, shared_bytes):
    size, computed = {"float32": (4, 4), "float64": (8, 8)}.get(dtype, (2, 4))
    for n_classes in (*range(1, 2000, 7), 4096, 8192, 10_000, 32768, 32769, 50257, 131072, 1_000_000):
        options = {"pack": widest, "shared_bytes": shared_bytes}
        launch = launches.launch_of(n_rows, n_classes, dtype, "GRADIENT", "LABELS", **options)
        template, (*kinds, pack, group, held, more) = parsed(launch.kernel)
        pack, group, held = int(pack), int(group), int(held)
        stored, computed_in = launches.TYPES[dtype]
        assert (template, kinds) == ("row_major", [stored, stored, computed_in, "GRADIENT", "LABELS"])
        assert pack == min(widest, 16 // size)
        assert (more == "true") == (pack * group * held < n_classes)
        most = launches.HELD_BYTES if group <= 32 else launches.HELD_BYTES_IN_BLOCK
        assert held * pack * computed <= most  # else it spills
        assert launch.block % 32 == 0
        assert launch.block <= launches.MAX_BLOCK
        assert launch.block % group == 0
        assert group <= 32 or group == launch.block
        per_block = launch.block // group
        assert (launch.grid - 1) * per_block < n_rows <= launch.grid * per_block
        assert launch.grid < 2**31
        # Shared memory: what is needed beyond the registers, and no more than lets 1024 threads share a processor.
        beyond = -(-n_classes // (pack * group)) - held
        assert 0 <= launch.kept <= max(0, beyond)
        assert launch.shared == launch.kept * group * pack * size
        blocks = launches.MAX_BLOCK // launch.block
        assert launch.kept == 0 or blocks * (launch.shared + launches.STATIC_BYTES) <= shared_bytes
        if launch.kept < beyond:  # read twice: only where a processor can hold no more
            assert group == launches.MAX_BLOCK
            assert launch.shared + group * pack * size + launches.STATIC_BYTES > shared_bytes


def test_packs_hold_as_many_logits_as_target_probabilities():
    for dtype, targets, most in (("float16", "LABELS", 8), ("float16", "PROBABILITIES", 4), ("float64", "LABELS", 2)):
        for n_classes in (16, 1000, 131072):
            launch = launches.launch_of(9, n_classes, dtype, "GRADIENT", targets, pack=8)
            _, (*_, pack, _, _, _) = parsed(launch.kernel)
            assert int(pack) == most


def test_rows_of_up_to_290_kilobytes_are_read_once_where_shared_memory_is_large():
    for dtype, most in (("float32", 72_000), ("bfloat16", 128_000), ("float64", 36_000)):
        for n_classes, read_once in ((most, True), (most * 5 // 4, False)):
            options = {"pack": 8, "shared_bytes": SHARED_BYTES[-1]}
            launch = launches.launch_of(100, n_classes, dtype, "GRADIENT", "LABELS", **options)
            _, (*_, pack, group, held, _) = parsed(launch.kernel)
            assert (int(pack) * int(group) * (int(held) + launch.kept) >= n_classes) == read_once


@pytest.mark.parametrize("dtype", launches.TYPES)
def test_dense_rows_of_few_classes_have_a_thread_each(dtype):
    size = 8 if dtype == "float64" else 4  # of a logit in shared memory
    for n_rows, n_classes in itertools.product((1, 128, 129, 10**8), range(1, 80)):
        options = {"dense": True, "shared_bytes": SHARED_BYTES[0]}
        launch = launches.launch_of(n_rows, n_classes, dtype, "GRADIENT", "LABELS", **options)
        template, (*kinds, pack, rows) = parsed(launch.kernel)
        assert (template == "few_classes") == (n_classes <= 256 // size)
        if template == "few_classes":
            stored, computed = launches.TYPES[dtype]
            assert kinds == [stored, stored, computed, "GRADIENT", "LABELS"]
            assert int(pack) == (4 if n_classes % 4 == 0 else 2 if n_classes % 2 == 0 else 1)
            assert int(rows) == launch.block == 128
            assert (launch.grid - 1) * 128 < n_rows <= launch.grid * 128
            assert launch.shared == 128 * n_classes * size
        for targets, changed in (
            ("PROBABILITIES", {}),  # which lie in another matrix
            ("LABELS", {"dense": False}),
            ("LABELS", {"shared_bytes": 100}),
        ):
            launch = launches.launch_of(n_rows, n_classes, dtype, "GRADIENT", targets, **(options | changed))
            assert launch.kernel.startswith("row_major")


def test_what_is_written_changes_nothing_else():
    for n_classes, (pack, dense, class_major) in itertools.product(
        (8, 10, 1000, 131072), ((8, True, False), (1, False, False), (1, False, True))
    ):
        options = {"pack": pack, "dense": dense, "class_major": class_major, "shared_bytes": SHARED_BYTES[-1]}
        launch = launches.launch_of(300, n_classes, "float32", "GRADIENT", "LABELS", **options)
        rounded = launches.launch_of(300, n_classes, "float32", "GRADIENT", "LABELS", written="uint16", **options)
        assert "<float, float, float, " in launch.kernel
        kernel = launch.kernel.replace("<float, float, float, ", "<float, BFloat16, float, ")
        assert rounded == launch._replace(kernel=kernel)


def test_packs_are_as_wide_as_every_row_allows(monkeypatch):
    """Of each matrix: on a GPU, a pack that starts elsewhere is an error."""
    seen = []

    def launch_of(*arguments, pack, dense, **options):
        seen.append((pack, dense))
        return launches.launch_of(*arguments, pack=pack, dense=dense, **options)

    monkeypatch.setattr(cuda, "launch_of", launch_of)
    monkeypatch.setattr(cuda, "_kernel", lambda name, like: lambda *arguments, **options: None)
    monkeypatch.setattr(cuda, "_shared_bytes", lambda like: SHARED_BYTES[0])
    monkeypatch.setattr(cublas, "address", lambda x: 0 if x is None else x.ctypes.data)

    def matrix(c, dtype="float32", shift=0, step=0):
        """Rows of c numbers, with `step` from one to the next if not c, of which the first has `shift` before it."""
        size = np.dtype(dtype).itemsize
        memory = np.zeros(64 + 5 * size * max(c, step) + 16, np.uint8)
        memory = memory[-memory.ctypes.data % 16 + shift * size :]
        return np.lib.stride_tricks.as_strided(memory.view(dtype), (5, c), ((step or c) * size, size))

    for z, out, targets, expected in (
        (matrix(8), matrix(8), None, (8, True)),
        (matrix(6), matrix(6), None, (2, True)),
        (matrix(7), matrix(7), None, (1, True)),
        (matrix(8, shift=1), matrix(8), None, (1, False)),
        (matrix(8), matrix(8, shift=2), None, (2, False)),
        (matrix(8, step=12), matrix(8), None, (8, False)),  # of float32, 4 are the most
        (matrix(8, step=10), matrix(8), None, (2, False)),
        (matrix(8, step=9), matrix(8), None, (1, False)),
        (matrix(8), matrix(8, step=9), None, (1, False)),
        (matrix(8), matrix(8, "uint16"), None, (8, True)),
        (matrix(8), matrix(8, "uint16", step=12), None, (4, False)),
        (matrix(8), matrix(8, "uint16", step=10), None, (2, False)),
        (matrix(8), matrix(8, "uint16", shift=2), None, (2, False)),
        (matrix(8), matrix(8, "uint16", shift=4), None, (4, False)),
        (matrix(8, "float16"), matrix(8, "float16"), matrix(8), (8, True)),
        (matrix(12, "float16"), matrix(12, "float16"), matrix(12), (4, True)),
        (matrix(100, "uint16"), matrix(100, "uint16"), None, (4, True)),
        (matrix(50257, "uint16"), matrix(50257, "uint16"), None, (1, True)),
        (matrix(8), matrix(8), matrix(8, step=12), (8, True)),
        (matrix(8), matrix(8), matrix(8, step=10), (2, True)),
        (matrix(8), matrix(8), matrix(8, shift=1), (1, False)),
    ):
        t = np.zeros(5, dtype=np.int64) if targets is None else targets
        cuda._run("GRADIENT", z, out, t, losses=np.zeros(5, dtype="float32"))
        assert seen[-1] == expected, (z.strides, out.strides, out.dtype)


@pytest.mark.parametrize("dtype", launches.TYPES)
def test_every_row_and_column_is_in_one_sum(dtype):
    for n_rows, n_columns, widest in itertools.product((1, 300, 10**7), (1, 2, 10, 99, 1000, 100_000), (1, 2, 4, 8)):
        launch, of_part = launches.sums_launch(n_rows, n_columns, dtype, widest)
        _, (stored, computed, pack, threads) = parsed(launch.kernel)
        assert (stored, computed) == launches.TYPES[dtype]
        assert int(pack) * launches.itemsize(computed) <= launches.PACK_BYTES
        assert widest % int(pack) == 0
        tiles = -(-n_columns // (int(pack) * int(threads)))
        parts, left_over = divmod(launch.grid, tiles)
        assert left_over == 0
        assert (parts - 1) * of_part < n_rows <= parts * of_part
        assert launch.block == 256 >= int(threads)


def test_class_major_logits_have_a_warp_for_32_rows():
    for n_rows, n_classes in itertools.product((1, 32, 33, 10**6), (2, 255, 256, 10_000)):
        launch = launches.launch_of(n_rows, n_classes, "float32", "LOSS", "LABELS", class_major=True)
        template, (*_, slices) = parsed(launch.kernel)
        assert template == "class_major"
        assert launch.block == 32 * int(slices)
        assert (launch.grid - 1) * 32 < n_rows <= launch.grid * 32
        assert (int(slices) > 1) == (n_classes >= 256)


# --- What is compiled ---


@pytest.fixture(scope="module")
def compiled():
    """By architecture: the kernels by their names in the program, and the log; or none, and what is wrong with them."""
    nvrtc = pytest.importorskip("cupy_backends.cuda.libs.nvrtc", exc_type=ImportError)
    kinds = [("SOFTMAX", "NONE"), ("GRADIENT", "LABELS"), ("GRADIENT", "PROBABILITIES"), ("HESSIAN", "PROBABILITIES")]
    dtypes = [*((dtype, dtype) for dtype in launches.TYPES), ("float32", "uint16")]
    variants = []
    for (dtype, written), kind, c in itertools.product(dtypes, kinds, (10, 16, 100, 1000, 1002, 4096, 131072)):
        size = launches.itemsize(dtype)
        if (written != dtype and "GRADIENT" not in kind) or (c in (100, 1002) and (size > 2 or "LABELS" not in kind)):
            continue
        widest = launches.widest_pack(c, [(0, c * size, size)])
        for pack, class_major in ((widest, False), (1, False), (1, True)):
            options = {"pack": pack, "dense": pack > 1, "class_major": class_major, "written": written}
            variants.append(launches.launch_of(1000, c, dtype, *kind, **options, shared_bytes=SHARED_BYTES[-1]))
    sums = (
        launches.sums_launch(1000, c, dtype, pack)
        for c, dtype, pack in itertools.product((1, 1000), ("float32", "float64", "uint16"), (1, 8))
    )
    names = {launch.kernel for launch in variants} | {launch.kernel for launch, _ in sums}
    names = sorted(names | {"round_to_bfloat16<1>", "round_to_bfloat16<4>"})
    of_cupy = ("--device-as-default-execution-space", "-ftz=true")  # that its compiler.py adds

    def compiled_for(architecture):
        program = nvrtc.createProgram(cuda.source(), "cross_entropy.cu", [], [])
        for name in names:
            nvrtc.addNameExpression(program, name)
        try:
            nvrtc.compileProgram(program, [*cuda.OPTIONS, *of_cupy, f"-arch=sm_{architecture}", "--ptxas-options=-v"])
        except nvrtc.NVRTCError:
            return {}, nvrtc.getProgramLog(program)
        assert len(nvrtc.getCUBIN(program)) > 0
        return {nvrtc.getLoweredName(program, name): name for name in names}, nvrtc.getProgramLog(program)

    # NVRTC opens another library at its first compilation, which may fail in two threads at once.
    nvrtc.compileProgram(nvrtc.createProgram("", "empty.cu", [], []), [])
    with ThreadPoolExecutor(usable_cores()) as pool:
        return dict(zip(ARCHITECTURES, pool.map(compiled_for, ARCHITECTURES), strict=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_compile_and_keep_rows_in_registers(architecture, compiled):
    lowered, log = compiled[architecture]
    assert lowered, log
    spills = spilled(log)
    assert spills.keys() >= lowered.keys()
    for function in lowered:
        n_bytes = spills[function]
        if n_bytes:
            print(f"sm_{architecture}: {n_bytes:3d} bytes spilled by {lowered[function]}")
        assert n_bytes <= (256 if "double" in lowered[function] else 16)  # exp and log of doubles take many registers


def test_exponentials_of_float_are_one_instruction():
    """The accurate expf takes five: it reduces its argument first, by a product that is rounded down."""
    nvrtc = pytest.importorskip("cupy_backends.cuda.libs.nvrtc", exc_type=ImportError)
    launch = launches.launch_of(1000, 1000, "float32", "GRADIENT", "LABELS", pack=4, shared_bytes=SHARED_BYTES[-1])
    program = nvrtc.createProgram(cuda.source(), "cross_entropy.cu", [], [])
    nvrtc.addNameExpression(program, launch.kernel)
    nvrtc.compileProgram(program, [*cuda.OPTIONS, "-ftz=true", "-arch=compute_90"])
    instructions = str(nvrtc.getPTX(program))
    assert "ex2.approx.ftz.f32" in instructions
    assert "fma.rm" not in instructions


def spilled(log):
    """Bytes that each function stores for want of registers, by the log of ptxas."""
    functions = re.findall(r"Function properties for (\S+)|(\d+) bytes spill stores", log)
    names, stores = [name for name, _ in functions if name], [int(n) for _, n in functions if n]
    return dict(zip(names, stores, strict=True))


# --- What is computed ---


class Problem:
    """Logits of any layout, with targets, weights and intercept."""

    def __init__(self, n, c, dtype, layout, targets, weighted, smoothing, loss=CROSS_ENTROPY):
        rng = np.random.default_rng([n, c])
        working = "float64" if dtype == "float64" else "float32"
        self.dtype, self.layout, self.n, self.c, self.row_pass = dtype, layout, n, c, RowPass(loss, smoothing)
        z = rng.normal(size=(n, c))
        self.logits = laid(bfloat16_bits(z) if dtype == "uint16" else z.astype(dtype), layout)
        self.bias = rng.normal(size=c).astype(working)
        self.weight = rng.uniform(0.1, 2.0, size=2 * n).astype(working)[::2] if weighted else None
        self.direction = laid(rng.normal(size=(n, c)).astype(working), layout)
        self.targets = None
        if targets == "LABELS":
            self.targets = rng.integers(0, c, size=2 * n)[::2]
        elif targets == "PROBABILITIES":
            t = rng.dirichlet(np.ones(c), size=n)
            t[0] = np.arange(c) == 0
            self.targets = laid(t.astype(working), layout)


def bfloat16_bits(x):
    """The bits of x as bfloat16, rounded to the nearest, ties to even: by PyTorch."""
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)).bfloat16().view(torch.uint16).numpy()


def widened(x):
    """x in float64, whatever it is stored in."""
    if x.dtype == np.uint16:
        x = (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float64, order="C")  # over rows, NumPy sums without great errors


def laid(x, layout):
    """A copy of x (n, C) that lies in memory as asked."""
    n, c = x.shape
    if layout == "class-major":
        return np.ascontiguousarray(x.T).T
    if layout == "apart":  # rows further from each other than they are long, and not aligned
        memory = np.full((n, c + 3), 7, dtype=x.dtype)
        memory[:, 1:-2] = x
        return memory[:, 1:-2]
    memory = np.zeros(x.nbytes + 16, dtype=np.uint8)  # NumPy does not align to 16 bytes
    start = -memory.ctypes.data % 16
    out = memory[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    out[...] = x
    return out


def problems():
    layouts = ("row-major", "apart", "class-major")
    for dtype, targets, weighted, smoothing in itertools.product(
        DTYPES, ("LABELS", "PROBABILITIES"), (False, True), (0.0, 0.1)
    ):
        for c, layout in itertools.product((3, 100), layouts):
            yield Problem(7, c, dtype, layout, targets, weighted, smoothing)
    for dtype, targets, smoothing, loss, c in itertools.product(
        DTYPES, ("LABELS", "PROBABILITIES"), (0.0, 0.1), (GeneralizedCrossEntropy(), Focal()), (3, 100)
    ):
        yield Problem(7, c, dtype, layouts[c % 3], targets, True, smoothing, loss)
    for dtype, layout, c in itertools.product(DTYPES, layouts, CLASSES):
        yield Problem(9, c, dtype, layout, "LABELS", True, 0.0)
    for dtype, c in itertools.product(DTYPES, CLASSES[:9]):  # in several blocks, the last of which is not full
        yield Problem(301, c, dtype, "row-major", "LABELS", True, 0.1)
    for dtype, layout, c in itertools.product(DTYPES, layouts, MANY_CLASSES):
        yield Problem(2, c, dtype, layout, "LABELS", True, 0.1)
        yield Problem(2, c, dtype, layout, "PROBABILITIES", True, 0.1)


def outcomes(p, move=lambda x: x):
    """What each pass makes of a problem, in arrays that `move` puts where they belong, and what it should."""
    exact = widened(p.logits)
    z, targets, weight, bias = map(move, (p.logits, p.targets, p.weight, p.bias))
    yield cuda.softmax(z), reference.softmax(exact), "rows"
    yield cuda.log_softmax(z.T, 0).T, reference.log_softmax(exact), "rows"
    t = p.targets if p.targets.ndim == 1 else p.targets.astype(np.float64, order="C")
    w = None if p.weight is None else p.weight.astype(np.float64)
    losses, grad = reference.cross_entropy_with_grad(exact, t, w, p.row_pass)
    yield cuda.cross_entropy(z, targets, weight, p.row_pass), losses, "rows"
    actual = cuda.cross_entropy_with_grad(z, targets, weight, p.row_pass)
    yield actual[0], losses, "rows"
    yield actual[1], grad, "grad"
    memory = move(laid(p.logits, "apart").base)
    in_place = memory[:, 1:-2]
    losses, grad = reference.cross_entropy_with_grad(exact + p.bias, t, w, p.row_pass)
    own = move(np.empty(p.n, dtype=p.bias.dtype))
    yield cuda._gradient(in_place, in_place, targets, weight, bias, p.row_pass, own), grad, "grad"
    yield own, losses, "rows"
    yield cuda._gradient(z, None, targets, weight, bias, p.row_pass, own), grad, "grad"
    yield own, losses, "rows"
    if p.dtype == "float32":  # rounded as it is written
        out = move(laid(np.zeros((p.n, p.c), np.uint16), "row-major" if p.layout == "apart" else p.layout))
        yield cuda._gradient(z, out, targets, weight, bias, p.row_pass, own), grad, "grad"
        yield own, losses, "rows"
    probabilities = reference.softmax(exact + p.bias)
    along = p.direction.astype(np.float64)
    product = probabilities * (along - (probabilities * along).sum(axis=1, keepdims=True))
    product *= 1.0 if w is None else w[:, None]
    yield cuda._run("HESSIAN", z, None, move(p.direction), weight, bias), product, "grad"
    seven = np.full((p.n, 3), widened(np.full(1, 7, dtype=p.dtype))[0])
    yield memory[:, [0, -2, -1]], seven, "grad"  # nothing was written beside the rows


def linear_outcomes():
    """The same of the sums over rows, in several blocks."""
    rng = np.random.default_rng(0)
    row_passes = (RowPass(smoothing=0.1), RowPass(GeneralizedCrossEntropy()), RowPass(Focal(), 0.1))
    for dtype, (n_coef, c), fit_intercept, weighted, row_pass in itertools.product(
        ("float32", "float64"), ((1, 2), (2, 2), (3, 3), (100, 100)), (False, True), (False, True), row_passes
    ):
        X, (coef, along) = rng.normal(size=(50, 6)).astype(dtype), rng.normal(size=(2, n_coef, 6)).astype(dtype)
        intercept, slope = rng.normal(size=(2, n_coef)).astype(dtype) if fit_intercept else (None, None)
        weight = rng.uniform(0.1, 2.0, size=50).astype(dtype) if weighted else None
        for t in (rng.integers(0, c, size=50), rng.dirichlet(np.ones(c), size=50).astype(dtype)):
            exact = [None if x is None else x.astype(np.float64) for x in (coef, intercept, X, along, slope, weight)]
            exact.insert(3, t if t.ndim == 1 else t.astype(np.float64))
            actual = cuda.linear_sums(coef, intercept, X, t, weight, row_pass)
            expected = reference.linear_sums(*exact[:4], exact[6], row_pass)
            yield from ((a, b, "grad", dtype) for a, b in zip(actual[1:], expected[1:], strict=True) if b is not None)
            yield actual[0], expected[0], "loss", dtype
            actual = cuda.linear_hessian_product(coef, intercept, X, t, along, slope, weight, row_pass)
            expected = reference.linear_hessian_product(*exact, row_pass)
            yield from ((a, b, "hessian", dtype) for a, b in zip(actual, expected, strict=True) if b is not None)


@pytest.fixture(scope="module")
def kernels_on_host(kernel_folder):
    """What stands for `cuda._kernel` on this machine: it compiles kernels for it, those of the problems at once."""
    kernels, collected = Kernels(kernel_folder), []

    def kernel(name, like):
        def run(grid, block, arguments, shared_mem=0):
            if collected is None:
                kernels.launch(name, grid[0], block[0], arguments)
            else:
                collected.append(name)

        return run

    with pytest.MonkeyPatch.context() as patch, np.errstate(all="ignore"):
        run_on_host(patch, kernel)
        for p in problems():  # to know the kernels that it takes
            list(outcomes(p))
        list(linear_outcomes())
        list(extremes())
    kernels.build(sorted(set(collected)))
    collected = None
    return kernel


@pytest.fixture
def on_host(kernels_on_host, monkeypatch):
    """Let the provider launch kernels, and multiply, on this machine."""
    run_on_host(monkeypatch, kernels_on_host)


@pytest.fixture
def place(request, xp):
    """What moves NumPy arrays to where the kernels run, by the name of `xp`, and what brings results back."""
    if xp.name == "cupy":
        return lambda x: on_gpu(xp, x), xp.to_numpy
    request.getfixturevalue("on_host")
    return (lambda x: x), xp.to_numpy


def on_gpu(xp, x):
    """A copy of a NumPy array on the GPU: with its strides, what lies between, and its alignment to 16 bytes."""
    if x is None:
        return None
    root = x
    while isinstance(root.base, np.ndarray):
        root = root.base
    memory = xp.empty(root.nbytes + 16, dtype=xp.uint8)
    start = root.ctypes.data % 16
    memory[start : start + root.nbytes] = xp.asarray(np.frombuffer(root.tobytes("A"), np.uint8))
    view = memory[start + x.ctypes.data - root.ctypes.data :]
    return xp.ndarray(x.shape, x.dtype, view.data, strides=x.strides)


def run_on_host(patch, kernel):
    patch.setattr(cuda, "block_bytes", lambda device: 5000)
    patch.setattr(cuda, "MIN_BLOCK_ROWS", 1)
    patch.setattr(cuda, "_shared_bytes", lambda like: 60_000)
    patch.setattr(cuda, "_free_bytes", lambda: 10**6)
    patch.setattr(cuda, "_kernel", kernel)
    patch.setattr(cublas, "address", lambda x: 0 if x is None else x.ctypes.data)
    patch.setattr(cublas, "_functions", lambda: (lambda handle, stream: 0, None, gemm))
    patch.setattr(cublas, "_handle_and_stream", lambda: (0, 0))


def extremes():
    """Gradients, losses and softmax of logits and labels out of the ordinary."""
    for dtype, c, layout in itertools.product(("float32", "float64"), (3, 300, 33000), ("row-major", "class-major")):
        z = laid(np.zeros((4, c), dtype), layout)
        z[0, 0], z[0, 1], z[1, 1:], z[2, -1] = 3e38, -3e38, -np.inf, np.nan
        yield (*cuda.cross_entropy_with_grad(z, np.zeros(4, dtype=np.int64)), cuda.softmax(z), z)
        for label in (-1, c, 2**40):
            yield (*cuda.cross_entropy_with_grad(z, np.full(4, label)), None, z)


@pytest.mark.usefixtures("on_host")
def test_weights_and_probabilities_of_another_dtype_are_converted():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(5, 4)).astype("float32")
    for weight, targets in itertools.product(
        (rng.uniform(size=5), rng.uniform(size=5).astype("float16")),
        (rng.integers(0, 4, size=5).astype("int8"), rng.dirichlet(np.ones(4), size=5)),
    ):
        losses, grad = cuda.cross_entropy_with_grad(z, targets, weight)
        t = targets.astype(np.float64) if targets.ndim == 2 else targets.astype(np.int64)
        expected = reference.cross_entropy_with_grad(z.astype(np.float64), t, weight.astype(np.float64))
        within(losses, expected[0], "float32", "rows")
        within(grad, expected[1], "float32", "grad")


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("large", [1e30, 1e33, 3e38])
def test_losses_of_large_logits_are_finite(large):
    for c, layout, smoothing in itertools.product((3, 300, 33000), ("row-major", "class-major"), (0.0, 0.1)):
        z = laid(np.full((2, c), large, dtype="float32"), layout)
        t = laid(np.full((2, c), 1 / c, dtype="float32"), layout)
        for targets in (np.zeros(2, dtype=np.int64), t):
            losses, grad = cuda.cross_entropy_with_grad(z, targets, None, RowPass(smoothing=smoothing))
            np.testing.assert_allclose(losses, np.log(c), rtol=1e-5)
            assert np.isfinite(grad).all()


@pytest.mark.usefixtures("on_host")
def test_rows_of_weight_zero_do_not_count():
    for dtype, c, layout in itertools.product(("float32", "float64"), (3, 300, 33000), ("row-major", "class-major")):
        z = laid(np.zeros((4, c), dtype), layout)
        z[1, 0], z[2, -1], z[3, 1] = np.inf, np.nan, 1.0
        weight = np.array([0, 0, 0, 1], dtype=dtype)
        losses, grad = cuda.cross_entropy_with_grad(z, np.zeros(4, dtype=np.int64), weight)
        assert losses[:3].tolist() == [0, 0, 0]
        assert losses[3] > 0
        np.testing.assert_array_equal(grad[:3], 0.0)
        assert (grad[3] != 0).all()
        np.testing.assert_array_equal(cuda.cross_entropy(z, np.zeros(4, dtype=np.int64), weight), losses)
        assert (cuda._run("HESSIAN", z, None, laid(np.ones((4, c), dtype), layout), weight)[:3] == 0).all()


def within(actual, expected, dtype, quantity, scale=1.0):
    relative, absolute = TOLERANCE[quantity][dtype]
    extra = LOGIT_ROUNDING * (2.0**-7 if dtype == "bfloat16" else np.finfo(dtype).eps) * 10
    bound = relative * np.abs(expected).max() + absolute + extra
    np.testing.assert_allclose(widened(actual), expected, rtol=0, atol=bound * scale)


@pytest.mark.parametrize("xp", ["numpy", "cupy"], indirect=True)
def test_every_pass_is_the_reference(place):
    move, back = place
    for p in problems():
        for actual, expected, quantity in outcomes(p, move):
            actual = back(actual)
            assert actual.dtype.name in (p.dtype, p.bias.dtype.name, "uint16")
            dtype = "bfloat16" if actual.dtype == np.uint16 else actual.dtype.name
            within(actual, expected, dtype, quantity, 1.0 if p.dtype in ("float32", "float64") else 2.0)


@pytest.mark.parametrize("xp", ["numpy", "cupy"], indirect=True)
def test_few_problems_of_every_kernel(place):
    """A test of a minute or less, for the tools that look for races and for errors of memory."""
    move, back = place
    for dtype, c, layout in itertools.product(("float32", "uint16"), (10, 100, 1000, 33001), ("row-major", "apart")):
        p = Problem(5, c, dtype, layout, "LABELS", True, 0.1)
        _, grad = cuda.cross_entropy_with_grad(move(p.logits), move(p.targets), move(p.weight), p.row_pass)
        weight = p.weight.astype(np.float64)
        _, expected = reference.cross_entropy_with_grad(widened(p.logits), p.targets, weight, p.row_pass)
        within(back(grad), expected, "bfloat16" if dtype == "uint16" else dtype, "grad", 2.0)
    for c in (10, 300):
        p = Problem(40, c, "float32", "class-major", "LABELS", True, 0.1)
        within(back(cuda.softmax(move(p.logits))), reference.softmax(widened(p.logits)), "float32", "rows")
    x = np.random.default_rng(0).normal(size=(3000, 12)).astype("float32")
    sums = move(np.zeros(12, dtype="float32"))
    cuda._add_rows(move(x), sums)
    np.testing.assert_allclose(back(sums), widened(x).sum(axis=0), rtol=0, atol=1e-3)


@pytest.mark.parametrize("xp", ["numpy", "cupy"], indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint16"])
def test_rows_are_summed_whatever_their_layout(dtype, place):
    move, back = place
    rng = np.random.default_rng(0)
    for n, c, layout in itertools.product((1, 7, 2100, 9000), (1, 3, 8, 100), ("row-major", "apart")):
        x = rng.normal(size=(n, c))
        x = laid(bfloat16_bits(x) if dtype == "uint16" else x.astype(dtype), layout)
        start = rng.normal(size=c).astype("float64" if dtype == "float64" else "float32")
        sums = move(start.copy())
        cuda._add_rows(move(x), sums)
        expected = widened(x).sum(axis=0) + start.astype(np.float64)
        size = np.abs(widened(x)).sum(axis=0).max() + 1.0
        np.testing.assert_allclose(back(sums), expected, rtol=0, atol=4 * np.finfo(start.dtype).eps * size)


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize("provider", [cuda, blocked])
def test_rows_that_are_certain_keep_their_loss_and_gradient(provider):
    """To the relative precision of float32: the probability of the label is 1, and what is lost of it is the loss.

    Equal terms are all rounded the same way when they are added: that is most of the tolerance.
    """
    for c, gap, shift, layout in itertools.product(
        (3, 40, 1100, 33000), (12.0, 18.0, 40.0), (0.0, 50.0), ("row-major", "class-major")
    ):
        z = laid(np.full((6, c), shift, "float32"), layout)
        rows, labels = np.arange(6), np.arange(6) % 3
        z[rows, labels] += gap + rows
        losses, grad = provider.cross_entropy_with_grad(z, labels)
        each = np.exp(-(gap + rows))  # of the other classes, in units of the label's
        total = 1.0 + (c - 1) * each
        expected = np.repeat((each / total)[:, None], c, axis=1)
        expected[rows, labels] = -(c - 1) * each / total
        rtol = 1e-3 if c == 33000 and provider is blocked else 3e-5  # BLAS adds class after class
        np.testing.assert_allclose(losses, np.log1p((c - 1) * each), rtol=rtol)
        np.testing.assert_allclose(grad, expected, rtol=rtol)


@pytest.mark.usefixtures("on_host")
def test_linear_sums_are_the_reference():
    for actual, expected, quantity, dtype in linear_outcomes():
        relative, absolute = TOLERANCE[quantity][dtype]
        bound = 4.0 * (relative * np.abs(expected).max() + absolute)
        assert np.shape(actual) == np.shape(expected)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=bound)


@pytest.mark.usefixtures("on_host")
def test_rows_out_of_the_ordinary_keep_to_themselves():
    for losses, grad, p, z in extremes():
        assert np.isnan(losses[2])
        assert np.isnan(grad[2]).all()
        if p is None:  # no class has such a label
            assert np.isnan(losses).all()
            assert np.isnan(grad).all()
        else:
            assert losses[[0, 1]].tolist() == [0.0, 0.0]
            assert p[0, 0] == p[1, 0] == 1.0
            assert (p[:2, 1:] == 0).all()
            np.testing.assert_array_equal(grad[:2], 0.0)
            np.testing.assert_allclose(p[3], 1 / z.shape[1], rtol=1e-5)
            assert losses[3] == pytest.approx(np.log(z.shape[1]), rel=1e-6)


# --- Products ---


@pytest.mark.parametrize("xp", ["numpy", "cupy"], indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "float64", "uint16"])
def test_products_of_any_layout(dtype, place):
    move, back = place
    rng = np.random.default_rng(0)
    for m, n, k in itertools.product((1, 2, 5), (1, 3), (1, 4)):
        for lay_a, lay_b, lay_out in itertools.product(LAYOUTS, LAYOUTS, (LAYOUTS[0], LAYOUTS[2])):
            a, b = rng.normal(size=(m, k)), rng.normal(size=(k, n))
            if dtype == "uint16":
                a, b = bfloat16_bits(a), bfloat16_bits(b)
            else:
                a, b = a.astype(dtype), b.astype(dtype)
            out = move(lay_out(np.full((m, n), np.nan, dtype="float32" if dtype == "uint16" else dtype)))
            exact = widened(a) @ widened(b)
            for times, add in ((1, False), (2, True), (1, False)):
                cublas.matmul(move(lay_a(a)), move(lay_b(b)), out, add=add)
                atol = 1e-14 if dtype == "float64" else 1e-5
                np.testing.assert_allclose(back(out), times * exact, rtol=0, atol=atol)


@pytest.mark.parametrize("xp", ["numpy", "cupy"], indirect=True)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_matmul_is_the_reference(dtype, place):
    move, back = place
    rng = np.random.default_rng(0)
    for (m, k, n), lay_a, lay_b in itertools.product(((1, 1, 1), (5, 4, 3), (7, 0, 2), (0, 3, 2)), LAYOUTS, LAYOUTS):
        a, b = rng.normal(size=(m, k)).astype(dtype), rng.normal(size=(k, n)).astype(dtype)
        product = back(cuda.matmul(move(lay_a(a)), move(lay_b(b))))
        assert product.dtype == dtype
        expected = reference.matmul(widened(a), widened(b))
        assert product.shape == expected.shape
        np.testing.assert_allclose(product, expected, rtol=0, atol=20 * np.finfo(dtype).eps)
    a, b = rng.normal(size=(5, 4)).astype(dtype), rng.normal(size=(4, 3))
    assert back(cuda.matmul(move(a), move(b))).dtype == np.float64


def beside_others(x):
    """A view of x in a matrix with more columns."""
    memory = np.full((len(x), x.shape[1] + 2), 9, dtype=x.dtype)
    memory[:, 1:-1] = x
    return memory[:, 1:-1]


def every_other(x):
    """A view of x with something between any two of its entries."""
    memory = np.full((2 * len(x), 2 * x.shape[1]), 9, dtype=x.dtype)
    memory[::2, ::2] = x
    return memory[::2, ::2]


LAYOUTS = (
    np.ascontiguousarray,
    np.asfortranarray,
    beside_others,
    lambda x: beside_others(x.T).T,
    every_other,
    lambda x: x[::-1].copy()[::-1],
    lambda x: x[:, ::-1].copy()[:, ::-1],
)


def test_rows_on_top_of_each_other_have_no_layout():
    assert cublas.layout_of(np.broadcast_to(np.ones(4), (6, 4))) is None
    assert cublas.layout_of(np.broadcast_to(np.ones(4), (6, 4)).T) is None
    assert cublas.layout_of(np.ones((6, 4))[::-1]) is None


def test_a_result_by_columns_is_refused():
    with pytest.raises(ValueError, match="rows in one piece"):
        cublas.matmul(np.ones((2, 2)), np.ones((2, 2)), np.ones((2, 2), order="F"))


@pytest.mark.parametrize("shapes", [((2, 3), (4, 2), (2, 2)), ((2, 3), (3, 2), (2, 3)), ((2, 3), (3, 2), (3, 2))])
def test_shapes_that_do_not_belong_together_are_refused(shapes):
    with pytest.raises(ValueError, match="shapes must be"):
        cublas.matmul(*map(np.ones, shapes))


def test_numbers_for_cublas_are_those_of_cupy():
    libraries = pytest.importorskip("cupy_backends.cuda.libs", exc_type=ImportError)
    runtime = pytest.importorskip("cupy_backends.cuda.api.runtime", exc_type=ImportError)
    names = {"float32": "32F", "float64": "64F", "float16": "16F", "bfloat16": "16BF", "uint16": "16BF"}
    assert {name: getattr(runtime, f"CUDA_R_{kind}") for name, kind in names.items()} == cublas.TYPES
    for name, number in cublas.COMPUTE_TYPES.items():
        assert number == getattr(libraries.cublas, f"CUBLAS_COMPUTE_{name}")
    assert (cublas.AS_IT_IS, cublas.TRANSPOSED) == (libraries.cublas.CUBLAS_OP_N, libraries.cublas.CUBLAS_OP_T)
    assert cublas.DEFAULT_ALGORITHM == libraries.cublas.CUBLAS_GEMM_DEFAULT


def test_a_failure_of_cublas_is_told_with_its_status(monkeypatch):
    """The library that CuPy loads is called without a handle, which it refuses."""
    pytest.importorskip("cupy_backends.cuda.libs", exc_type=ImportError)
    monkeypatch.setattr(cublas, "_handle_and_stream", lambda: (0, 0))
    monkeypatch.setattr(cublas, "address", lambda x: x.ctypes.data)
    with pytest.raises(RuntimeError, match=r"cublasSetStream .* status 1 "):
        cublas.matmul(*np.ones((3, 2, 2)))
    _, _, gemm = cublas._functions()
    monkeypatch.setattr(cublas, "_functions", lambda: (lambda handle, stream: 0, None, gemm))
    with pytest.raises(RuntimeError, match=r"cublasGemmEx .* status 1 "):
        cublas.matmul(*np.ones((3, 2, 2)))


def test_blocks_have_rows_enough_but_not_too_many(monkeypatch):
    monkeypatch.setattr(cuda, "block_bytes", lambda device: 256 << 20)
    X, free = np.ones(1), 80 << 30
    monkeypatch.setattr(cuda, "_free_bytes", lambda: free)
    for row_bytes, n_rows in ((8, 2**20), (4000, (256 << 20) // 4000), (1 << 20, 2048)):
        assert cuda._block_bytes(10**8, row_bytes, X) // row_bytes == n_rows
    free = 4 << 20
    assert cuda._block_bytes(10**8, 8, X) == 1 << 20
    assert cuda._block_bytes(10**3, 8, X) >= 8000


class WithoutProducts(np.ndarray):
    """An array that takes part in no product of the array API, nor does what is computed from it."""

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        assert ufunc not in (np.matmul, np.vecdot)
        results = getattr(ufunc, method)(*map(plain, inputs), **{name: plain(x) for name, x in options.items()})
        return results.view(WithoutProducts) if isinstance(results, np.ndarray) else results

    def __array_function__(self, function, types, arguments, options):
        assert function not in (np.dot, np.vdot, np.inner, np.tensordot, np.einsum)
        return super().__array_function__(function, types, arguments, options)


def plain(x):
    """The same in ordinary arrays."""
    if isinstance(x, tuple):
        return tuple(map(plain, x))
    return x.view(np.ndarray) if isinstance(x, WithoutProducts) else x


@pytest.mark.usefixtures("evaluations")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_steps_leave_every_product_to_the_kernels(dtype, rng, monkeypatch):
    """The others are CuPy's, which it does not let be recorded as a graph."""
    monkeypatch.setitem(kernels.PROVIDERS, ("numpy", "float64"), lambda: cuda)
    X, y = rng.normal(size=(9, 4)).astype(dtype), rng.integers(0, 3, size=9)
    for model in (sx.Linear(4, 3), sx.MLP([4, 6, 3]), sx.MLP([4, 6, 3], activation="tanh")):
        params = {name: x.astype(dtype).view(WithoutProducts) for name, x in model.params.items()}
        model.value_and_grad(params, X.view(WithoutProducts), y, 0.1)
    objective = LinearObjective(
        DenseRows(X.view(WithoutProducts), backend=sx.select_backend("cpu")), y, 3, Penalty(0.1)
    )
    objective.batch_value_and_grad(rng.normal(size=15).view(WithoutProducts), np.arange(5))
    with pytest.raises(AssertionError):
        X.view(WithoutProducts) @ X.T


@pytest.mark.parametrize("xp", ["numpy", "cupy"], indirect=True)
def test_rounding_to_bfloat16_is_to_the_nearest_even(place):
    move, back = place
    bits = np.random.default_rng(0).integers(0, 2**32, size=(303, 7), dtype=np.uint32)
    bits[:100] = bits[:100] & 0xFFFF0000 | 0x8000  # ties
    x = bits.view(np.float32)
    x[:, 0] = [np.inf, -np.inf, np.nan] * 101
    for given in (x, x[1:], x[:, :5]):  # in packs, the last of which is not full; not aligned to them; not in one piece
        np.testing.assert_array_equal(widened(back(cuda.bfloat16_bits(move(given)))), widened(bfloat16_bits(given)))


SHAPE = (4096, 256, 128)  # rows, features, classes: for odd ones cuBLAS may not take tensor cores, though it is let


@pytest.mark.parametrize("xp", ["numpy", "cupy"], indirect=True)
@pytest.mark.parametrize("precision", cuda.PRECISIONS)
def test_precision_of_sums(precision, place, monkeypatch):
    move, back = place
    rng = np.random.default_rng(0)
    n, d, c = SHAPE
    X, coef = rng.normal(size=(n, d)).astype("float32"), rng.normal(size=(c, d)).astype("float32") / d**0.5
    labels = rng.integers(0, c, size=n)
    loss, grad, slope = reference.linear_sums(*(x.astype("float64") for x in (coef, coef[:, 0], X)), labels)
    coef, intercept, X, labels = map(move, (coef, coef[:, 0], X, labels))
    row_pass = RowPass(precision=precision)
    sums = cuda.linear_sums(coef, intercept, X, labels, row_pass=row_pass)
    value, by_coef, by_intercept = (back(x) for x in sums)
    error = np.linalg.norm(by_coef - grad) / np.linalg.norm(grad)
    low, high = {"float32": (0, 1e-6), "tf32": (5e-5, 2e-3), "bfloat16": (5e-4, 2e-2)}[precision]
    assert low < error < high
    assert by_coef.dtype == by_intercept.dtype == np.float32
    assert abs(float(value / loss) - 1) < high
    np.testing.assert_allclose(by_intercept, slope, rtol=0, atol=high * np.abs(slope).max())
    monkeypatch.setattr(cuda, "_free_bytes", lambda: 4 * X.size)
    factor = cuda.factor(X, precision)  # rounded once: the same, but for the rows of a block
    assert (factor is X) == (precision != "bfloat16")
    value_of_factor, *grads = cuda.linear_sums(coef, intercept, factor, labels, row_pass=row_pass)
    assert float(value_of_factor) == pytest.approx(float(value), rel=1e-6)
    for own, other in zip(grads, (by_coef, by_intercept), strict=True):
        np.testing.assert_allclose(back(own), other, rtol=0, atol=1e-5 * np.abs(other).max())
    monkeypatch.setattr(cuda, "_free_bytes", lambda: 4 * X.size - 1)
    assert cuda.factor(X, precision) is X


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize(("dtype", "row_bytes"), [("float32", 12), ("float16", 12 + 4 * 200), ("float64", 24)])
def test_rows_that_are_converted_count_for_the_length_of_blocks(dtype, row_bytes):
    X, coef = np.ones((30, 200), dtype), np.ones((3, 200), "float32")
    blocks = cuda._Blocks([(coef, None)], X, "float32")
    assert max(rows.stop - rows.start for rows, _, _ in blocks) == min(30, 5000 // row_bytes)


@pytest.mark.usefixtures("on_host")
def test_bfloat16_has_room_for_what_it_rounds():
    X, coef = np.ones((90, 200), "float32"), np.ones((3, 200), "float32")
    for given, row_bytes in ((X, 12 + 6 + 400), (bfloat16_bits(X), 12 + 6)):
        blocks = cuda._Blocks([(coef, None)], given, "bfloat16")
        assert max(rows.stop - rows.start for rows, _, _ in blocks) == min(90, 5000 // row_bytes)


# --- Fits ---


@pytest.fixture
def evaluations(on_host, monkeypatch):
    """Let fits of float32 on NumPy take the kernels for CuPy; a list of the precisions of their evaluations."""
    seen, linear_sums = [], cuda.linear_sums

    def counted(*arguments):
        (row_pass,) = (x for x in arguments if isinstance(x, RowPass))
        seen.append(row_pass.precision)
        return linear_sums(*arguments)

    monkeypatch.setattr(cuda, "linear_sums", counted)
    monkeypatch.setitem(kernels.PROVIDERS, ("numpy", "float32"), lambda: cuda)
    return seen


@pytest.mark.parametrize("solver", ["auto", "newton-cg", "adam"])
@pytest.mark.parametrize("precision", cuda.PRECISIONS)
def test_fits_end_in_float32_whatever_the_precision(precision, solver, evaluations, monkeypatch):
    monkeypatch.setattr(cuda, "block_bytes", lambda device: 1 << 20)
    X, y = load_digits(return_X_y=True)
    X = (X[:600] / 16).astype("float32")
    exact = sx.SoftmaxClassifier(device="cpu", dtype="float64", tol=1e-8).fit(X, y[:600])
    model = sx.SoftmaxClassifier(
        device="cpu", precision=precision, solver=solver, tol=1e-2 if solver == "adam" else 1e-6
    )
    model.fit(X, y[:600])
    assert model.converged_
    assert evaluations[-1] == "float32"
    if precision != "float32":
        assert evaluations.count("float32") < evaluations.count(precision)
    if solver != "adam":
        assert model.objective_ == pytest.approx(exact.objective_, rel=2e-6)


@pytest.mark.usefixtures("evaluations")
@pytest.mark.parametrize("solver", ["auto", "adam"])
def test_bfloat16_rounds_the_data_once_a_fit(solver, rng, monkeypatch):
    rounded, bits = [], cuda.bfloat16_bits
    monkeypatch.setattr(cuda, "bfloat16_bits", lambda x: rounded.append(x.shape) or bits(x))
    X, y = rng.normal(size=(300, 20)).astype("float32"), rng.integers(0, 3, size=300)
    sx.SoftmaxClassifier(device="cpu", precision="bfloat16", solver=solver, tol=1e-1).fit(X, y)
    assert rounded.count(X.shape) == 1
    assert not [shape for shape in rounded if shape[0] > 3 and shape != X.shape]  # coefficients and ones apart
