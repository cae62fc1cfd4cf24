"""Safe reading of JSON files: bounded size, depth and memory, and valid Unicode.

Duplicate keys with different values are rejected, as programs disagree on which one counts. Integers may be as large as
configurations need (10³⁰ for "no limit"), but must fit in a float. NaN and infinity are accepted, as configurations use
them (``"time_step_limit": [0.0, Infinity]``).
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from weightspace.checkpoints.atomic_write import one_line_errors
from weightspace.errors import CheckpointError

#: Largest file in bytes; tokenizers with the largest vocabularies have some 40 million.
MAX_BYTES = 100_000_000

#: Maximum nesting depth of lists and objects; real files stay below 20.
MAX_DEPTH = 100

#: Upper bound on the memory of the content, in bytes.
_MAX_MEMORY = 500_000_000

#: Maximum number of digits of an integer.
_MAX_DIGITS = 300

#: Digits as zeros, and more of them than a number may have: a fast way to see that no number is too long.
_DIGITS_AS_ZEROS = bytes.maketrans(b"123456789", b"000000000")
_LONG_NUMBER = b"0" * (_MAX_DIGITS + 1)

_CONTAINERS = (dict, list)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        CheckpointError: it cannot be read, isn't a regular file, or as for ``parse_json``.
    """
    return parse_json(_content(path), str(path))


def read_json_text(path: Path) -> str:
    """Return the text of a JSON file without parsing it.

    Raises:
        CheckpointError: it cannot be read, isn't a regular file, is too large, or isn't in UTF-8.
    """
    content = _content(path)
    if len(content) > MAX_BYTES:
        raise CheckpointError(f"{path} is not valid JSON (more than {MAX_BYTES:,} bytes).")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}).") from None


def _content(path: Path) -> bytes:
    """Return the content of a JSON file, up to one byte beyond the maximum size."""
    with one_line_errors(path, "read"):
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path} is not a regular file; expected a JSON file.")
        with open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        CheckpointError: as for ``read_json``, or the content isn't an object.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is a JSON {_kind(content)}, expected an object.")
    return content


def read_optional_json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, empty if there is no such file.

    Raises:
        CheckpointError: as for ``read_json_object``.
    """
    return read_json_object(path) if path.is_file() else {}


def json_document(content: object) -> str:
    """Return the text of a JSON file as the Hugging Face libraries indent it."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def parse_json(content: bytes | str, where: str) -> Any:
    """Return the content of JSON text; ``where`` names it in errors.

    Raises:
        CheckpointError: it isn't valid JSON in UTF-8, a key occurs twice with different values, or it is too large or
            too deeply nested.
    """
    try:
        return _parsed(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    except RecursionError:
        raise CheckpointError(f"{where} is not valid JSON: lists and objects are nested too deeply.") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise CheckpointError(f"{where} is not valid JSON ({error.msg}: {place}).") from None
    except ValueError as error:
        raise CheckpointError(f"{where} is not valid JSON ({error}).") from None


def _parsed(content: bytes) -> Any:
    if len(content) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES:,} bytes")
    if _memory_bound(content) > _MAX_MEMORY:
        raise ValueError(f"{len(content):,} bytes with more items than fit in memory")
    text = content.decode("utf-8-sig")
    is_long = _LONG_NUMBER in content.translate(_DIGITS_AS_ZEROS)
    with no_collection():
        parsed = json.loads(text, object_pairs_hook=_unique, parse_int=_whole_number if is_long else None)
        _check_depth(parsed)
    if "\\ud" in text or "\\uD" in text:
        _check_unicode(parsed)
    return parsed


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep the garbage collector from traversing many new objects, none of which is garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _memory_bound(content: bytes) -> int:
    """Return an upper bound on the memory of the content as text and as objects, in bytes."""
    containers = 240 * content.count(b"{") + 90 * content.count(b"[")
    items = 60 * content.count(b",") + 130 * content.count(b":")
    return containers + items + len(content) * (2 if content.isascii() else 5)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object, rejecting keys that occur twice with different values."""
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
    """Reject nesting too deep for recursive code."""
    level = [content] if type(content) in _CONTAINERS else []
    for _ in range(MAX_DEPTH):
        contents = list(chain.from_iterable(one.values() if type(one) is dict else one for one in level))
        if not (types := set(map(type, contents)) & {*_CONTAINERS}):
            return
        level = [item for item in contents if type(item) in types]
    raise ValueError(f"lists and objects are nested more than {MAX_DEPTH} deep")


def _check_unicode(content: Any) -> None:
    """Reject unpaired surrogates, which cannot be encoded in a file."""
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("a string is not valid Unicode: it holds an unpaired surrogate") from None


def _kind(value: Any) -> str:
    """Return the JSON type name of a value."""
    names: dict[type, str] = {list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
