"""Names for groups: that of the first layer whose units they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from weightspace.symmetry.rules.axis_algebra import Atom, Axis, atoms


def name_groups(tensors: Mapping[str, Sequence[Axis]]) -> dict[Atom, str]:
    """Name the free atoms of two units and more, in the order of the tensors.

    Several groups that first appear in one layer are told apart by ``/2``.
    """
    homes: dict[Atom, str] = {}
    for name, axes in tensors.items():
        for atom in (atom for axis in axes for atom in atoms(axis)):
            if not atom.fixed and atom.size > 1:
                homes.setdefault(atom, _layer(name))
    taken: dict[str, int] = {}
    result: dict[Atom, str] = {}
    for atom, home in homes.items():
        taken[home] = taken.get(home, 0) + 1
        result[atom] = home if taken[home] == 1 else f"{home}/{taken[home]}"
    return result


def _layer(tensor: str) -> str:
    """Return the layer that a tensor belongs to, never a bare number (which is a size in a pattern)."""
    layer = tensor.rpartition(".")[0] or tensor
    return f"layer.{layer}" if layer.isdigit() else layer
