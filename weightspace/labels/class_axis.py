"""The class axis: moved last for the algorithms, wherever it is in the input, as in logits of images (B, K, H, W)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from weightspace.errors import WeightspaceError
from weightspace.labels.head import FrechetHead

if TYPE_CHECKING:
    from weightspace.labels.decision import Decision


def to_last(values: Any, dim: int) -> Any:
    """Return an array or a tensor with one of its axes moved last, as a view where possible.

    Raises:
        WeightspaceError: there is no such axis.
    """
    if dim == -1:
        return values
    axes = np.ndim(values) if not isinstance(values, Tensor) else values.dim()
    if not isinstance(dim, int) or not -axes <= dim < axes:
        raise WeightspaceError(f"Found dim={dim!r}, but there are {axes} axes; expected {-axes} to {axes - 1}.")
    return values.movedim(dim, -1) if isinstance(values, Tensor) else np.moveaxis(np.asarray(values), dim, -1)


def from_last(values: np.ndarray, dim: int) -> np.ndarray:
    """Return an array with its last axis moved back to the position of the classes."""
    return values if dim == -1 else np.moveaxis(values, -1, dim)


class FrechetHeadAlong(FrechetHead):
    """A head for logits whose classes are not on the last axis: (B, K, H, W) -> positions (B, H, W) with ``dim=1``.

    Attributes:
        dim: axis of the classes, and of the outputs in returned costs.
    """

    def __init__(self, decision: Decision, temperature: float, dim: int) -> None:
        super().__init__(decision, temperature)
        self.dim = dim

    def forward(self, logits: Tensor) -> Tensor:
        """Return positions in ``labels`` of least expected cost, shaped like the logits without ``dim``."""
        return super().forward(to_last(logits, self.dim).contiguous())

    def expected_cost(self, logits: Tensor) -> Tensor:
        """Return the expected costs of the outputs along ``dim``, float64; differentiable."""
        return super().expected_cost(to_last(logits, self.dim)).movedim(-1, self.dim)

    def topk(self, logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the ``k`` least expected costs, ascending along ``dim``, and their positions."""
        costs, found = super().topk(to_last(logits, self.dim), k)
        return costs.movedim(-1, self.dim), found.movedim(-1, self.dim)

    def extra_repr(self) -> str:
        """Return the sizes and the axis for ``print``."""
        return f"{super().extra_repr()}, dim={self.dim}"
