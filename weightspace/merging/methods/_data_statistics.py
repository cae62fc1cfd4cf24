"""Data statistics that methods read in addition to the weights."""

from __future__ import annotations

from collections.abc import Sequence

from weightspace.errors import WeightspaceError
from weightspace.merging.methods._tensor_stack import TensorReader, TensorStack


def known_evidence(stack: TensorStack, shape: Sequence[int]) -> list[TensorReader]:
    """Return the evidence of all models for a tensor, or an empty list if no model has any.

    Args:
        stack: the models.
        shape: required shape of the evidence.

    Raises:
        WeightspaceError: only some models have it, or it has another shape.
    """
    known = [one for one in stack.evidence if one is not None]
    if not known:
        return []
    for label, one in zip(stack.labels, stack.evidence, strict=True):
        found = "none" if one is None else f"one of shape {one.shape}"
        if one is None or one.shape != tuple(shape):
            raise WeightspaceError(
                f"The evidence of {label} for {stack.name!r}: found {found}, expected one of shape {tuple(shape)}. "
                "Was it made for this network?"
            )
    return known
