"""Which tensors of a shard are on the disk: one JSON string a line, appended after their bytes are safe.

A crash can cut the last line short, or leave zeros in its place; then that tensor is made again.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


class Journal:
    """A journal of one shard, and the file that it speaks of.

    Names are collected by any thread and written by ``commit``, after the bytes of their tensors.
    """

    def __init__(self, path: Path, descriptor: int, *, fsync: bool) -> None:
        """Open the journal.

        Args:
            path: the journal.
            descriptor: the open file of the shard.
            fsync: force bytes and journal to the disk, so that they survive a crash of the machine too.
        """
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
        os.ftruncate(self._file, len(_whole_lines(path)))
        self._data = descriptor
        self._fsync = fsync
        self._pending: list[str] = []
        self._lock = threading.Lock()

    def add(self, name: str) -> None:
        """Note that all bytes of a tensor were handed to the system."""
        with self._lock:
            self._pending.append(name)

    def commit(self) -> None:
        """Write down what was noted.

        Raises:
            OSError: the disk refuses.
        """
        with self._lock:
            names, self._pending = self._pending, []
        if not names:
            return
        if self._fsync:
            os.fdatasync(self._data)
        os.write(self._file, "".join(json.dumps(name) + "\n" for name in names).encode())
        if self._fsync:
            os.fdatasync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_journals(paths: Iterable[Path]) -> set[str]:
    """Return the names in journals; what is no JSON string on a line of its own does not count."""
    names: set[str] = set()
    for path in paths:
        for line in _whole_lines(path).splitlines():
            with suppress(ValueError, RecursionError):
                name = json.loads(line)
                if isinstance(name, str):
                    names.add(name)
    return names


def _whole_lines(path: Path) -> bytes:
    """Return the journal up to its last line break."""
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1]
