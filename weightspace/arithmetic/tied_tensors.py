"""Combination of state dicts name by name, so that tensors tied in all of them stay tied in the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from weightspace.checkpoints import StateDict
from weightspace.checkpoints.state_dict import tied_names


def by_name(states: Sequence[StateDict], combine: Callable[[str, list[Tensor]], Tensor]) -> StateDict:
    """Return ``combine(name, tensors)`` for every name, in the order of the first state dict.

    Args:
        states: state dicts with the same names.
        combine: makes one new tensor from those that the models have under a name. It is called once for names that
            share memory in every model (an embedding and its head), and they share the result.
    """
    shared = dict(set.intersection(*(set(tied_names(state).items()) for state in states)))
    merged: StateDict = {}
    for name in states[0]:
        owner = shared.get(name)
        merged[name] = merged[owner] if owner else combine(name, [state[name] for state in states])
    return merged
