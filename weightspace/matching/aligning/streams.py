"""Rotations of streams that bring the activations of two networks together.

Activations judge the rotation of a stream better than weights do. In every layer that reads the stream, the inputs of
the two networks on the same data are compared; the rotation is the orthogonal factor of ``Σ XₐᵀX_b / (‖Xₐ‖ ‖X_b‖)``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.errors import WeightspaceError
from weightspace.matching.activation_sites import ActivationHook, Forward, Recorder
from weightspace.matching.aligning.best_maps import best_maps
from weightspace.symmetry.kinds.action import act_on
from weightspace.symmetry.kinds.element import Element
from weightspace.symmetry.kinds.symmetry_spec import SymmetrySpec
from weightspace.symmetry.module_copy import copy_module
from weightspace.symmetry.pattern import Units

#: Relative difference of activations explained by rounding in float32.
_ROUNDING = 1e-3


def match_streams(
    spec: SymmetrySpec, target: nn.Module, source: nn.Module, batches: Iterable[Any], forward: Forward
) -> dict[str, Tensor]:
    """Return orthogonal maps of all streams that can be seen in the activations.

    Args:
        spec: of the architecture.
        target: with canonical weights; not modified.
        source: with canonical weights; not modified.
        batches: inputs of both networks.
        forward: runs a network on a batch.

    Raises:
        WeightspaceError: no batches, or activations that aren't finite.
    """
    streams = [group for group, kind in spec.kinds.items() if kind == "orthogonal" and group not in spec.outer]
    sites: dict[str, list[ActivationHook]] = {}
    sums: dict[ActivationHook, list[Tensor]] = {}
    for number, batch in enumerate(batches):
        if number == 0:
            sites = _sites(spec, streams, target, batch, forward)
        wanted = {tap for taps in sites.values() for tap in taps}
        ends = [Recorder(network, wanted).run(forward, batch) for network in (target, source)]
        for tap in wanted:
            a, b = (end[tap].double().flatten(0, -2).cpu() for end in ends)
            new = [a.T @ b, a.square().sum(), b.square().sum()]
            sums[tap] = [old + one for old, one in zip(sums[tap], new, strict=True)] if tap in sums else new
    if streams and not sites:
        raise WeightspaceError("The task has no training batches to compare activations on.")
    found: dict[str, Tensor] = {}
    for group, taps in sites.items():
        terms = [products / (a * b).sqrt().clamp_min(1e-300) for products, a, b in (sums[tap] for tap in taps)]
        if terms:
            total = torch.stack(terms).sum(0)
            if not bool(total.isfinite().all()):
                raise WeightspaceError(f"The activations of {group!r} are not finite on the training batches.")
            found[group] = best_maps("orthogonal", total, fixes_ones=group in spec.fixes_ones).maps
    return found


def _sites(
    spec: SymmetrySpec, streams: Iterable[str], network: nn.Module, batch: Any, forward: Forward
) -> dict[str, list[ActivationHook]]:
    """Return the inputs of layers that read a stream: those that turn when the stream is turned."""
    before = Recorder(network).run(forward, batch)
    sites = {}
    for group in streams:
        turn = Element.random(spec, seed=0).maps[group]
        state = {name: tensor.detach() for name, tensor in network.state_dict().items()}
        turned = with_weights(network, {name: act_on(spec, {group: turn}, name, one) for name, one in state.items()})
        readers = set(_readers(spec, group, network))
        candidates = {tap for tap in before if tap.side == "input" and tap.module in readers}
        after = Recorder(turned, candidates).run(forward, batch)
        sites[group] = [tap for tap in candidates & after.keys() if _is_turned(before[tap], after[tap], turn)]
        sites[group].sort(key=lambda tap: (tap.module, tap.call, tap.number))
    return sites


def _readers(spec: SymmetrySpec, group: str, network: nn.Module) -> Iterator[str]:
    """Yield the modules with a matrix of their own along a group."""
    for name, module in network.named_modules():
        for own, _ in module.named_parameters(recurse=False):
            axes = spec.axes.get(f"{name}.{own}" if name else own, ())
            if len(axes) > 1 and Units(group) in axes:
                yield name


def _is_turned(before: Tensor, after: Tensor, turn: Tensor) -> bool:
    """Return whether vectors along the last axis are turned."""
    if before.shape[-1] != len(turn) or before.shape != after.shape:
        return False
    expected = before @ turn.to(before.dtype).T
    return float((after - expected).norm()) <= _ROUNDING * float(after.norm()) < float("inf")


def with_weights(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of a network with other weights, in the copy's precision."""
    copied = copy_module(network)
    with torch.no_grad():  # in place, since load_state_dict may be overridden
        for name, tensor in copied.state_dict().items():
            tensor.copy_(state[name])
    return copied
