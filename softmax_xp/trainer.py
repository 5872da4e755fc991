"""The training loop of a tutorial, on any backend: mini-batches, steps of an optimizer, a printed loss."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import numpy as np

from softmax_xp.arrays import (
    Array,
    accumulation_dtype,
    block_bytes,
    check_dense,
    checked_arrays,
    describe,
    detached,
    dtype_name,
    is_array,
    row_blocks,
    to_numpy,
    working_dtype,
)
from softmax_xp.backend import Backend, backend_of, select_backend, small_for_gpu
from softmax_xp.checks import (
    are_probabilities,
    check_finite,
    check_floating,
    check_held,
    check_integer,
    check_labels,
    check_length,
    check_probabilities,
    check_random_state,
    check_rank,
    check_real,
    check_weights,
    scaled_weights,
)
from softmax_xp.kernels.row_pass import RowPass
from softmax_xp.losses import Loss, checked_loss
from softmax_xp.models import MLP, Linear, Params
from softmax_xp.rows.batches import minibatches
from softmax_xp.solvers import Solution, State, Status, check_callbacks, solve
from softmax_xp.solvers.optimizers import SGD, Optimizer
from softmax_xp.solvers.stochastic import MiniBatches

INSTALL_PLOT = "pip install 'matplotlib>=3.9'"  # the extra plot
LAUNCHES = 17  # of one step on a GPU: see kernels.graphs
FLUSH_EVERY = 1000  # losses that are collected on the device and fetched in one transfer


@dataclass
class History:
    """The record of one call of `Trainer.fit`.

    Attributes
    ----------
    loss : list of float
        Objective of each mini-batch (its mean loss plus the penalty), before the step along its gradient.
    validation_steps : list of int
        Numbers of the steps after which the model was validated.
    validation_loss, validation_accuracy : list of float
        Mean loss without penalty, and fraction of the rows whose largest logit is that of their label.
    best_step : int or None
        The step with the lowest validation loss; with `patience` the model has the weights of this step.
    solution : Solution or None
        Objective and gradient norm over all rows at the end; `params` are those of the model.
    """

    loss: list[float] = field(default_factory=list)
    validation_steps: list[int] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    validation_accuracy: list[float] = field(default_factory=list)
    best_step: int | None = None
    solution: Solution | None = None

    def plot(self, path: str | None = None) -> Any:
        """Draw the losses against the step.

        Parameters
        ----------
        path : str, optional
            File to write; its suffix chooses the format.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ImportError
            If matplotlib is missing; the message has the command that installs it.
        """
        try:
            figure = import_module("matplotlib.figure").Figure(figsize=(7, 4), layout="constrained")
        except ImportError as error:
            raise ImportError(f"History.plot needs matplotlib: {INSTALL_PLOT}") from error
        axes = figure.subplots()
        steps = np.arange(1, len(self.loss) + 1)
        axes.plot(steps, self.loss, color="0.75", linewidth=0.8, label="mini-batch")
        width = max(1, len(self.loss) // 50)
        if width > 1:
            smooth = np.convolve(self.loss, np.full(width, 1.0 / width), mode="valid")
            axes.plot(steps[width - 1 :], smooth, label=f"mini-batch, mean of {width}")
        if self.validation_loss:
            axes.plot(self.validation_steps, self.validation_loss, marker=".", label="validation")
        if self.best_step is not None:
            axes.axvline(self.best_step, color="0.5", linestyle=":", label="best validation loss")
        axes.set(xlabel="step", ylabel="loss")
        axes.legend()
        if path is not None:
            figure.savefig(path)
        return figure


@dataclass(frozen=True, eq=False)
class Progress(State):
    """The argument of a callback: a State of which `objective` is that of the last mini-batch, before its step.

    Attributes
    ----------
    step : int
        Steps taken so far; the same as `n_iter`.
    loss : float
        The same as `objective`.
    params : dict of arrays
        The parameters after the step, on the device of the fit; not to be modified.
    history : History
        The record so far.
    """

    history: History = field(kw_only=True, repr=False)

    @property
    def step(self) -> int:
        """Steps taken so far."""
        return self.n_iter

    @property
    def loss(self) -> float:
        """Objective of the last mini-batch."""
        return self.objective


class Trainer:
    """Train a model on mini-batches.

    The objective is mean_i loss(logits_i, y_i) + reg / 2 * sum of squared weights; intercepts are not
    penalised.

    Parameters
    ----------
    model : Linear or MLP
        Its `params` are replaced by the trained ones.
    optimizer : SGD, Adam or AdamW, optional
        SGD(learning_rate=1e-2, momentum=0.9) by default.
    reg : float, not negative, default 0.0
    batch_size : int, default 256
        Rows per step; all rows if there are fewer.
    max_steps : int, default 1000
    log_every : int or None, default 100
        Print "iteration 100: loss 1.234567" every `log_every` steps; None prints nothing.
    device : {"auto", "cpu", "cuda", "cuda:<index>"}, default "auto"
        Where to train; see `select_backend`. The data are copied there once.
    random_state : int, numpy.random.Generator or None, default 0
        Seed of the order of the rows; the same on every backend.
    label_smoothing : float in [0, 1], default 0.0
    validate_every : int, optional
        Steps between two validations; by default `log_every`, or 100 if that is None. The last step is always followed
        by a validation.
    patience : int or None, default None
        Stop when the validation loss has not improved in this many validations, and keep the best weights.
    callbacks : sequence of callables, default ()
        Called with a Progress every `log_every` (or 100) steps. If one returns True, the training ends.
    loss : {"cross_entropy", "gce", "sce", "focal"} or an instance of a loss, default "cross_entropy"
        See `softmax_xp.cross_entropy`. The validation loss is this one, too.
    """

    def __init__(
        self,
        model: MLP,
        optimizer: Optimizer | None = None,
        reg: float = 0.0,
        batch_size: int = 256,
        max_steps: int = 1000,
        log_every: int | None = 100,
        device: str = "auto",
        random_state: int | np.random.Generator | None = 0,
        label_smoothing: float = 0.0,
        validate_every: int | None = None,
        patience: int | None = None,
        callbacks: Sequence[Callable[[Progress], object]] = (),
        loss: str | Loss = "cross_entropy",
    ) -> None:
        if isinstance(model, type) or not hasattr(model, "backward"):
            raise TypeError(
                f"`model` must be a Linear or MLP, got {describe(model)}; for example softmax_xp.MLP([784, 256, 10])."
            )
        self.model = model
        self.optimizer = SGD(learning_rate=1e-2, momentum=0.9) if optimizer is None else optimizer
        if isinstance(self.optimizer, type) or not hasattr(self.optimizer, "step"):
            raise TypeError(
                f"`optimizer` must be SGD, Adam, AdamW or alike, got {describe(optimizer)}; "
                f"pass an instance, for example softmax_xp.Adam(learning_rate=1e-3)."
            )
        remedy = "choose a value such as 1e-4, or 0 for no penalty"
        self.reg = check_real(reg, "reg", low=0.0, high=math.inf, include_high=False, remedy=remedy)
        remedy = "choose a value such as 256"
        self.batch_size = check_integer(batch_size, "batch_size", low=1, remedy=remedy)
        self.max_steps = check_integer(max_steps, "max_steps", low=1, remedy="choose a value such as 1000")
        remedy = "choose a value such as 100, or None"
        self.log_every = None if log_every is None else check_integer(log_every, "log_every", low=1, remedy=remedy)
        self.device = device
        check_random_state(random_state)
        self.random_state = random_state
        self.label_smoothing = check_real(
            label_smoothing, "label_smoothing", low=0.0, high=1.0, remedy="choose a value such as 0.1, or 0 for none"
        )
        if validate_every is None:
            self.validate_every = self.log_every or 100
        else:
            self.validate_every = check_integer(validate_every, "validate_every", low=1, remedy=remedy)
        remedy = "choose a value such as 5, or None"
        self.patience = None if patience is None else check_integer(patience, "patience", low=1, remedy=remedy)
        check_callbacks(callbacks)
        self.callbacks = tuple(callbacks)
        self.loss = checked_loss(loss)
        select_backend(device)  # raises if the device cannot be used, before the user loads data

    def fit(
        self,
        X: Array,
        y: Array,
        validation_data: tuple[Array, Array] | None = None,
        sample_weight: Array | None = None,
    ) -> History:
        """Train the model on X and y, and leave the trained parameters in it.

        Parameters
        ----------
        X : array of shape (n_samples, n_features), real floating, finite
            The training uses its dtype (float32 for 16-bit floats).
        y : array of shape (n_samples,), integers in [0, n_classes); or (n_samples, n_classes), probabilities
            X and y may be of different libraries.
        validation_data : (X, y) in the same form, optional
        sample_weight : array of shape (n_samples,), optional
            Not negative, not all zero; the mean in the objective is weighted by it. Only the ratios matter. Rows of
            weight 0 do not count, and may hold NaN or infinity.

        Returns
        -------
        History

        Raises
        ------
        TypeError, ValueError
            For data that do not fit the model or each other.
        DeviceUnavailableError
            When `device` cannot be used.

        Warns
        -----
        RuntimeWarning
            When the loss stops being finite; training ends with the last finite weights.

        Notes
        -----
        Ctrl-C ends the training; the model keeps its current weights.
        """
        check_dense(X, "X")
        n_weights = sum(math.prod(x.shape) for x in self.model.params.values())
        n_rows = min(self.batch_size, X.shape[0]) if is_array(X) and X.ndim else 0
        small = small_for_gpu(n_rows * n_weights, LAUNCHES)
        backend = select_backend(self.device, like=X, small=small)
        # An overflow makes the loss infinite, and that is reported; NumPy's warnings about each operation are silenced.
        with backend.context(), np.errstate(over="ignore", invalid="ignore"):
            rows = self._placed(backend, X, y, sample_weight, ("X", "y"))
            held_out = None
            if validation_data is None and self.patience is not None:
                raise ValueError(
                    f"`patience` needs validation data, got patience={self.patience} and none; "
                    f"pass validation_data=(X_val, y_val) to fit."
                )
            if validation_data is not None:
                if not isinstance(validation_data, tuple | list) or len(validation_data) != 2:
                    raise TypeError(
                        f"`validation_data` must be a pair (X_val, y_val), got {describe(validation_data)}; "
                        f"pass both in a tuple."
                    )
                held_out = self._placed(backend, *validation_data, None, ("X_val", "y_val"))
            rng = np.random.default_rng(self.random_state)
            start = self.model.params_on(backend, rows.X.dtype)
            training = _Training(self, rows, held_out, minibatches(backend, rows.n, self.batch_size, rng), start)
            solution = solve(training, start, [training.record])
            home = backend_of(X)
            self.model.params = {name: home.asarray(x) for name, x in solution.params.items()}
        training.history.solution = replace(solution, params=self.model.params, memory={})
        if solution.status is Status.DIVERGED:
            warnings.warn(
                f"{solution.message}; the last finite weights are kept. "
                f"Lower the learning rate, or scale the features.",
                RuntimeWarning,
                stacklevel=2,
            )
        return training.history

    def _placed(
        self, backend: Backend, X: Array, y: Array, sample_weight: Array | None, names: tuple[str, str]
    ) -> _Rows:
        """Check the data on their device, and return them on the backend."""
        X_name, y_name = names
        (xp, X), (of_y, y) = checked_arrays(**{X_name: X}), checked_arrays(**{y_name: y})
        X, y = detached(X), detached(y)
        check_rank(X, X_name, 2, "(n_samples, n_features)")
        check_floating(xp, X, X_name)
        if X.shape[1] != self.model.n_features:
            raise ValueError(
                f"`{X_name}` must have the model's n_features={self.model.n_features} columns, got {X.shape[1]}; "
                f"make the model for this X."
            )
        if sample_weight is not None:
            of_weight, sample_weight = checked_arrays(sample_weight=sample_weight)
            sample_weight = detached(sample_weight)
            check_weights(of_weight, sample_weight, X.shape[0])
        is_finite = check_finite(xp, X, X_name, sample_weight)
        check_held(xp, self.reg, "reg", working_dtype(xp, X.dtype))
        dtype = dtype_name(working_dtype(xp, X.dtype))
        probabilities = are_probabilities(of_y, y, self.model.n_classes, y_name)
        check_length(y, y_name, X.shape[0], X_name)
        if probabilities:
            check_probabilities(of_y, y, self.model.n_classes, y_name)
        else:
            y = check_labels(of_y, y, self.model.n_classes, y_name)
        X, y = backend.asarray(X, dtype), backend.asarray(y, dtype if probabilities else None)
        if sample_weight is not None:
            # Scaled where it is: the dtype of X may be too narrow for the weights, but not for their ratios.
            sample_weight, _ = scaled_weights(of_weight, sample_weight)
            sample_weight = backend.asarray(sample_weight / of_weight.mean(sample_weight), dtype)
            if not is_finite:  # rows of weight 0, in which 0 * NaN would reach the gradient
                X = backend.xp.where((sample_weight > 0)[:, None], X, backend.xp.zeros_like(X))
        return _Rows(backend, X, y, sample_weight)


@dataclass(frozen=True)
class _Rows:
    """Data on the device of the fit. The weights, if any, have mean 1."""

    backend: Backend
    X: Array
    targets: Array
    weight: Array | None

    @property
    def n(self) -> int:
        return int(self.X.shape[0])

    def blocks(self, width: int) -> Iterator[tuple[slice, _Rows]]:
        """Yield blocks of rows, in order; `width` is the number of activations per row."""
        for rows in row_blocks(self.n, width * 8, block_bytes(self.backend.device)):
            weight = None if self.weight is None else self.weight[rows]
            yield rows, _Rows(self.backend, self.X[rows, :], self.targets[rows, ...], weight)

    def at(self, index: Array) -> _Rows:
        """Return the rows at integer indices."""
        take = self.backend.xp.take
        weight = None if self.weight is None else take(self.weight, index, axis=0)
        return _Rows(self.backend, take(self.X, index, axis=0), take(self.targets, index, axis=0), weight)


@dataclass(frozen=True)
class _Objective:
    """The objective of a model on rows, with a penalty."""

    model: MLP
    rows: _Rows
    reg: float
    label_smoothing: float
    loss: Loss

    def of_batch(self, params: Params, index: Array) -> tuple[Array, Params]:
        """Return the objective of one mini-batch and its gradient."""
        return self._of_part(params, self.rows.at(index), index.shape[0], self.reg)

    def over_all_rows(self, params: Params) -> tuple[float, float]:
        """Return the objective over all rows and the norm of its gradient."""
        total = 0.0
        total_grads: Params = {}
        for rows, part in self.rows.blocks(max(self.model.sizes)):
            reg = self.reg if rows.start == 0 else 0.0  # the penalty counts once
            value, grads = self._of_part(params, part, self.rows.n, reg)
            total += float(value)
            total_grads = {name: total_grads[name] + g if total_grads else g for name, g in grads.items()}
        backend = self.rows.backend
        xp, wide = backend.xp, accumulation_dtype(backend.xp, backend.device)
        squares = (float(xp.sum(xp.astype(g, wide, copy=False) ** 2)) for g in total_grads.values())
        return total, math.sqrt(sum(squares))

    def _of_part(self, params: Params, part: _Rows, n: int, reg: float) -> tuple[Array, Params]:
        """Return sum over `part` of the losses / n, plus the penalty, and the gradient."""
        xp = part.backend.xp
        if part.weight is None:
            weight = xp.full(part.n, 1.0 / n, dtype=part.X.dtype, device=part.backend.device)
        else:
            weight = part.weight / n
        return self.model.value_and_grad(params, part.X, part.targets, reg, weight, self.label_smoothing, self.loss)


class _Training(MiniBatches):
    """The Solver of one call of `Trainer.fit`, and the record of its steps."""

    def __init__(
        self, trainer: Trainer, rows: _Rows, held_out: _Rows | None, batches: Iterator[Array], start: Params
    ) -> None:
        self.objective = _Objective(trainer.model, rows, trainer.reg, trainer.label_smoothing, trainer.loss)
        # A user's own model may do something else at each step, so that its steps are not recorded.
        repeated = rows.backend.repeated if type(trainer.model) in (Linear, MLP) else None
        super().__init__(self.objective.of_batch, batches, trainer.optimizer, trainer.max_steps, repeated)
        self.trainer = trainer
        self.model = trainer.model
        self.rows = rows
        self.held_out = held_out
        self.history = History()
        self.pending: list[Array] = []  # losses still on the device
        self.current = start  # the parameters that the next step starts from
        self.before = start  # the parameters that the last pending loss was measured at
        self.finite = start  # the last parameters whose loss is known to be finite
        self.best: Params = {}
        self.patience_is_over = False

    def record(self, state: State) -> bool:
        """Record a step; return whether to stop."""
        trainer, step = self.trainer, state.n_iter
        self.pending.append(state.objective)
        self.before, self.current = self.current, state.params
        log = step % (trainer.log_every or 100) == 0
        look = self.held_out is not None and (step % trainer.validate_every == 0 or step == trainer.max_steps)
        if not (log or look or len(self.pending) >= FLUSH_EVERY):
            return False
        if not self._flush():
            return True
        if log and trainer.log_every is not None:
            print(f"iteration {step}: loss {self.history.loss[-1]:.6f}", flush=True)
        if look and self._validate(step, state.params):
            return True
        if not log:
            return False
        progress = Progress(**{**vars(state), "objective": self.history.loss[-1]}, history=self.history)
        answers = [callback(progress) for callback in trainer.callbacks]
        return any(answers)

    def ended(self, state: State, status: Status) -> State:
        """Choose the parameters to keep, and measure objective and gradient over all rows."""
        n_steps = state.n_iter
        message = {
            Status.MAX_ITER: f"max_steps={self.max_iter} steps taken",
            Status.STOPPED: f"ended by a callback after {n_steps} steps",
            Status.INTERRUPTED: f"interrupted after {n_steps} steps",
        }[status]
        if self.patience_is_over and status is Status.STOPPED:
            status = Status.CONVERGED
            message = f"the validation loss was lowest after {self.history.best_step} steps"
        params = state.params
        self._flush()
        if self.trainer.patience is not None and self.best:
            params = self.best
        value, norm = self.objective.over_all_rows(params)
        first = next((i for i, loss in enumerate(self.history.loss, 1) if not math.isfinite(loss)), None)
        if first is not None or not math.isfinite(value):
            status, message = Status.DIVERGED, f"the loss stopped being finite at step {first or n_steps + 1}"
            if not math.isfinite(value):
                params = self.finite
                value, norm = self.objective.over_all_rows(params)
        return replace(state, params=params, objective=value, gradient_norm=norm, status=status, message=message)

    def _flush(self) -> bool:
        """Fetch the losses from the device in one transfer; return whether all are finite."""
        if self.pending:
            losses = to_numpy(self.rows.backend.xp.stack(self.pending)).tolist()
            self.pending = []
            self.history.loss.extend(losses)
            if not all(map(math.isfinite, losses)):
                return False
            self.finite = self.before
        return True

    def _validate(self, step: int, params: Params) -> bool:
        """Record loss and accuracy on the held-out rows; return whether `patience` ends the training."""
        if self.held_out is None:
            return False
        xp = self.rows.backend.xp
        loss, hits, row_pass = 0.0, 0, RowPass(self.trainer.loss)
        for _, part in self.held_out.blocks(max(self.model.sizes)):
            logits, _ = self.model.forward(params, part.X)
            kernels = part.backend.kernels(logits.dtype)
            loss += float(xp.sum(kernels.cross_entropy(logits, part.targets, row_pass=row_pass)))
            labels = part.targets if part.targets.ndim == 1 else xp.argmax(part.targets, axis=1)
            hits += int(xp.sum(xp.astype(xp.argmax(logits, axis=1) == labels, xp.int64)))
        history, n = self.history, self.held_out.n
        history.validation_steps.append(step)
        history.validation_loss.append(loss / n)
        history.validation_accuracy.append(hits / n)
        if history.best_step is None or loss / n < min(history.validation_loss[:-1]):
            history.best_step, self.best = step, params
        patience = self.trainer.patience
        looks_since = len(history.validation_steps) - 1 - history.validation_steps.index(history.best_step)
        self.patience_is_over = patience is not None and looks_since >= patience
        return self.patience_is_over
