"""Factors of a parameter of all experts of a layer, converted to factors of each expert's tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from weightspace.checkpoints.name_maps.expert_layout import PARTS
from weightspace.errors import CheckpointError
from weightspace.lora.adapter import Adapter, Factors
from weightspace.lora.fused_experts import Part


def spread(adapter: Adapter, find: Callable[[str, tuple[int, ...]], list[str]], source: str) -> dict[str, Factors]:
    """Convert factors of parameters to factors of the experts' tensors that are parts of them.

    Args:
        adapter: with factors of parameters.
        find: maps the name and shape of a tensor to its candidates in the model's files.
        source: the source as given by the user, for errors.

    Raises:
        CheckpointError: the model has no separate experts, or others than the adapter.
    """
    factors: dict[str, Factors] = {}
    for parameter, own in adapter.fused.items():
        container, _, name = parameter.rpartition(".")
        rows, columns = own.shape[0], own.shape[1]
        count = adapter.contents.tensors[own.names["A"]].shape[0] // own.rank
        for parts in PARTS[name]:
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
