"""A cache of open files for repeated reads, within the limit of open files per process."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from weightspace.checkpoints.atomic_write import one_line_errors
from weightspace.errors import CheckpointError

#: Maximum number of files open at a time.
_MOST = 128

#: Bytes of a read from which on the next ones are announced, and how many times as many bytes are.
_CHUNK, _AHEAD = 2**16, 2


class OpenFile:
    """A file open for reading, closed when it is no longer referenced.

    Args:
        path: the file.

    Raises:
        OSError: it is missing or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def read_into(self, elements: Tensor, offset: int) -> None:
        """Fill a contiguous tensor with the bytes starting at an offset.

        Raises:
            CheckpointError: the file is too short, or cannot be read.
        """
        if not elements.numel():
            return
        view = memoryview(elements.view(torch.uint8).numpy().data)
        self._announce(offset + len(view), len(view))
        with one_line_errors(self.path, "read"):
            while view:
                count = os.preadv(self._descriptor, [view], offset)
                if not count:
                    raise CheckpointError(
                        f"{self.path} ends at byte {offset:,}, but its header promises {len(view):,} more: it has "
                        "become shorter since the header was read. Is something still writing it? Run the command "
                        "again when it is whole."
                    )
                view, offset = view[count:], offset + count

    def _announce(self, offset: int, count: int) -> None:
        """Let the system fetch what is probably read next, since chunks of a tensor follow each other in the file.

        Source:
            ``posix_fadvise(2)``, which not all systems have; advice that fails does no harm.
        """
        if count >= _CHUNK and hasattr(os, "posix_fadvise"):
            with suppress(OSError):
                os.posix_fadvise(self._descriptor, offset, _AHEAD * count, os.POSIX_FADV_WILLNEED)

    def read_runs_into(
        self, elements: Tensor, starts: Sequence[int], ends: Sequence[int], offsets: Sequence[int]
    ) -> None:
        """Fill parts of a contiguous tensor from places anywhere in the file.

        Args:
            elements: the tensor.
            starts: of the parts in the tensor, in bytes.
            ends: of the parts in the tensor, in bytes.
            offsets: of the parts in the file, in bytes.

        Raises:
            CheckpointError: as ``read_into``.
        """
        content = elements.view(torch.uint8).view(-1)
        view, descriptor, read = memoryview(content.numpy().data), self._descriptor, os.preadv
        with one_line_errors(self.path, "read"):
            for start, end, offset in zip(starts, ends, offsets, strict=True):
                if read(descriptor, (view[start:end],), offset) != end - start:
                    self.read_into(content[start:end], offset)


class OpenFiles:
    """The most recently used open files by path; evicted ones stay open while they are being read."""

    def __init__(self) -> None:
        self._files: dict[Path, OpenFile] = {}
        self._lock = threading.Lock()

    def __call__(self, path: Path) -> OpenFile:
        """Return an open file, opening it if necessary.

        Raises:
            CheckpointError: it is missing or cannot be read.
        """
        with self._lock, one_line_errors(path, "read"):
            file = self._files.pop(path, None) or self._opened(path)
            self._files[path] = file  # now the most recent
            return file

    def _opened(self, path: Path) -> OpenFile:
        """Open a file, closing others if too many are open."""
        if len(self._files) >= _MOST:
            self._drop(1)
        while True:
            try:
                return OpenFile(path)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._files:
                    raise
            self._drop(1 + len(self._files) // 2)

    def _drop(self, count: int) -> None:
        """Evict the least recently used files."""
        for path in list(self._files)[:count]:
            del self._files[path]
