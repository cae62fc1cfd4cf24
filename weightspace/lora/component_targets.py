"""The targets of adapters for a pipeline among the tensors of a model: a component, or a file of all of them.

A module is found by its component and its flattened name; a name that several tensors flatten to is refused. A model
without components in its names is one component: the only one of the adapter whose modules it has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from weightspace.errors import CheckpointError
from weightspace.lora.adapter import Adapter, Factors
from weightspace.lora.formats.module import DENOISER, canonical
from weightspace.lora.tied_weights import Shapes

#: Prefixes in files that contain several components -> the component; autoencoders have no adapters.
_PREFIXES = {
    "model.diffusion_model.": DENOISER,
    "diffusion_model.": DENOISER,
    "unet.": DENOISER,
    "cond_stage_model.transformer.": "text_encoder",
    "conditioner.embedders.0.transformer.": "text_encoder",
    "conditioner.embedders.1.model.": "text_encoder_2",
    "text_encoders.clip_l.transformer.": "text_encoder",
    "text_encoders.clip_g.transformer.": "text_encoder_2",
    "text_encoders.t5xxl.transformer.": "text_encoder_3",
    "first_stage_model.": "",
    "vae.": "",
}

#: Component, flattened name and parameter -> the tensors of that name.
_Index = Mapping[tuple[str, str, str], list[str]]


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
    found = {target: _candidates(adapter, target, index, components) for target in adapter.targets}
    for target, names in found.items():
        if len(names) > 1:
            raise CheckpointError(
                f"{source}: {adapter.path} changes {target!r}, which could be {names[0]!r} or {names[1]!r}; expected "
                "one tensor. Rename the adapter's tensors to match the model's."
            )
    kept, notes = _components_kept(adapter, shapes, found, components, source)
    factors: dict[str, Factors] = {}
    owners: dict[str, str] = {}
    for target, own in adapter.factors.items():
        if adapter.modules[target].component not in kept:
            continue
        name = next(iter(found[target]), target)
        if owners.setdefault(name, target) != target:
            raise CheckpointError(
                f"{source}: {adapter.path} changes {target!r} and {owners[name]!r}, which are the same tensor, "
                f"{name!r}, of the model. Expected one of them; is this adapter for that model?"
            )
        fits = name in shapes and fits_shape(own, shapes[name])
        factors[name] = replace(own, shape=shapes[name]) if fits else own
    return replace(adapter, factors=factors, notes=notes)


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
    index: dict[tuple[str, str, str], list[str]] = {}
    components: set[str] = set()
    for name in shapes:
        module, _, parameter = name.rpartition(".")
        index.setdefault(("", canonical(module), parameter), []).append(name)
        prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
        if prefix is not None and _PREFIXES[prefix]:
            component = _PREFIXES[prefix]
            components.add(component)
            index.setdefault((component, canonical(module.removeprefix(prefix)), parameter), []).append(name)
    return index, frozenset(components)


def _candidates(adapter: Adapter, target: str, index: _Index, components: frozenset[str]) -> list[str]:
    """Return the tensors that a target may be."""
    module, parameter = adapter.modules[target], target.rpartition(".")[2]
    component, flat = module.key
    return index.get((component if components else "", flat, parameter), [])


def _components_kept(
    adapter: Adapter,
    shapes: Shapes,
    found: Mapping[str, list[str]],
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
        if all(len(found[name]) == 1 and fits_shape(adapter.factors[name], shapes[found[name][0]]) for name in own)
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
