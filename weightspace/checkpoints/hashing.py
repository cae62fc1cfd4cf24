"""SHA-256 of files on a background thread, sharing the page cache with threads that read the same bytes."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from weightspace.checkpoints.atomic_write import one_line_errors
from weightspace.errors import CheckpointError

_PIECE = 2**20


def sha256_of(path: Path) -> str:
    """Return the hexadecimal digest of a file, read in pieces.

    Raises:
        CheckpointError: the file cannot be read.
    """
    digest = hashlib.sha256()
    for piece in _pieces(path):
        digest.update(piece)
    return digest.hexdigest()


class Hashing:
    """The digests of several files, computed in the background while the block runs.

    Args:
        streams: lists of files; each is read in order, all at the same pace, as a merge reads its models.
    """

    def __init__(self, streams: Sequence[Sequence[Path]]) -> None:
        self._streams = streams
        self._digests: dict[Path, str] = {}
        self._error: CheckpointError | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sha256", daemon=True)

    def __enter__(self) -> Hashing:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def digests(self) -> dict[Path, str]:
        """Wait for the digests and return them by file.

        Raises:
            CheckpointError: a file cannot be read.
        """
        while self._thread.is_alive():
            self._thread.join(0.1)  # in steps, so that Ctrl-C is handled
        if self._error is not None:
            raise self._error
        return self._digests

    def _run(self) -> None:
        streams = [self._stream(files) for files in self._streams]
        try:
            while streams and not self._stop.is_set():
                streams = [stream for stream in streams if next(stream, False)]
        except CheckpointError as error:
            self._error = error

    def _stream(self, files: Sequence[Path]) -> Iterator[bool]:
        """Compute the digests of files not handled by another stream, yielding True after each piece."""
        for file in files:
            if file not in self._digests:
                self._digests[file] = ""
                digest = hashlib.sha256()
                for piece in _pieces(file):
                    digest.update(piece)
                    yield True
                self._digests[file] = digest.hexdigest()


def _pieces(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file.

    Raises:
        CheckpointError: the file cannot be read.
    """
    with one_line_errors(path, "read"), open(path, "rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            yield piece
