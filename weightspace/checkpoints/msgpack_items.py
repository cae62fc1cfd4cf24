"""Items of a MessagePack file, located without reading the bytes of its arrays.

Every length is compared with the bytes that the file has before anything is read.

Source: https://github.com/msgpack/msgpack/blob/master/spec.md
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from weightspace.errors import CheckpointError

Kind: TypeAlias = Literal["map", "list", "text", "bytes", "extension", "value"]

#: First byte -> kind, and the struct code of the length that follows it.
_SIZED: dict[int, tuple[Kind, str]] = {
    **{0xD9: ("text", "B"), 0xDA: ("text", "H"), 0xDB: ("text", "I")},
    **{0xC4: ("bytes", "B"), 0xC5: ("bytes", "H"), 0xC6: ("bytes", "I")},
    **{0xC7: ("extension", "B"), 0xC8: ("extension", "H"), 0xC9: ("extension", "I")},
    **{0xDC: ("list", "H"), 0xDD: ("list", "I"), 0xDE: ("map", "H"), 0xDF: ("map", "I")},
}

#: First byte -> struct code of a number.
_NUMBERS = dict(zip(range(0xCA, 0xD4), "fdBHIQbhiq", strict=True))

#: First byte -> value.
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}

#: First bytes of the extensions of 1, 2, 4, 8 and 16 bytes.
_FIXED = {0xD4 + power: 2**power for power in range(5)}

#: Bytes that are read at a time, and maximum bytes of a text.
_WINDOW, _LONGEST = 2**14, 2**12


#: File ending.
SUFFIX = ".msgpack"


def looks_like_msgpack(start: bytes) -> bool:
    """Return whether the first bytes of a file are a map in MessagePack whose first key is a printable text."""
    header = {0xDE: 3, 0xDF: 5}.get(start[0], 1) if start else 0
    if not start or not (0x81 <= start[0] <= 0x8F or header > 1) or len(start) <= header:
        return False
    first = start[header]
    length, begin = (first & 0x1F, header + 1) if 0xA1 <= first <= 0xBF else (0, 0)
    if first == 0xD9 and len(start) > header + 1:
        length, begin = start[header + 1], header + 2
    key = start[begin : begin + length]
    return bool(key) and key.isascii() and key.decode("ascii").isprintable()


class Item(NamedTuple):
    """An item of the file.

    Attributes:
        kind: its kind.
        value: the number of entries of a map or list, the type of an extension, the text, or the value.
        start: offset of its content; of a map or list, that of the first entry.
        stop: offset of the byte after its content; of a map or list, that of the first entry.
    """

    kind: Kind
    value: Any
    start: int
    stop: int


class MsgpackFile:
    """A MessagePack file whose items are read by their offsets.

    Args:
        path: the file.

    Raises:
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            self._file = os.dup(file.fileno())
            self.size = os.fstat(file.fileno()).st_size
        self._from, self._window = 0, b""

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def item(self, at: int) -> Item:
        """Return the item at an offset.

        Raises:
            CheckpointError: the file ends before the item does, or no item begins there.
        """
        first = self._read(at, 1)[0]
        if first in _SIZED:
            kind, code = _SIZED[first]
            (length,) = self._unpacked(code, at + 1)
            return self._sized(kind, length, at + 1 + struct.calcsize(code))
        if first in _FIXED:
            return self._sized("extension", _FIXED[first], at + 1)
        if first in _NUMBERS:
            (number,) = self._unpacked(_NUMBERS[first], at + 1)
            stop = at + 1 + struct.calcsize(_NUMBERS[first])
            return Item("value", number, stop, stop)
        if first in _CONSTANTS or first < 0x80 or first >= 0xE0:
            value = _CONSTANTS[first] if first in _CONSTANTS else first - 0x100 * (first >= 0xE0)
            return Item("value", value, at + 1, at + 1)
        if first < 0xC0:
            kind: Kind = "map" if first < 0x90 else "list" if first < 0xA0 else "text"
            return self._sized(kind, first & (0x1F if kind == "text" else 0x0F), at + 1)
        raise self.error(f"has the byte {first:#x} at {at:,}, which begins no item")

    def _sized(self, kind: Kind, length: int, at: int) -> Item:
        """Return an item with a length."""
        if kind in ("map", "list"):
            return Item(kind, length, at, at)
        value: Any = None
        if kind == "extension":
            value, at = self._read(at, 1)[0], at + 1
        if at + length > self.size:
            raise self.error(f"ends at byte {self.size:,}, but an item there goes to byte {at + length:,}")
        if kind == "text" and length <= _LONGEST:
            value = self._read(at, length).decode(errors="replace")
        return Item(kind, value, at, at + length)

    def _unpacked(self, code: str, at: int) -> tuple[Any, ...]:
        return struct.unpack(f">{code}", self._read(at, struct.calcsize(code)))

    def _read(self, at: int, length: int) -> bytes:
        """Return bytes, from the last ones that were read if possible."""
        start = at - self._from
        if start < 0 or start + length > len(self._window):
            self._from, self._window, start = at, os.pread(self._file, max(length, _WINDOW), at), 0
        found = self._window[start : start + length]
        if len(found) < length:
            raise self.error(f"ends at byte {self.size:,}, within an item")
        return found

    def error(self, problem: str) -> CheckpointError:
        """Return an error about the file."""
        return CheckpointError(f"{self.path} {problem}. Is it damaged? Copy it again.")
