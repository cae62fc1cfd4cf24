"""The structure of a recipe's YAML document: mappings, lists, text and known keys, with errors that name the key.

What mergekit ignores is collected and told once per key, where the caller takes such lines; otherwise it is an error.
So are keys that are known nowhere, except those that are probably misspelled: they are errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weightspace.errors import WeightspaceError
from weightspace.merging.recipe.types import Warn
from weightspace.suggestions import closest, unknown

#: Places of one ignored key that a line lists, at most.
_SHOWN = 3

#: The share of characters that a misspelled key has in common with the right one.
_MISSPELLED = 0.7


class Document:
    """A YAML document, and what becomes of keys that are unknown or ignored.

    Attributes:
        where: what errors call the document.
        ignored: takes a line about what mergekit ignores; None: that is an error.
        is_mergekits: whether mergekit could run the document: it ignores all keys that it does not know.
    """

    def __init__(self, where: str, warn: Warn | None, ignored: Warn | None) -> None:
        """Prepare to read a document.

        Args:
            where: what errors call it.
            warn: takes a line for every key that is not known; None: that is an error.
            ignored: takes a line about what mergekit ignores; None: that is an error.
        """
        self.where = where
        self.ignored = ignored
        self.is_mergekits = False
        self._warn = warn
        self._places: dict[tuple[str, str], list[str]] = {}

    def known(self, content: Mapping[str, Any], keys: Sequence[str], path: str, of: str = "") -> None:
        """Refuse keys that are not known, or tell of them; see ``unknown``.

        Args:
            content: a mapping of the document.
            keys: the names that are known there.
            path: where it stands.
            of: whose keys they are, for the error.
        """
        for key in content:
            if key not in keys:
                self.unknown(key, keys, path, of)

    def unknown(self, key: str, keys: Sequence[str], path: str, of: str = "", *, needed: bool = False) -> None:
        """Refuse a key that is not known; tell of one that mergekit ignores and that resembles no known key.

        Args:
            key: the key.
            keys: the names that are known in its place.
            path: where it stands.
            of: whose keys they are, for the error.
            needed: it is missed where it belongs, so that mergekit refuses the recipe.
        """
        ignores = self.is_mergekits and not needed and not _is_misspelled(key, keys)
        if ignores and self.ignored is not None:
            self.ignore(key, path, f"it is no parameter{of}" if of else "it is not known, and mergekit ignores it")
            return
        error = unknown(f"key in {self.where}:", join(path, key), [join(path, name) for name in keys])
        if self._warn is None:
            raise WeightspaceError(f"{error}{_owner(of)}")
        self._warn(f"{join(path, key)} in {self.where} is not known{of} and is left out.")

    def ignore(self, key: str, path: str, reason: str) -> None:
        """Remember that a key has no effect.

        Args:
            key: the key.
            path: where it stands.
            reason: why, as it follows a colon.

        Raises:
            WeightspaceError: that is an error here.
        """
        if self.ignored is None:
            raise self.error(join(path, key), f"has no effect: {reason}. Leave it out")
        self._places.setdefault((key, reason), []).append(join(path, key))

    def tell(self) -> None:
        """Tell of the ignored keys, a line for all places of one key."""
        for (_, reason), places in self._places.items():
            more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
            verb = "has" if len(places) == 1 else "have"
            if self.ignored is not None:
                self.ignored(f"{self.where}: {', '.join(places[:_SHOWN])}{more} {verb} no effect: {reason}.")
        self._places.clear()

    def mapping(self, value: Any, path: str) -> Mapping[str, Any]:
        """Return a mapping of text to values.

        Raises:
            WeightspaceError: it is something else.
        """
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise self.error(path, f"is a mapping of keys to values, found {kind(value)}")
        return value

    def entries(self, value: Any, path: str) -> list[Any]:
        """Return a list that is not empty.

        Raises:
            WeightspaceError: it is something else.
        """
        if not isinstance(value, list) or not value:
            raise self.error(path, f"is a list with an entry or more, found {kind(value)}")
        return value

    def text(self, holder: Mapping[str, Any], key: str, path: str) -> str | None:
        """Return the text under a key, None where there is none.

        Raises:
            WeightspaceError: it is something else, or empty.
        """
        value = holder.get(key)
        if value is not None and (not isinstance(value, str) or not value):
            raise self.error(join(path, key), f"is a piece of text, found {kind(value)}")
        return value

    def error(self, path: str, problem: str) -> WeightspaceError:
        """Return the error that names the document and the key."""
        return WeightspaceError(f"{self.where}: {path} {problem}.")


def join(path: str, key: str) -> str:
    """Return the path of a key: ``models[0].model``."""
    return f"{path}.{key}" if path else key


def kind(value: Any) -> str:
    """Return what a value is, briefly."""
    if value is None:
        return "nothing"
    return repr(value)[:60] if isinstance(value, bool | int | float | str) else f"a {type(value).__name__}"


def _is_misspelled(key: str, keys: Sequence[str]) -> bool:
    """Return whether a key was probably meant to be one of the known ones."""
    return closest(key.lower(), keys, similarity=_MISSPELLED) is not None


def _owner(of: str) -> str:
    return f" These are the parameters{of}." if of else ""
