"""Attention detected by the names of its weights, and a warning about matching it by weights alone."""

from __future__ import annotations

import re
from collections.abc import Iterable

from weightspace.errors import warn_caller

#: Name components of query, key and value projections, and of the blocks that contain them.
_ATTENTION = re.compile(
    r"(?:^|[._])(?:(?:self|cross|multi_?head)?_?(?:attn|attention)|mha|qkv|kv|wqkv|in_proj|c_attn|"
    r"(?:to_|w)[qkv]|[qkv]_(?:proj|lin|linear)|query|query_key_value)\d*(?:[._]|$)",
    re.IGNORECASE,
)


def attention_name(names: Iterable[str]) -> str | None:
    """Return the first tensor name that belongs to attention, or None."""
    return next((name for name in names if _ATTENTION.search(name)), None)


def warn_of_attention(method: str, names: Iterable[str]) -> None:
    """Warn that matching by weights alone can raise the barrier of a network with attention.

    Args:
        method: name of the method on the command line.
        names: names of the network's tensors.

    Warns:
        WeightspaceWarning: the network has attention.
    """
    name = attention_name(names)
    if name is not None:
        warn_caller(
            f"The network has attention ({name!r}), where {method} can make the barrier higher than without matching. "
            "Measure it (weightspace barrier). With a task (--task), prefer full, which uses all symmetries (full-many "
            "for several networks), or else activation-matching."
        )
