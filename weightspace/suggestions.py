"""Errors for unknown names: the known names, and the one that was probably meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice

from weightspace.errors import WeightspaceError

#: Maximum number of names listed in an error.
_SHOWN = 12

#: Maximum number and length of names to compare, since comparing takes quadratic time.
_COMPARED, _LONGEST = 2_000, 120

#: Minimum length of the beginning of a name that is taken for the name.
_SHORTEST = 4


def closest(name: str, known: Iterable[str], *, similarity: float = 0.6) -> str | None:
    """Return the name that was probably meant, or None if none is similar.

    Args:
        name: the name given by the user.
        known: the existing names.
        similarity: the least share of characters in common, 0 to 1.
    """
    if len(name) > _LONGEST:
        return None
    names = list(islice((other for other in known if len(other) <= _LONGEST), _COMPARED))
    begun = [other for other in names if len(name) >= _SHORTEST and other.lower().startswith(name.lower())]
    similar = get_close_matches(name, begun or names, n=1, cutoff=0.0 if begun else similarity)
    return next(iter(similar), None)


def unknown(kind: str, found: str, known: Iterable[str]) -> WeightspaceError:
    """Return the error for a name that isn't one of the ``known`` names.

    Args:
        kind: kind of name, used in the message: ``"task"``, ``"merging method"``.
        found: the name given by the user.
        known: the existing names, in display order; repeats are left out.
    """
    names = list(dict.fromkeys(known))
    close = closest(found, names)
    guess = "" if close is None else f" Did you mean {close!r}?"
    more = f", … ({len(names):,} in total)" if len(names) > _SHOWN else ""
    listing = ", ".join(names[:_SHOWN]) + more
    return WeightspaceError(f"Unknown {kind} {found!r}; expected one of {listing or '(none)'}.{guess}")
