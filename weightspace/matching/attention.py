"""Attention by the names of its weights, and what is to be said where it is matched by weights alone."""

from __future__ import annotations

import re
from collections.abc import Iterable

from weightspace.errors import warn_caller

#: Words, between dots and underscores, of projections to queries, keys and values, and of the blocks they are in.
_ATTENTION = re.compile(
    r"(?:^|[._])(?:(?:self|cross|multi_?head)?_?(?:attn|attention)|mha|qkv|kv|wqkv|in_proj|c_attn|"
    r"(?:to_|w)[qkv]|[qkv]_(?:proj|lin|linear)|query|query_key_value)\d*(?:[._]|$)",
    re.IGNORECASE,
)


def attention_name(names: Iterable[str]) -> str | None:
    """Return the first name of a tensor that belongs to attention, None where there is none."""
    return next((name for name in names if _ATTENTION.search(name)), None)


def warn_of_attention(method: str, names: Iterable[str]) -> None:
    """Say that matching by weights alone can raise the barrier of a network with attention.

    Args:
        method: its name on the command line.
        names: of the network's tensors.

    Warns:
        WeightspaceWarning: there is attention.
    """
    name = attention_name(names)
    if name is not None:
        warn_caller(
            f"The network has attention ({name!r}), where {method} can make the barrier higher than no matching does. "
            "Measure it (weightspace barrier), and prefer activation-matching, which needs a task (--task)."
        )
