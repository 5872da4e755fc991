"""CUDA graphs: record the kernels of a function of small arrays once, then replay them with one launch.

A step of a small problem is some fifty kernels, and launching a kernel may take longer than running it. With a graph,
one launch remains for the graph, one for each array or number that is copied in, and one for each array that is copied
out: seventeen for Adam on one weight and intercept. The gain has not been measured.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress
from importlib import import_module
from typing import Any, TypeAlias

from softmax_xp.arrays import Array, is_array, namespace
from softmax_xp.kernels import cublas

# A number, an array, or a tuple or dict of trees.
Tree: TypeAlias = Any

MAX_BYTES = 16 << 20  # of all arguments; copying more into the graph takes longer than launching the kernels. A guess.


class Repeated:
    """A function that replays a CUDA graph for small arguments. One graph is recorded for each set of shapes.

    CUDA raises RuntimeError and CuPy NotImplementedError for operations that cannot be recorded. Then the function is
    called directly for these shapes from then on, after a warning; the results are the same.

    Parameters
    ----------
    function : callable
        Takes trees of arrays and numbers and returns a tree of arrays, on the current device. It must not copy anything
        to the host. Its kernels may depend on its arguments and on arrays that do not change, and on nothing else.
    """

    def __init__(self, function: Callable[..., Tree]) -> None:
        self.function = function
        self._recorded: dict[Any, tuple[list[Array], Recording] | None] = {}

    def __call__(self, *arguments: Tree) -> Tree:
        """Return what the function returns, in new arrays."""
        leaves: list[Any] = []
        _mapped(leaves.append, arguments)
        arrays = [x for x in leaves if is_array(x)]
        if sum(x.nbytes for x in arrays) > MAX_BYTES:
            return self.function(*arguments)
        key = tuple((x.shape, str(x.dtype)) if is_array(x) else None for x in leaves)
        if key not in self._recorded:
            self._recorded[key] = None
            try:
                self._recorded[key] = self._record(arguments, arrays)
            except RuntimeError as error:  # NotImplementedError is one, and so are the errors of CUDA
                results = self.function(*arguments)  # raises where the fault is its own
                warnings.warn(
                    f"a step could not be recorded as a CUDA graph, and is launched kernel by kernel "
                    f"({type(error).__name__}: {' '.join(str(error).split())[:200]})",
                    RuntimeWarning,
                    stacklevel=2,
                )
                return results
        recording = self._recorded[key]
        if recording is None:
            return self.function(*arguments)
        inputs, graph = recording
        for own, x in zip(inputs, leaves, strict=True):
            own[...] = x
        graph.launch()
        return _mapped(lambda x: x.copy(), graph.outputs)

    def _record(self, arguments: Tree, arrays: list[Array]) -> tuple[list[Array], Recording]:
        """Return the input arrays of a graph, and the graph."""
        xp = namespace(x=arrays[0])
        real = next(x.dtype for x in arrays if xp.isdtype(x.dtype, "real floating"))
        inputs: list[Array] = []

        def own(x: Any) -> Array:
            inputs.append(x.copy() if is_array(x) else xp.asarray(x, dtype=real))
            return inputs[-1]

        trees = _mapped(own, arguments)
        function = self.function  # not self, which holds the recording: a reference cycle would outlive the fit
        return inputs, recorded(lambda: function(*trees))


class Recording:
    """The kernels of a function as a graph, and the arrays that they write to.

    Attributes
    ----------
    launch : callable
        Launches the graph on the current stream.
    outputs : tree of arrays
    """

    def __init__(self, launch: Callable[[], object], outputs: Tree, free: Callable[[], object] | None = None) -> None:
        self.launch = launch
        self.outputs = outputs
        self._free = free

    def __del__(self) -> None:
        """Give the memory back: a pool that nobody holds any more goes on holding what is free in it."""
        self.outputs = None
        self.launch = _ended
        if self._free is not None:
            with suppress(Exception):  # CuPy may be gone already when the interpreter exits
                self._free()


def _ended() -> None:
    raise RuntimeError("the recording has ended")


def recorded(function: Callable[[], Tree]) -> Recording:
    """Return the kernels of `function` as a graph. If the function raises while it is recorded, the recording ends."""
    cupy: Any = import_module("cupy")
    pool = cupy.cuda.MemoryPool()  # the graph goes on using memory freed while recording: nothing else may get it
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.get_current_stream().synchronize()
    cupy.get_default_memory_pool().free_all_blocks()  # so that the new pool can have this memory
    with ExitStack() as stack:
        stack.enter_context(stream)
        stack.enter_context(cupy.cuda.using_allocator(pool.malloc))
        of_products = cupy.empty(cublas.WORKSPACE_BYTES, dtype=cupy.uint8)
        stack.enter_context(cublas.workspace(of_products))
        function()  # compiles the kernels and fills the pool
        stream.synchronize()
        stream.begin_capture()
        try:
            outputs = function()
        except BaseException:
            with suppress(RuntimeError):  # CUDA raises if it has ended the capture already
                stream.end_capture()
            raise
        graph = stream.end_capture()

    def launch(graph: Any = graph, kept: Any = (pool, function, of_products)) -> None:
        graph.launch()  # on the current stream

    return Recording(launch, outputs, pool.free_all_blocks)


def _mapped(function: Callable[[Any], Any], tree: Tree) -> Tree:
    """Return the tree with `function` applied to each leaf, leaves of a dict in the order of sorted keys."""
    if isinstance(tree, dict):
        made = {key: _mapped(function, tree[key]) for key in sorted(tree)}
        return {key: made[key] for key in tree}
    if isinstance(tree, tuple):
        return tuple(_mapped(function, x) for x in tree)
    return function(tree)
