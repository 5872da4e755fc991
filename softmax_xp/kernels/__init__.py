"""The table of providers: which module computes the row pass for a library and a dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from softmax_xp.arrays import Array, DType, Namespace, dtype_name
from softmax_xp.kernels.row_pass import PLAIN, PRECISIONS as PRECISIONS, RowPass
from softmax_xp.kernels.workspace import Workspace


class Provider(Protocol):
    """The functions of a provider, a module of this package; `reference` defines what each returns."""

    PRECISIONS: tuple[str, ...]
    """The precisions, of those of `row_pass`, that a RowPass may ask for."""

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
        row_pass: RowPass = PLAIN,
        axis: int = -1,
    ) -> Array:
        """Return the loss of each row."""

    def cross_entropy_with_grad(
        self,
        logits: Array,
        targets: Array,
        weight: Array | None = None,
        row_pass: RowPass = PLAIN,
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
        row_pass: RowPass = PLAIN,
        workspace: Workspace | None = None,
    ) -> tuple[Array, Array, Array | None]:
        """Return loss and gradient of a linear model, summed over the rows of X."""

    def linear_hessian_product(
        self,
        coef: Array,
        intercept: Array | None,
        X: Array,
        targets: Array,
        direction: Array,
        direction_intercept: Array | None,
        weight: Array | None = None,
        row_pass: RowPass = PLAIN,
        workspace: Workspace | None = None,
    ) -> tuple[Array, Array | None]:
        """Return the Hessian of the loss in `linear_sums` times a direction."""


def _reference() -> Provider:
    from softmax_xp.kernels import reference

    return reference


def _host() -> Provider:
    from softmax_xp.kernels import blocked

    return blocked


def _cuda() -> Provider:
    from softmax_xp.kernels import cuda

    return cuda


# (library, dtype) -> provider. All others run `reference`, which uses the array API alone.
PROVIDERS: dict[tuple[str, str], Callable[[], Provider]] = {
    ("numpy", "float32"): _host,
    ("numpy", "float64"): _host,
    ("cupy", "float32"): _cuda,
    ("cupy", "float64"): _cuda,
    ("cupy", "float16"): _cuda,
    ("cupy", "bfloat16"): _cuda,
}


def kernels_for(xp: Namespace, dtype: DType) -> Provider:
    """Return the provider for arrays of namespace `xp` and `dtype`."""
    library = xp.__name__.removeprefix("array_api_compat.")  # "jax.numpy" is another one than "numpy"
    return PROVIDERS.get((library, dtype_name(dtype)), _reference)()
