"""Checks of a torch file before torch reads it: every storage must be present, with the length given in the pickle.

There are two formats: a zip archive with one record per storage, and, before torch 1.6, five consecutive pickles
followed by the storages, each preceded by its number of elements.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from weightspace.checkpoints.atomic_write import one_line_errors
from weightspace.checkpoints.torch_pickle import (
    MAX_PICKLE,
    Storage,
    TorchPickleError,
    check_memory,
    follow_pickle,
)
from weightspace.checkpoints.zip_records import (
    MAGIC,
    STORED,
    ZipError,
    ZipRecord,
    check_record,
    read_directory,
    read_record,
)
from weightspace.errors import CheckpointError

#: Alignment in bytes of a storage whose elements are used in place.
_ALIGNMENT = 8

#: The magic number of files in the old format.
_OLD_MAGIC = 0x1950A86A20F9469CFC6C

_HINT = "Copy it again."


def check_torch_file(path: Path) -> bool:
    """Check that a torch file is complete, and return whether it can be memory-mapped.

    It can if all storages are uncompressed, exactly where they should be, aligned for their elements, and in the byte
    order of this machine. The checksums of storages are verified if they aren't mapped, since they are read anyway.

    Raises:
        CheckpointError: the file is damaged, or claims more than it holds.
    """
    with one_line_errors(path, "read"), open(path, "rb") as file:
        try:
            if is_archive(file):
                return _check_archive(file)
            _check_old_file(file)
        except ZipError as error:
            raise CheckpointError(f"{path} is a damaged archive: {error}. {_HINT}") from error
        except TorchPickleError as error:
            raise CheckpointError(f"{path} cannot be read: {error}. {error.hint}") from error
    return False


def is_archive(file: BinaryIO) -> bool:
    """Return whether an open torch file is in the zip archive format, by torch's own test."""
    file.seek(0)
    return file.read(len(MAGIC)) == MAGIC


@dataclass(frozen=True)
class Archive:
    """A torch file in the zip format: its records, the folder that they are in, and its pickle."""

    records: Mapping[str, ZipRecord]
    folder: str
    pickle: bytes

    def storage(self, storage: Storage) -> ZipRecord:
        """Return the record of a storage, after checking its length against the pickle.

        Raises:
            ZipError: it is missing, or has another length.
        """
        record = self.records.get(f"{self.folder}/data/{storage.key}")
        if record is None:
            raise ZipError(f"the storage {storage.key[:80]!r} is missing")
        if record.size != storage.nbytes:
            raise ZipError(
                f"the storage {storage.key[:80]!r} has {record.size:,} bytes, but the pickle claims {storage.nbytes:,}"
            )
        return record

    def is_native(self, file: BinaryIO) -> bool:
        """Return whether numbers are in this machine's byte order; before torch 2.1, files count as little-endian."""
        record = self.records.get(f"{self.folder}/byteorder")
        return sys.byteorder.encode() == (b"little" if record is None else read_record(file, record, MAX_PICKLE))


def read_archive(file: BinaryIO) -> Archive:
    """Return the records and the pickle of a torch file in the zip format.

    Raises:
        TorchPickleError: it isn't a file of ``torch.save``, or its pickle is too large.
        ZipError: the archive is damaged.
    """
    records = read_directory(file)
    folder = next(iter(records), "").split("/")[0]
    if f"{folder}/constants.pkl" in records:
        raise TorchPickleError(
            "it is a TorchScript program; expected a state dict, as torch.save writes it",
            "Save only its weights: torch.save(torch.jit.load(…).state_dict(), …).",
        )
    pickled = records.get(f"{folder}/data.pkl")
    if pickled is None:
        inside = ", ".join(repr(name[:40]) for name in list(records)[:3])
        raise TorchPickleError(
            f"it is an archive with {inside or 'nothing'} in it, without the data.pkl of files written by torch.save",
            "Unpack it if a checkpoint is inside; otherwise save the state dict with torch.save.",
        )
    content = read_record(file, pickled, MAX_PICKLE)
    check_memory(content)
    return Archive(records, folder, content)


def _check_archive(file: BinaryIO) -> bool:
    """Check an archive; return whether it can be memory-mapped."""
    archive = read_archive(file)
    claimed = [archive.storage(one) for one in follow_pickle(archive.pickle).storages.values() if one.nbytes]
    usable = all(record.method == STORED and record.fits and record.start % _ALIGNMENT == 0 for record in claimed)
    if usable and archive.is_native(file):
        return True
    for record in claimed:
        check_record(file, record)
    return False


def _check_old_file(file: BinaryIO) -> None:
    """Check a file in the old format."""
    size = file.seek(0, 2)
    file.seek(0)
    content = file.read(MAX_PICKLE)
    if content[:1] != b"\x80":
        raise TorchPickleError("it is not a torch file")
    check_memory(content)
    magic = follow_pickle(content)
    if magic.value != _OLD_MAGIC:
        raise TorchPickleError("it is a pickle, but not a torch file")
    end = magic.end
    for _ in range(2):  # the protocol, then the sizes of numbers on the machine that wrote it
        end = follow_pickle(content, end).end
    claims = follow_pickle(content, end)
    keys = follow_pickle(content, claims.end)
    listed = keys.value
    if not isinstance(listed, list) or sorted(map(str, listed)) != sorted(claims.storages):
        raise TorchPickleError("the storages that it lists are not those of its tensors")
    needed = sum(8 + storage.nbytes for storage in claims.storages.values())
    if size - keys.end < needed:
        raise TorchPickleError(f"its storages need {needed:,} bytes, but {size - keys.end:,} follow: is it truncated?")
