"""Local stand-ins of checkpoints behind URLs: first their headers, later their weights.

A mirror looks like the checkpoint and has its files' names and sizes. To begin with, a safetensors file in it is
sparse: its header is there and its tensors are holes, which is all that a plan needs; ``fetching`` fills them. Small
files (configuration, tokenizer, an adapter) and torch files, which have no header, are there in full from the start.

Mirrors lie in ``$WEIGHTSPACE_CACHE``, by default ``~/.cache/weightspace/remote``, each in a folder named by the
SHA-256 of the URL and of what the remote files were when they were seen: other content is another mirror. They stay
for the next merge, and may be deleted whenever none is running. In a mirror's folder are

- ``weightspace-mirror.json``: the URL, and size and stamp of each file;
- ``ready``: all headers and small files are there;
- ``files/NAME``: the checkpoint, a folder or one file, called as in the URL;
- ``parts/``: files that are on their way; an interrupted download goes on at its last byte;
- ``whole/``: an empty marker for each file that is there in full, written before the file gets its place: it counts
  where ``parts/`` has no such file any more.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

from weightspace.checkpoints.disk import one_line_errors
from weightspace.checkpoints.remote import TIMEOUT, RemoteFile
from weightspace.errors import CheckpointError

_RECORD = "weightspace-mirror.json"


@dataclass(frozen=True)
class Mirror:
    """A mirror on the disk.

    Attributes:
        url: as the user wrote it.
        home: its folder in the cache.
        path: what stands for the URL.
        files: what it may hold, by name.
    """

    url: str
    home: Path
    path: Path
    files: dict[str, RemoteFile]

    @property
    def ready(self) -> Path:
        """Return what says that all headers and small files are there."""
        return self.home / "ready"

    def place(self, name: str) -> Path:
        """Return where a file lies once something of it is there."""
        return self.path if self.path.name == name and not self.path.is_dir() else self.path / name

    def part(self, name: str) -> Path:
        """Return where a file grows."""
        return self.home / "parts" / name

    def marker(self, name: str) -> Path:
        """Return what says that a file is whole."""
        return self.home / "whole" / name

    def is_whole(self, name: str) -> bool:
        """Return whether a file is there in full."""
        return self.marker(name).exists() and not self.part(name).exists() and self.place(name).exists()

    def missing(self, name: str) -> int:
        """Return how many bytes of a file are still to come."""
        if self.is_whole(name):
            return 0
        part = self.part(name)
        return max(0, self.files[name].size - (part.stat().st_size if part.exists() else 0))


def cache_folder() -> Path:
    """Return the folder of all mirrors."""
    named = os.environ.get("WEIGHTSPACE_CACHE")
    return Path(named).expanduser().absolute() if named else Path.home() / ".cache" / "weightspace" / "remote"


def write_record(mirror: Mirror) -> None:
    """Write down what a mirror is of."""
    record = mirror.home / _RECORD
    if not record.exists():
        files = {name: asdict(file) for name, file in mirror.files.items()}
        content = {"url": mirror.url, "path": mirror.path.name, "files": files}
        temporary = record.with_suffix(".tmp")
        temporary.write_text(json.dumps(content, indent=1))
        os.replace(temporary, record)


def _read_record(home: Path) -> Mirror:
    """Return the mirror in a folder of the cache."""
    with one_line_errors(home / _RECORD, "read"):
        try:
            content = json.loads((home / _RECORD).read_bytes())
            files = {name: RemoteFile(**file) for name, file in content["files"].items()}
            return Mirror(content["url"], home, home / "files" / content["path"], files)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{home / _RECORD} is damaged ({error}). Delete {home}.") from error


def incomplete(files: Sequence[Path]) -> list[tuple[Mirror, list[str]]]:
    """Return the mirrors of files, each with the names of those that are not whole."""
    by_home: dict[Path, list[str]] = {}
    for file in dict.fromkeys(files):
        home = next((folder for folder in file.parents[1:3] if (folder / _RECORD).is_file()), None)
        if home is not None:
            by_home.setdefault(home, []).append(file.name)
    mirrors = [(_read_record(home), names) for home, names in by_home.items()]
    return [
        (mirror, missing)
        for mirror, names in mirrors
        if (missing := [name for name in names if name in mirror.files and not mirror.is_whole(name)])
    ]


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Hold the lock of a mirror; wait for another process for as long as its download grows."""
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        yield
        return
    descriptor = os.open(home / "lock", os.O_RDWR | os.O_CREAT)
    try:
        seen, since = -1, time.monotonic()
        while not _try_lock(fcntl, descriptor):
            grown = _grown(home / "parts")
            if grown != seen:
                seen, since = grown, time.monotonic()
            if time.monotonic() - since > 2 * TIMEOUT:
                raise CheckpointError(f"{home} is locked by another process that does not get on. End that process.")
            time.sleep(0.2)
        yield
    finally:
        with suppress(OSError):
            os.close(descriptor)


def _try_lock(fcntl: ModuleType, descriptor: int) -> bool:
    """Take a lock that no other process holds; return whether there was none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: the user's care has to do
        return True
    return True


def _grown(folder: Path) -> int:
    """Return the bytes of the files in a folder, which come and go."""
    total = 0
    for file in folder.glob("*"):
        with suppress(OSError):
            total += file.stat().st_size
    return total
