"""Validate the structure of a recipe's YAML document; errors name the key.

Keys that mergekit ignores are collected and reported once per key if the caller accepts warnings; otherwise they are
errors. The same applies to unknown keys, except probable misspellings, which are errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weightspace.errors import WeightspaceError
from weightspace.merging.recipe.types import Warn
from weightspace.suggestions import closest, unknown

#: Maximum number of occurrences of an ignored key that a message lists.
_SHOWN = 3

#: Minimum similarity of a misspelled key to a known key.
_MISSPELLED = 0.7


class Document:
    """A YAML document, and how to report its unknown and ignored keys.

    Attributes:
        where: name of the document in errors.
        ignored: called with a one-line message about a key that mergekit ignores; None makes it an error.
        is_mergekits: whether mergekit could run the document; mergekit ignores all unknown keys.
    """

    def __init__(self, where: str, warn: Warn | None, ignored: Warn | None) -> None:
        """Prepare to read a document.

        Args:
            where: name of the document in errors.
            warn: called with a one-line message about an unknown key; None makes it an error.
            ignored: called with a one-line message about a key that mergekit ignores; None makes it an error.
        """
        self.where = where
        self.ignored = ignored
        self.is_mergekits = False
        self._warn = warn
        self._places: dict[tuple[str, str], list[str]] = {}

    def known(self, content: Mapping[str, Any], keys: Sequence[str], path: str) -> None:
        """Refuse unknown keys of the mapping at a path, or warn about them; see ``unknown``."""
        for key in content:
            if key not in keys:
                self.unknown(key, keys, path)

    def unknown(self, key: str, keys: Sequence[str], path: str, owner: str = "", *, needed: bool = False) -> None:
        """Refuse an unknown key, or report that mergekit ignores it if it does not resemble a known key.

        Args:
            key: the key.
            keys: the known keys.
            path: path of the mapping that contains the key.
            owner: phrase that says whose keys they are, for the error: `` of method 'ties'``.
            needed: whether the key is required in another place, so that mergekit refuses the recipe.
        """
        ignores = self.is_mergekits and not needed and not _is_misspelled(key, keys)
        if ignores and self.ignored is not None:
            reason = f"it is not a parameter{owner}" if owner else "it is not a known key, and mergekit ignores it"
            self.ignore(key, path, reason)
            return
        error = unknown(f"key in {self.where}:", join(path, key), [join(path, name) for name in keys])
        if self._warn is None:
            raise WeightspaceError(f"{error}{_parameters_hint(owner)}")
        kind_of_key = f"parameter{owner}" if owner else "key"
        self._warn(f"{self.where}: {join(path, key)} is not a known {kind_of_key} and is ignored.")

    def misplaced(self, key: str, path: str, method: str, place: str) -> None:
        """Refuse a parameter of the method outside ``parameters``, or warn about it where a reading is lenient.

        Args:
            key: the key.
            path: path of the mapping that contains the key.
            method: name of the method.
            place: where the parameter belongs.
        """
        if self._warn is None:
            raise WeightspaceError(
                f"Unknown key in {self.where}: {join(path, key)!r}; it is a parameter of method {method!r}. "
                f"Expected `{place}`."
            )
        self._warn(
            f"{self.where}: {join(path, key)} is ignored: it is a parameter of method {method!r}. Expected `{place}`."
        )

    def ignore(self, key: str, path: str, reason: str) -> None:
        """Record that a key has no effect.

        Args:
            key: the key.
            path: path of the mapping that contains it.
            reason: the reason, which follows a colon in the message.

        Raises:
            WeightspaceError: keys without effect are errors.
        """
        if self.ignored is None:
            raise self.error(join(path, key), f"has no effect: {reason}. Remove it")
        self._places.setdefault((key, reason), []).append(join(path, key))

    def tell(self) -> None:
        """Report the ignored keys, one message per key."""
        for (_, reason), places in self._places.items():
            more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
            verb = "has" if len(places) == 1 else "have"
            if self.ignored is not None:
                self.ignored(f"{self.where}: {', '.join(places[:_SHOWN])}{more} {verb} no effect: {reason}.")
        self._places.clear()

    def mapping(self, value: Any, path: str) -> Mapping[str, Any]:
        """Return a value as a mapping with string keys.

        Raises:
            WeightspaceError: the value is not such a mapping.
        """
        if not isinstance(value, dict):
            raise self.error(path, f"must be a mapping of keys to values, found {kind(value)}")
        other = [key for key in value if not isinstance(key, str)]
        if other:
            point = ", with a point in decimal numbers" if isinstance(other[0], int) else ""
            raise self.error(path, f"has the key {other[0]!r}; expected only names as keys{point}")
        return value

    def entries(self, value: Any, path: str) -> list[Any]:
        """Return a value as a non-empty list.

        Raises:
            WeightspaceError: the value is not a non-empty list.
        """
        if not isinstance(value, list) or not value:
            raise self.error(path, f"must be a non-empty list, found {kind(value)}")
        return value

    def text(self, holder: Mapping[str, Any], key: str, path: str) -> str | None:
        """Return the string at a key, or None if the key is missing.

        Raises:
            WeightspaceError: the value is not a non-empty string.
        """
        value = holder.get(key)
        if value is not None and (not isinstance(value, str) or not value):
            raise self.error(join(path, key), f"must be a non-empty string, found {kind(value)}")
        return value

    def error(self, path: str, problem: str) -> WeightspaceError:
        """Return an error that names the document and the key."""
        return WeightspaceError(f"{self.where}: {path} {problem}.")


def join(path: str, key: str) -> str:
    """Return the path of a key: ``models[0].model``."""
    return f"{path}.{key}" if path else key


def kind(value: Any) -> str:
    """Return a short description of a value."""
    if value is None:
        return "nothing"
    if isinstance(value, list | dict) and not value:
        return f"an empty {type(value).__name__}"
    if isinstance(value, dict) and ("search" in value or "choices" in value):
        return "values to search: the recipe is one for `weightspace search`"
    return repr(value)[:60] if isinstance(value, bool | int | float | str) else f"a {type(value).__name__}"


def _is_misspelled(key: str, keys: Sequence[str]) -> bool:
    """Return whether a key is probably a misspelling of a known one."""
    return closest(key.lower(), keys, similarity=_MISSPELLED) is not None


def _parameters_hint(owner: str) -> str:
    return f" These are the parameters{owner}." if owner else ""
