"""Groups with more than orthogonal maps: those between two linear maps, such as queries and keys.

If a map ``M`` of a group acts on some tensors and its inverse transpose on the others (queries and keys, values and
the output's weight, the two linear branches of SwiGLU), and the function stays the same for every invertible ``M``, the
weights can be balanced: of all equivalent ones, those of least norm are chosen. The tensors that move inversely are
found from the gradient of a random function of the outputs. Where ``G`` is the gradient of the weights ``W``, both as
matrices with a row per unit, the function stays the same iff the sums of ``W Gᵀ`` over the two sides are transposes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor, nn

from weightspace.checkpoints import StateDict
from weightspace.symmetry.inputs import Inputs
from weightspace.symmetry.kinds.in_float64 import InFloat64
from weightspace.symmetry.kinds.rows import rows_of
from weightspace.symmetry.kinds.symmetry_spec import Kind, SymmetrySpec
from weightspace.symmetry.module_copy import copy_module, keep_random_state
from weightspace.symmetry.outputs import tensors_in
from weightspace.symmetry.pattern import Concat, Pattern, Product, Units, blocks
from weightspace.symmetry.verify import randomise

#: Largest number of layers that share a group for it to be balanced; others have a norm between them.
_MAX_LAYERS = 6
#: Relative difference explained by rounding in float64.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class _Place(Units):
    """Units that know their place among those of a tensor."""

    tensor: str = ""
    number: int = 0


def mark_duals(
    spec: SymmetrySpec, module: nn.Module, inputs: Inputs, linears: Sequence[tuple[str, str]], *, seed: int = 0
) -> SymmetrySpec:
    """Return a spec that marks the tensors that a group moves inversely, wherever the group may be any invertible map.

    Args:
        spec: without such marks.
        module: the network; not modified.
        inputs: example inputs.
        linears: weight and bias of each layer that has both.
        seed: of the weights and of the function of the outputs.
    """
    placed = {name: _placed(name, axes) for name, axes in spec.axes.items() if name not in spec.statistics}
    weights, gradients = _gradients(module, inputs, seed)
    products: dict[_Place, Tensor] = {}
    for name in placed.keys() & gradients.keys():
        for place, value in _products(spec, placed[name], weights[name], gradients[name]):
            products[place] = products[place] + value if place in products else value
    marked: set[_Place] = set()
    for group, kind in spec.kinds.items():
        layers = _layers(group, placed, linears, kind)
        if 2 <= len(layers) <= _MAX_LAYERS and all(place in products for layer in layers for place in layer):
            sums = [torch.stack([products[place] for place in layer]).sum(0) for layer in layers]
            signs = _signs(sums, kind)
            marked |= {place for sign, layer in zip(signs, layers, strict=False) if sign < 0 for place in layer}
    axes = {name: tuple(_unplaced(axis, marked) for axis in axes) for name, axes in placed.items()}
    return replace(spec, axes={**spec.axes, **axes})


def _placed(tensor: str, axes: Sequence[Pattern]) -> tuple[Pattern, ...]:
    """Return the axes of a tensor with units that know their place."""
    numbers = iter(range(10_000))

    def place(axis: Pattern) -> Pattern:
        if isinstance(axis, Units):
            return _Place(axis.group, axis.inner, axis.signed, axis.dual, tensor, next(numbers))
        if isinstance(axis, Product):
            return Product(tuple(map(place, axis.factors)))
        return Concat(tuple(map(place, axis.terms))) if isinstance(axis, Concat) else axis

    return tuple(map(place, axes))


def _unplaced(axis: Pattern, marked: set[_Place]) -> Pattern:
    """Return an axis with ordinary units, of which some are marked."""
    if isinstance(axis, _Place):
        return Units(axis.group, axis.inner, axis.signed, axis in marked)
    if isinstance(axis, Product):
        return Product(tuple(_unplaced(factor, marked) for factor in axis.factors))
    return Concat(tuple(_unplaced(term, marked) for term in axis.terms)) if isinstance(axis, Concat) else axis


def _places(axis: Pattern) -> Iterator[_Place]:
    if isinstance(axis, _Place):
        yield axis
    elif isinstance(axis, Product | Concat):
        for part in axis.factors if isinstance(axis, Product) else axis.terms:
            yield from _places(part)


def _gradients(module: nn.Module, inputs: Inputs, seed: int) -> tuple[StateDict, StateDict]:
    """Return random weights of a network, and the gradients there of a random linear function of its outputs."""
    generator = torch.Generator().manual_seed(seed)
    with keep_random_state(module), torch.enable_grad(), InFloat64():
        probe = copy_module(module).train().eval()
        randomise(probe, seed)
        probe = probe.double().requires_grad_(True)
        listed = [tensor for tensor in tensors_in(inputs.double().call(probe)) if tensor.is_floating_point()]
        total = sum((torch.randn(t.shape, generator=generator, dtype=t.dtype) * t).sum() for t in listed)
        parameters = dict(probe.named_parameters(remove_duplicate=False))
        found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)  # type: ignore[arg-type]
    gradients = {name: grad for name, grad in zip(parameters, found, strict=True) if grad is not None}
    return {name: parameter.detach() for name, parameter in parameters.items()}, gradients


def _products(
    spec: SymmetrySpec, axes: tuple[Pattern, ...], weights: Tensor, gradients: Tensor
) -> Iterator[tuple[_Place, Tensor]]:
    """Yield ``W Gᵀ`` for the units of every place, for inner groups one for each unit of the outer group."""
    for a, b in zip(blocks(weights, axes, spec.groups), blocks(gradients, axes, spec.groups), strict=True):
        for place, dim in enumerate(a.dims):
            if isinstance(dim, _Place):
                yield dim, rows_of(a, place, spec.outer) @ rows_of(b, place, spec.outer).mT


def _layers(
    group: str, placed: Mapping[str, tuple[Pattern, ...]], linears: Sequence[tuple[str, str]], kind: Kind
) -> list[list[_Place]]:
    """Return the places of a group, those of a bias with those of its weight."""
    layers = {
        (place.tensor, place.number): [place]
        for axes in placed.values()
        for axis in axes
        for place in _places(axis)
        if place.group == group and (kind in ("orthogonal", "phases") or place.signed)
    }
    for weight, bias in linears:
        same = (axis for axis in placed.get(weight, ()) if _unplaced(axis, set()) == _unplaced(placed[bias][0], set()))
        for axis in same:
            for place, other in zip(_places(axis), _places(placed[bias][0]), strict=True):
                if (weight, place.number) in layers and (bias, other.number) in layers:
                    layers[weight, place.number] += layers.pop((bias, other.number))
    return list(layers.values())


def _signs(sums: Sequence[Tensor], kind: Kind) -> tuple[int, ...]:
    """Return 1 for each layer that moves with the group and −1 for each that moves inversely; empty: no such signs."""
    kept = [_of_kind(one, kind) for one in sums]
    size = max(float(one.norm()) for one in kept)
    for signs in product((1, -1), repeat=len(kept) - 1):
        sides = [one if sign > 0 else -one.mT for sign, one in zip((1, *signs), kept, strict=True)]
        if -1 in signs and float(torch.stack(sides).sum(0).norm()) <= _ROUNDING * size:
            return (1, *signs)
    return ()


def _of_kind(products: Tensor, kind: Kind) -> Tensor:
    """Return the part of ``W Gᵀ`` that the maps of a kind see: all of it, or that for a scale of each unit or pair."""
    if kind == "orthogonal":
        return products
    diagonal = products.diagonal(dim1=-2, dim2=-1)
    if kind == "phases":
        half = diagonal.shape[-1] // 2
        diagonal = diagonal[..., :half] + diagonal[..., half:]
    return torch.diag_embed(diagonal)
