"""Patterns of tensor names: ``{module*}.experts.{expert}.w1.weight``.

``{word}`` stands for a part of a name without dots, ``{word*}`` for one or more parts, and the name of a table for one
of its words, which has another form on each side of the map.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from weightspace.errors import WeightspaceError

#: A field of a pattern.
_FIELD = re.compile(r"\{([A-Za-z_]\w*)(\*?)\}")

#: Maximum number of fields of several parts: the time to match a name grows with its length to that power.
_STARRED = 2


@dataclass(frozen=True)
class Pattern:
    """A pattern of names on one side of a map.

    Attributes:
        text: the pattern.
        words: table -> word on the map's first side -> word on the pattern's side.
        each: the field that counts tensors from 0, or None.
    """

    text: str
    words: Mapping[str, Mapping[str, str]]
    each: str | None = None

    def __post_init__(self) -> None:
        """Check the pattern.

        Raises:
            WeightspaceError: it has a stray brace, or a field twice.
        """
        if set(_FIELD.sub("", self.text)) & set("{}"):
            raise WeightspaceError(
                f"{self.text!r} has a stray brace; expected fields such as {{layer}} or {{module*}}."
            )
        if sum(star == "*" for _, star in _FIELD.findall(self.text)) > _STARRED:
            raise WeightspaceError(f"{self.text!r} has more than {_STARRED} fields of several parts ({{module*}}).")
        if len(self.fields) != len(set(self.fields)):
            raise WeightspaceError(f"{self.text!r} has a field twice; expected distinct names.")

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of its fields, in order."""
        return tuple(field[1] for field in _FIELD.finditer(self.text))

    @property
    def literal(self) -> int:
        """The number of characters outside of its fields."""
        return len(_FIELD.sub("", self.text))

    def match(self, name: str) -> dict[str, str] | None:
        """Return the values of the fields in a name, words as on the first side; None if it does not match."""
        found = self._regex.fullmatch(name)
        if found is None:
            return None
        return {field: self._first.get(field, {}).get(value, value) for field, value in found.groupdict().items()}

    def name(self, values: Mapping[str, str]) -> str:
        """Return the name with these values of the fields."""
        return _FIELD.sub(lambda field: self.words.get(field[1], {}).get(values[field[1]], values[field[1]]), self.text)

    @cached_property
    def _first(self) -> dict[str, dict[str, str]]:
        """Table -> word on this side -> word on the first side."""
        return {table: {own: word for word, own in words.items()} for table, words in self.words.items()}

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        text, end = "", 0
        for field in _FIELD.finditer(self.text):
            text += re.escape(self.text[end : field.start()]) + f"(?P<{field[1]}>{self._values(field[1], field[2])})"
            end = field.end()
        return re.compile(text + re.escape(self.text[end:]))

    def _values(self, field: str, star: str) -> str:
        """Return the regular expression of a field's values."""
        if field in self.words:
            return "|".join(re.escape(word) for word in sorted(self.words[field].values(), key=len, reverse=True))
        if field == self.each:
            return "0|[1-9][0-9]{0,5}"
        return r"[^.]+(?:\.[^.]+)*" if star else r"[^.]+"
