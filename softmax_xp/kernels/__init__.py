"""The table of providers: which module computes the row pass for a library and a dtype."""

from __future__ import annotations

from importlib import import_module
from typing import Protocol, cast

from softmax_xp._arrays import Array, DType, Namespace, dtype_name
from softmax_xp.kernels.workspace import Workspace

# (library, dtype) -> module of this package. All others run `reference`, which uses the array API alone.
PROVIDERS = {
    ("numpy", "float32"): "blocked",
    ("numpy", "float64"): "blocked",
    ("cupy", "float32"): "cuda",
    ("cupy", "float64"): "cuda",
    ("cupy", "float16"): "cuda",
    ("cupy", "bfloat16"): "cuda",
}

# Precision of the factors of matrix products: float32, or rounded to 10 (tf32) or 7 (bfloat16) bits of fraction. Sums
# are float32 in all three. For data in other dtypes there is only the first, and it means the dtype of the data.
PRECISIONS = ("float32", "tf32", "bfloat16")


class Kernels(Protocol):
    """The functions of a provider; `reference` defines what each returns."""

    PRECISIONS: tuple[str, ...]
    """The precisions, of those of this module, that a workspace may ask for."""

    def matmul(self, a: Array, b: Array) -> Array:
        """Return the matrix product a @ b."""

    def factor(self, X: Array, precision: str) -> Array:
        """Return X (n, D) rounded to a precision, for `linear_sums`; made once for a solve."""

    def softmax(self, logits: Array, axis: int = -1) -> Array:
        """Return the softmax of `logits` along `axis`."""

    def log_softmax(self, logits: Array, axis: int = -1) -> Array:
        """Return the logarithm of the softmax of `logits` along `axis`."""

    def cross_entropy(
        self,
        logits: Array,
        targets: Array,
        weight: Array | None = None,
        smoothing: float = 0.0,
        axis: int = -1,
    ) -> Array:
        """Return the loss of each row."""

    def cross_entropy_with_grad(
        self,
        logits: Array,
        targets: Array,
        weight: Array | None = None,
        smoothing: float = 0.0,
        axis: int = -1,
    ) -> tuple[Array, Array]:
        """Return the loss of each row and its gradient with respect to the logits."""

    def linear_sums(
        self,
        coef: Array,
        intercept: Array | None,
        X: Array,
        targets: Array,
        weight: Array | None = None,
        smoothing: float = 0.0,
        workspace: Workspace | None = None,
    ) -> tuple[Array, Array, Array | None]:
        """Return loss and gradient of a linear model, summed over the rows of X."""

    def linear_hessian_product(
        self,
        coef: Array,
        intercept: Array | None,
        X: Array,
        direction: Array,
        direction_intercept: Array | None,
        weight: Array | None = None,
        workspace: Workspace | None = None,
    ) -> tuple[Array, Array | None]:
        """Return the Hessian of the loss in `linear_sums` times a direction."""


def kernels_for(xp: Namespace, dtype: DType) -> Kernels:
    """Return the provider for arrays of namespace `xp` and `dtype`."""
    library = xp.__name__.removeprefix("array_api_compat.")  # "jax.numpy" is another one than "numpy"
    provider = PROVIDERS.get((library, dtype_name(dtype)), "reference")
    return cast("Kernels", import_module(f"{__name__}.{provider}"))
