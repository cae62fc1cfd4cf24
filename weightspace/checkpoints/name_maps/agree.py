"""Bring the models of a merge under common names, by name maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from weightspace.checkpoints.metadata import CheckpointMetadata
from weightspace.checkpoints.name_maps.apply import mapped, side_of
from weightspace.checkpoints.name_maps.name_map import NameMap


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
        notice: called with a line about each model that a map changes, and each map without effect.

    Raises:
        CheckpointError: as ``mapped``.
    """
    models = list(contents)
    for one in maps:
        sides = [side_of(model, one) for model in models]
        target = sides[donor] if one.to is None else one.to
        changes = 0
        for index, (model, side) in enumerate(zip(models, sides, strict=True)):
            if target is None or side is None or side == target:
                continue
            found = mapped(model, one, target)
            models[index], changes = found.contents, changes + 1
            like = f", as in {labels[donor]}" if one.to is None else ""
            notice(f"{labels[index]}: read by the map {one.title} as {one.sides[target]!r}{like}: {found.describe()}.")
        if not changes:
            known = [name for name, side in zip(labels, sides, strict=True) if side is not None]
            why = "the models agree already" if known else "it matches no tensor of any model"
            notice(f"The map {one.title} has no effect: {why}.")
    return models
