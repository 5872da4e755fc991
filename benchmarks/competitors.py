"""Everything that is measured, one entry of a table each: evaluations of loss and gradient, and fits."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeAlias
from unittest.mock import patch

import numpy as np
import sklearn
from array_api_compat import array_namespace
from sklearn.linear_model import LogisticRegression
from sklearn.utils import get_tags

from benchmarks.data import Dataset
from benchmarks.measure import CPU, Device, cores
from benchmarks.objective import Array
from benchmarks.report import INSTALL
from softmax_xp import SoftmaxClassifier, softmax_loss
from softmax_xp.arrays import dtype_name, to_numpy
from softmax_xp.kernels import cuda
from softmax_xp.objective import LinearObjective
from softmax_xp.penalties import Penalty
from softmax_xp.rows.dense import DenseRows

Run: TypeAlias = Callable[[], tuple[Any, Any]]

TOL = 1e-4
MAX_ITER = 1000
HESSIAN_BYTES = 1 << 30
HESSIAN_FLOPS = 1e11  # of one iteration: seconds
NEWTON_STEPS = (1, 2, 4, 8, 16, 32, 100, MAX_ITER)


# --- One evaluation of loss and gradient ---


@dataclass(frozen=True)
class Problem:
    """What one evaluation is given.

    Attributes
    ----------
    X : array of shape (N, D), on `device`
    y : array of shape (N,), integers in [0, n_classes), there too
    coef : array of shape (K, D), float64
        K is n_classes, or 1 for two classes, of which the first has the logit 0.
    n_classes : int
    reg : float
        The penalty is reg / 2 * ||coef||^2.
    workers : int, optional
        Threads of softmax_xp; all that there are by default.
    device : Device
    """

    X: Array
    y: Array
    coef: Array
    n_classes: int
    reg: float
    workers: int | None = None
    device: Device = CPU

    def on(self, device: Device) -> Problem:
        """Return the same problem on a device."""
        asarray = device.backend.asarray
        return replace(self, X=asarray(self.X), y=asarray(self.y), device=device)

    @property
    def W(self) -> Array:  # noqa: N802
        """The coefficients in the dtype of X as (D, n_classes); for two classes the first column is zero."""
        first = np.zeros((self.n_classes - len(self.coef), self.X.shape[1]))
        W = np.ascontiguousarray(np.concatenate([first, self.coef]).T, dtype=self.X.dtype)
        return self.device.backend.asarray(W)


@dataclass(frozen=True)
class Evaluator:
    """A way to compute loss and gradient.

    Attributes
    ----------
    name : str
    library : str
        The module it needs.
    prepare : callable
        Takes a Problem to the call that is timed, which returns loss and gradient as the library has them.
    class_major : bool
        Whether the gradient has classes before features.
    """

    name: str
    library: str
    prepare: Callable[[Problem], Run]
    class_major: bool = False

    def gradient(self, grad: Any, problem: Problem) -> Array:
        """Return a gradient as (K, D) in float64."""
        n_features, flat = problem.X.shape[1], to_numpy(grad).astype(np.float64)
        columns = flat.reshape(-1, n_features) if self.class_major else flat.reshape(n_features, -1).T
        return columns[-len(problem.coef) :]


def two_products(problem: Problem) -> Callable[[], None]:
    """Return the two matrix products that no exact evaluation can do without, into memory that is there."""
    X, W = problem.X, problem.W[:, -len(problem.coef) :]
    xp = array_namespace(X)
    W = xp.asarray(W, copy=True, order="C")
    scores, grad = xp.empty((len(X), W.shape[1]), dtype=X.dtype), xp.empty_like(W)

    def run() -> None:
        xp.matmul(X, W, out=scores)
        xp.matmul(X.T, scores, out=grad)

    return run


def _linear_objective(problem: Problem, dtype: str | None = None) -> Run:
    objective = LinearObjective(
        DenseRows(problem.X, None, problem.workers, problem.device.backend),
        problem.y,
        problem.n_classes,
        Penalty(problem.reg),
        fit_intercept=False,
    )
    params = problem.device.backend.asarray(problem.coef.ravel(), dtype or dtype_name(problem.X.dtype))
    return lambda: objective.value_and_grad(params)


def _softmax_loss(problem: Problem) -> Run:
    X, y, W, reg = problem.X, problem.y, problem.W, problem.reg
    return lambda: softmax_loss(W, X, y, reg)


def _tutorial(problem: Problem) -> Run:
    X, y, W, reg = problem.X, problem.y, problem.W, problem.reg
    xp = array_namespace(X)

    def run() -> tuple[Any, Array]:
        rows = xp.arange(len(X))
        scores = X @ W
        scores -= scores.max(axis=1, keepdims=True)
        probs = xp.exp(scores)
        probs /= probs.sum(axis=1, keepdims=True)
        loss = -xp.log(probs[rows, y]).mean() + 0.5 * reg * (W * W).sum()
        probs[rows, y] -= 1.0
        probs /= len(X)
        return loss, X.T @ probs + reg * W

    return run


def _scikit_learn(problem: Problem, n_threads: int) -> Run:
    losses, linear = import_module("sklearn._loss"), import_module("sklearn.linear_model._linear_loss")
    if problem.n_classes == 2:
        base = losses.HalfBinomialLoss()
    else:
        base = losses.HalfMultinomialLoss(n_classes=problem.n_classes)
    loss = linear.LinearModelLoss(base_loss=base, fit_intercept=False)
    X, y = problem.X, problem.y.astype(problem.X.dtype)  # labels as LogisticRegression passes them
    coef = problem.coef.astype(X.dtype).ravel(order="F")
    options = {"l2_reg_strength": problem.reg, "n_threads": n_threads}
    return lambda: loss.loss_gradient(coef, X, y, **options)


def tensor(x: Array) -> Any:
    """Return an array of NumPy or CuPy as a tensor of torch, in the same memory."""
    torch = import_module("torch")
    return torch.from_numpy(x) if isinstance(x, np.ndarray) else torch.from_dlpack(x)


def _torch(problem: Problem) -> Run:
    torch = import_module("torch")
    functional = torch.nn.functional
    torch.set_num_threads(cores())
    X, y = tensor(problem.X), tensor(problem.y)
    coef = torch.tensor(problem.coef, dtype=X.dtype, device=X.device, requires_grad=True)
    if problem.n_classes == 2:
        targets = y.to(X.dtype)

        def mean_loss() -> Any:
            return functional.binary_cross_entropy_with_logits(functional.linear(X, coef)[:, 0], targets)
    else:

        def mean_loss() -> Any:
            return functional.cross_entropy(functional.linear(X, coef), y)

    def run() -> tuple[Any, Any]:
        loss = mean_loss() + 0.5 * problem.reg * coef.square().sum()
        (grad,) = torch.autograd.grad(loss, coef)
        return loss.detach(), grad

    return run


def _jax(problem: Problem) -> Run:
    jax = import_module("jax")
    jax.config.update("jax_platforms", "cpu")  # also where there is a GPU
    jax.config.update("jax_enable_x64", True)  # float32 stays float32
    jnp, nn = jax.numpy, jax.nn
    X, y, reg = jnp.asarray(problem.X), jnp.asarray(problem.y), problem.reg
    W = jnp.asarray(problem.coef.T, dtype=X.dtype)

    def mean_loss(W: Any, X: Any, y: Any) -> Any:
        z = X @ W
        if z.shape[1] == 1:
            losses = nn.softplus(z[:, 0]) - y * z[:, 0]
        else:
            losses = nn.logsumexp(z, axis=1) - jnp.take_along_axis(z, y[:, None], axis=1)[:, 0]
        return losses.mean() + 0.5 * reg * (W * W).sum()

    both = jax.jit(jax.value_and_grad(mean_loss))
    return lambda: jax.block_until_ready(both(W, X, y))


def evaluators(device: Device = CPU) -> list[Evaluator]:
    """Return the table of evaluations on a device: ours first."""
    own = [
        Evaluator("softmax_xp objective", "softmax_xp", _linear_objective, class_major=True),
        Evaluator(
            "softmax_xp, as in a fit", "softmax_xp", partial(_linear_objective, dtype="float64"), class_major=True
        ),
        Evaluator("softmax_xp.softmax_loss", "softmax_xp", _softmax_loss),
    ]
    torch = Evaluator("torch autograd", "torch", _torch, class_major=True)
    if device != CPU:
        return [*own, Evaluator("CuPy tutorial code", "cupy", _tutorial), torch]
    threads = [1, cores()] if cores() > 1 else [1]
    return [
        *own,
        Evaluator("NumPy tutorial code", "numpy", _tutorial),
        *(Evaluator(f"scikit-learn, n_threads={n}", "sklearn", partial(_scikit_learn, n_threads=n)) for n in threads),
        torch,
        Evaluator("JAX jit", "jax", _jax),
    ]


def on_host() -> Evaluator:
    """Return our evaluation on the CPU, for problems on another device."""
    return Evaluator(
        "softmax_xp objective, CPU", "softmax_xp", lambda problem: _linear_objective(problem.on(CPU)), class_major=True
    )


def in_blocks(mib: int) -> Evaluator:
    """Return our evaluation on a GPU in blocks of rows of another size than its own."""

    def prepare(problem: Problem) -> Run:
        run = _linear_objective(problem)

        def in_such_blocks() -> tuple[Any, Any]:
            with patch.object(cuda, "block_bytes", lambda device: mib << 20):
                return run()

        return in_such_blocks

    return Evaluator(f"softmax_xp, blocks of {mib} MiB", "softmax_xp", prepare, class_major=True)


# --- Fits ---


@dataclass(frozen=True)
class Fitter:
    """A way to fit a model.

    Attributes
    ----------
    name : str
    library : str
        The module it needs.
    make : callable
        Takes C and max_iter to an unfitted model with `fit`, and `coef_`, `intercept_` and `n_iter_` after it.
    iterations : tuple of int
        The values of max_iter that trace its curve; the last is that of the full fit.
    refuse : callable
        Takes a Dataset to the reason not to fit it; empty if there is none.
    device : Device
        Where the data have to be.
    """

    name: str
    library: str
    make: Callable[..., Any]
    iterations: tuple[int, ...] = (10, 30, 100, 300, MAX_ITER)
    refuse: Callable[[Dataset], str] = lambda data: ""
    device: Device = CPU

    @property
    def ours(self) -> bool:
        """Whether this is softmax_xp, whose curve one fit shows."""
        return self.library == "softmax_xp"


def ours(C: float, max_iter: int = MAX_ITER, solver: str = "auto", **options: Any) -> SoftmaxClassifier:
    """Return our unfitted model."""
    return SoftmaxClassifier(C=C, max_iter=max_iter, solver=solver, **{"tol": TOL, "device": "cpu", **options})


def scikit_learn(C: float, max_iter: int = MAX_ITER, solver: str = "lbfgs", **options: Any) -> Any:
    """Return scikit-learn's unfitted model."""
    return LogisticRegression(C=C, max_iter=max_iter, solver=solver, tol=TOL, random_state=0, **options)


