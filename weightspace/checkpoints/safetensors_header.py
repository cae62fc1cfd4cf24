"""The header of a safetensors file, checked entry by entry so that an error can name the tensor.

A file is 8 bytes (the header's length, little-endian), the header (JSON), then the tensors' bytes. Offsets
count from the end of the header; together the tensors cover every byte after it exactly once.

Source: https://huggingface.co/docs/safetensors#format
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from weightspace.checkpoints.atomic_write import one_line_errors
from weightspace.checkpoints.json_file import parse_json
from weightspace.errors import CheckpointError

#: safetensors name of a dtype -> bytes per element.
ITEMSIZES: dict[str, int] = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "C64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1},
}

#: Prefixes of the format's names of 4- and 6-bit numbers.
_MICROSCALING = ("F4", "F6_")

#: Metadata key of the tied names: a JSON object *name -> stored name*.
TIED = "weightspace.tied"

#: Longest header that the format allows, in bytes.
MAX_HEADER = 100_000_000

#: Maximum numbers of dimensions and of elements of a tensor.
MAX_DIMENSIONS = 64
MAX_ELEMENTS = 2**63 - 1

#: Maximum length of a tensor's name; some programs take time quadratic in it.
MAX_NAME = 2_000

#: The only name in a header that isn't a tensor.
METADATA = "__metadata__"


@dataclass(frozen=True)
class Entry:
    """One tensor: the safetensors name of its dtype, its shape, and its byte range from ``start`` up to ``end``."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """All tensors of a file in the header's order, its metadata, and the offset at which the data begins."""

    entries: dict[str, Entry]
    metadata: dict[str, str]
    data_start: int


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file.

    Raises:
        CheckpointError: the file is missing or truncated, the header isn't valid JSON of the expected form, a name
            occurs twice, or a tensor's dtype, shape and offsets contradict each other, another tensor or the
            file's size.
    """
    with one_line_errors(path, "read"), open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        content, data_start = _json_header(path, file, size)
    metadata = _metadata(path, content.pop(METADATA, {}))
    entries = {name: _entry(path, name, value) for name, value in content.items()}
    _check_cover(path, entries, size - data_start)
    return Header(entries, metadata, data_start)


def encode_header(entries: dict[str, Entry], metadata: dict[str, str]) -> bytes:
    """Return the length and the header, padded so that the data starts at a multiple of 8."""
    content: dict[str, Any] = {METADATA: metadata} if metadata else {}
    for name, entry in entries.items():
        offsets = [entry.start, entry.end]
        content[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def place_entries(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, Entry]:
    """Assign byte ranges to tensors: wide dtypes first, so that each starts at a multiple of its item size.

    Args:
        tensors: name -> the safetensors name of the dtype, and the shape.

    Returns:
        The entries in the order of ``tensors``.
    """
    places: dict[str, Entry] = {}
    end = 0
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: -ITEMSIZES[item[1][0]]):
        start, end = end, end + math.prod(shape) * ITEMSIZES[dtype]
        places[name] = Entry(dtype, shape, start, end)
    return {name: places[name] for name in tensors}


def tied_entries(path: Path, header: Header) -> dict[str, str]:
    """Return name -> stored name of the tied tensors, as recorded in the metadata.

    Raises:
        CheckpointError: the record is damaged.
    """
    if TIED not in header.metadata:
        return {}
    tied = parse_json(header.metadata[TIED], f"{path}: the metadata {TIED!r}")
    if not isinstance(tied, dict):
        raise CheckpointError(f"{path}: the metadata {TIED!r} must map names to names.")
    for name, owner in tied.items():
        if name in header.entries or not isinstance(owner, str) or owner not in header.entries:
            raise CheckpointError(
                f"{path}: the metadata {TIED!r} ties {name!r} to {owner!r}, "
                "expected a name without data tied to a name with data."
            )
    return tied


def _json_header(path: Path, file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """Return the parsed header and the offset of its end."""
    if size < 8:
        raise CheckpointError(f"{path} has {size} bytes, but a safetensors file starts with 8: truncated or empty?")
    (length,) = struct.unpack("<Q", file.read(8))
    if length > MAX_HEADER or 8 + length > size:
        raise CheckpointError(
            f"{path}: the header claims {length:,} bytes, but the file has {size:,} "
            f"and a header at most {MAX_HEADER:,}. Is it truncated, or not a safetensors file?"
        )
    try:
        content = parse_json(file.read(length), f"{path}: the header")
    except CheckpointError as error:
        raise CheckpointError(f"{error} Is it a safetensors file?") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: the header is a JSON {type(content).__name__}, expected an object of tensors.")
    return content, 8 + length


def _metadata(path: Path, value: Any) -> dict[str, str]:
    """Return the metadata if it maps strings to strings."""
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise CheckpointError(f"{path}: {METADATA} must map strings to strings, found {str(value)[:80]!r}.")
    return value


def _entry(path: Path, name: str, value: Any) -> Entry:
    """Return one tensor's entry after checking its consistency."""
    here = f"{path}: tensor {name!r}"
    if len(name) > MAX_NAME:
        raise CheckpointError(f"{here} has a name of {len(name):,} characters, expected at most {MAX_NAME:,}.")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{here} must have dtype, shape and data_offsets, found {str(value)[:80]!r}.")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEMSIZES:
        raise CheckpointError(f"{here} has dtype {str(dtype)[:80]!r}{_quantised(dtype)}")
    if not _sizes(shape):
        raise CheckpointError(f"{here} has shape {str(shape)[:80]}, expected a list of non-negative sizes.")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{here} has data_offsets {str(offsets)[:80]}, expected [start, end].")
    if len(shape) > MAX_DIMENSIONS:
        raise CheckpointError(f"{here} has {len(shape):,} dimensions, expected at most {MAX_DIMENSIONS}.")
    needed = math.prod(shape) * ITEMSIZES[dtype]
    if offsets[1] - offsets[0] != needed:
        raise CheckpointError(
            f"{here} of dtype {dtype} and shape {tuple(shape)} needs {needed:,} bytes, "
            f"but its offsets {offsets} hold {offsets[1] - offsets[0]:,}. The header is damaged."
        )
    if math.prod(size or 1 for size in shape) > MAX_ELEMENTS:  # even if one size is 0
        raise CheckpointError(f"{here} has shape {tuple(shape)}, which no tensor can have. The header is damaged.")
    return Entry(dtype, tuple(shape), offsets[0], offsets[1])


