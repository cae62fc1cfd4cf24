"""JSON from files, read so that no file can do harm: of bounded size, depth and memory, in valid Unicode.

A key that comes twice with another value is refused: programs do not agree on which of the two counts. Whole numbers
may be as long as configurations have them (10³⁰ for "no limit"), but never longer than a float can hold. NaN and
infinity are read, since configurations have them (``"time_step_limit": [0.0, Infinity]``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from weightspace.checkpoints.atomic_write import one_line_errors
from weightspace.errors import CheckpointError

#: Bytes of a file, at most: the tokenizers of the largest vocabularies have some 40 million.
MAX_BYTES = 100_000_000

#: How deep lists and objects may be nested: real files stay below 20.
MAX_DEPTH = 100

#: Bytes that the content may need in memory, by a bound from above.
_MAX_MEMORY = 500_000_000

#: Digits of a whole number, at most.
_MAX_DIGITS = 300

_CONTAINERS = (dict, list)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        CheckpointError: it cannot be read, is no regular file, or as ``parse_json``.
    """
    with one_line_errors(path, "read"):
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path} is not a regular file; expected a JSON file.")
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    return parse_json(content, str(path))


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        CheckpointError: as ``read_json``, or the file holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is a JSON {_kind(content)}, expected an object.")
    return content


def parse_json(content: bytes | str, where: str) -> Any:
    """Return the content of JSON text; ``where`` is what the error calls it.

    Raises:
        CheckpointError: it is not valid JSON in UTF-8, a key comes twice with different values, or it is too large or
            too deep.
    """
    try:
        return _parsed(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    except RecursionError:
        raise CheckpointError(f"{where} is not valid JSON: lists and objects are nested beyond reason.") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise CheckpointError(f"{where} is not valid JSON ({error.msg}: {place}).") from None
    except ValueError as error:
        raise CheckpointError(f"{where} is not valid JSON ({error}).") from None


def _parsed(content: bytes) -> Any:
    if len(content) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES:,} bytes")
    if _memory_bound(content) > _MAX_MEMORY:
        raise ValueError(f"{len(content):,} bytes of more items than can be held in memory")
    text = content.decode("utf-8-sig")
    parsed = json.loads(text, object_pairs_hook=_unique, parse_int=_whole_number)
    _check_depth(parsed)
    if "\\ud" in text or "\\uD" in text:
        _check_unicode(parsed)
    return parsed


def _memory_bound(content: bytes) -> int:
    """Return a bound from above of the bytes that the content takes as text and as objects."""
    containers = 240 * content.count(b"{") + 90 * content.count(b"[")
    items = 60 * content.count(b",") + 130 * content.count(b":")
    return containers + items + len(content) * (2 if content.isascii() else 5)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object, refusing a key that comes twice with different values."""
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: dict[str, Any] = {}
        for name, value in pairs:
            if seen.setdefault(name, value) != value:
                raise ValueError(f"{name[:200]!r} occurs twice")
    return content


def _whole_number(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(text):,} digits")
    return int(text)


def _check_depth(content: Any) -> None:
    """Refuse what later code, which may recurse, would stumble over."""
    level = [content] if type(content) in _CONTAINERS else []
    for _ in range(MAX_DEPTH):
        level = [item for container in level for item in _items(container) if type(item) in _CONTAINERS]
        if not level:
            return
    raise ValueError(f"lists and objects are nested more than {MAX_DEPTH} deep")


def _items(container: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def _check_unicode(content: Any) -> None:
    """Refuse halves of surrogate pairs, which no file can hold."""
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("a string is not valid Unicode: it holds half of a surrogate pair") from None


def _kind(value: Any) -> str:
    """Return what JSON calls a value."""
    names: dict[type, str] = {list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