class Intel:
    """LogisticRegression of scikit-learn-intelex, which must not hand over to scikit-learn."""

    def __init__(self, C: float, max_iter: int) -> None:
        self.model = import_module("sklearnex.linear_model").LogisticRegression(C=C, max_iter=max_iter, tol=TOL)

    def fit(self, X: Array, y: Array) -> None:
        """Fit; raise RuntimeError if scikit-learn did the work."""
        with _messages("sklearnex") as messages:
            self.model.fit(X, y)
        if not messages or any("fallback" in message for message in messages):
            raise RuntimeError(f"it has handed over to scikit-learn ({'; '.join(messages) or 'no message'})")
        self.coef_, self.intercept_, self.n_iter_ = self.model.coef_, self.model.intercept_, self.model.n_iter_


class ArrayAPI:
    """LogisticRegression of scikit-learn on tensors of torch, by the array API."""

    def __init__(self, C: float, max_iter: int, solver: str = "lbfgs") -> None:
        self.model = scikit_learn(C, max_iter, solver)

    def fit(self, X: Array, y: Array) -> None:
        """Fit."""
        with sklearn.config_context(array_api_dispatch=True):
            self.model.fit(tensor(X), tensor(y))
        self.coef_, self.intercept_, self.n_iter_ = (
            to_numpy(part) for part in (self.model.coef_, self.model.intercept_, self.model.n_iter_)
        )


