"""Local mirrors of checkpoints behind URLs: first their headers, later their weights.

A mirror looks like the checkpoint, with the same file names and sizes. Initially, its safetensors files are sparse:
they hold only the header, which suffices for planning, and ``fetching`` fills in the tensors. Small files
(configuration, tokenizer, an adapter) and torch files, which have no header, are complete from the start.

Mirrors are stored in ``$WEIGHTSPACE_CACHE``, by default ``~/.cache/weightspace/remote``, in folders named by the
SHA-256 of the URL and the stamps of the remote files, so that other content is another mirror. They are kept for later
merges, and may be deleted while none is running. Records are trusted only there, in a folder whose name matches; a
record that comes with a checkpoint is an ordinary file. A mirror's folder contains

- ``weightspace-mirror.json``: the URL, and the size and stamp of each file;
- ``ready``: a marker that all headers and small files are complete;
- ``files/NAME``: the checkpoint, a folder or one file, named as in the URL;
- ``parts/``: partial downloads; an interrupted download resumes at its last byte;
- ``whole/``: an empty marker for each complete file, written before the file is moved into place; it counts once
  ``parts/`` no longer has that file.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

from weightspace.cache import cache_folder
from weightspace.checkpoints.json_file import read_json
from weightspace.checkpoints.remote import TIMEOUT, RemoteFile, is_url
from weightspace.errors import CheckpointError

_RECORD = "weightspace-mirror.json"


@dataclass(frozen=True)
class Mirror:
    """A mirror on disk.

    Attributes:
        url: the URL, as the user wrote it.
        home: its folder in the cache.
        path: the local path that replaces the URL.
        files: remote files by name; those in a subfolder by ``FOLDER/NAME``.

    Raises:
        CheckpointError: a name points outside the mirror's folder.
    """

    url: str
    home: Path
    path: Path
    files: dict[str, RemoteFile]

    def __post_init__(self) -> None:
        for name in (self.path.name, *self.files):
            parts = name.split("/")
            if len(parts) > 2 or not all(map(is_plain_name, parts)):
                raise CheckpointError(f"{self.url} has a file called {name!r}, expected a name without a path.")

    @property
    def ready(self) -> Path:
        """Return the path of the marker that all headers and small files are complete."""
        return self.home / "ready"

    def place(self, name: str) -> Path:
        """Return the path of a file."""
        return self.path if self.path.name == name and not self.path.is_dir() else self.path / name

    def part(self, name: str) -> Path:
        """Return the path of a file's partial download."""
        return self.home / "parts" / name.replace("/", "%2F")

    def marker(self, name: str) -> Path:
        """Return the path of the marker that a file is complete."""
        return self.home / "whole" / name.replace("/", "%2F")

    def is_whole(self, name: str) -> bool:
        """Return whether a file is complete."""
        return self.marker(name).exists() and not self.part(name).exists() and self.place(name).exists()

    def name_of(self, place: Path) -> str:
        """Return the name of the file at a path."""
        return place.relative_to(self.path).as_posix() if self.path in place.parents else place.name

    def lacks(self, place: Path) -> bool:
        """Return whether a path is that of an incomplete file of the mirror."""
        name = self.name_of(place)
        return name in self.files and self.place(name) == place and not self.is_whole(name)

    def missing(self, name: str) -> int:
        """Return the number of missing bytes of a file."""
        if self.is_whole(name):
            return 0
        part = self.part(name)
        return max(0, self.files[name].size - (part.stat().st_size if part.exists() else 0))


def write_record(mirror: Mirror) -> None:
    """Write the record of a mirror."""
    record = mirror.home / _RECORD
    if not record.exists():
        files = {name: asdict(file) for name, file in mirror.files.items()}
        content = {"url": mirror.url, "path": mirror.path.name, "files": files}
        temporary = record.with_suffix(".tmp")
        temporary.write_text(json.dumps(content, indent=1))
        os.replace(temporary, record)


def mirror_home(url: str, is_folder: bool, files: Mapping[str, RemoteFile]) -> Path:
    """Return the folder for the mirror of a URL with these files; other content gives another folder."""
    listed = [(name, file.size, file.stamp) for name, file in sorted(files.items())]
    return cache_folder() / hashlib.sha256(json.dumps([url, is_folder, listed]).encode()).hexdigest()


def is_plain_name(name: str) -> bool:
    """Return whether a name is a plain file name, without a path on any system."""
    return name not in ("", ".", "..") and not any(letter in "/\\\x7f" or letter < " " for letter in name)


def incomplete(files: Sequence[Path]) -> list[tuple[Mirror, list[str]]]:
    """Return the mirrors of files, each with the names of its incomplete files."""
    by_home: dict[Path, list[Path]] = {}
    for file in dict.fromkeys(files):
        place = Path(os.path.realpath(file))
        home = _home_of(place)
        if home is not None:
            by_home.setdefault(home, []).append(place)
    mirrors = [(_read_record(home), places) for home, places in by_home.items()]
    return [
        (mirror, missing)
        for mirror, places in mirrors
        if (missing := [mirror.name_of(place) for place in places if mirror.lacks(place)])
    ]


def _home_of(place: Path) -> Path | None:
    """Return the folder of the mirror that a file belongs to, if it is in the cache."""
    cache = Path(os.path.realpath(cache_folder()))
    if cache not in place.parents:
        return None
    home = cache / place.relative_to(cache).parts[0]
    return home if (home / _RECORD).is_file() else None


def _read_record(home: Path) -> Mirror:
    """Read the mirror in a folder of the cache.

    Raises:
        CheckpointError: the record is damaged, or belongs to another folder.
    """
    record = home / _RECORD
    content = read_json(record)
    try:
        url, name, listed = content["url"], content["path"], content["files"]
        files = {file: RemoteFile(**fields) for file, fields in listed.items()}
        texts = [url, name, *(text for file in files.values() for text in (file.path, file.stamp, file.sha256))]
        if not all(isinstance(text, str) for text in texts) or not is_url(url):
            raise TypeError("a string is missing")
        if not all(type(file.size) is int and file.size >= 0 for file in files.values()):
            raise TypeError("a size is missing")
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{record} is damaged ({error}). Delete {home}.") from error
    if home.name not in (mirror_home(url, is_folder, files).name for is_folder in (True, False)):
        raise CheckpointError(f"{record} belongs to another folder. Delete {home}.")
    return Mirror(url, home, home / "files" / name, files)


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Hold the lock of a mirror, waiting for another process as long as its download makes progress."""
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
                raise CheckpointError(f"{home} is locked by another process that makes no progress. End that process.")
            time.sleep(0.2)
        yield
    finally:
        with suppress(OSError):
            os.close(descriptor)


def _try_lock(fcntl: ModuleType, descriptor: int) -> bool:
    """Try to take a lock; return whether no other process holds it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: users must take care
        return True
    return True


def _grown(folder: Path) -> int:
    """Return the total size of the files in a folder, which may appear and disappear."""
    total = 0
    for file in folder.glob("*"):
        with suppress(OSError):
            total += file.stat().st_size
    return total
