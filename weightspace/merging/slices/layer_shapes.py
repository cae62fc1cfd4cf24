"""Checks that the layers of slices fit together, by the names and shapes of their tensors.

A layer of another model fits if the donor of the configuration has a layer with the same tensors of the same shapes.
Models whose own layers differ (dense and sparse, attention and convolution) fit if their configurations give the kind
of each layer, or if each layer keeps its number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from weightspace.checkpoints.metadata import TensorInfo
from weightspace.errors import CheckpointError
from weightspace.merging.config.towers import words
from weightspace.merging.slices.layer_values import LayerValues
from weightspace.merging.slices.sliced_model import SlicedModel
from weightspace.merging.slices.stacking import Stacking

#: The tensors of a layer: name in the first layer -> shape.
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

#: Buffers that networks recompute.
_BUFFERS = (".inv_freq", ".masked_bias")

#: Words of norms whose width is not the hidden size: those of queries, keys, states.
_INNER = frozenset({"q", "k", "v", "kv", "b", "c", "dt", "query", "key", "value"})


def layer_shapes(model: SlicedModel) -> list[Shapes]:
    """Return the tensors of each layer of a model by their names in the first layer."""
    tensors = model.member.contents.tensors
    return [
        {first: tensors[name].shape for first, name in names.items() if not _is_buffer(name, tensors[name])}
        for names in model.by_layer[: model.count]
    ]


def first_only(shapes: Sequence[Shapes], kinds: Sequence[object]) -> frozenset[str]:
    """Return the tensors that only the first layer has, such as T5's relative positions.

    Args:
        shapes: the tensors of each layer.
        kinds: the configuration's values for each layer; layers of another kind may have tensors of their own.
    """
    others = [set(own) for own, kind in zip(shapes[1:], kinds[1:], strict=True) if kind == kinds[0]]
    extra = set(shapes[0]) - set[str]().union(*others)
    return frozenset(extra) if others and all(set(shapes[0]) - extra == other for other in others) else frozenset()


def check_layers(
    stacking: Stacking, values: LayerValues, warn: Callable[[str], None] | None
) -> dict[int, frozenset[str]]:
    """Check that the layers of slices fit together.

    Args:
        stacking: the stacked slices.
        values: the configurations' values for the layers.
        warn: called with a line about layers with other tensors; None: they are an error.

    Returns:
        For each model the tensors that only its first layer has, by their names there: they go before the layers.

    Raises:
        CheckpointError: layers differ in shapes or tensors, or cannot be moved to another position.
    """
    shapes = {number: layer_shapes(model) for number, model in stacking.models.items()}
    donor = _Donor(stacking.models[stacking.donor], shapes[stacking.donor])
    for model, layer in dict.fromkeys(own for sources in stacking.layers for own in sources):
        if model != stacking.donor:
            donor.check(stacking.models[model], layer, shapes[model][layer], warn)
    extra = {}
    for number, model in stacking.models.items():
        kinds = [values.of(number, layer) for layer in range(model.count)]
        extra[number] = first_only(shapes[number], kinds)
        if stacking.moves:
            own = [
                {name: shape for name, shape in layer.items() if name not in extra[number]} for layer in shapes[number]
            ]
            _check_widths(model, own)
            _check_places(stacking, number, own, kinds)
    return extra


class _Donor:
    """Layers of the configuration's donor, which those of other models must match."""

    def __init__(self, model: SlicedModel, shapes: Sequence[Shapes]) -> None:
        self._label = model.member.label
        self._kinds = list(dict.fromkeys(frozenset(own) for own in shapes))
        self._known: dict[str, dict[tuple[int, ...], None]] = {}
        for own in shapes:
            for name, shape in own.items():
                self._known.setdefault(name, {})[shape] = None

    def check(self, model: SlicedModel, layer: int, own: Shapes, warn: Callable[[str], None] | None) -> None:
        """Check that the donor has a layer that matches one of another model."""
        label = model.member.label
        for name, shape in own.items():
            known = self._known.get(name)
            if known and shape not in known:
                raise CheckpointError(
                    f"{model.layers.renumbered(name, layer)!r} is {shape} in {label}, but such tensors are "
                    f"{next(iter(known))} in {self._label}. Slices of both form one network: expected layers of the "
                    "same shape."
                )
        if frozenset(own) in self._kinds:
            return
        nearest = min(self._kinds, key=lambda kind: len(kind ^ set(own)))
        name = min(nearest ^ set(own))
        has, lacks = (label, self._label) if name in own else (self._label, label)
        line = f"Layer {layer} of {label} is unlike any layer of {self._label}: {name!r} is in {has}, not in {lacks}."
        if warn is None:
            raise CheckpointError(f"{line} Slices need layers with the same tensors; --lenient uses them as they are.")
        warn(f"{line} It is used as it is.")


