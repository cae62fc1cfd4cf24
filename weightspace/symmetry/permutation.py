"""Permutations of hidden units, and their application to tensors.

A permutation ``p`` acts by indexing: ``w'[i] = w[p[i]]``. An inner group has one row for each *resulting* unit of
its outer group: ``w'[i, c] = w[p[i], q[i, c]]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from weightspace.arguments import checked
from weightspace.checkpoints import StateDict, load_checkpoint, load_metadata, save_checkpoint
from weightspace.checkpoints.name_maps.expert_layout import ExpertLayout, expert_layout
from weightspace.errors import CheckpointError, SpecError
from weightspace.reprs import brief
from weightspace.symmetry.pattern import Block, Units, blocks
from weightspace.symmetry.spec import PermutationSpec
from weightspace.symmetry.spec_file import Spec

#: Metadata key of the spec's digest in a file.
_DIGEST = "weightspace_spec_digest"

#: The same in the file of an element of a larger symmetry, with the digest of its symmetry spec.
SYMMETRY_DIGEST = "weightspace_symmetry_digest"


@brief
@dataclass(frozen=True, eq=False)
class Permutation:
    """One permutation for each group of a spec.

    Attributes:
        spec: the spec it belongs to.
        indices: group -> int64 tensor of shape ``(units,)``, or ``(outer units, units)`` for an inner group.

    Raises:
        SpecError: a group is missing or unknown, or its indices aren't a permutation.

    Example:
        >>> import weightspace as ws
        >>> task = ws.load_task("digits-mlp")
        >>> a, b = (ws.train(task, seed, epochs=1) for seed in (0, 1))
        >>> spec = ws.derive_spec(task.network(), task.example_args)
        >>> permutation = ws.Permutation.random(spec, seed=0)
        >>> permutation.compose(permutation.inverse()) == ws.Permutation.identity(spec)
        True
        >>> permutation.save("permutation.safetensors")
        >>> ws.Permutation.load("permutation.safetensors", spec) == permutation
        True
    """

    spec: PermutationSpec
    indices: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if self.indices.keys() != self.spec.groups.keys():
            odd = sorted(self.indices.keys() ^ self.spec.groups.keys())
            raise SpecError(f"Permutation and spec differ in {len(odd)} groups, for example {odd[0]!r}.")
        for group, index in self.indices.items():
            shape = _index_shape(self.spec, group)
            if tuple(index.shape) != shape or index.dtype != torch.int64:
                raise SpecError(
                    f"Group {group!r} needs int64 indices of shape {shape}; found {index.dtype} {tuple(index.shape)}."
                )
            if not torch.equal(index.sort(dim=-1).values, torch.arange(shape[-1]).expand(shape)):
                raise SpecError(f"The indices of group {group!r} are not a permutation of 0 … {shape[-1] - 1}.")

    def __getitem__(self, group: str) -> Tensor:
        """Return the indices of a group."""
        return self.indices[group]

    def __eq__(self, other: object) -> bool:
        """Return whether both permute every unit alike."""
        return (
            isinstance(other, Permutation)
            and self.spec.digest == other.spec.digest
            and all(torch.equal(index, other[group]) for group, index in self.indices.items())
        )

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def identity(cls, spec: PermutationSpec) -> Permutation:
        """Return the permutation that leaves everything in place."""
        shapes = {group: _index_shape(spec, group) for group in spec.groups}
        return cls(
            spec,
            {group: torch.arange(shape[-1]).repeat(*shape[:-1], 1).view(shape) for group, shape in shapes.items()},
        )

    @classmethod
    def random(cls, spec: PermutationSpec, *, seed: int) -> Permutation:
        """Draw a uniformly random permutation of every group, inner groups included.

        Args:
            spec: the spec.
            seed: makes the permutation reproducible.
        """
        generator = torch.Generator().manual_seed(seed)
        return cls(
            spec,
            {
                group: torch.rand(_index_shape(spec, group), generator=generator, dtype=torch.float64).argsort(-1)
                for group in spec.groups
            },
        )

    def inverse(self) -> Permutation:
        """Return the permutation that undoes this one."""
        indices = {group: index.argsort(-1) for group, index in self.indices.items()}
        for inner, outer in self.spec.outer.items():
            indices[inner] = indices[inner][indices[outer]]
        return Permutation(self.spec, indices)

    def compose(self, first: Permutation) -> Permutation:
        """Return the permutation that acts like ``first`` and then like this one.

        ``permute(spec, p.compose(q), state)`` equals ``permute(spec, p, permute(spec, q, state))``.

        Raises:
            SpecError: the two belong to different specs.
        """
        if self.spec.digest != first.spec.digest:
            raise SpecError("The two permutations belong to different specs and cannot be composed.")
        indices = {}
        for group, index in self.indices.items():
            before = first[group]
            outer = self.spec.outer.get(group)
            indices[group] = before[index] if outer is None else before[self[outer]].gather(-1, index)
        return Permutation(self.spec, indices)

    def save(self, path: str | Path) -> None:
        """Write the permutation as .safetensors, with the digest of its spec.

        Raises:
            SpecError: the path has another suffix.
            CheckpointError: the file can't be written.
        """
        check_permutation_path(path)
        save_checkpoint(dict(self.indices), path, metadata={_DIGEST: self.spec.digest})

    @classmethod
    def load(cls, path: str | Path, spec: PermutationSpec) -> Permutation:
        """Read a permutation saved for this spec.

        Raises:
            SpecError: the file was saved for another spec.
        """
        metadata = load_metadata(path)
        if SYMMETRY_DIGEST in metadata:
            raise SpecError(
                f"{path} holds an element of a larger symmetry (with signs or orthogonal maps), but only permutations "
                "can be used here. Element.load reads it, and its apply moves a folded checkpoint."
            )
        digest = metadata.get(_DIGEST)
        if digest != spec.digest:
            if digest is None:
                raise SpecError(
                    f"{path} is not a permutation: it has no digest of a permutation spec. "
                    "Expected a file written by `weightspace match` or `save`."
                )
            raise SpecError(
                f"{path} was made for another spec: found {digest[:12]}…, expected {spec.digest[:12]}…. "
                "Is this the network?"
            )
        return cls(spec, load_checkpoint(path))


def is_permutation(path: str | Path) -> bool:
    """Return whether a file holds a permutation of any spec."""
    return _DIGEST in load_metadata(path)


def check_permutation_path(path: str | Path) -> None:
    """Check that a permutation can be written to a path, before searching for one.

    Raises:
        SpecError: the path has a suffix other than ``.safetensors``.
    """
    if Path(path).suffix != ".safetensors":
        raise SpecError(f"A permutation is a .safetensors file; found {Path(path).name!r}.")


def _index_shape(spec: PermutationSpec, group: str) -> tuple[int, ...]:
    outer = spec.outer.get(group)
    return (spec.groups[group],) if outer is None else (spec.groups[outer], spec.groups[group])


@checked
def permute(spec: PermutationSpec, permutation: Permutation, state: StateDict) -> StateDict:
    """Permute the hidden units of a checkpoint without changing its function.

    Args:
        spec: the architecture's spec.
        permutation: a permutation for that spec.
        state: every tensor of the spec, by name. Experts may be separate, as in files of transformers, where the spec
            has them stacked.

    Returns:
        New tensors with the same names, shapes and dtypes; tensors that shared memory still do.

    Raises:
        SpecError: the permutation belongs to another spec.
        CheckpointError: a tensor is missing, unknown to the spec, or has another shape.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> spec = ws.derive_spec(network, (torch.zeros(1, 4),))
        >>> moved = ws.permute(spec, ws.Permutation.random(spec, seed=0), network.state_dict())
        >>> x = torch.randn(3, 4)
        >>> before = network(x)
        >>> _ = network.load_state_dict(moved)
        >>> torch.allclose(network(x), before, atol=1e-6)  # the same function
        True
    """
    if permutation.spec.digest != spec.digest:
        raise SpecError("The permutation belongs to another spec.")
    layout = experts_for(spec, state)
    state = layout.stacked(state)
    check_fits(spec, state)
    done: dict[tuple[int, tuple[int, ...], tuple[int, ...], str], Tensor] = {}
    result: StateDict = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), str(spec.axes[name]))
        if key not in done or tensor.numel() == 0:
            done[key] = permute_tensor(spec, permutation.indices, name, tensor)
        result[name] = done[key]
    return layout.separate(result)


def experts_for(spec: Spec, state: Mapping[str, Tensor]) -> ExpertLayout:
    """Return how a checkpoint names the experts of a spec's network; wrong arguments are for the caller to refuse."""
    axes = getattr(spec, "axes", {})
    if not isinstance(state, Mapping) or axes.keys() <= state.keys():
        return ExpertLayout()
    return expert_layout({name: spec.shape(name) for name in axes}, state)


