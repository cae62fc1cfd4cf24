"""Errors for a name that is not in a table: which names there are, and which one was probably meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from weightspace.errors import WeightspaceError

#: Names that an error lists, at most.
_SHOWN = 12


def unknown(kind: str, found: str, known: Iterable[str]) -> WeightspaceError:
    """Return the error that says that ``found`` is not one of the ``known`` names.

    Args:
        kind: what is being named, as it begins the message: ``"task"``, ``"merging method"``.
        found: the name as the user gave it.
        known: the names that exist, in the order in which they are shown.
    """
    names = list(known)
    close = get_close_matches(found, names, n=1)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    more = f", … ({len(names):,} in all)" if len(names) > _SHOWN else ""
    listing = ", ".join(names[:_SHOWN]) + more
    return WeightspaceError(f"Unknown {kind} {found!r}; expected one of {listing or '(none)'}.{guess}")
