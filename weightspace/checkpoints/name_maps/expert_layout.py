"""The experts of a layer in two layouts: a tensor for each expert's matrix, and stacked tensors of all experts.

transformers 5 computes with stacked experts, such as ``gate_up_proj`` of shape ``(experts, 2 · units, width)``, the
gate's rows first, and ``down_proj`` of shape ``(experts, width, units)``, but its files, like those of earlier versions
and of most models on the Hub, hold one tensor for each matrix of each expert. Only names and layout differ, no values;
the built-in name maps of experts say how.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightspace.checkpoints.metadata import AssembledTensor, CheckpointMetadata, TensorInfo
from weightspace.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from weightspace.checkpoints.name_maps.name_map import NameMap
    from weightspace.checkpoints.state_dict import StateDict

#: Stacked tensor of a layer's experts -> names of its parts in files, in order, in either convention.
PARTS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "gate_up_proj": (("w1", "w3"), ("gate_proj", "up_proj")),
    "down_proj": (("w2",), ("down_proj",)),
}

#: First word of the names of the built-in maps of experts, and their side with stacked tensors.
_MAPS, _FUSED = "experts", "fused"


@dataclass(frozen=True)
class ExpertLayout:
    """The names of a checkpoint's experts in files and in the network.

    Attributes:
        stacks: stacked tensor of the network -> the tensors of the checkpoint that it is made of.
        parts: tensor of the checkpoint -> its elements in the stacked one.
        shapes: name -> shape, of all of these.
        renamed: other tensor of the network -> its name in the checkpoint.
    """

    stacks: Mapping[str, AssembledTensor] = field(default_factory=dict)
    parts: Mapping[str, AssembledTensor] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)

    def stacked(self, state: StateDict, *, consume: bool = False) -> StateDict:
        """Return a checkpoint in the network's layout; tensors other than experts are the same.

        Args:
            state: the checkpoint.
            consume: remove each expert from ``state`` once it is stacked, so that memory never holds all of them twice.

        Raises:
            CheckpointError: the matrices to be stacked have different dtypes.
        """
        if not self.stacks:
            return state
        names = {own: name for name, own in self.renamed.items()}
        result = {names.get(name, name): tensor for name, tensor in state.items() if name not in self.parts}
        for name, stack in self.stacks.items():
            sources = stack.sources
            if len({state[part].dtype for part in sources}) > 1:
                raise CheckpointError(
                    f"The experts {sources[0]!r} … {sources[-1]!r} have different dtypes; expected one."
                )
            result[name] = _assembled(stack, self.shapes[name], state)
            for part in sources if consume else ():
                del state[part]
        return result

    def separate(self, state: StateDict) -> StateDict:
        """Return a checkpoint in the network's layout in that of the files; the inverse of ``stacked``.

        The separate tensors own their memory.
        """
        if not self.stacks:
            return state
        result: StateDict = {}
        for name, tensor in state.items():
            if (stack := self.stacks.get(name)) is None:
                result[self.renamed.get(name, name)] = tensor
                continue
            for part in stack.sources:
                result[part] = _assembled(self.parts[part], self.shapes[part], state)
        return result


def expert_layout(shapes: Mapping[str, tuple[int, ...]], state: Mapping[str, Any]) -> ExpertLayout:
    """Return how a checkpoint names the experts of a network.

    Args:
        shapes: the network's tensors, name -> shape.
        state: the checkpoint; of its tensors, only names and shapes are read.

    Returns:
        A layout that changes nothing if the names are the network's, or if they cannot be recognised.

    Example:
        >>> import torch
        >>> from weightspace.checkpoints.name_maps.expert_layout import expert_layout
        >>> names = [f"mlp.experts.{e}.{part}_proj.weight" for e in range(2) for part in ("gate", "up", "down")]
        >>> state = {name: torch.zeros((4, 3) if "down" in name else (3, 4)) for name in names}
        >>> shapes = {"mlp.experts.gate_up_proj": (2, 6, 4), "mlp.experts.down_proj": (2, 4, 3)}
        >>> layout = expert_layout(shapes, state)
        >>> {name: tuple(tensor.shape) for name, tensor in layout.stacked(state).items()} == shapes
        True
    """
    lacking = {name: tuple(shape) for name, shape in shapes.items() if name not in state}
    if not any(".experts." in name for name in lacking):
        return ExpertLayout()
    own = {name: TensorInfo("F32", tuple(tensor.shape)) for name, tensor in state.items() if name not in shapes}
    layouts = (_by_map(name_map, lacking, own) for name_map in _maps_of_experts())
    return max(layouts, key=lambda layout: len(layout.stacks) + len(layout.renamed), default=ExpertLayout())


def _by_map(name_map: NameMap, lacking: Mapping[str, tuple[int, ...]], own: dict[str, TensorInfo]) -> ExpertLayout:
    """Return the layout by a map; one that changes nothing if the map does not fit.

    Args:
        name_map: the map.
        lacking: tensors of the network that the checkpoint lacks, name -> shape.
        own: tensors of the checkpoint that the network lacks; dtypes are not compared here.
    """
    from weightspace.checkpoints.name_maps.apply import mapped

    fused = name_map.sides.index(_FUSED)
    rules = [(rule, pattern) for rule in name_map.rules for pattern in rule.sides[1 - fused]]
    unmatched, matched = {pattern.text for rule, pattern in rules if rule.each is not None}, {}
    for name, info in own.items():
        for rule, pattern in rules:
            if (values := pattern.match(name)) is None:
                continue
            if (shape := lacking.get(rule.sides[fused][0].name(values))) is None:
                return ExpertLayout()
            if rule.each is None or int(values[rule.each]) < shape[0]:  # else an expert more than the network has
                matched[name] = info
                unmatched.discard(pattern.text)
    if unmatched:
        return ExpertLayout()
    contents = CheckpointMetadata(Path("checkpoint"), (), matched, {}, {})
    try:
        stacked = mapped(contents, name_map, fused, {}).contents
        separate = mapped(stacked, name_map, 1 - fused, {}).contents
    except CheckpointError:
        return ExpertLayout()
    if any(lacking.get(name) != info.shape for name, info in stacked.tensors.items()):
        return ExpertLayout()
    return ExpertLayout(
        stacked.assembled,
        separate.assembled,
        {name: info.shape for one in (stacked, separate) for name, info in one.tensors.items()},
        {name: old for name, old in stacked.renamed.items() if name not in stacked.assembled},
    )


@cache
def _maps_of_experts() -> tuple[NameMap, ...]:
    """Return the built-in maps of experts."""
    from weightspace.checkpoints.name_maps.named_maps import built_in, read_name_maps

    return read_name_maps([name for name in built_in() if name.startswith(_MAPS)])


def _assembled(assembled: AssembledTensor, shape: tuple[int, ...], state: Mapping[str, Tensor]) -> Tensor:
    """Return a tensor made of parts of others."""
    import torch

    first = state[assembled.sources[0]]
    result = torch.empty(shape, dtype=first.dtype, device=first.device)
    for piece in assembled.pieces:
        source = state[piece.source].contiguous()
        source = source.as_strided(piece.shape, piece.source_strides, source.storage_offset() + piece.source_offset)
        result.as_strided(piece.shape, piece.strides, piece.offset).copy_(source)
    return result
