"""Bring the models of a merge under common names, by name maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from weightspace.checkpoints.metadata import CheckpointMetadata
from weightspace.checkpoints.name_maps.apply import mapped, side_of
from weightspace.checkpoints.name_maps.name_map import NameMap
from weightspace.checkpoints.name_maps.named_maps import read_name_maps


class _Spelling(NamedTuple):
    """The names of a model: on a side of a map, and on a side of the map of that side's variants."""

    side: int
    variant: int


def under_common_names(
    contents: Sequence[CheckpointMetadata],
    labels: Sequence[str],
    donor: int,
    maps: Sequence[NameMap],
    notice: Callable[[str], None],
) -> list[CheckpointMetadata]:
    """Return the checkpoints under the names of the donor, or of the side that a map says.

    Args:
        contents: metadata of the models.
        labels: names of the models in messages.
        donor: index of the base, or else of the first model.
        maps: the maps, which are applied in order.
        notice: called with a line about each map that changes a model, and each map without effect.

    Raises:
        CheckpointError: as ``mapped``.
    """
    models = list(contents)
    for one in maps:
        spellings = [_spelling(model, one) for model in models]
        target, changes = _target(spellings[donor], one), 0
        like = f", as in {labels[donor]}" if one.to is None else ""
        for index, spelling in enumerate(spellings):
            if target is None or spelling is None:
                continue
            for step, side in _steps(one, spelling, target):
                if side_of(models[index], step) in (None, side):
                    continue
                found = mapped(models[index], step, side)
                models[index], changes = found.contents, changes + 1
                sides = f"read by the map {step.title} as {step.sides[side]!r}{like}"
                notice(f"{labels[index]}: {sides}: {found.describe()}.")
        if not changes:
            known = [name for name, spelling in zip(labels, spellings, strict=True) if spelling is not None]
            why = "the models agree already" if known else "it matches no tensor of any model"
            notice(f"The map {one.title} has no effect: {why}.")
    return models


def _spelling(model: CheckpointMetadata, name_map: NameMap) -> _Spelling | None:
    """Return the spelling of a model's names, or None if neither the map nor those of its variants match."""
    side = side_of(model, name_map)
    for own in (0, 1):
        variant = _variants(name_map, own)
        if variant is not None and side in (None, own) and (spelled := side_of(model, variant)) is not None:
            return _Spelling(own, spelled)
    return None if side is None else _Spelling(side, 0)


def _target(donor: _Spelling | None, name_map: NameMap) -> _Spelling | None:
    """Return the spelling that all models are brought to, or None if the donor's names tell none."""
    if name_map.to is None or (donor is not None and donor.side == name_map.to):
        return donor
    return _Spelling(name_map.to, 0)


def _steps(name_map: NameMap, own: _Spelling, target: _Spelling) -> list[tuple[NameMap, int]]:
    """Return the maps that lead from one spelling to another, and their sides."""
    before, after = _variants(name_map, own.side), _variants(name_map, target.side)
    if own.side == target.side:
        return [] if after is None else [(after, target.variant)]
    steps = [] if before is None else [(before, 0)]
    steps.append((name_map, target.side))
    return steps if after is None else [*steps, (after, target.variant)]


def _variants(name_map: NameMap, side: int) -> NameMap | None:
    """Return the map whose first side is how a map spells one of its sides, and whose second is another spelling."""
    name = name_map.variants[side]
    return None if name is None else read_name_maps(name)[0]
