"""What a provider computes of each row, as a value: it can be compared, pickled and sent to another process."""

from __future__ import annotations

from dataclasses import dataclass

from softmax_xp.losses import CROSS_ENTROPY, CrossEntropy, Loss

# Precision of the factors of matrix products: float32, or rounded to 10 (tf32) or 7 (bfloat16) bits of fraction. Sums
# are float32 in all three. For data in other dtypes there is only the first, and it means the dtype of the data.
PRECISIONS: tuple[str, ...] = ("float32", "tf32", "bfloat16")


@dataclass(frozen=True)
class RowPass:
    """The loss of a row, and how it is computed.

    Attributes
    ----------
    loss : Loss
    smoothing : float in [0, 1]
        Share of each target that is spread evenly over the classes (Szegedy et al., 2016, doi:10.1109/CVPR.2016.308).
    precision : str
        Of the factors of matrix products with X, one of the provider's PRECISIONS.
    """

    loss: Loss = CROSS_ENTROPY
    smoothing: float = 0.0
    precision: str = "float32"

    @property
    def is_cross_entropy(self) -> bool:
        """Whether the loss is cross-entropy: its effective targets are the targets."""
        return isinstance(self.loss, CrossEntropy)


PLAIN = RowPass()