def check_fits(spec: Spec, state: Mapping[str, Tensor], label: str = "The checkpoint") -> None:
    """Raise a CheckpointError that names the first tensor in which a checkpoint and a spec differ."""
    check_named_tensors(state, label)
    if missing := [name for name in spec.axes if name not in state]:
        raise CheckpointError(f"{label} lacks {_listing(missing)}, which the spec names. Is this its spec?")
    if unknown := [name for name in state if name not in spec.axes]:
        raise CheckpointError(f"{label} has {_listing(unknown)}, which the spec doesn't name. Is this its spec?")
    for name, tensor in state.items():
        if tuple(tensor.shape) != spec.shape(name):
            raise CheckpointError(
                f"{label} has {name!r} of shape {tuple(tensor.shape)}; the spec expects {spec.shape(name)}. "
                "Is this its spec?"
            )


def check_named_tensors(state: object, label: str) -> None:
    """Raise a CheckpointError unless the state is a mapping from names to tensors."""
    if not isinstance(state, Mapping):
        raise CheckpointError(
            f"{label} is a {type(state).__name__}; expected tensors by name: a module's state_dict(), or the "
            "result of load_checkpoint."
        )


def _listing(names: list[str]) -> str:
    return repr(names[0]) if len(names) == 1 else f"{names[0]!r} and {len(names) - 1} more tensors"


