"""Strict reading of zip archives: each record in its own place, with the length that it claims, and no duplicates.

Programs interpret inconsistent archives differently; here they are rejected.

Source:
    PKWARE, APPNOTE.TXT 6.3.10, sections 4.3 to 4.5, https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

#: The first bytes of an archive with a record in it.
MAGIC = b"PK\x03\x04"

STORED, DEFLATED = 0, 8

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_ENTRY = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")
_LOCATOR = struct.Struct("<4sIQI")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_DESCRIPTOR = struct.Struct("<4sIII")
_DESCRIPTOR64 = struct.Struct("<4sIQQ")
_DESCRIBES = b"PK\x07\x08"
_ENCRYPTED, _DESCRIBED = 0x1, 0x8

#: Largest list of records in bytes: half a million records.
_MAX_LIST = 64_000_000

#: Largest decompressed size, as a multiple of the archive's size and in bytes.
_MAX_RATIO = 20
_SMALL = 64_000_000

_PIECE = 2**20


class ZipError(ValueError):
    """A problem with an archive, described in a few words."""


@dataclass(frozen=True, slots=True)
class ZipRecord:
    """A record of an archive.

    Attributes:
        name: its path in the archive.
        method: compression method: ``STORED`` or ``DEFLATED``.
        size: size of its content in bytes.
        stored: size in the archive in bytes.
        crc: CRC-32 of its content; 0 if the writer computed none.
        start: offset of its bytes.
        fits: whether its bytes are directly followed by a copy of its lengths or by the next record, which confirms
            their position without the checksum.
    """

    name: str
    method: int
    size: int
    stored: int
    crc: int
    start: int = 0
    fits: bool = False


def read_directory(file: BinaryIO, *, small: int = _SMALL) -> dict[str, ZipRecord]:
    """Return the records of an archive by name, in its order; folders are omitted.

    Args:
        file: an open file.
        small: decompressed size in bytes that is accepted regardless of the archive's size.

    Raises:
        ZipError: the archive is damaged, inconsistent, or a decompression bomb.
    """
    size = file.seek(0, 2)
    start, length, count, end = _place_of_list(file, size)
    if start + length != end or length > _MAX_LIST:
        raise ZipError("its list of records is not where it should be")
    file.seek(start)
    listed = sorted(_entries(_exactly(file, length), count), key=lambda entry: entry.header)
    folded: set[str] = set()
    for entry, following in zip(listed, [*(entry.header for entry in listed[1:]), start], strict=True):
        entry.record = _located(file, entry, following)
        if entry.record.name.lower() in folded:
            raise ZipError(f"it has two records named {entry.record.name[:80]!r}")
        folded.add(entry.record.name.lower())
    listed.sort(key=lambda entry: entry.number)
    records = {entry.record.name: entry.record for entry in listed if not entry.record.name.endswith("/")}
    _check_bombs(records, size, small)
    return records


def read_record(file: BinaryIO, record: ZipRecord, limit: int) -> bytes:
    """Return the content of a record.

    Raises:
        ZipError: it is longer than ``limit``, or damaged.
    """
    if record.size > limit:
        raise ZipError(f"{record.name[:80]!r} has {record.size:,} bytes, expected at most {limit:,}")
    return b"".join(_content(file, record))


def check_record(file: BinaryIO, record: ZipRecord) -> None:
    """Read a record to its end to verify its checksum.

    Raises:
        ZipError: it is damaged, or has no checksum.
    """
    for _ in _content(file, record):
        pass


def _content(file: BinaryIO, record: ZipRecord) -> Iterator[bytes]:
    """Yield the content of a record in pieces; at the end, check its length and CRC-32."""
    if not record.fits and not record.crc and record.size:
        raise ZipError(f"{record.name[:80]!r} is damaged: it is misplaced, and has no checksum")
    file.seek(record.start)
    inflate = zlib.decompressobj(-15) if record.method == DEFLATED else None
    left, size, crc = record.stored, 0, 0
    while left:
        piece = _exactly(file, min(left, _PIECE))
        left -= len(piece)
        for part in [piece] if inflate is None else _inflated(inflate, piece, record):
            size, crc = size + len(part), zlib.crc32(part, crc)
            if size > record.size:
                raise ZipError(f"{record.name[:80]!r} is longer than it claims")
            yield part
    complete = inflate is None or inflate.eof
    if size != record.size or not complete or (crc != record.crc and (record.crc or record.method != STORED)):
        raise ZipError(f"{record.name[:80]!r} is damaged: its content doesn't match its checksum")


def _inflated(inflate: zlib._Decompress, piece: bytes, record: ZipRecord) -> Iterator[bytes]:
    """Yield the decompressed content of a piece, in bounded amounts."""
    try:
        while piece:
            yield inflate.decompress(piece, _PIECE)
            piece = inflate.unconsumed_tail
    except zlib.error as error:
        raise ZipError(f"{record.name[:80]!r} is damaged ({error})") from None


def _place_of_list(file: BinaryIO, size: int) -> tuple[int, int, int, int]:
    """Return the offset and length of the list of records, their number, and the offset after the list."""
    tail, at = b"", -1
    for comment in (2**8, 2**16):  # almost always empty
        if at < 0:
            file.seek(max(0, size - _END.size - comment))
            tail = file.read()
            at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        raise ZipError("its end is missing")
    _, disk, first_disk, here, count, length, start, comment = _END.unpack_from(tail, at)
    end = size - len(tail) + at
    if at + _END.size + comment != len(tail) or disk or first_disk or here != count:
        raise ZipError("its end is damaged")
    if end < _LOCATOR.size:
        return start, length, count, end
    file.seek(end - _LOCATOR.size)
    magic, _, place, disks = _LOCATOR.unpack(_exactly(file, _LOCATOR.size))
    if magic != b"PK\x06\x07":
        return start, length, count, end
    file.seek(place)
    large = _END64.unpack(_exactly(file, _END64.size))
    if large[0] != b"PK\x06\x06" or disks != 1 or large[4] or large[5] or large[6] != large[7]:
        raise ZipError("its end is damaged")
    if place + 12 + large[1] != end - _LOCATOR.size:
        raise ZipError("its end is damaged")
    for small, value, limit in ((count, large[7], 2**16), (length, large[8], 2**32), (start, large[9], 2**32)):
        if small not in (value, limit - 1):
            raise ZipError("its end contradicts itself")
    return large[9], large[8], large[7], place


@dataclass(slots=True)
class _Entry:
    """An entry of the list of records: its number, the record, its flags, and the offset of its header."""

    number: int
    record: ZipRecord
    flags: int
    header: int


def _entries(listed: bytes, count: int) -> Iterator[_Entry]:
    """Yield the entries of the list of records."""
    at = 0
    for number in range(count):
        if at + _ENTRY.size > len(listed):
            raise ZipError("its list of records is truncated")
        magic, _, _, flags, method, _, _, crc, *lengths, disk, _, _, header = _ENTRY.unpack_from(listed, at)
        stored, size, name_length, extra_length, comment_length = lengths
        at += _ENTRY.size
        name = listed[at : at + name_length].decode("utf-8", "backslashreplace")
        extra = listed[at + name_length : at + name_length + extra_length]
        at += name_length + extra_length + comment_length
        if magic != b"PK\x01\x02" or at > len(listed) or disk not in (0, 0xFFFF):
            raise ZipError("its list of records is damaged")
        if flags & _ENCRYPTED or method not in (STORED, DEFLATED):
            raise ZipError(f"{name[:80]!r} is encrypted, or compressed by a method other than deflate")
        size, stored, header = _large(extra, size, stored, header)
        if method == STORED and size != stored:
            raise ZipError(f"{name[:80]!r} is not compressed, but claims two lengths")
        yield _Entry(number, ZipRecord(name, method, size, stored, crc), flags, header)
    if at != len(listed):
        raise ZipError("its list of records is longer than it says")


def _large(extra: bytes, *values: int) -> list[int]:
    """Return the values that don't fit in 32 bits, from the extra field."""
    wide: list[int] = []
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        if kind == 1:
            wide = [value for (value,) in struct.iter_unpack("<Q", extra[4 : 4 + length // 8 * 8])]
        extra = extra[4 + length :]
    missing = sum(value == 0xFFFFFFFF for value in values)
    if missing > len(wide):
        raise ZipError("the length of a record is missing")
    queue = iter(wide)
    return [next(queue) if value == 0xFFFFFFFF else value for value in values]


def _located(file: BinaryIO, entry: _Entry, following: int) -> ZipRecord:
    """Return a record with its offset, after comparing its own header with the list."""
    record = entry.record
    if entry.header + _LOCAL.size > following:
        raise ZipError(f"{record.name[:80]!r} lies beyond the end, or in another record")
    file.seek(entry.header)
    magic, _, _, method, *_, name_length, extra_length = _LOCAL.unpack(_exactly(file, _LOCAL.size))
    name = _exactly(file, name_length).decode("utf-8", "backslashreplace")
    start = entry.header + _LOCAL.size + name_length + extra_length
    if magic != MAGIC or method != record.method or name != record.name:
        raise ZipError(f"the header of {record.name[:80]!r} contradicts the list of records")
    end = start + record.stored
    if end > following:
        raise ZipError(f"{record.name[:80]!r} extends beyond the end, or into another record")
    file.seek(end)
    after = _exactly(file, following - end) if following - end <= _DESCRIPTOR64.size else b"gap"
    return replace(record, start=start, fits=after in _endings(record, entry.flags))


def _endings(record: ZipRecord, flags: int) -> list[bytes]:
    """Return what may follow the bytes of a record: copies of its checksum and lengths, or nothing."""
    if not flags & _DESCRIBED:
        return [b""]
    lengths = (record.crc, record.stored, record.size)
    small = [] if max(lengths[1:]) > 0xFFFFFFFF else [_DESCRIPTOR.pack(_DESCRIBES, *lengths)]
    return [*small, _DESCRIPTOR64.pack(_DESCRIBES, *lengths)]


def _check_bombs(records: dict[str, ZipRecord], size: int, small: int) -> None:
    """Check that compressed records aren't decompression bombs."""
    total = sum(record.size for record in records.values() if record.method != STORED)
    if total > max(small, _MAX_RATIO * size):
        raise ZipError(f"its {size:,} bytes would become {total:,}, more than {_MAX_RATIO} times as many")


def _exactly(file: BinaryIO, length: int) -> bytes:
    """Return exactly the next ``length`` bytes of a file."""
    content = file.read(length)
    if len(content) != length:
        raise ZipError("it is truncated")
    return content
