"""Two models whose heads are tied in one and not in the other, or in both."""

from __future__ import annotations

from typing import Any

from weightspace.adapters.tied_weights import (
    head_scale,
    is_head,
    is_token_embedding,
    tied_counterpart,
)
from weightspace.checkpoints import StateDict
from weightspace.checkpoints.state import tied_names


def with_counterparts(state: StateDict, other: StateDict, config: dict[str, Any]) -> StateDict:
    """Return a model with tensors for all names of another one that it has under a name that is tied to it.

    Args:
        state: of a model.
        other: of another one, with a head of its own, say.
        config: of the models.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    scaled = head_scale(config, shapes) != 1
    completed = dict(state)
    for name in [name for name in other if name not in state]:
        found = tied_counterpart(shapes, name, tuple(other[name].shape))
        if found is not None and not (scaled and (is_head(name) or is_head(found))):
            completed[name] = state[found]
    return completed


def shared_ties(base: StateDict, model: StateDict) -> dict[str, str]:
    """Return names that share memory in both models -> the one that stands for them, an embedding if there is one."""
    others = tied_names(model)
    groups: dict[str, list[str]] = {}
    for name, owner in tied_names(base).items():
        if others.get(name) != owner:
            continue
        groups.setdefault(owner, [owner]).append(name)
    ties: dict[str, str] = {}
    for names in groups.values():
        owner = next(filter(is_token_embedding, names), names[0])
        ties |= {name: owner for name in names if name != owner}
    return {name: ties[name] for name in base if name in ties}
