"""Positions of values in JSON text, so that part of a large file can be changed while the rest keeps its bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def find_value(text: str, *keys: str) -> tuple[int, int, Any] | None:
    """Return the start and end of a value in JSON text and the value itself, or None if there is none.

    Values after the one sought are not read.

    Args:
        text: valid JSON.
        keys: the path to the value: a key of the object, a key of that key's value, and so on.

    Raises:
        JSONDecodeError: a value that was read isn't valid JSON.

    Example:
        >>> find_value('{"model": {"type": "BPE", "vocab": {"a": 0}}}', "model", "vocab")
        (35, 43, {'a': 0})
    """
    start = _after_space(text, 0)
    for key in keys:
        found = next((place for name, place in _members(text, start) if name == key), None)
        if found is None:
            return None
        start = found
    value, end = _DECODER.raw_decode(text, start)
    return start, end, value


def _members(text: str, start: int) -> Iterator[tuple[str, int]]:
    """Yield each key of an object with the start of its value; nothing if there is no object at ``start``."""
    if text[start : start + 1] != "{":
        return
    place = _after_space(text, start + 1)
    while text[place : place + 1] not in ("}", ""):
        name, place = _DECODER.raw_decode(text, place)
        place = _after_space(text, _after_space(text, place) + 1)  # past the colon
        yield name, place
        _, place = _DECODER.raw_decode(text, place)
        place = _after_space(text, place)
        if text[place : place + 1] == ",":
            place = _after_space(text, place + 1)


def _after_space(text: str, start: int) -> int:
    match = _SPACE.match(text, start)
    return start if match is None else match.end()
