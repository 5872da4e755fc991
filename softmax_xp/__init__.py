"""Softmax regression to the exact optimum, in plain array code that runs on NumPy or CuPy."""

import importlib as _importlib
import typing as _typing

if _typing.TYPE_CHECKING:
    from softmax_xp.backend import (
        Backend as Backend,
        DeviceInfo as DeviceInfo,
        DeviceUnavailableError as DeviceUnavailableError,
        devices as devices,
        select_backend as select_backend,
    )
    from softmax_xp.estimator import SoftmaxClassifier as SoftmaxClassifier
    from softmax_xp.files.model import ModelFileError as ModelFileError
    from softmax_xp.functional import (
        cross_entropy as cross_entropy,
        cross_entropy_with_grad as cross_entropy_with_grad,
        log_softmax as log_softmax,
        softmax as softmax,
        softmax_loss as softmax_loss,
    )
    from softmax_xp.losses import (
        CrossEntropy as CrossEntropy,
        Focal as Focal,
        GeneralizedCrossEntropy as GeneralizedCrossEntropy,
        SymmetricCrossEntropy as SymmetricCrossEntropy,
    )
    from softmax_xp.models import MLP as MLP, Linear as Linear
    from softmax_xp.persistence import load as load, save as save
    from softmax_xp.solvers import Solution as Solution
    from softmax_xp.solvers.optimizers import SGD as SGD, Adam as Adam, AdamW as AdamW
    from softmax_xp.solvers.schedules import (
        ConstantSchedule as ConstantSchedule,
        CosineSchedule as CosineSchedule,
        StepSchedule as StepSchedule,
    )
    from softmax_xp.trainer import History as History, Progress as Progress, Trainer as Trainer

__version__ = "0.1.0"

# Public name -> the module that defines it, which is imported when the name is first used: importing the package takes
# little longer than importing NumPy, and scikit-learn is imported for the estimator alone.
_HOME = {
    "Backend": "backend",
    "DeviceInfo": "backend",
    "DeviceUnavailableError": "backend",
    "devices": "backend",
    "select_backend": "backend",
    "SoftmaxClassifier": "estimator",
    "cross_entropy": "functional",
    "cross_entropy_with_grad": "functional",
    "log_softmax": "functional",
    "softmax": "functional",
    "softmax_loss": "functional",
    "CrossEntropy": "losses",
    "Focal": "losses",
    "GeneralizedCrossEntropy": "losses",
    "SymmetricCrossEntropy": "losses",
    "Linear": "models",
    "MLP": "models",
    "ModelFileError": "files.model",
    "load": "persistence",
    "save": "persistence",
    "Solution": "solvers",
    "SGD": "solvers.optimizers",
    "Adam": "solvers.optimizers",
    "AdamW": "solvers.optimizers",
    "ConstantSchedule": "solvers.schedules",
    "CosineSchedule": "solvers.schedules",
    "StepSchedule": "solvers.schedules",
    "History": "trainer",
    "Progress": "trainer",
    "Trainer": "trainer",
}
__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> _typing.Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