class TorchLBFGS:
    """torch.optim.LBFGS over all rows with its strong Wolfe line search, as a model with `fit`."""

    def __init__(self, C: float, max_iter: int) -> None:
        self.C, self.max_iter = C, max_iter

    def fit(self, X: Array, y: Array) -> None:
        """Fit from zero until the largest entry of the gradient is at most TOL, which is scikit-learn's rule."""
        torch = import_module("torch")
        functional = torch.nn.functional
        torch.set_num_threads(cores())
        n_classes = int(y.max()) + 1
        K = 1 if n_classes == 2 else n_classes
        rows, labels = tensor(X), tensor(y)
        coef = torch.zeros((K, X.shape[1]), dtype=rows.dtype, device=rows.device, requires_grad=True)
        intercept = torch.zeros(K, dtype=rows.dtype, device=rows.device, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [coef, intercept],
            max_iter=self.max_iter,
            max_eval=25 * self.max_iter,  # the iterations are what ends it
            tolerance_grad=TOL,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Any:
            optimizer.zero_grad()
            logits = functional.linear(rows, coef, intercept)
            if K == 1:
                loss = functional.binary_cross_entropy_with_logits(logits[:, 0], labels.to(rows.dtype))
            else:
                loss = functional.cross_entropy(logits, labels)
            loss = loss + 0.5 / (self.C * len(X)) * coef.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        self.coef_, self.intercept_ = to_numpy(coef), to_numpy(intercept)
        self.n_iter_ = np.array([optimizer.state[coef]["n_iter"]])


def fitters(device: Device = CPU) -> list[Fitter]:
    """Return the table of fits to data on a device: ours first."""
    own = [
        Fitter(f"softmax_xp {solver}", "softmax_xp", partial(ours, solver=solver, device=device.name), device=device)
        for solver in ("auto", "lbfgs", "newton-cg")
    ]
    torch = Fitter("torch LBFGS", "torch", TorchLBFGS, device=device)
    if device != CPU:
        return [
            *own,
            Fitter("softmax_xp auto, CPU", "softmax_xp", ours),
            *(
                Fitter(
                    f"scikit-learn {solver}",
                    "torch",
                    partial(ArrayAPI, solver=solver),
                    refuse=partial(_no_array_api, solver),
                    device=device,
                )
                for solver in ("lbfgs", "newton-cg", "newton-cholesky", "saga")
            ),
            torch,
        ]
    return [
        *own,
        Fitter("scikit-learn lbfgs", "sklearn", scikit_learn),
        Fitter("scikit-learn newton-cg", "sklearn", partial(scikit_learn, solver="newton-cg"), NEWTON_STEPS),
        Fitter(
            "scikit-learn newton-cholesky",
            "sklearn",
            partial(scikit_learn, solver="newton-cholesky"),
            NEWTON_STEPS,
            refuse=_hessian_too_large,
        ),
        Fitter("scikit-learn saga", "sklearn", partial(scikit_learn, solver="saga"), (1, 3, 10, 30, 100)),
        Fitter("scikit-learn-intelex lbfgs", "sklearnex", Intel),
        torch,
    ]


def missing(library: str, device: Device = CPU) -> str:
    """Return why a module cannot be used on a device, and the remedy; empty where it can."""
    if find_spec(library) is None:
        return INSTALL
    if library == "torch" and device != CPU and not import_module("torch").cuda.is_available():
        return "not run: this torch has no CUDA; install its wheel for CUDA"
    return ""


def _no_array_api(solver: str, data: Dataset) -> str:
    if not get_tags(scikit_learn(1.0, solver=solver)).array_api_support:
        return f"not run: scikit-learn {sklearn.__version__} takes no arrays of a GPU for this solver"
    if os.environ.get("SCIPY_ARRAY_API") != "1":
        return "not run: start the command with SCIPY_ARRAY_API=1 in the environment"
    return ""


def _hessian_too_large(data: Dataset) -> str:
    side = (1 if data.n_classes == 2 else data.n_classes) * (data.X.shape[1] + 1)
    if 8 * side**2 > HESSIAN_BYTES:
        return f"not run: the Hessian would take {8 * side**2 / 2**30:.1f} GiB"
    flops = len(data.X) * side**2 + side**3 / 3
    return f"not run: an iteration would take {flops:.0e} flops" if flops > HESSIAN_FLOPS else ""


@contextmanager
def _messages(logger_name: str) -> Iterator[list[str]]:
    """Yield the list of what is logged at level INFO in the meantime, instead of its printing."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger = logging.getLogger(logger_name)
    before = logger.handlers, logger.propagate, logger.level
    logger.handlers, logger.propagate = [Collector()], False
    logger.setLevel(logging.INFO)
    try:
        yield messages
    finally:
        logger.handlers, logger.propagate = before[:2]
        logger.setLevel(before[2])
