"""The header of a GGUF file: metadata fields, and the type, shape and place of each tensor.

A file is ``GGUF``, the version, the numbers of tensors and of fields, the fields, the tensors' entries, padding, and
the tensors' bytes, each padded to a multiple of the alignment. All numbers are little-endian. Dimensions are stored
fastest first; shapes here are row-major, as in torch.

Every size is compared with the bytes that the file has before anything is read or allocated.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightspace.checkpoints.gguf.block_types import BY_NUMBER, UNREAD, BlockType
from weightspace.errors import CheckpointError

MAGIC = b"GGUF"

#: Versions that are read; they differ only from version 1, whose counts had 32 bits.
_VERSIONS = (2, 3)

#: Maximum bytes of a header, dimensions of a tensor (llama.cpp has 4; ComfyUI's converter also writes the kernels of
#: 3-D convolutions), characters of a name, and elements of a tensor.
MAX_HEADER = 100_000_000
_MAX_DIMENSIONS, _MAX_NAME, _MAX_ELEMENTS = 5, 200, 2**63 - 1

#: Start of the field with the shape of a tensor that ComfyUI's converter stored in rows of 256 elements.
_SHAPE = "comfy.gguf.orig_shape."

#: Alignment of the tensors' bytes if no field names it.
ALIGNMENT = 32

#: Numbers of the types of fields: those of a struct format, strings, arrays.
_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_SIZES = {kind: struct.calcsize(f"<{code}") for kind, code in _SCALARS.items()}
_UINT32, _BOOL, STRING, _ARRAY = 4, 7, 8, 9

#: Bytes of the first read, which a header of an unusual size extends.
_FIRST = 2**20


@dataclass(frozen=True)
class Field:
    """A metadata field: the number of its type, and its bytes without that number."""

    kind: int
    raw: bytes

    @property
    def is_list(self) -> bool:
        """Whether its value is a list."""
        return self.kind == _ARRAY

    def value(self) -> Any:
        """Return a number, a bool, a string or a list of these; bytes that are not UTF-8 are replaced."""
        if not self.is_list:
            return _scalar(self.kind, self.raw)
        kind, count = struct.unpack_from("<IQ", self.raw)
        if kind in _SCALARS:
            return list(struct.unpack_from(f"<{count}{_SCALARS[kind]}", self.raw, 12))
        values, at = [], 12
        for _ in range(count):
            (length,) = struct.unpack_from("<Q", self.raw, at)
            values.append(self.raw[at + 8 : at + 8 + length].decode(errors="replace"))
            at += 8 + length
        return values

    @classmethod
    def string(cls, text: str) -> Field:
        """Return a field with a text."""
        return cls(STRING, _string(text))

    @classmethod
    def uint32(cls, number: int) -> Field:
        """Return a field with a number."""
        return cls(_UINT32, struct.pack("<I", number))


@dataclass(frozen=True)
class Entry:
    """One tensor: its type, its row-major shape, and the offset of its bytes from the start of the data."""

    kind: BlockType
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """The number of its bytes."""
        return math.prod(self.shape) // self.kind.elements * self.kind.nbytes


@dataclass(frozen=True)
class Header:
    """The fields and tensors of a file in its order, and the offset at which the data begin."""

    fields: dict[str, Field]
    entries: dict[str, Entry]
    data_start: int

    @property
    def alignment(self) -> int:
        """The number of bytes of which every tensor's offset is a multiple."""
        return self.fields["general.alignment"].value() if "general.alignment" in self.fields else ALIGNMENT

    def value(self, key: str) -> Any:
        """Return the value of a field, or None if there is none."""
        return self.fields[key].value() if key in self.fields else None

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, which may be stored in other rows to be quantised.

        Raises:
            CheckpointError: a field gives it a shape with another number of elements.
        """
        stored, shape = self.entries[name].shape, self.value(f"{_SHAPE}{name}")
        if shape is None:
            return stored
        sizes = shape if isinstance(shape, list) else [shape]
        if not all(type(size) is int and size > 0 for size in sizes) or math.prod(sizes) != math.prod(stored):
            raise CheckpointError(
                f"The shape of {name!r} is {repr(shape)[:80]} in the field {_SHAPE + name[:200]!r}, but it is stored "
                f"as {stored}; expected as many elements. The header is damaged."
            )
        return tuple(sizes)


def read_header(path: Path) -> Header:
    """Read and check the header of a GGUF file.

    Raises:
        CheckpointError: the file is truncated or damaged, has a version or a type of tensor that is not read, or is a
            part of a model.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        cursor = _Cursor(path, file.fileno())
        tensors, fields = _beginning(cursor)
        known: dict[str, Field] = {}
        for _ in range(fields):
            key = cursor.text("the key of a field", _MAX_NAME)
            if key in known:
                raise CheckpointError(f"{path}: the field {key!r} occurs twice. The header is damaged.")
            known[key] = _field(cursor, key)
        alignment = _alignment(path, known)
        entries: dict[str, Entry] = {}
        for _ in range(tensors):
            name = cursor.text("the name of a tensor", _MAX_NAME)
            if name in entries:
                raise CheckpointError(f"{path}: the tensor {name!r} occurs twice. The header is damaged.")
            entries[name] = _entry(cursor, name)
        header = Header(known, entries, cursor.at + -cursor.at % alignment)
    _check_split(path, header)
    _check_places(path, header, cursor.size)
    return header


