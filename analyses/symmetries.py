"""Barriers of transformers after alignment by some of their symmetries only.

The symmetries are restricted to permutations, to permutations with signs, to rotations inside the heads, or to
rotations of the streams, beside permutations of everything else; or all are used. Each is matched by the weights,
and learned in 250 steps from the closed form on data.

    python analyses/symmetries.py
    python analyses/symmetries.py --tasks vit-fashion --methods "permutations, weights;all, weights"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from alignments import Method, aligned, alignment_script, symmetries_of, unaligned

import weightspace as ws
from weightspace.symmetry.kinds.symmetry_spec import Kind
from weightspace.symmetry.pattern import Concat, Fixed, Pattern, Product, Units

#: Positions along the linear path.
POINTS = 5


def restricted(spec: ws.SymmetrySpec, kept: Callable[[str], bool]) -> ws.SymmetrySpec:
    """Return a spec in which some groups are only permuted, and rotary dimensions stay in place.

    Args:
        spec: of all symmetries.
        kept: whether a group keeps its kind.
    """
    fixed = {group for group, kind in spec.kinds.items() if kind == "phases" and not kept(group)}
    groups = {group: size for group, size in spec.groups.items() if group not in fixed}
    kinds: dict[str, Kind] = {group: spec.kinds[group] if kept(group) else "permutation" for group in groups}
    return replace(
        spec,
        groups=groups,
        kinds=kinds,
        axes={name: tuple(_restricted(axis, spec, kinds) for axis in axes) for name, axes in spec.axes.items()},
        outer={inner: outer for inner, outer in spec.outer.items() if inner in groups},
        fixes_ones=frozenset(group for group in spec.fixes_ones if kinds[group] == "orthogonal"),
        frozen=(),
        verification=None,
    )


def _restricted(axis: Pattern, spec: ws.SymmetrySpec, kinds: Mapping[str, Kind]) -> Pattern:
    """Return the pattern of an axis with the groups and kinds that are left."""
    if isinstance(axis, Units):
        if axis.group not in kinds:
            return Fixed(spec.groups[axis.group])
        is_kept = kinds[axis.group] == spec.kinds[axis.group]
        return axis if is_kept else Units(axis.group, axis.inner)
    if isinstance(axis, Product):
        return Product(tuple(_restricted(factor, spec, kinds) for factor in axis.factors))
    return Concat(tuple(_restricted(term, spec, kinds) for term in axis.terms)) if isinstance(axis, Concat) else axis


def permutations(task: str) -> ws.SymmetrySpec:
    """Return the permutations of a task's network alone."""
    return restricted(symmetries_of(task, "signed"), lambda group: False)


def rotations(task: str, *, of_streams: bool) -> ws.SymmetrySpec:
    """Return the rotations of streams, or those inside heads, beside permutations (and signs) of everything else."""
    return only_rotations(symmetries_of(task), of_streams=of_streams)


def only_rotations(spec: ws.SymmetrySpec, *, of_streams: bool) -> ws.SymmetrySpec:
    """Return a spec with the rotations of streams, or those inside heads, but not both."""
    return restricted(spec, lambda group: spec.kinds[group] == "signed" or (group not in spec.outer) == of_streams)


#: Name in tables -> symmetries of a task.
SYMMETRIES: Mapping[str, Callable[[str], ws.SymmetrySpec]] = {
    "permutations": permutations,
    "permutations and signs": partial(symmetries_of, symmetry="signed"),
    "with rotations of heads": partial(rotations, of_streams=False),
    "with rotations of streams": partial(rotations, of_streams=True),
    "all": symmetries_of,
}
METHODS: Mapping[str, Method] = {
    "none": unaligned,
    **{f"{name}, weights": aligned(spec, method="weights") for name, spec in SYMMETRIES.items()},
    **{f"{name}, learned": aligned(spec, method="learned") for name, spec in SYMMETRIES.items()},
}


if __name__ == "__main__":
    alignment_script("symmetries", __doc__, methods=METHODS, tasks=["vit-fashion", "llama-glosses"], points=POINTS)()