def _sizes(value: Any) -> bool:
    """Return whether the value is a list of non-negative integers that fit in int64."""
    return isinstance(value, list) and all(type(size) is int and 0 <= size < 2**63 for size in value)


def _check_cover(path: Path, entries: dict[str, Entry], available: int) -> None:
    """Check that the tensors cover the bytes after the header exactly once."""
    end, before = 0, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.end > available:
            raise CheckpointError(
                f"{path}: tensor {name!r} ends at byte {entry.end:,} of the data, "
                f"but the file holds {available:,}. Is the file truncated? Copy it again."
            )
        if entry.start != end:
            problem = "overlaps" if entry.start < end else "leaves a gap after"
            raise CheckpointError(
                f"{path}: tensor {name!r} {problem} {before}: starts at {entry.start}, expected {end}."
            )
        end, before = entry.end, repr(name)
    if end != available:
        raise CheckpointError(
            f"{path}: {available - end:,} bytes after {before} belong to no tensor. The file is damaged."
        )


def _quantised(dtype: object) -> str:
    """Return the end of the error about an unsupported dtype, with advice for quantised formats."""
    if isinstance(dtype, str) and dtype.startswith(_MICROSCALING):
        return ": the model is quantised (MXFP4, NVFP4 or alike). Take the model that it was quantised from."
    return f", expected one of {', '.join(ITEMSIZES)}."