def _check_widths(model: SlicedModel, shapes: Sequence[Shapes]) -> None:
    """Check that the layers of a model are not stages of different widths."""
    for name in shapes[0]:
        found = dict.fromkeys(own[name] for own in shapes if name in own)
        if len(found) > 1 and len(next(iter(found))) == 1 and _is_norm(name):
            first, second = list(found)[:2]
            raise CheckpointError(
                f"The layers of {model.member.label} in {model.stack!r} are stages of different widths ({name!r} is "
                f"{first} and {second}). Expected each layer in its own position; merge the models whole."
            )


def _check_places(stacking: Stacking, number: int, shapes: Sequence[Shapes], kinds: Sequence[object]) -> None:
    """Check that layers of a model are placed where its network expects layers of their kind."""
    model = stacking.models[number]
    special = {layer for layer in (0, model.count - 1) if _is_alone(layer, shapes, kinds)}
    regular: dict[object, Shapes] = {}
    for layer, own in enumerate(shapes):
        if layer not in special and own != regular.setdefault(kinds[layer], own) and model.config is not None:
            _refuse_place(stacking, number, shapes, layer)
    for place, sources in enumerate(stacking.layers):
        for layer in (layer for own, layer in sources if own == number):
            ends = {0: place == 0, model.count - 1: place == len(stacking.layers) - 1}
            for end in special:
                if (layer == end) != ends[end]:
                    raise CheckpointError(
                        f"Layer {end} of {model.member.label} has other tensors than the rest of {model.stack!r} and "
                        f"can only be the {'first' if end == 0 else 'last'} one, but layer {layer} is in position "
                        f"{place}. Expected slices that keep layer {end} there."
                    )


def _is_alone(layer: int, shapes: Sequence[Shapes], kinds: Sequence[object]) -> bool:
    """Return whether the tensors of a layer differ from those of all others of its kind, which are alike."""
    others = [own for place, own in enumerate(shapes) if place != layer and kinds[place] == kinds[layer]]
    # A sparse layer among dense ones is not special: some of its tensors replace others.
    nested = bool(others) and (set(shapes[layer]) < set(others[0]) or set(shapes[layer]) > set(others[0]))
    return nested and all(own == others[0] for own in others[1:])


def _refuse_place(stacking: Stacking, number: int, shapes: Sequence[Shapes], layer: int) -> None:
    """Refuse to renumber layers of different kinds that the configuration does not distinguish."""
    model = stacking.models[number]
    moved = next(
        (
            place
            for place, sources in enumerate(stacking.layers)
            for own, at in sources
            if own == number and at != place
        ),
        None,
    )
    if moved is not None:
        raise CheckpointError(
            f"Layers 0 and {layer} of {model.member.label} differ in tensors or shapes, and config.json does not say "
            f"by which rule: none can move to position {moved}. Expected slices that keep each layer in its position."
        )


def _is_norm(name: str) -> bool:
    """Return whether a tensor is the weight of a norm of the hidden states."""
    module = name.rpartition(".")[0].rpartition(".")[2].lower()
    named = "norm" in module or module.startswith(("ln", "bn"))
    return name.endswith(".weight") and named and _INNER.isdisjoint(words(module))


def _is_buffer(name: str, info: TensorInfo) -> bool:
    """Return whether a tensor is a mask or a table that the network recomputes and some files lack."""
    mask = name.endswith(".bias") and info.shape[:2] == (1, 1) and len(info.shape) == 4
    return mask or name.endswith(_BUFFERS)
