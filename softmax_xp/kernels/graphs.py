"""CUDA graphs: what a function of small arrays does, recorded once and launched as one from then on.

A step of a small problem is some fifty kernels, each of which may be over sooner than the next one is launched. Of the
launches there remain one for the graph, one for each array or number that goes in, and one for each array that comes
out: seventeen for Adam on one weight and intercept. What that gains has not been measured.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any, TypeAlias

from softmax_xp._arrays import Array, is_array, namespace

# A number, an array, or a tuple or dict of such.
Tree: TypeAlias = Any

MAX_BYTES = 16 << 20  # of arguments, which are copied in; larger ones take longer than their kernels' launch


class Repeated:
    """The same function, launched as one graph for arguments of small size; one is recorded for each set of shapes.

    Where that fails, with one of the RuntimeErrors of CUDA or the NotImplementedError of CuPy for what they do not let
    be recorded, the function is called as it is for these shapes from then on: the results are the same, only later.

    Parameters
    ----------
    function : callable
        Takes trees of arrays and numbers and returns a tree of arrays, on the current device. It must bring nothing to
        the host, and its kernels must depend on nothing but its arguments and on arrays that do not change.
    """

    def __init__(self, function: Callable[..., Tree]) -> None:
        self.function = function
        self._recorded: dict[Any, tuple[list[Array], Callable[[], object], Tree] | None] = {}

    def __call__(self, *arguments: Tree) -> Tree:
        """Return what the function returns, in arrays of its own."""
        leaves: list[Any] = []
        _mapped(leaves.append, arguments)
        arrays = [x for x in leaves if is_array(x)]
        if sum(x.nbytes for x in arrays) > MAX_BYTES:
            return self.function(*arguments)
        key = tuple((x.shape, str(x.dtype)) if is_array(x) else None for x in leaves)
        if key not in self._recorded:
            self._recorded[key] = None
            with suppress(RuntimeError):  # NotImplementedError is one, and so are the errors of CUDA
                self._recorded[key] = self._record(arguments, arrays)
        recording = self._recorded[key]
        if recording is None:
            return self.function(*arguments)
        inputs, launch, outputs = recording
        for own, x in zip(inputs, leaves, strict=True):
            own[...] = x
        launch()
        return _mapped(lambda x: x.copy(), outputs)

    def _record(self, arguments: Tree, arrays: list[Array]) -> tuple[list[Array], Callable[[], object], Tree]:
        """Return arrays for the arguments, what runs the function on them, and the arrays it leaves its results in."""
        xp = namespace(x=arrays[0])
        real = next(x.dtype for x in arrays if xp.isdtype(x.dtype, "real floating"))
        inputs: list[Array] = []

        def own(x: Any) -> Array:
            inputs.append(x.copy() if is_array(x) else xp.asarray(x, dtype=real))
            return inputs[-1]

        trees = _mapped(own, arguments)
        function = self.function  # without self, which keeps what is recorded: a circle would outlive the fit
        launch, outputs = recorded(lambda: function(*trees))
        return inputs, launch, outputs


def recorded(function: Callable[[], Tree]) -> tuple[Callable[[], object], Tree]:
    """Return what launches the kernels of `function` as a graph, and the arrays that they write to.

    An error of the function while it is recorded ends the recording.
    """
    cupy: Any = import_module("cupy")
    pool = cupy.cuda.MemoryPool()  # what is freed while recording belongs to the graph: no one else may be given it
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.get_current_stream().synchronize()
    cupy.get_default_memory_pool().free_all_blocks()  # which the other pool could not have
    with stream, cupy.cuda.using_allocator(pool.malloc):
        function()  # compiles what is to be compiled, and fills the pool
        stream.synchronize()
        stream.begin_capture()
        try:
            outputs = function()
        except BaseException:
            with suppress(RuntimeError):  # CUDA may have ended it, and says so
                stream.end_capture()
            raise
        graph = stream.end_capture()

    def launch(graph: Any = graph, kept: Any = (pool, function)) -> None:
        graph.launch()  # on the current stream

    return launch, outputs


def _mapped(function: Callable[[Any], Any], tree: Tree) -> Tree:
    """Return a tree of what `function` makes of each leaf; those of a dict come in the order of its sorted keys."""
    if isinstance(tree, dict):
        made = {key: _mapped(function, tree[key]) for key in sorted(tree)}
        return {key: made[key] for key in tree}
    if isinstance(tree, tuple):
        return tuple(_mapped(function, x) for x in tree)
    return function(tree)
