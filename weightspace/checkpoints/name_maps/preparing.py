"""The built-in map that brings names to a form which another map knows."""

from __future__ import annotations

from collections.abc import Collection

from weightspace.checkpoints.name_maps.name_map import NameMap
from weightspace.checkpoints.name_maps.named_maps import built_in, read_name_maps


def preparing_map(name_map: NameMap, side: int, names: Collection[str]) -> str | None:
    """Return a built-in map and its side, ``MAP=SIDE``, after which a side of a map matches all of these names.

    Args:
        name_map: the map.
        side: index of its side.
        names: names that it does not match.

    Returns:
        The first such map that renames the tensors; None if there is none.
    """
    known = [pattern for rule in name_map.rules for pattern in rule.sides[side]]
    for title in built_in():
        (other,) = read_name_maps(title)
        for to in (0, 1):
            renamed = [_renamed(other, to, name) for name in names]
            if all(new is not None and any(one.match(new) is not None for one in known) for new in renamed):
                return f"{title}={other.sides[to]}"
    return None


def _renamed(name_map: NameMap, to: int, name: str) -> str | None:
    """Return a name on a side of a map; None if no rule only renames it."""
    for rule in name_map.rules:
        values = rule.sides[1 - to][0].match(name) if rule.renames else None
        if values is not None:
            return rule.sides[to][0].name(values)
    return None