def permute_tensor(spec: PermutationSpec, indices: Mapping[str, Tensor], name: str, tensor: Tensor) -> Tensor:
    """Return a permuted copy of one tensor; groups missing from ``indices`` stay in place."""
    result = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    axes = spec.axes[name]
    for source, target in zip(blocks(tensor, axes, spec.groups), blocks(result, axes, spec.groups), strict=True):
        target.view.copy_(permute_block(source, indices, spec.outer))
    return result


def permute_block(block: Block, indices: Mapping[str, Tensor], outer: Mapping[str, str]) -> Tensor:
    """Return a block with its units permuted."""
    moved = block.view
    groups = [dim.group if isinstance(dim, Units) else None for dim in block.dims]
    places = [(place, group) for place, group in enumerate(groups) if group is not None and group in indices]
    for place, group in places:
        if group not in outer:
            moved = moved.index_select(place, indices[group].to(moved.device))
    for place, group in places:
        if group in outer:
            above = outer_place(groups, place, outer[group])
            index = indices[group].to(moved.device)
            shape = [1] * moved.ndim
            shape[above], shape[place] = index.shape
            index = index if above < place else index.T
            moved = torch.take_along_dim(moved, index.reshape(shape), dim=place)
    return moved


def outer_place(groups: list[str | None], place: int, outer: str) -> int:
    """Return the dimension of a block that selects the row of an inner group: the nearest one to its left.

    Raises:
        SpecError: the block has no dimension of the outer group.
    """
    if outer not in groups:
        raise SpecError(f"A tensor has units of {groups[place]!r}, which are inside {outer!r}, but none of {outer!r}.")
    left = [other for other in range(place) if groups[other] == outer]
    return left[-1] if left else groups.index(outer)
