"""Factors of the fused parameter of all experts of a layer in transformers 5.

PEFT stacks them: ``A`` of ``(experts · rank, in)``, grouped by expert, and ``B`` of ``(out, rank · experts)``, whose
columns cycle through the experts first. The first half of the rows of ``gate_up_proj`` is the gate's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightspace.checkpoints.name_maps.expert_layout import PARTS

if TYPE_CHECKING:
    from torch import Tensor

    from weightspace.lora.config import Configuration

#: Names of the parameters of all experts.
FUSED = tuple(PARTS)


@dataclass(frozen=True)
class Part:
    """The part of stacked factors that belongs to one expert's tensor.

    Attributes:
        expert: index of the expert.
        experts: number of experts.
        first: first row of ``B``.
        last: row after the last one.
    """

    expert: int
    experts: int
    first: int
    last: int

    def of(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return the factors of the tensor: ``(rank, in)`` and ``(out, rank)``."""
        rank = len(a) // self.experts
        stacked = b.reshape(len(b), rank, self.experts)
        return a.reshape(self.experts, rank, -1)[self.expert], stacked[self.first : self.last, :, self.expert]


def fused_parameter(configuration: Configuration, module: str) -> str | None:
    """Return the parameter that factors belong to, or None if it is the module's weight.

    Args:
        configuration: configuration of the adapter.
        module: module name of the factors; the suffix ``base_layer`` means that it is nested in another's.
    """
    inner = module
    while inner.endswith(".base_layer"):
        inner = inner.removesuffix(".base_layer")
    if inner.rpartition(".")[2] != "experts":
        return None
    names = [f"{inner}.{name}" for name in PARTS]
    reached = [name for name in names if any(f".{name}".endswith(f".{own}") for own in configuration.parameters)]
    depth = module.count(".base_layer") - inner.count(".base_layer")
    return reached[-1 - depth] if depth < len(reached) else None
