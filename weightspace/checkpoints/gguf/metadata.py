"""The metadata of this library in the fields of a GGUF file, under names of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from weightspace.checkpoints.gguf.header import Field, encode_header, read_header

#: Prefix of the fields that hold it.
PREFIX = "weightspace."


def read_gguf_metadata(path: Path) -> dict[str, str]:
    """Return the fields of a file that are no lists, as strings; this library's own without their prefix.

    Raises:
        CheckpointError: the file is damaged.
    """
    fields = read_header(path).fields.items()
    return {key.removeprefix(PREFIX): str(field.value()) for key, field in fields if not field.is_list}


def with_metadata(fields: Mapping[str, Field], metadata: Mapping[str, str]) -> dict[str, Field]:
    """Return the fields of a file with other metadata of this library."""
    return {**fields, **{f"{PREFIX}{key}": Field.string(value) for key, value in metadata.items()}}


def header_with_metadata(path: Path, metadata: Mapping[str, str]) -> tuple[int, bytes]:
    """Return the length of a file's header, and the header with other metadata of this library.

    Raises:
        CheckpointError: the file is damaged.
    """
    header = read_header(path)
    return header.data_start, encode_header(with_metadata(header.fields, metadata), header.entries)
