"""Activation sites: where the units of a group appear in a network's activations, found by permuting, not by name.

The hidden units of a network are permuted; a tensor that moves along one of its dimensions according to a pattern of
the spec carries those units there. This works for any module, of torch or of a user, whatever it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from weightspace.symmetry import Permutation, PermutationSpec, permute
from weightspace.symmetry.module_copy import copy_module
from weightspace.symmetry.outputs import tensors_in
from weightspace.symmetry.pattern import Block, Fixed, Pattern, blocks, size_of, units_in
from weightspace.symmetry.permutation import permute_block
from weightspace.tasks.evaluating import evaluating

#: Relative difference of activations explained by rounding, which the effect of a permutation must exceed.
_ROUNDING = 1e-3
#: Number of random permutations searched for some that distinguish all groups.
_DRAWS = 100

Forward = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True)
class Place:
    """An activation tensor that carries units along one dimension.

    Attributes:
        tap: the hook that observes the tensor.
        dim: the dimension.
        pattern: the units along it.
        is_read: whether a module with a matrix takes in the tensor and combines these units.
    """

    tap: ActivationHook
    dim: int
    pattern: Pattern
    is_read: bool

    def groups(self) -> set[str]:
        """Return the groups whose units appear here."""
        return {units.group for units in units_in(self.pattern)}

    def blocks(self, spec: PermutationSpec, tensor: Tensor) -> list[Block]:
        """Return the parts of a tensor in which every dimension is one group or fixed, the sample dimension first."""
        rows = tensor.movedim(self.dim, -1).flatten(0, -2) if tensor.ndim > 1 else tensor[None]
        return list(blocks(rows, (Fixed(len(rows)), self.pattern), spec.groups))


def places_of(spec: PermutationSpec, network: nn.Module, forward: Forward, batch: Any) -> list[Place]:
    """Return the sites at which to compare each group: where layers read its units, or else wherever they appear.

    Args:
        spec: the architecture's spec.
        network: with its weights; not modified.
        forward: runs the network on a batch.
        batch: any batch.
    """
    before = Recorder(network).run(forward, batch)
    candidates = _candidates(spec, network, before)
    moved: set[Place] = set()
    for permutation in _telling(spec):
        after = Recorder(_permuted(spec, permutation, network), before.keys()).run(forward, batch)
        candidates = [place for place in candidates if _carries(spec, permutation, place, before, after)]
        moved.update(place for place in candidates if not _is_close(before[place.tap], after[place.tap]))
    once: dict[int, Place] = {}
    for place in sorted(candidates, key=lambda place: not place.is_read):  # readers take precedence
        if place in moved:
            once.setdefault(id(before[place.tap]), place)
    return _chosen(spec, list(once.values()))


def _permuted(spec: PermutationSpec, permutation: Permutation, network: nn.Module) -> nn.Module:
    """Return a copy of a network with permuted hidden units."""
    probe = copy_module(network)
    moved = permute(spec, permutation, {name: tensor.detach() for name, tensor in network.state_dict().items()})
    with torch.no_grad():  # in place, since load_state_dict may be overridden
        for name, tensor in probe.state_dict().items():
            tensor.copy_(moved[name])
    return probe


def _candidates(spec: PermutationSpec, network: nn.Module, tensors: dict[ActivationHook, Tensor]) -> list[Place]:
    """Return every dimension of every tensor, paired with every pattern of the spec of the same size.

    An inner group without its outer group occurs only in weights whose other axis has the outer group, not in
    activations.
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
    """Return permutations that together move every group, and move no two groups of equal size alike."""
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
    spec: PermutationSpec,
    permutation: Permutation,
    place: Place,
    before: dict[ActivationHook, Tensor],
    after: dict[ActivationHook, Tensor],
) -> bool:
    """Return whether a tensor moved exactly as a site implies."""
    if place.tap not in after:
        return False
    ends = (place.blocks(spec, tensors[place.tap]) for tensors in (before, after))
    return all(
        _is_close(permute_block(old, permutation.indices, spec.outer), new.view) for old, new in zip(*ends, strict=True)
    )


def _is_close(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors differ by no more than rounding."""
    return float((a - b).norm()) <= _ROUNDING * float(b.norm())


def _chosen(spec: PermutationSpec, found: list[Place]) -> list[Place]:
    """Return where each group is read, or else where it appears; a site that serves several groups is listed once."""
    wanted: set[Place] = set()
    for group in spec.groups:
        here = [place for place in found if group in place.groups()]
        wanted.update([place for place in here if place.is_read] or here)
    return [place for place in found if place in wanted]


@dataclass(frozen=True)
class ActivationHook:
    """One tensor that a module takes in or returns: the ``number``-th on that side in its ``call``-th call."""

    module: str
    side: Literal["input", "output"]
    call: int
    number: int


class Recorder:
    """Copies of the floating-point tensors seen by hooks, from one run of a network.

    Args:
        network: its hooks are removed and its modes restored after a run.
        wanted: the hooks to record, by default all. Hooks that see the same unchanged tensor share a copy.
    """

    def __init__(self, network: nn.Module, wanted: Collection[ActivationHook] | None = None) -> None:
        self.network, self.wanted = network, wanted

    @torch.no_grad()
    def run(self, forward: Callable[[nn.Module, Any], Any], batch: Any) -> dict[ActivationHook, Tensor]:
        """Run the network in evaluation mode on a batch, and return the recorded tensors."""
        self.found: dict[ActivationHook, Tensor] = {}
        self.calls: dict[tuple[str, str], int] = {}
        self.copies: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        with self._hooks(), _as_in_use(self.network):
            forward(self.network, batch)
        return self.found

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        names = None if self.wanted is None else {tap.module for tap in self.wanted}
        handles = []
        for name, module in self.network.named_modules():
            if names is None or name in names:
                handles += [
                    module.register_forward_pre_hook(self._before(name), with_kwargs=True),
                    module.register_forward_hook(self._after(name)),
                ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        return lambda _, args, kwargs: self._note(name, "input", [args, list(kwargs.values())])

    def _after(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _, inputs, result: self._note(name, "output", result)

    def _note(self, name: str, side: Literal["input", "output"], value: Any) -> None:
        call = self.calls.get((name, side), 0)
        self.calls[name, side] = call + 1
        for number, tensor in enumerate(tensors_in(value)):
            tap = ActivationHook(name, side, call, number)
            if tensor.is_floating_point() and (self.wanted is None or tap in self.wanted):
                self.found[tap] = self._copy(tensor)

    def _copy(self, tensor: Tensor) -> Tensor:
        """Return a copy of a tensor, shared as long as it is unchanged: in-place operators raise its version."""
        key = id(tensor), 0 if tensor.is_inference() else tensor._version
        if key not in self.copies:  # holding the original prevents reuse of its address
            self.copies[key] = tensor, tensor.detach().clone()
        return self.copies[key][1]


@contextmanager
def _as_in_use(network: nn.Module) -> Iterator[None]:
    """Evaluate without dropout, and without fused kernels, whose inner tensors hooks can't see."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with evaluating(network):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
