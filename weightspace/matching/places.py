"""Where the units of a group appear in the activations of a network: found by trying, not by names.

The hidden units of a network are permuted, and a tensor that moves along one of its dimensions as the patterns of the
spec say carries those units there. That holds for any module, of torch or of a user, and whatever it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.matching.taps import Recorder, Tap
from weightspace.symmetry import Permutation, PermutationSpec, permute
from weightspace.symmetry.copying import copy_module
from weightspace.symmetry.pattern import Block, Fixed, Pattern, blocks, size_of, units_in
from weightspace.symmetry.permuting import permute_block

#: Relative difference of activations that rounding explains, and that a permutation must exceed.
_ROUNDING = 1e-3
#: Random permutations that are looked through for some that tell all groups apart.
_DRAWS = 100

Forward = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True)
class Place:
    """A tap whose tensor carries units along one dimension.

    Attributes:
        tap: where the tensor is met.
        dim: the dimension.
        pattern: the units along it.
        is_read: whether a module with a matrix takes it in, to combine these units.
    """

    tap: Tap
    dim: int
    pattern: Pattern
    is_read: bool

    def groups(self) -> set[str]:
        """Return the groups whose units appear here."""
        return {units.group for units in units_in(self.pattern)}

    def blocks(self, spec: PermutationSpec, tensor: Tensor) -> list[Block]:
        """Return the parts of a tensor in which every dimension is one group or fixed; the first is the samples."""
        rows = tensor.movedim(self.dim, -1).flatten(0, -2) if tensor.ndim > 1 else tensor[None]
        return list(blocks(rows, (Fixed(len(rows)), self.pattern), spec.groups))


def places_of(spec: PermutationSpec, network: nn.Module, forward: Forward, batch: Any) -> list[Place]:
    """Return the places to look at each group: where layers read its units, or else wherever they appear.

    Args:
        spec: the architecture's spec.
        network: with its weights; not changed.
        forward: runs the network on a batch.
        batch: any.
    """
    before = Recorder(network).run(forward, batch)
    candidates = _candidates(spec, network, before)
    moved: set[Place] = set()
    for permutation in _telling(spec):
        after = Recorder(_permuted(spec, permutation, network), before.keys()).run(forward, batch)
        candidates = [place for place in candidates if _carries(spec, permutation, place, before, after)]
        moved.update(place for place in candidates if not _is_close(before[place.tap], after[place.tap]))
    once: dict[int, Place] = {}
    for place in sorted(candidates, key=lambda place: not place.is_read):  # of taps that meet one tensor, the reader's
        if place in moved:
            once.setdefault(id(before[place.tap]), place)
    return _chosen(spec, list(once.values()))


def _permuted(spec: PermutationSpec, permutation: Permutation, network: nn.Module) -> nn.Module:
    """Return a copy of a network with its hidden units moved."""
    probe = copy_module(network)
    moved = permute(spec, permutation, {name: tensor.detach() for name, tensor in network.state_dict().items()})
    with torch.no_grad():  # in place: load_state_dict may be overridden
        for name, tensor in probe.state_dict().items():
            tensor.copy_(moved[name])
    return probe


def _candidates(spec: PermutationSpec, network: nn.Module, tensors: dict[Tap, Tensor]) -> list[Place]:
    """Return every dimension of every tensor, with every pattern of the spec that has its size.

    One of an inner group without its outer one is that of a weight whose other axis has the outer: no activation's.
    """
    by_size: dict[int, dict[Pattern, None]] = {}
    for axes in spec.axes.values():
        for axis in axes:
            groups = {units.group for units in units_in(axis)}
            if groups and all(spec.outer.get(group, group) in groups for group in groups):
                by_size.setdefault(size_of(axis, spec.groups), {})[axis] = None
    readers = {name: set(_matrix_axes(spec, name, module)) for name, module in network.named_modules()}
    return [
        Place(tap, dim, pattern, tap.side == "input" and pattern in readers[tap.module])
        for tap, tensor in tensors.items()
        for dim, size in enumerate(tensor.shape)
        for pattern in by_size.get(size, ())
    ]


def _matrix_axes(spec: PermutationSpec, name: str, module: nn.Module) -> Iterator[Pattern]:
    """Yield the patterns of the axes of a module's own matrices and kernels."""
    for own, _ in module.named_parameters(recurse=False):
        axes = spec.axes.get(f"{name}.{own}" if name else own, ())
        if len(axes) > 1:
            yield from axes


def _telling(spec: PermutationSpec) -> list[Permutation]:
    """Return permutations that together move every group, and no two groups of equal size alike."""
    identity = Permutation.identity(spec)
    chosen: list[Permutation] = []
    told = 0
    for seed in range(_DRAWS):
        more = [*chosen, Permutation.random(spec, seed=seed)]
        moves = {str([one[group].tolist() for one in more]) for group in spec.groups}
        still = {str([identity[group].tolist() for _ in more]) for group in spec.groups}
        if len(moves | still) > told:
            chosen, told = more, len(moves | still)
        if told == len(spec.groups) + len(still):
            break
    return chosen


def _carries(
    spec: PermutationSpec, permutation: Permutation, place: Place, before: dict[Tap, Tensor], after: dict[Tap, Tensor]
) -> bool:
    """Tell whether a tensor moved as a place says: its units, and nothing else."""
    if place.tap not in after:
        return False
    ends = (place.blocks(spec, tensors[place.tap]) for tensors in (before, after))
    return all(
        _is_close(permute_block(old, permutation.indices, spec.outer), new.view) for old, new in zip(*ends, strict=True)
    )


def _is_close(a: Tensor, b: Tensor) -> bool:
    """Tell whether two tensors differ by no more than rounding explains."""
    return float((a - b).norm()) <= _ROUNDING * float(b.norm())


def _chosen(spec: PermutationSpec, found: list[Place]) -> list[Place]:
    """Return where each group is read, or else where it appears; a place that serves several groups once."""
    wanted: set[Place] = set()
    for group in spec.groups:
        here = [place for place in found if group in place.groups()]
        wanted.update([place for place in here if place.is_read] or here)
    return [place for place in found if place in wanted]
