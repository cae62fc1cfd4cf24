"""Saved buffers that belong to hidden units and are permuted with them.

These are the statistics and frozen weights of norms, the singular vectors of spectral norms, the expert biases of
routers, and the masks of pruned weights. All others (position tables, frequencies, attention masks) are the same in
every network of an architecture and must stay so.
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
    """Return whether a buffer belongs to hidden units, judging by its name and those of all tensors of the network."""
    return _NAMES.fullmatch(name.rpartition(".")[2]) is not None or is_pruning_mask(name, names)
