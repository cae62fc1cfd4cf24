"""The targets of adapters for a pipeline among the tensors of a model: a component, or a file of all of them.

A module is found by its component and its flattened name; a name that several tensors flatten to is refused. A model
without components in its names is one component: the only one of the adapter whose modules it has.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from weightspace.errors import CheckpointError
from weightspace.lora.adapter import Adapter, Factors
from weightspace.lora.flux_modules import flux_as_in_model
from weightspace.lora.formats.module import DENOISER, canonical
from weightspace.lora.tied_weights import Shapes

#: Prefixes in files that contain several components -> the component; other components have no adapters.
_PREFIXES = {
    "model.diffusion_model.": DENOISER,
    "diffusion_model.": DENOISER,
    "unet.": DENOISER,
    "cond_stage_model.transformer.": "text_encoder",
    "cond_stage_model.model.": "text_encoder",
    "conditioner.embedders.0.transformer.": "text_encoder",
    "conditioner.embedders.1.model.": "text_encoder_2",
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    "text_encoders.t5xxl.transformer.": "text_encoder_3",
    "first_stage_model.": "",
    "vae.": "",
}

#: Prefixes in diffusers' pipelines -> the component.
_FOLDERS = {
    "unet.": DENOISER,
    "transformer.": DENOISER,
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "text_encoder_3.": "text_encoder_3",
    "vae.": "",
}

#: Beginnings of names that only a pipeline has; ``transformer.`` is also a wrapper in other networks.
_OF_PIPELINES = ("vae.", "text_encoder.")

#: A parameter of OpenCLIP -> the projections that are thirds of its rows.
_FUSED, _THIRDS = "in_proj_weight", ("q_proj", "k_proj", "v_proj")

#: Modules in the blocks of T5, whose names are unlike those of CLIP.
_T5 = re.compile(r"encoder_block_\d+_layer_[01]_(SelfAttention|DenseReluDense)_")


class _Place(NamedTuple):
    """A tensor that a target may be, or a third of its rows."""

    name: str
    third: int | None = None

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        """Return the shape of the tensor or the third."""
        whole = shapes[self.name]
        return whole if self.third is None else (whole[0] // 3, *whole[1:])


#: Component, flattened name and parameter -> the tensors of that name.
_Index = Mapping[tuple[str, str, str], list[_Place]]


def located_modules(adapter: Adapter, shapes: Shapes, source: str) -> Adapter:
    """Return an adapter whose targets have the names of the model's tensors.

    Args:
        adapter: as it was read from a file.
        shapes: tensor of the model -> shape.
        source: the source as given by the user, for errors.

    Returns:
        The adapter; targets that aren't found keep their names. Components that a model of one component isn't are
        left out, and named in ``notes``.

    Raises:
        CheckpointError: a target is ambiguous, two targets are the same tensor, or the model may be several components.
    """
    index, components = _indexed(shapes)
    adapter = _with_t5_of_model(flux_as_in_model(adapter, shapes), index)
    found = {target: _candidates(adapter, target, index, components) for target in adapter.targets}
    for target, places in found.items():
        if len(places) > 1:
            raise CheckpointError(
                f"{source}: {adapter.path} changes {target!r}, which could be {places[0].name!r} or "
                f"{places[1].name!r}; expected one tensor. Rename the adapter's tensors to match the model's."
            )
    kept, notes = _components_kept(adapter, shapes, found, components, source)
    factors: dict[str, Factors] = {}
    owners: dict[_Place, str] = {}
    for target, own in adapter.factors.items():
        if adapter.modules[target].component not in kept:
            continue
        place = next(iter(found[target]), _Place(target))
        if owners.setdefault(place, target) != target:
            raise CheckpointError(
                f"{source}: {adapter.path} changes {target!r} and {owners[place]!r}, which are the same tensor, "
                f"{place.name!r}, of the model. Expected one of them; is this adapter for that model?"
            )
        if place.name in shapes and fits_shape(own, place.shape(shapes)):
            own = replace(own, shape=place.shape(shapes))
        elif place.name in shapes and own.shape == place.shape(shapes):
            raise CheckpointError(
                f"{source}: {adapter.path} has {own.magnitudes} magnitudes of DoRA for {place.name!r} of shape "
                f"{own.shape}; expected one per output or per input. Is this adapter for that model?"
            )
        if place.third is not None:
            _check_third(adapter, target, own, place, shapes, source)
            own = _stacked(factors.get(place.name), own, place, shapes)
        factors[place.name] = own
    return replace(adapter, factors=factors, notes=notes)


def _with_t5_of_model(adapter: Adapter, index: _Index) -> Adapter:
    """Return an adapter whose T5 has the number that it has in the model, if both have exactly one such encoder.

    T5 is Flux's second text encoder in diffusers, and the third in kohya's files, as in those of Stable Diffusion 3.
    """
    models = {component for component, flat, _ in index if component and _T5.match(flat)}
    own = {module.component for module in adapter.modules.values() if _T5.match(canonical(module.path))}
    if len(models) != 1 or len(own) != 1 or models == own:
        return adapter
    (number,), (other,) = models, own
    others = [module for module in adapter.modules.values() if module.component in models | own]
    if not all(module.component == other and _T5.match(canonical(module.path)) for module in others):
        return adapter
    modules = {
        target: replace(module, component=number) if module.component == other else module
        for target, module in adapter.modules.items()
    }
    return replace(adapter, modules=modules)


def _check_third(adapter: Adapter, target: str, own: Factors, place: _Place, shapes: Shapes, source: str) -> None:
    """Refuse a change that isn't one of a third of a fused parameter."""
    if own.shape != place.shape(shapes) or own.axis is not None or shapes[place.name][0] % 3:
        raise CheckpointError(
            f"{source}: {adapter.path} changes {target!r} of shape {own.shape}, a third of the rows of {place.name!r} "
            f"of shape {shapes[place.name]}; expected the same shape, and no DoRA. Is this adapter for that model?"
        )


