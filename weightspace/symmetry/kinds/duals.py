"""Groups with more than orthogonal maps: those between two linear maps, such as queries and keys.

If a map ``M`` of a group acts on some tensors and its inverse transpose on the others (queries and keys, values and
the output's weight, the two linear branches of SwiGLU), and the function stays the same for every invertible ``M``, the
weights can be balanced: of all equivalent ones, those of least norm are chosen. The tensors that move inversely are
found from the gradient of a random function of the outputs. Where ``G`` is the gradient of the weights ``W``, both as
matrices with a row per unit, the function stays the same iff the sums of ``W Gᵀ`` over the two sides are transposes.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor, nn

from weightspace.symmetry.inputs import Inputs
from weightspace.symmetry.kinds.rows import rows_of
from weightspace.symmetry.kinds.symmetry_spec import Kind, SymmetrySpec
from weightspace.symmetry.module_copy import keep_random_state
from weightspace.symmetry.outputs import tensors_in
from weightspace.symmetry.pattern import Concat, Pattern, Product, Units, blocks
from weightspace.symmetry.streamed import StreamedNetwork

#: Largest number of layers that share a group for it to be balanced; others have a norm between them.
_SEED = 0  # of the random weights and of the random function of the outputs
_MAX_LAYERS = 6
#: Relative difference explained by rounding in float64.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class _Place(Units):
    """Units that know their place among those of a tensor."""

    tensor: str = ""
    number: int = 0


def mark_duals(
    spec: SymmetrySpec, module: nn.Module, inputs: Inputs, linears: Sequence[tuple[str, str]]
) -> SymmetrySpec:
    """Return a spec that marks the tensors that a group moves inversely, wherever the group may be any invertible map.

    Args:
        spec: without such marks.
        module: the network; not modified.
        inputs: example inputs.
        linears: weight and bias of each layer that has both.
    """
    placed = {name: _placed(name, axes) for name, axes in spec.axes.items() if name not in spec.statistics}
    candidates = {
        group: layers
        for group, kind in spec.kinds.items()
        if 2 <= len(layers := _layers(group, placed, linears, kind)) <= _MAX_LAYERS
    }
    wanted = {place for layers in candidates.values() for layer in layers for place in layer}
    products = _products(spec, module, inputs, {place.tensor: placed[place.tensor] for place in wanted}, wanted)
    marked: set[_Place] = set()
    for group, layers in candidates.items():
        if all(place in products for layer in layers for place in layer):
            sums = [torch.stack([products[place] for place in layer]).sum(0) for layer in layers]
            signs = _signs(sums, spec.kinds[group])
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


def _products(
    spec: SymmetrySpec,
    module: nn.Module,
    inputs: Inputs,
    axes: Mapping[str, tuple[Pattern, ...]],
    wanted: Container[_Place],
) -> dict[_Place, Tensor]:
    """Return what groups see of ``W Gᵀ`` for the units of places.

    ``W`` are random weights, ``G`` the gradients there of a random linear function of the outputs. The gradient of a
    tensor is dropped as soon as it has been used, so that no two are held at a time.

    Args:
        spec: the spec.
        module: the network.
        inputs: example inputs.
        axes: of the tensors that have the places.
        wanted: the places; those that the outputs don't depend on have no result.
    """
    products: dict[_Place, Tensor] = {}
    generator = torch.Generator().manual_seed(_SEED)
    with keep_random_state(module), torch.enable_grad():
        network = StreamedNetwork(module, _SEED)
        with network.running(network.random_weights) as probe:
            names: dict[nn.Parameter, list[str]] = {}
            for name, parameter in probe.named_parameters(remove_duplicate=False):
                if name in axes:
                    names.setdefault(parameter, []).append(name)

            def use(parameter: Tensor) -> None:
                gradient, parameter.grad = parameter.grad, None
                for name in names[parameter]:  # type: ignore[index]
                    weights = network.random_weights(name)
                    for place, value in _products_of(spec, axes[name], weights, gradient, wanted):  # type: ignore[arg-type]
                        products[place] = products[place] + value if place in products else value

            hooks = [parameter.requires_grad_().register_post_accumulate_grad_hook(use) for parameter in names]
            if names:
                listed = [tensor for tensor in tensors_in(inputs.double().call(probe)) if tensor.is_floating_point()]
                total = sum((torch.randn(t.shape, generator=generator, dtype=t.dtype) * t).sum() for t in listed)
                if isinstance(total, Tensor) and total.requires_grad:
                    total.backward()
            for hook in hooks:  # they and the parameters refer to each other, which would delay freeing their memory
                hook.remove()
    return products


def _products_of(
    spec: SymmetrySpec, axes: tuple[Pattern, ...], weights: Tensor, gradient: Tensor, wanted: Container[_Place]
) -> Iterator[tuple[_Place, Tensor]]:
    """Yield the part of ``W Gᵀ`` for wanted places, for inner groups one for each unit of the outer group."""
    for a, b in zip(blocks(weights, axes, spec.groups), blocks(gradient, axes, spec.groups), strict=True):
        for place, dim in enumerate(a.dims):
            if isinstance(dim, _Place) and dim in wanted:
                weight, slope = rows_of(a, place, spec.outer), rows_of(b, place, spec.outer)
                yield dim, _of_kind(weight, slope, spec.kinds[dim.group])


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
    size = max(float(one.norm()) for one in sums)
    for signs in product((1, -1), repeat=len(sums) - 1):
        inverse = [-one.mT if kind == "orthogonal" else -one for one in sums]
        sides = [one if sign > 0 else other for sign, one, other in zip((1, *signs), sums, inverse, strict=True)]
        if -1 in signs and float(torch.stack(sides).sum(0).norm()) <= _ROUNDING * size:
            return (1, *signs)
    return ()


def _of_kind(weights: Tensor, gradient: Tensor, kind: Kind) -> Tensor:
    """Return what the maps of a kind see of ``W Gᵀ``: all of it, or its diagonal, a scale of each unit or pair."""
    if kind == "orthogonal":
        return weights @ gradient.mT
    diagonal = (weights * gradient).sum(-1)
    if kind == "phases":
        half = diagonal.shape[-1] // 2
        return diagonal[..., :half] + diagonal[..., half:]
    return diagonal