def encode_header(fields: dict[str, Field], entries: dict[str, Entry]) -> bytes:
    """Return the header with its padding; the tensors' offsets count from its end."""
    parts = [MAGIC, struct.pack("<IQQ", _VERSIONS[-1], len(entries), len(fields))]
    for key, field in fields.items():
        parts += [_string(key), struct.pack("<I", field.kind), field.raw]
    for name, entry in entries.items():
        dimensions = entry.shape[::-1]
        parts += [_string(name), struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)]
        parts.append(struct.pack("<IQ", entry.kind.number, entry.start))
    text = b"".join(parts)
    return text + bytes(-len(text) % Header(fields, entries, 0).alignment)


class _Cursor:
    """Position in a header; bytes are read from the file as far as they are needed."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.at = path, 0
        self.size = os.fstat(descriptor).st_size
        self._descriptor = descriptor
        self.content = bytearray()

    def skip(self, count: int, what: str) -> int:
        """Return the current position and move on, after checking that the file has so many bytes left."""
        start, end = self.at, self.at + count
        if end > min(self.size, MAX_HEADER):
            limit = f"the file has {self.size:,}" if end > self.size else f"a header at most {MAX_HEADER:,}"
            raise CheckpointError(
                f"{self.path}: {what} ends at byte {end:,}, but {limit}. Is it truncated or damaged? Copy it again."
            )
        while len(self.content) < end:
            more = os.pread(self._descriptor, max(_FIRST, len(self.content)), len(self.content))
            if not more:
                raise CheckpointError(f"{self.path} has become shorter while its header was read. Copy it again.")
            self.content += more
        self.at = end
        return start

    def unpack(self, code: str, what: str) -> tuple[Any, ...]:
        """Return numbers of a struct format."""
        start = self.skip(struct.calcsize(code), what)
        return struct.unpack_from(code, self.content, start)

    def text(self, what: str, limit: int) -> str:
        """Return a string of at most ``limit`` bytes."""
        (length,) = self.unpack("<Q", what)
        if length > limit:
            raise CheckpointError(
                f"{self.path}: {what} has {length:,} bytes, expected at most {limit:,}. The header is damaged."
            )
        start = self.skip(length, what)
        try:
            return self.content[start : self.at].decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.path}: {what} is not valid UTF-8. The header is damaged.") from error


def _beginning(cursor: _Cursor) -> tuple[int, int]:
    """Return the numbers of tensors and fields."""
    path = cursor.path
    (magic,) = cursor.unpack("<4s", "the beginning")
    if magic != MAGIC:
        raise CheckpointError(f"{path} is not a GGUF file: it begins with {magic!r}, expected {MAGIC!r}.")
    (version,) = cursor.unpack("<I", "the beginning")
    if version not in _VERSIONS:
        if version & 0xFFFF == 0 and version:
            raise CheckpointError(
                f"{path} is a big-endian GGUF file, which is not read. Convert it (gguf-convert-endian)."
            )
        raise CheckpointError(
            f"{path} is a GGUF file of version {version}, expected {' or '.join(map(str, _VERSIONS))}. "
            "Convert the model again with a current llama.cpp."
        )
    tensors, fields = cursor.unpack("<QQ", "the beginning")
    return tensors, fields


def _field(cursor: _Cursor, key: str) -> Field:
    """Return the field at the position."""
    what = f"the field {key!r}"
    (kind,) = cursor.unpack("<I", what)
    start = cursor.at
    if kind == STRING:
        (length,) = cursor.unpack("<Q", what)
        cursor.skip(length, what)
    elif kind == _ARRAY:
        _skip_array(cursor, what)
    else:
        cursor.skip(_size(cursor, kind, what), what)
    return Field(kind, bytes(cursor.content[start : cursor.at]))


def _skip_array(cursor: _Cursor, what: str) -> None:
    """Move to the end of an array."""
    kind, count = cursor.unpack("<IQ", what)
    if kind != STRING:
        cursor.skip(count * _size(cursor, kind, what), what)
        return
    start = cursor.at
    cursor.skip(8 * count, what)  # at least
    cursor.at = start
    for _ in range(count):
        (length,) = cursor.unpack("<Q", what)
        cursor.skip(length, what)


def _size(cursor: _Cursor, kind: int, what: str) -> int:
    """Return the size of a scalar in bytes."""
    if kind not in _SIZES:
        raise CheckpointError(f"{cursor.path}: {what} has type {kind}, which is not known. The header is damaged.")
    return _SIZES[kind]


def _alignment(path: Path, fields: dict[str, Field]) -> int:
    """Return the alignment after checking it."""
    field = fields.get("general.alignment", Field.uint32(ALIGNMENT))
    alignment = field.value()
    if field.kind != _UINT32 or not alignment or alignment & (alignment - 1):
        raise CheckpointError(
            f"{path}: general.alignment is {repr(alignment)[:80]}, expected a power of two. The header is damaged."
        )
    return alignment


def _entry(cursor: _Cursor, name: str) -> Entry:
    """Return the entry of a tensor after checking its consistency."""
    here = f"{cursor.path}: tensor {name!r}"
    (count,) = cursor.unpack("<I", f"the entry of {name!r}")
    if count > _MAX_DIMENSIONS:
        raise CheckpointError(f"{here} has {count:,} dimensions, expected at most {_MAX_DIMENSIONS}. It is damaged.")
    *dimensions, number, start = cursor.unpack(f"<{count}QIQ", f"the entry of {name!r}")
    shape = tuple(dimensions[::-1])
    if number not in BY_NUMBER:
        title = UNREAD.get(number)
        problem = f"type {title}, which is not read" if title else f"type {number}, which is not known"
        raise CheckpointError(f"{here} has {problem}. Take the model in one of {', '.join(_titles())}.")
    kind = BY_NUMBER[number]
    if math.prod(size or 1 for size in shape) > _MAX_ELEMENTS:
        raise CheckpointError(f"{here} has shape {shape}, which no tensor can have. The header is damaged.")
    if (shape[-1] if shape else 1) % kind.elements:
        raise CheckpointError(
            f"{here} of type {kind.name} has shape {shape}: its rows have no whole blocks of {kind.elements}."
        )
    return Entry(kind, shape, start)


def _titles() -> list[str]:
    """Return the names of the float and quantised types that are read."""
    return [kind.name for kind in BY_NUMBER.values() if not (kind.dtype or "").startswith("I")]


def _check_split(path: Path, header: Header) -> None:
    """Check that the file is a whole model."""
    count = header.value("split.count")
    if isinstance(count, int) and count > 1:
        number = header.value("split.no")
        part = number + 1 if isinstance(number, int) else "one"
        raise CheckpointError(
            f"{path} is part {part} of {count} of a split model. Join the parts: llama-gguf-split --merge."
        )


def _check_places(path: Path, header: Header, size: int) -> None:
    """Check that the tensors follow each other with no more than their padding between them, and end in the file."""
    end, before, alignment = 0, "the header", header.alignment
    for name, entry in sorted(header.entries.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if entry.start != end:
            problem = "overlaps" if entry.start < end else "leaves a gap after"
            raise CheckpointError(
                f"{path}: tensor {name!r} {problem} {before}: starts at {entry.start:,}, expected {end:,} (alignment "
                f"{alignment}). The header is damaged."
            )
        last = header.data_start + entry.start + entry.nbytes
        if last > size:
            raise CheckpointError(
                f"{path}: tensor {name!r} ends at byte {last:,}, but the file has {size:,}. Is the file truncated? "
                "Copy it again."
            )
        end, before = entry.start + entry.nbytes + -entry.nbytes % alignment, repr(name)


def _scalar(kind: int, raw: bytes) -> Any:
    """Return the value of a field that is no array."""
    if kind == STRING:
        return raw[8:].decode(errors="replace")
    return struct.unpack(f"<{_SCALARS[kind]}", raw)[0]


def _string(text: str) -> bytes:
    """Return a string with its length."""
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded
