"""Factors of the parameter that transformers 5 puts all experts of a layer into.

PEFT stacks them: ``A`` of ``(experts · rank, in)``, an expert's rows after each other, and ``B`` of ``(out, rank ·
experts)``, whose columns go through the experts first. The first half of the rows of ``gate_up_proj`` is the gate's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from weightspace.lora.config import Configuration

#: The parameters of a layer's experts, in their order there -> the names of its parts in files, in either convention.
PARTS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "gate_up_proj": (("w1", "w3"), ("gate_proj", "up_proj")),
    "down_proj": (("w2",), ("down_proj",)),
}

#: The names of these parameters.
FUSED = tuple(PARTS)


@dataclass(frozen=True)
class Part:
    """What belongs to one expert's tensor in stacked factors.

    Attributes:
        expert: its number.
        experts: how many there are.
        first: the first row of ``B``.
        last: the row after the last one.
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
    """Return the parameter that factors belong to, None if that is the module's weight.

    Args:
        configuration: of the adapter.
        module: as the factors have it; ``base_layer`` at its end says that it lies inside another one's.
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
