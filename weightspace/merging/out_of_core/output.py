"""Files of the output during a merge: at full size from the start, each tensor written at its offset."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from weightspace.merging.out_of_core.staging import Journal, Staging
from weightspace.merging.plan.plan import Plan


class ShardFile:
    """Open file of the output, with its journal."""

    def __init__(self, descriptor: int, journal: Journal) -> None:
        self.descriptor = descriptor
        self.journal = journal

    def write(self, offset: int, elements: Tensor) -> None:
        """Write 1-D elements in the dtype of the output at a byte offset.

        Raises:
            OSError: writing fails.
        """
        view = memoryview(elements.view(torch.uint8).numpy().data)
        while view:
            written = os.pwrite(self.descriptor, view, offset)
            view, offset = view[written:], offset + written


@contextmanager
def open_shards(
    plan: Plan, staging: Staging, numbers: Sequence[int], *, fsync: bool, part: int = 0
) -> Iterator[dict[int, ShardFile]]:
    """Yield the files of some shards by number; new ones are created at full size, with their header.

    ``part`` numbers the journals, each of which is written by one process at a time.

    Raises:
        OSError: writing fails.
    """
    opened: dict[int, ShardFile] = {}
    try:
        for number in numbers:
            shard = plan.shards[number]
            journal = staging.journal(number, part)
            descriptor = _open(staging.parts / shard.name, shard.size, shard.header)
            opened[number] = ShardFile(descriptor, Journal(journal, descriptor, fsync=fsync))
        yield opened
    finally:
        for file in opened.values():
            try:
                file.journal.commit()
            finally:
                file.journal.close()
                os.close(file.descriptor)


def _open(path: Path, size: int, header: bytes) -> int:
    """Open a file of that size and write its header; return the descriptor."""
    path.parent.mkdir(exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        if os.fstat(descriptor).st_size != size:
            _reserve(descriptor, size)
        os.pwrite(descriptor, header, 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _reserve(descriptor: int, size: int) -> None:
    """Set the size of a file, and allocate its space where the file system can."""
    if size and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    os.ftruncate(descriptor, size)
