"""Saved buffers that belong to hidden units and move with them.

Statistics and frozen weights of norms, the singular vectors of spectral norms, the balance of a router's experts, the
masks of pruned weights. Others (tables of positions, frequencies, masks of attention) are the same in every network of
an architecture and must stay so.
"""

from __future__ import annotations

import re
from collections.abc import Container

from weightspace.checkpoints.buffers import is_pruning_mask

_NAMES = re.compile(
    r"running_mean|running_var|weight|bias"
    r"|(.*_)?[uv]\d*"  # _u and _v, weight_u and weight_v, u0
    r"|(.*_)?score_correction_bias|expert_bias|tokens_per_expert.*"
)


def moves_with_units(name: str, names: Container[str]) -> bool:
    """Tell by its name, and those of all tensors of the network, whether a buffer belongs to hidden units."""
    return _NAMES.fullmatch(name.rpartition(".")[2]) is not None or is_pruning_mask(name, names)
