"""The built-in name map by which the names of two checkpoints agree, for errors about names that differ."""

from __future__ import annotations

from dataclasses import replace

from weightspace.checkpoints.metadata import CheckpointMetadata
from weightspace.checkpoints.name_maps.agree import under_common_names
from weightspace.checkpoints.name_maps.named_maps import built_in, read_name_maps
from weightspace.errors import CheckpointError

#: Sides of the maps of prefixes, for which errors suggest the removal of the prefix instead.
_PREFIXES = ("prefixed", "bare")


def fitting_map(own: CheckpointMetadata, other: CheckpointMetadata) -> str | None:
    """Return the built-in map that gives tensors of a checkpoint the names and shapes of another one's, or None.

    Args:
        own: a checkpoint.
        other: a checkpoint with other names.
    """
    only_own, only_other = _without(own, other), _without(other, own)
    if not only_own.tensors or not only_other.tensors:
        return None
    for name in built_in():
        maps = read_name_maps(name)
        if maps[0].sides == _PREFIXES:
            continue
        try:
            _, found = under_common_names([only_other, only_own], ("", ""), 0, maps, lambda line: None)
        except CheckpointError:
            continue
        changed = {key: info.shape for key, info in found.tensors.items() if key not in only_own.tensors}
        if changed and all(
            key in only_other.tensors and only_other.tensors[key].shape == shape for key, shape in changed.items()
        ):
            return name
    return None


def _without(contents: CheckpointMetadata, other: CheckpointMetadata) -> CheckpointMetadata:
    """Return the tensors of a checkpoint whose names another one lacks."""
    own = {name: info for name, info in contents.tensors.items() if name not in other.tensors}
    return replace(contents, tensors=own, tied={})
