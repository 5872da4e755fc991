"""SoftmaxClassifier: softmax regression under scikit-learn's contract, on any array library and device."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import wraps
from os import PathLike
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score
from sklearn.utils.validation import check_is_fitted

from softmax_xp.arrays import (
    Array,
    Namespace,
    accumulation_dtype,
    all_finite,
    block_bytes,
    describe,
    device_context,
    device_of,
    dtype_name,
    is_array,
    is_floating,
    is_numpy,
    namespace,
    row_blocks,
    to_numpy,
)
from softmax_xp.backend import Backend, backend_of, select_backend, small_for_gpu
from softmax_xp.checks import (
    check_bool,
    check_finite,
    check_integer,
    check_length,
    check_option,
    check_random_state,
    check_rank,
    check_real,
)
from softmax_xp.coordinates import FAR, Coordinates, coordinates
from softmax_xp.files.model import opened, write
from softmax_xp.fitting import Fitting
from softmax_xp.kernels import PRECISIONS, kernels_for
from softmax_xp.kernels.row_pass import RowPass
from softmax_xp.kernels.workspace import BLAS_ON_ONE_THREAD
from softmax_xp.labels import label_array
from softmax_xp.losses import Loss, checked_loss
from softmax_xp.objective import LinearObjective
from softmax_xp.penalties import Penalty
from softmax_xp.records import classifier_parts, loaded, not_a_model
from softmax_xp.rows.dense import DenseRows
from softmax_xp.solvers import Callback, State, Status, check_callbacks
from softmax_xp.solvers.optimizers import Optimizer
from softmax_xp.validation import checked_features, checked_weights, encoded_targets, penalty_strength, row_weights

SOLVERS = ("auto", "lbfgs", "newton-cg", "sgd", "adam", "adamw")
LAUNCHES = 102  # of one L-BFGS step on a GPU, counted
Result = TypeVar("Result")
Parameters = ParamSpec("Parameters")


def _unchanged_on_failure(
    fit: Callable[Concatenate[Any, Parameters], Result],
) -> Callable[Concatenate[Any, Parameters], Result]:
    """Wrap a method so that its object keeps the attributes that it had, if the method raises."""

    @wraps(fit)
    def wrapped(self: Any, /, *args: Parameters.args, **options: Parameters.kwargs) -> Result:
        before = dict(vars(self))
        try:
            return fit(self, *args, **options)
        except BaseException:  # Ctrl-C too
            vars(self).clear()
            vars(self).update(before)
            raise

    return wrapped


class SoftmaxClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Softmax regression (multinomial logistic regression) with an L2 penalty.

    Minimises C * sum_i s_i loss_i + 1/2 * sum(coef_ ** 2). With cross-entropy, the default loss, this is the objective
    of scikit-learn's LogisticRegression: the intercept is not penalised, and two classes share one row of coefficients.
    What is minimised, and reported, is this divided by C * sum_i s_i: a mean over rows, whatever their number.

    Parameters
    ----------
    C : float in (0, inf], default 1.0
        Inverse strength of the penalty; infinity means none.
    tol : float, positive, default 1e-4
        Converged when the objective is at most `tol` times its value above its minimum, by an estimate that may be ten
        times too small. The estimate is g' H^-1 g / 2, half the squared Newton decrement, found by conjugate gradients
        on the Hessian H: it means the same for any N, C and units of X, where conjugate gradients come to an end in
        100 products. For the stochastic solvers, when the Euclidean norm of the gradient of the mean objective is at
        most `tol`.
    fit_intercept : bool, default True
    class_weight : dict, "balanced" or None, default None
        Weight of each class, multiplied into `sample_weight`; "balanced" makes all classes weigh the same.
    max_iter : int, default 1000
        Steps of "auto", "lbfgs" and "newton-cg"; epochs of the stochastic solvers.
    warm_start : bool, default False
        Start from the last fit, if it had the same classes and features. "auto" then also keeps what that fit has
        learnt of the curvature (of the size `max_memory` allows), which serves all of a path of penalties.
    random_state : int, numpy.random.Generator or None, default None
        Order of the rows for the stochastic solvers; the others draw nothing.
    verbose : int, default 0
        1 prints objective, gradient norm and estimated gap to the optimum every 10 steps (or epochs), 2 at every one.
    solver : {"auto", "lbfgs", "newton-cg", "sgd", "adam", "adamw"} or an optimizer, default "auto"
        "auto" is "lbfgs" with the curvature of the objective known in advance, as far as that pays; "newton-cg" is
        Newton's method with conjugate gradients, preconditioned in the same way. All three find the optimum to `tol`,
        but "lbfgs" may take many more steps, or not converge, where features differ in size. The others step along
        mini-batches of 256 rows with a learning rate that falls to zero in `max_iter` epochs; pass SGD(...), Adam(...)
        or AdamW(...) to choose it.
    device : {"auto", "cpu", "cuda", "cuda:<index>"}, default "auto"
        "auto" computes where X is; NumPy arrays, frames and lists go to the first usable GPU, or to the CPU where
        there is none or the problem is small (see `backend.small_for_gpu`). Any other value means exactly that, and
        raises DeviceUnavailableError with cause and remedy where it cannot be had.
    dtype : {"float32", "float64"} or None, default None
        What X is converted to; None keeps float32 and float64, takes float16 and bfloat16 to float32, and the rest
        to float64.
    workers : int or None, default None
        Threads of a fit on a CPU; None means the cores that this process may use. Results do not depend on it.
    max_memory : int or None, default None
        Bytes that the solver may take for what it knows of the curvature, beside the data: None means as many as X
        takes, but 256 MiB at least. With less it takes more steps. Three pairs of vectors of the size of `coef_` are
        kept whatever it is.
    precision : {"float32", "tf32", "bfloat16"}, default "float32"
        Of the matrix products of a fit. "float32" makes them in the dtype of X, whichever that is. The others, for
        float32 data on a CUDA device, round the factors to ten or seven bits behind the point, as tensor cores take
        them, and sum in float32. The fit ends in float32 nevertheless: only the way to the optimum is another one.
        "bfloat16" keeps a rounded copy of X, half as large, where that leaves half of the free memory; else it rounds
        X anew for each evaluation, which moves 10 bytes an entry of X where float32 moves 8.
    label_smoothing : float in [0, 1], default 0.0
        Share s of each row's target that is spread evenly over the C classes: a label y has the probability
        1 - s + s / C, every other class s / C (Szegedy et al., 2016, doi:10.1109/CVPR.2016.308).
    loss : {"cross_entropy", "gce", "sce", "focal"} or an instance of a loss, default "cross_entropy"
        What a row costs, in place of cross-entropy. Generalised cross-entropy ("gce") and symmetric cross-entropy
        ("sce") bear wrong labels better; a focal loss counts rows less that are classified well. Instances have
        parameters: GeneralizedCrossEntropy(q=0.5), SymmetricCrossEntropy, Focal. These losses are not convex: the
        fit starts from the optimum of cross-entropy, and ends near a local minimum, of which `estimated_gap_` tells the
        distance. The best C is larger than that of cross-entropy.
    callbacks : sequence of callables, default ()
        Each is called with a solvers.State after each step (or epoch). If one returns a true result, the fit ends. The
        arrays of a State stay in memory as long as it is kept; its `params` are in the solver's own coordinates. Model
        files hold no callbacks.

    Attributes
    ----------
    coef_ : array of shape (n_classes, n_features), or (1, n_features) for two classes
    intercept_ : array of shape (n_classes,) or (1,); zeros without `fit_intercept`
        Both in the library, on the device and in the dtype of the X that was fitted.
    classes_ : numpy.ndarray of shape (n_classes,)
    n_features_in_ : int
    feature_names_in_ : numpy.ndarray of str, where X had names
    n_iter_ : numpy.ndarray of shape (1,)
        Steps taken; epochs for the stochastic solvers.
    device_ : str
        Where the model was fitted, or has been moved by `to`; "cpu" once it has been unpickled.
    objective_, gradient_norm_ : float
        Mean objective, and the Euclidean norm of its gradient, at the end.
    estimated_gap_ : float
        How far the mean objective is estimated to be above its minimum; infinite where that is unknown, and NaN for
        the stochastic solvers.
    converged_ : bool
    status_ : solvers.Status
        Why the fit ended, a str: "converged", "max_iter", "stopped" (by a callback), "interrupted", "stalled" (no step
        lowers the objective further in this precision), "diverged" or "separated" (without a penalty there is no
        minimum).

    Notes
    -----
    X may be an array of NumPy, CuPy, torch or another array API library, a pandas or polars frame, or a list.
    Predictions come back in the library and on the device of what is predicted, wherever the model was fitted;
    no option of scikit-learn and no environment variable is needed. Labels that are not numbers come back
    in NumPy. A pickle holds NumPy arrays only.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> SoftmaxClassifier(device="cpu").fit(X, y).predict(X[:2])
    array([0, 0])
    """

    def __init__(
        self,
        *,
        C: float = 1.0,
        tol: float = 1e-4,
        fit_intercept: bool = True,
        class_weight: dict[Any, float] | str | None = None,
        max_iter: int = 1000,
        warm_start: bool = False,
        random_state: int | np.random.Generator | None = None,
        verbose: int = 0,
        solver: str | Optimizer = "auto",
        device: str = "auto",
        dtype: str | None = None,
        workers: int | None = None,
        max_memory: int | None = None,
        precision: str = "float32",
        label_smoothing: float = 0.0,
        loss: str | Loss = "cross_entropy",
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self.C = C
        self.tol = tol
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.max_iter = max_iter
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.solver = solver
        self.device = device
        self.dtype = dtype
        self.workers = workers
        self.max_memory = max_memory
        self.precision = precision
        self.label_smoothing = label_smoothing
        self.loss = loss
        self.callbacks = callbacks

    @_unchanged_on_failure
    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, observe: Callback | None = None) -> Self:
        """Fit the model.

        Parameters
        ----------
        X : array, frame or list of shape (n_samples, n_features), finite
        y : array, frame or list of shape (n_samples,)
            Class labels: integers, booleans or text, of NumPy, pandas (nullable and categorical too), polars, torch or
            Python. Labels that differ in `y` are classes that differ, and `predict` returns them as they are in `y`.
            Or probabilities, an array of floating numbers or a frame of shape (n_samples, n_classes), each row of which
            sums to 1. The classes are then 0, 1, ..., or the names of the frame's columns.
        sample_weight : array of shape (n_samples,), or a number, optional
            Not negative, not all zero. Only C times the weights counts, so that each may have any size. Rows of weight
            0 do not count, and may hold NaN or infinity.
        observe : callable, optional
            One more callback. Deprecated: pass SoftmaxClassifier(callbacks=[...]).

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            For parameters out of their range and data that cannot be fitted.
        DeviceUnavailableError
            When `device` cannot be used.
        KeyboardInterrupt
            By Ctrl-C before the first point. Whatever is raised leaves the estimator as it was before the fit.

        Warns
        -----
        ConvergenceWarning
            When the fit ends before `tol` is met, by `max_iter`, by the limits of the precision, or by Ctrl-C,
            after which the model is usable as it is.
        FutureWarning
            When `observe` is passed.
        """
        self._check_parameters()
        callbacks = [*_printing(self.verbose), *self.callbacks]
        if observe is not None:
            if not callable(observe):
                raise TypeError(f"`observe` must be callable, got {describe(observe)}; pass a function of an Iterate.")
            warnings.warn(
                "`observe` is deprecated; pass SoftmaxClassifier(callbacks=[...]), which calls the same functions.",
                FutureWarning,
                stacklevel=3,
            )
            callbacks.append(observe)
        select_backend(self.device, small=True)  # raises if it cannot be used
        X = checked_features(self, X, None, y, reset=True, finite=False)
        classes, targets = encoded_targets(y)
        check_length(targets, "y", X.shape[0], "X")
        small = self.precision == "float32" and small_for_gpu(math.prod(X.shape) * len(classes), LAUNCHES)
        backend = select_backend(self.device, like=X, small=small)
        weight, exponent = row_weights(sample_weight, self.class_weight, classes, targets)
        check_finite(namespace(X=X), X, "X", weight)
        strength = penalty_strength(self.C, weight, exponent)
        home = select_backend("cpu") if is_numpy(X) else backend_of(X)
        with home.context():
            if not weight.all():  # rows of weight 0 do not count, whatever they hold
                rows = np.flatnonzero(weight)
                X = home.xp.take(X, home.asarray(rows), axis=0)
                targets, weight = targets[rows], weight[rows]
            equal = bool((weight == weight[0]).all())
            with BLAS_ON_ONE_THREAD:  # its threads go on spinning after each product, beside those of the solve
                where = coordinates(X, strength, self.fit_intercept)
            dtype = self._dtype_name() or dtype_name(X.dtype)
            # Of features far from zero, float32 holds neither the intercept nor, without one, the logits. Of
            # tiny features, it does not hold the coefficients.
            wide = where.far or where.unit is not None
            stored = dtype_name(accumulation_dtype(home.xp, home.device)) if wide else dtype
            dtype = dtype if self.fit_intercept else stored
            given, X = X, where.applied(X, dtype)
            if X is not given:
                check_finite(home.xp, X, "X")  # finite in float64 is not finite in float32
        with backend.context():
            X_device = backend.asarray(X)
            self._check_precision(backend, X_device)
            row_weight = None if equal else backend.asarray(weight / weight.mean(), dtype_name(X_device.dtype))
            objective = LinearObjective(
                DenseRows(X_device, row_weight, self.workers, backend),
                backend.asarray(targets, dtype_name(X_device.dtype) if targets.ndim == 2 else None),
                len(classes),
                Penalty(strength),
                self.fit_intercept,
                RowPass(checked_loss(self.loss), float(self.label_smoothing)),
            )
            start = self._start(objective, classes, where)
            # On a GPU the threads of the host are free for BLAS.
            threads = objective.rows.workspace if backend.is_host else nullcontext()
            # Trial steps may overflow; the line search backtracks, so NumPy's warning is silenced.
            with threads, np.errstate(over="ignore", invalid="ignore"):
                known = self.__dict__.pop("_class_blocks", None)
                fitting = Fitting(
                    self.solver,
                    float(self.tol),
                    self.max_iter,
                    self.precision,
                    self.random_state,
                    self.max_memory,
                    known if self.warm_start else None,
                )
                solution = fitting.minimum(objective, start, callbacks)
                if self.warm_start:
                    self._class_blocks = fitting.blocks
            coef, intercept = objective.split(solution.params)
            coef = to_numpy(coef)
            coef, intercept = where.features(coef, np.zeros(len(coef)) if intercept is None else to_numpy(intercept))
            if len(coef) > 1 and self.fit_intercept:
                intercept = intercept - intercept.mean()  # a shift of all classes changes nothing
            self.coef_ = home.asarray(coef, stored)
            self.intercept_ = home.asarray(intercept, stored)
        self.classes_ = classes
        self.n_iter_ = np.array([solution.n_iter], dtype=np.int32)
        self.device_ = backend.name
        self._host_device = backend.name if is_numpy(X) else "cpu"  # where predictions of host data are computed
        self.objective_ = solution.objective
        self.gradient_norm_ = solution.gradient_norm
        self.estimated_gap_ = solution.estimated_gap
        self.converged_ = solution.converged
        self.status_ = solution.status
        if not solution.converged:
            warnings.warn(
                f"SoftmaxClassifier has not converged: {solution.message}; the objective is {solution.objective:.6g}, "
                f"{_distance(solution, checked_loss(self.loss).convex)}.{self._remedy(solution, dtype)}",
                ConvergenceWarning,
                stacklevel=3,
            )
        return self

    def decision_function(self, X: Any) -> Array:
        """Return the logits of X.

        Parameters
        ----------
        X : array, frame or list of shape (n_samples, n_features), finite
            Of any library, wherever the model was fitted.

        Returns
        -------
        array of shape (n_samples, n_classes), or for two classes (n_samples,): the logit of the second
            Where X is, in its dtype.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        TypeError, ValueError
            For an X that is not numeric, not finite, or has other features than that of the fit.
        """
        return self._by_rows(X, lambda xp, logits: logits[:, 0] if logits.shape[1] == 1 else logits)

    def predict(self, X: Any) -> Array:
        """Return the most probable label of each row.

        Parameters
        ----------
        X : array, frame or list of shape (n_samples, n_features), finite
            Of any library, wherever the model was fitted.

        Returns
        -------
        array of shape (n_samples,)
            Where X is. Labels that its library cannot hold, such as strings, come back in NumPy.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        TypeError, ValueError
            For an X that is not numeric, not finite, or has other features than that of the fit.
        """
        index = self._by_rows(X, lambda xp, logits: xp.argmax(_two_columns(xp, logits), axis=1))
        if is_numpy(index) or self.classes_.dtype.kind not in "biuf":
            return self.classes_[to_numpy(index)]
        home = backend_of(index)
        with home.context():
            dtype = {"b": "bool", "f": accumulation_dtype(home.xp, home.device)}.get(self.classes_.dtype.kind, "int64")
            if self.classes_.astype(dtype_name(dtype)).tolist() != self.classes_.tolist():  # rounded, or beyond int64
                return self.classes_[to_numpy(index)]
            return home.xp.take(home.asarray(self.classes_, dtype), index, axis=0)

    def predict_proba(self, X: Any) -> Array:
        """Return the probability of each class.

        Parameters
        ----------
        X : array, frame or list of shape (n_samples, n_features), finite
            Of any library, wherever the model was fitted.

        Returns
        -------
        array of shape (n_samples, n_classes)
            Where X is, in its dtype; the columns are in the order of `classes_`.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        TypeError, ValueError
            For an X that is not numeric, not finite, or has other features than that of the fit.
        """
        return self._by_rows(X, lambda xp, logits: kernels_for(xp, logits.dtype).softmax(_two_columns(xp, logits), 1))

    def predict_log_proba(self, X: Any) -> Array:
        """Return the logarithm of the probability of each class.

        Computed from the logits: finite where the probability itself underflows.

        Parameters
        ----------
        X : array, frame or list of shape (n_samples, n_features), finite
            Of any library, wherever the model was fitted.

        Returns
        -------
        array of shape (n_samples, n_classes)
            Where X is, in its dtype; the columns are in the order of `classes_`.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        TypeError, ValueError
            For an X that is not numeric, not finite, or has other features than that of the fit.
        """
        return self._by_rows(
            X, lambda xp, logits: kernels_for(xp, logits.dtype).log_softmax(_two_columns(xp, logits), 1)
        )

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the accuracy of `predict` on X.

        Parameters
        ----------
        X : array, frame or list of shape (n_samples, n_features), finite
            Of any library, wherever the model was fitted.
        y : array or list of shape (n_samples,)
            The true labels.
        sample_weight : array of shape (n_samples,), optional

        Returns
        -------
        float in [0, 1]

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        TypeError, ValueError
            For an X that is not numeric, not finite, or has other features than that of the fit.
        """
        predicted = to_numpy(self.predict(X))
        weight = checked_weights(sample_weight, len(predicted))
        try:
            y = label_array(y)
            check_length(y, "y", len(predicted), "X")
            return float(accuracy_score(y, predicted, sample_weight=weight / weight.max()))
        except (TypeError, ValueError) as error:
            if str(error).startswith("`y`"):
                raise
            text = str(error).strip().splitlines()[0].rstrip(".")
            raise ValueError(
                f"`y` must be one class label a row, like those of the fit: {text}; pass the labels as fit takes them."
            ) from error

    def to(self, device: str) -> Self:
        """Move the fitted model to a device.

        Its coefficients become arrays there (NumPy or CuPy), and predictions of host data are computed there.

        Parameters
        ----------
        device : {"auto", "cpu", "cuda", "cuda:<index>"}

        Returns
        -------
        self

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        DeviceUnavailableError
            When the device cannot be used; the model stays where it is.
        """
        coef, intercept = self._coefficients()
        backend = select_backend(device)
        self.coef_, self.intercept_ = backend.asarray(coef), backend.asarray(intercept)
        self.device_ = self._host_device = backend.name
        return self

    def save(self, path: str | PathLike[str]) -> None:
        """Write the fitted model to a file; see `softmax_xp.save`."""
        if type(self) is not SoftmaxClassifier:
            raise not_a_model(self)
        write(path, type(self).__name__, *classifier_parts(self))

    @classmethod
    def load(cls, path: str | PathLike[str], device: str = "auto") -> SoftmaxClassifier:
        """Read a model that `save` wrote; see `softmax_xp.load`."""
        backend = select_backend(device)
        with opened(path) as (fields, arrays):
            model = loaded(SoftmaxClassifier, fields, arrays, backend)
        if not isinstance(model, cls):
            raise ValueError(f"{path} holds a {type(model).__name__}; read it with softmax_xp.load.")
        return model

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        state.pop("_class_blocks", None)  # large, and made again where it is missed
        if "coef_" in state:  # what is read back elsewhere must not need this device
            state.update({name: to_numpy(x) for name, x in state.items() if is_array(x)})
            state["device_"] = state["_host_device"] = "cpu"
        return state

    def _check_parameters(self) -> None:
        check_real(self.C, "C", low=0.0, include_low=False, remedy="choose a value such as 1.0; inf means no penalty")
        check_real(
            self.tol,
            "tol",
            low=0.0,
            include_low=False,
            high=math.inf,
            include_high=False,
            remedy="choose a value such as 1e-4",
        )
        check_integer(self.max_iter, "max_iter", low=1, high=2**31 - 1, remedy="choose a value such as 1000")
        verbose = int(self.verbose) if isinstance(self.verbose, bool) else self.verbose
        check_integer(verbose, "verbose", low=0, remedy="choose 0, 1 or 2")
        if isinstance(self.solver, str | type) or not hasattr(self.solver, "step"):
            check_option(self.solver, "solver", SOLVERS)
        check_bool(self.fit_intercept, "fit_intercept")
        check_bool(self.warm_start, "warm_start")
        check_random_state(self.random_state)
        check_callbacks(self.callbacks)
        if self.workers is not None:
            check_integer(self.workers, "workers", low=1, remedy="choose a value such as 4, or None for all cores")
        if self.max_memory is not None:
            remedy = "choose a number of bytes such as 2**30, or None"
            check_integer(self.max_memory, "max_memory", low=1, remedy=remedy)
        check_option(self.precision, "precision", PRECISIONS)
        remedy = "choose a value such as 0.1, or 0.0 for none"
        check_real(self.label_smoothing, "label_smoothing", low=0.0, high=1.0, remedy=remedy)
        checked_loss(self.loss)
        if self.dtype is not None:
            name = self.dtype if isinstance(self.dtype, int) else self._dtype_name()
            check_option(name, "dtype", ("float32", "float64"))
        if self.class_weight is not None and not isinstance(self.class_weight, dict):
            check_option(self.class_weight, "class_weight", ("balanced",))

    def _check_precision(self, backend: Backend, X: Array) -> None:
        """Raise ValueError unless products with X can be made in `precision`."""
        offered = backend.kernels(X.dtype).PRECISIONS if dtype_name(X.dtype) == "float32" else PRECISIONS[:1]
        if self.precision not in offered:
            raise ValueError(
                f"`precision`={self.precision!r} is for float32 data on a CUDA device, got {dtype_name(X.dtype)} on "
                f"{backend.name}; choose precision='float32', or device='cuda' and dtype='float32'."
            )

    def _dtype_name(self) -> str | None:
        """Return `dtype` by its name, which is also taken as the dtype itself of any library."""
        return self.dtype if self.dtype is None or isinstance(self.dtype, str) else dtype_name(self.dtype)

    def _start(self, objective: LinearObjective, classes: np.ndarray, where: Coordinates) -> Array:
        """Return the parameters to start from: zeros, or those of the last fit.

        They are kept in the widest dtype of the device, so that steps smaller than the rounding of float32 data
        are not lost.
        """
        backend = objective.backend
        xp, dtype = backend.xp, accumulation_dtype(backend.xp, backend.device)
        shape = objective.coef_shape[0], self.n_features_in_
        last = getattr(self, "coef_", None) if self.warm_start else None
        if last is None or tuple(last.shape) != shape or not np.array_equal(self.classes_, classes):
            return xp.zeros(objective.n_params, dtype=dtype, device=backend.device)
        coef, intercept = (to_numpy(x).astype(np.float64) for x in (last, self.intercept_))
        if len(coef) > 1:
            coef = coef - coef.mean(axis=0)  # where the optimum is; a shift of all classes changes nothing else
        coef, intercept = where.inverse(coef, intercept)
        return backend.asarray(np.concatenate([coef.ravel(), intercept if self.fit_intercept else []]), dtype)

    def _remedy(self, solution: State, dtype: str) -> str:
        """Return what helps a fit that has not converged, as a sentence after a space; nothing where it was ended."""
        if solution.status is Status.SEPARATED:
            return " Choose a finite C."
        if not math.isfinite(solution.objective):
            return " Scale the features to about 1."
        if solution.status in (Status.STOPPED, Status.INTERRUPTED):
            return ""
        if math.isnan(solution.estimated_gap):
            return f" Raise max_iter or tol={float(self.tol):g}; solver='auto' finds the optimum."
        if solution.status is Status.MAX_ITER:
            return f" Raise max_iter or tol={float(self.tol):g}, or standardise the features."
        return f" Raise tol={float(self.tol):g}{', or fit in float64' if dtype == 'float32' else ''}."

    def _coefficients(self) -> tuple[Array, Array]:
        """Return `coef_` (K, D) and `intercept_` (K,), which may have been set by hand.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Without one of `coef_`, `intercept_` and `classes_`.
        TypeError, ValueError
            Where they are not such arrays, with the name of the attribute.
        """
        check_is_fitted(self, ["coef_", "intercept_", "classes_"])
        coef, intercept, classes = self.coef_, self.intercept_, self.classes_
        for name, value in (("coef_", coef), ("classes_", classes)):
            if not is_array(value):
                raise TypeError(f"`{name}` must be an array, got {describe(value)}; pass numpy.asarray of it.")
        check_rank(classes, "classes_", 1, "(n_classes,)")
        check_rank(coef, "coef_", 2, "(n_classes, n_features), or (1, n_features) for two classes")
        n_classes, n_rows = classes.shape[0], coef.shape[0]
        if n_classes < 2 or (n_rows != n_classes and (n_rows, n_classes) != (1, 2)):
            raise ValueError(
                f"`coef_` must have a row for each of at least two classes in `classes_`, or one row for two, got "
                f"{n_rows} rows and {n_classes} classes; set both."
            )
        xp = namespace(coef_=coef)
        with device_context(device_of(coef)):
            if not is_floating(xp, coef.dtype):
                if not xp.isdtype(coef.dtype, ("integral", "bool")):
                    raise TypeError(f"`coef_` must have a real dtype, got {dtype_name(coef.dtype)}; convert it first.")
                coef = xp.astype(coef, accumulation_dtype(xp, device_of(coef)))
            # scikit-learn sets a number where there is no `fit_intercept`.
            if not is_array(intercept) or intercept.ndim == 0:
                check_real(intercept, "intercept_", remedy="set one for each row of `coef_`, or 0.0")
                intercept = xp.full((n_rows,), float(intercept), dtype=coef.dtype, device=device_of(coef))
        if tuple(intercept.shape) != (n_rows,):
            raise ValueError(
                f"`intercept_` must be a number or have shape ({n_rows},), one for each row of `coef_`, got shape "
                f"{tuple(intercept.shape)}; set both."
            )
        return coef, intercept

    def _of_features(self, n_features: int) -> BaseEstimator:
        """Return an estimator that knows the features of `coef_`: this one, unless `coef_` was set since the fit."""
        names = getattr(self, "feature_names_in_", None)
        if getattr(self, "n_features_in_", None) == n_features and (names is None or len(names) == n_features):
            return self
        known = SoftmaxClassifier()
        known.n_features_in_ = n_features
        return known

    def _by_rows(self, X: Any, function: Callable[[Namespace, Array], Array]) -> Array:
        """Return `function` of the logits (m, K), block by block of rows, where X is."""
        coef, intercept = self._coefficients()
        X = checked_features(self._of_features(coef.shape[1]), X, None, reset=False)
        host = getattr(self, "_host_device", self.device)  # the latter where the attributes were set by hand
        backend = select_backend(host, like=X) if is_numpy(X) else backend_of(X)
        home = backend_of(X)
        out: Array = None
        with backend.context():
            returned = self._dtype_name() or dtype_name(X.dtype)
            dtype = "float64" if _needs_float64(coef, intercept) else returned
            coef, intercept = backend.asarray(coef, dtype), backend.asarray(intercept, dtype)
            for rows in row_blocks(X.shape[0], len(self.classes_) * 8, block_bytes(backend.device)):
                with np.errstate(over="ignore", invalid="ignore"):
                    logits = backend.asarray(X[rows, :], dtype) @ coef.T + intercept  # (m, K)
                    logits = backend.asarray(logits, returned)
                if not all_finite(backend.xp, logits):
                    for name in ("coef_", "intercept_"):
                        if not all_finite(backend.xp, backend.asarray(getattr(self, name))):
                            raise ValueError(f"`{name}` must be finite, got NaN or infinity; set it again, or fit.")
                    raise ValueError(
                        f"`X` must have logits that {returned} can hold, got an overflow in rows {rows.start} to "
                        f"{rows.stop - 1}; scale such rows, or pass float64."
                    )
                part = home.asarray(function(backend.xp, logits))
                if out is None:
                    shape = (X.shape[0], *part.shape[1:])
                    out = home.xp.empty(shape, dtype=part.dtype, device=home.device)
                out[rows, ...] = part
        return out


def _distance(solution: State, convex: bool) -> str:
    """Return in words how far from the optimum a solve has ended: where it is not convex, from a local one."""
    minimum = "its minimum" if convex else "a local minimum"
    norm = f"the gradient's norm {solution.gradient_norm:.1e}"
    if math.isnan(solution.estimated_gap) or solution.status is Status.SEPARATED:
        return norm
    gap, value = solution.estimated_gap, abs(solution.objective)
    if math.isinf(gap):
        return f"how far above {minimum} is unknown, and {norm}"
    share = f" ({100 * gap / value:.2g}% of it)" if value else ""
    return f"an estimated {gap:.1e}{share} above {minimum}, and {norm}"


def _needs_float64(coef: Array, intercept: Array) -> bool:
    """Return whether float32 might lose the logits of features far from zero, of a model that is float64.

    Their parts cancel with a large intercept, or with each other where there is none. See `coordinates.FAR`.
    """
    largest = float(np.abs(to_numpy(intercept)).max())
    return dtype_name(coef.dtype) == "float64" and (largest > FAR or largest == 0.0)


def _two_columns(xp: Namespace, logits: Array) -> Array:
    """Return the logits of both classes where only that of the second is given, class 0 having the logit 0."""
    return logits if logits.shape[1] > 1 else xp.concat([xp.zeros_like(logits), logits], axis=1)


def _printing(verbose: int) -> list[Callback]:
    """Return the callbacks that print the progress: none, or one for every 10 steps or for each."""
    every = 10 if int(verbose) == 1 else 1

    def printed(state: State) -> None:
        if state.n_iter % every == 0:
            print(
                f"iteration {state.n_iter}: objective {state.objective:.6f}, "
                f"gradient norm {state.gradient_norm:.2e}, estimated gap {state.estimated_gap:.1e}",
                flush=True,
            )

    return [printed] if verbose else []
