"""What activations leave open is decided by weights: groups that appear nowhere, and units that never change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from weightspace.matching.assignment import assign
from weightspace.matching.families import Family, Indices
from weightspace.matching.outward import outward_start
from weightspace.matching.steps import TOLERANCE, match_inside, step

_MAX_SWEEPS = 100


def still_units(correlations: list[Family], indices: Indices) -> dict[str, Tensor]:
    """Return the target units of each group that are correlated with none; any pairing of these is as good.

    Args:
        correlations: families of the correlations; those with inner groups are passed over.
        indices: the permutations found from them.

    Returns:
        Group -> int64 numbers of its units, two or more.
    """
    result = {}
    for family in correlations:
        if family.pairs and not family.inner:
            still = (family.gains((family.group,), indices).abs().amax(1) == 0).nonzero().flatten()
            if len(still) > 1:
                result[family.group] = still
    return result


def decide_by_weights(
    weights: list[Family], indices: Indices, missing: Sequence[str], still: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return permutations in which what is open fits the weights best, and all else is as it was.

    Args:
        weights: families of the weights.
        indices: permutations of all groups.
        missing: groups that are open as a whole.
        still: group -> target units whose partners may be exchanged among them.
    """
    known = {group: index for group, index in indices.items() if group not in missing}
    result = {**indices, **outward_start(weights, known)} if missing else dict(indices)
    for _ in range(_MAX_SWEEPS):
        moved = False
        for family in weights:
            change = _decided(family, result, missing, still)
            result, moved = {**result, **(change or {})}, moved or bool(change)
        if not moved:
            break
    return result


def _decided(family: Family, indices: Indices, missing: Sequence[str], still: Mapping[str, Tensor]) -> Indices | None:
    """Return what improves if the open groups, or the still units, of one family move."""
    if family.group in missing:
        return step(family, indices)
    if family.group in still:
        return _exchanged(family, still[family.group], indices)
    return match_inside(family, [group for group in family.inner if group in missing], indices)


def _exchanged(family: Family, units: Tensor, indices: Indices) -> Indices | None:
    """Return a permutation in which some units have exchanged their partners for the better, or None."""
    index = indices[family.group]
    gains = family.gains((family.group,), indices)[units][:, index[units]]
    best = assign(gains)
    if float(gains.gather(1, best[:, None]).sum() - gains.trace()) <= TOLERANCE * float(gains.abs().sum()):
        return None
    exchanged = index.clone()
    exchanged[units] = index[units][best]
    return {family.group: exchanged}
