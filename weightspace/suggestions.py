"""Errors for a name that is not in a table: which names there are, and which one was probably meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice

from weightspace.errors import WeightspaceError

#: Names that an error lists, at most.
_SHOWN = 12

#: Names that are compared, at most, and their characters: comparing takes the square of these.
_COMPARED, _LONGEST = 2_000, 120


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the name that was probably meant; None where none is like it."""
    if len(name) > _LONGEST:
        return None
    names = islice((other for other in known if len(other) <= _LONGEST), _COMPARED)
    return next(iter(get_close_matches(name, names, n=1)), None)


def unknown(kind: str, found: str, known: Iterable[str]) -> WeightspaceError:
    """Return the error that says that ``found`` is not one of the ``known`` names.

    Args:
        kind: what is being named, as it begins the message: ``"task"``, ``"merging method"``.
        found: the name as the user gave it.
        known: the names that exist, in the order in which they are shown.
    """
    names = list(known)
    close = closest(found, names)
    guess = "" if close is None else f" Did you mean {close!r}?"
    more = f", … ({len(names):,} in all)" if len(names) > _SHOWN else ""
    listing = ", ".join(names[:_SHOWN]) + more
    return WeightspaceError(f"Unknown {kind} {found!r}; expected one of {listing or '(none)'}.{guess}")