def _stacked(before: Factors | None, own: Factors, place: _Place, shapes: Shapes) -> Factors:
    """Return the changes of a fused parameter with one more of a third of its rows."""
    stack = {**({} if before is None else before.stack), (place.third or 0) * own.shape[0]: own}
    names = {f"{start}:{role}": name for start, each in stack.items() for role, name in each.names.items()}
    rank = sum(each.rank for each in stack.values())
    return Factors(names, rank, 1.0, False, False, shapes[place.name], product="stacked", stack=stack)


def fits_shape(factors: Factors, shape: tuple[int, ...]) -> bool:
    """Return whether a change has the shape of a tensor, apart from kernels of size 1 and flattened kernels."""
    own = factors.shape
    flattened = factors.product in ("hadamard", "kronecker") and own == (*shape[:1], math.prod(shape[1:]))
    if not flattened and _without_ones(own) != _without_ones(shape):
        return False
    return factors.axis is None or factors.magnitudes in (None, shape[factors.axis])


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without trailing kernel sizes of 1."""
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _indexed(shapes: Shapes) -> tuple[_Index, frozenset[str]]:
    """Return the tensors of a model by the names of their modules, and its components, if its names have them."""
    index: dict[tuple[str, str, str], list[_Place]] = {}
    components: set[str] = set()
    is_pipeline = any(name.startswith(_OF_PIPELINES) for name in shapes)
    prefixes = {**_PREFIXES, **(_FOLDERS if is_pipeline else {})}
    for name in shapes:
        module, _, parameter = name.rpartition(".")
        keys = [("", canonical(module))]
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        if prefix is not None and prefixes[prefix]:
            components.add(prefixes[prefix])
            keys.append((prefixes[prefix], canonical(module.removeprefix(prefix))))
        for component, flat in keys:
            index.setdefault((component, flat, parameter), []).append(_Place(name))
            for third, projection in enumerate(_THIRDS if parameter == _FUSED else ()):
                index.setdefault((component, f"{flat}_{projection}", "weight"), []).append(_Place(name, third))
    return index, frozenset(components)


def _candidates(adapter: Adapter, target: str, index: _Index, components: frozenset[str]) -> list[_Place]:
    """Return the tensors that a target may be."""
    module, parameter = adapter.modules[target], target.rpartition(".")[2]
    component, flat = module.key
    return index.get((component if components else "", flat, parameter), [])


def _components_kept(
    adapter: Adapter,
    shapes: Shapes,
    found: Mapping[str, list[_Place]],
    components: frozenset[str],
    source: str,
) -> tuple[frozenset[str], tuple[str, ...]]:
    """Return the components of an adapter that are applied, and a note on the others."""
    targets: dict[str, list[str]] = {}
    for target in adapter.targets:
        targets.setdefault(adapter.modules[target].component, []).append(target)
    if len(targets) == 1 or len(components) > 1:
        return frozenset(targets), ()
    complete = [
        component
        for component, own in targets.items()
        if all(
            len(found[name]) == 1 and fits_shape(adapter.factors[name], found[name][0].shape(shapes)) for name in own
        )
    ]
    if len(complete) > 1:
        raise CheckpointError(
            f"{source}: the model may be the {_words(complete[0])} or the {_words(complete[1])} of {adapter.path}; "
            "expected one of them. Split the adapter into a file per component."
        )
    if not complete:  # the component with most matches is the one that the errors are about
        complete = [max(targets, key=lambda component: sum(len(found[name]) == 1 for name in targets[component]))]
    others = {component: own for component, own in targets.items() if component not in complete}
    left = ", ".join(f"{_words(component)} ({len(own):,} tensors)" for component, own in others.items())
    return frozenset(complete), (f"left out the changes of other components: {left}.",)


def _words(component: str) -> str:
    """Return a component's name in a message."""
    return component.replace("_", " ") or "component without a name"
