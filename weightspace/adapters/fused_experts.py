"""Factors of the parameter that transformers 5 puts all experts of a layer into, as factors of the single experts.

PEFT stacks them: ``A`` of ``(experts · rank, in)``, an expert's rows after each other, and ``B`` of ``(out, rank ·
experts)``, whose columns go through the experts first. The first half of the rows of ``gate_up_proj`` is the gate's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from weightspace.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from weightspace.adapters.adapter import Adapter, Factors
    from weightspace.adapters.configuration import Configuration

#: The parameters of a layer's experts, in their order there -> what files call its parts, one way or the other.
_PARTS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "gate_up_proj": (("w1", "w3"), ("gate_proj", "up_proj")),
    "down_proj": (("w2",), ("down_proj",)),
}

#: The names of these parameters.
FUSED = tuple(_PARTS)


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
    names = [f"{inner}.{name}" for name in _PARTS]
    reached = [name for name in names if any(f".{name}".endswith(f".{own}") for own in configuration.parameters)]
    depth = module.count(".base_layer") - inner.count(".base_layer")
    return reached[-1 - depth] if depth < len(reached) else None


def spread(adapter: Adapter, find: Callable[[str, tuple[int, ...]], list[str]], source: str) -> dict[str, Factors]:
    """Return the factors of single experts' tensors for those of the parameters that they are parts of.

    Args:
        adapter: with factors of parameters.
        find: takes the name of a tensor and its shape, and returns what it may be in the model's files.
        source: what the user wrote, for errors.

    Raises:
        CheckpointError: the model keeps no single experts, or others than the adapter has.
    """
    factors: dict[str, Factors] = {}
    for parameter, own in adapter.fused.items():
        container, _, name = parameter.rpartition(".")
        rows, columns = own.shape[0], own.shape[1]
        count = adapter.contents.tensors[own.a_name].shape[0] // own.rank
        for parts in _PARTS[name]:
            shape = (rows // len(parts), columns)
            if not find(f"{container}.{count - 1}.{parts[0]}.weight", shape):
                continue
            wanted = [(expert, place, part) for expert in range(count) for place, part in enumerate(parts)]
            found = [find(f"{container}.{expert}.{part}.weight", shape) for expert, _, part in wanted]
            more = find(f"{container}.{count}.{parts[0]}.weight", shape)
            if rows % len(parts) == 0 and not more and all(len(names) == 1 for names in found):
                for (expert, place, _), (tensor,) in zip(wanted, found, strict=True):
                    part = Part(expert, count, place * shape[0], (place + 1) * shape[0])
                    factors[tensor] = replace(own, shape=shape, part=part)
                break
        else:
            raise CheckpointError(
                f"{source}: {adapter.path} changes {parameter!r}, the parameter of {count} experts; expected a model "
                "whose files hold each of them. Merge it into its model with PEFT first."
            )
    return factors
