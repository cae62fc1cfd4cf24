"""A start for coordinate ascent that works its way outward from what is known.

Inputs and outputs are never permuted, so the groups beside them can be matched without a guess; then those beside
these, and so on. A block between two groups of which one is not matched yet says nothing and is left out, instead of
being compared in the order in which the file happens to have its units. From there ascent needs fewer sweeps and
ends higher than from the identity, and a permuted copy is recovered outright.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from weightspace.matching.families import Family
from weightspace.matching.steps import match


def outward_start(listed: list[Family], known: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return permutations of every group that can be reached; a group that is not stays out of the result.

    Args:
        listed: the families.
        known: permutations that stay as they are, to work outward from as well.
    """
    result = dict(known or {})
    waiting = [family for family in listed if family.pairs and family.group not in result]
    while waiting:
        family = max(waiting, key=lambda one: _known_share(one, result))  # the first of equals
        if not _known_share(family, result):
            break
        result |= match(family, result)
        waiting.remove(family)
    return result


def _known_share(family: Family, indices: dict[str, Tensor]) -> float:
    """Return the share of a family's weights whose other groups have been matched."""
    members = family.members()
    sizes = [(pair.target.numel(), {group for group in pair.groups if group} - set(members)) for pair in family.pairs]
    known = sum(size for size, others in sizes if others <= indices.keys())
    return known / sum(size for size, _ in sizes)
