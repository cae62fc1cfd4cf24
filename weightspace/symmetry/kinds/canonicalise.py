"""Canonical weights: norms folded and groups balanced, so that what is left of the symmetries is orthogonal."""

from __future__ import annotations

from weightspace.checkpoints import StateDict
from weightspace.symmetry.kinds.balance import balance_in_place
from weightspace.symmetry.kinds.fold import fold
from weightspace.symmetry.kinds.symmetry_spec import SymmetrySpec


def canonicalise(spec: SymmetrySpec, state: StateDict) -> StateDict:
    """Return equivalent weights of least norm, in which the norms of the spec are folded.

    Args:
        spec: of the architecture.
        state: every tensor by name; not modified.

    Returns:
        New tensors; floating-point ones are float64.

    Raises:
        SpecError: a norm cannot be folded because its gain is zero where its shift has to be divided by it.
    """
    canonical = fold(spec, state)
    balance_in_place(spec, canonical)
    return canonical
