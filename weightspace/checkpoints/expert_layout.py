"""The experts of a layer in two layouts: a tensor for each expert's matrix, and stacked tensors of all experts.

transformers 5 computes with stacked experts, ``gate_up_proj`` of shape ``(experts, 2 · units, width)``, the gate's rows
first, and ``down_proj`` of shape ``(experts, width, units)``, but its files, like those of earlier versions and of most
models on the Hub, hold one tensor for each matrix of each expert. Only names and layout differ, no values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from weightspace.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

    from weightspace.checkpoints.state_dict import StateDict

#: Stacked tensor of a layer's experts -> names of its parts in files, in order, in either convention.
PARTS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "gate_up_proj": (("w1", "w3"), ("gate_proj", "up_proj")),
    "down_proj": (("w2",), ("down_proj",)),
}

#: Name of the module with router and experts in the files of Mixtral and its relatives, and in transformers 5.
_RENAMED = (".block_sparse_moe.", ".mlp.")

#: Names of a stacked tensor's parts: a row for each expert.
_Rows: TypeAlias = list[tuple[str, ...]]


@dataclass(frozen=True)
class ExpertLayout:
    """The names of a checkpoint's experts in files and in the network.

    Attributes:
        stacked_names: stacked tensor -> the names of its parts in the checkpoint, a row for each expert.
        renamed: other tensor of the network -> its name in the checkpoint.
    """

    stacked_names: Mapping[str, Sequence[tuple[str, ...]]] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)

    def stacked(self, state: StateDict) -> StateDict:
        """Return a checkpoint in the network's layout; tensors other than experts are the same.

        Raises:
            CheckpointError: the matrices to be stacked have different dtypes.
        """
        import torch

        if not self.stacked_names:
            return state
        parts = {name for rows in self.stacked_names.values() for row in rows for name in row}
        names = {own: name for name, own in self.renamed.items()}
        result = {names.get(name, name): tensor for name, tensor in state.items() if name not in parts}
        for name, rows in self.stacked_names.items():
            if len({state[part].dtype for row in rows for part in row}) > 1:
                raise CheckpointError(
                    f"The experts {rows[0][0]!r} … {rows[-1][-1]!r} have different dtypes; expected one."
                )
            result[name] = torch.stack([torch.cat([state[part] for part in row]) for row in rows])
        return result

    def separate(self, state: StateDict) -> StateDict:
        """Return a checkpoint in the network's layout in that of the files; the inverse of ``stacked``."""
        if not self.stacked_names:
            return state
        result: StateDict = {}
        for name, tensor in state.items():
            if name in self.stacked_names:
                result |= _separated(tensor, self.stacked_names[name])
            else:
                result[self.renamed.get(name, name)] = tensor
        return result


def expert_layout(shapes: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor]) -> ExpertLayout:
    """Return how a checkpoint names the experts of a network.

    Args:
        shapes: the network's tensors, name -> shape.
        state: the checkpoint.

    Returns:
        A layout that changes nothing if the names are the network's, or if they cannot be recognised.

    Example:
        >>> import torch
        >>> from weightspace.checkpoints.expert_layout import expert_layout
        >>> names = [f"mlp.experts.{e}.{part}_proj.weight" for e in range(2) for part in ("gate", "up", "down")]
        >>> state = {name: torch.zeros((4, 3) if "down" in name else (3, 4)) for name in names}
        >>> shapes = {"mlp.experts.gate_up_proj": (2, 6, 4), "mlp.experts.down_proj": (2, 4, 3)}
        >>> layout = expert_layout(shapes, state)
        >>> {name: tuple(tensor.shape) for name, tensor in layout.stacked(state).items()} == shapes
        True
    """
    stacked: dict[str, _Rows] = {}
    renamed: dict[str, str] = {}
    for name, shape in shapes.items():
        if name in state:
            continue
        if rows := _rows(name, shape, state):
            stacked[name] = rows
        elif (other := _in_files(name)) in state:
            renamed[name] = other
        else:
            return ExpertLayout()
    return ExpertLayout(stacked, renamed) if stacked else ExpertLayout()


def _rows(name: str, shape: tuple[int, ...], state: Mapping[str, Tensor]) -> _Rows | None:
    """Return the parts of a stacked tensor in a checkpoint, or None if it does not hold them all."""
    container, _, parameter = name.rpartition(".")
    if parameter not in PARTS or not container.endswith(".experts") or len(shape) != 3:
        return None
    for home in (container, _in_files(f"{container}.").removesuffix(".")):
        for parts in PARTS[parameter]:
            rows = [tuple(f"{home}.{expert}.{part}.weight" for part in parts) for expert in range(shape[0])]
            wanted = (shape[1] // len(parts), shape[2])
            if all(part in state and tuple(state[part].shape) == wanted for row in rows for part in row):
                return rows
    return None


def _in_files(name: str) -> str:
    """Return a name as in the files of Mixtral and its relatives."""
    in_files, in_network = _RENAMED
    return name.replace(in_network, in_files)


def _separated(tensor: Tensor, rows: Sequence[tuple[str, ...]]) -> StateDict:
    """Return the parts of a stacked tensor, which own their memory."""
    result: StateDict = {}
    for expert, row in zip(tensor, rows, strict=True):
        result |= {part: piece.clone() for part, piece in zip(row, expert.chunk(len(row)), strict=True)}
    return result
