"""The hidden folder beside the output in which a merge grows: resumed after a crash, renamed at the end.

``.OUT.merge/`` holds ``plan`` (the digest of what is being made, and which folder ``parts`` is), ``parts/`` (the
output's files at their full size), ``journal.N.P`` (which tensors of shard ``N`` the maker of part ``P`` has put on the
disk) and ``lock``. Until the last rename there is nothing under the final name but what was there before. What merges
don't make (links, pipes, names with a second place elsewhere) is never followed: nothing outside is written or removed.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR, S_ISREG

from weightspace.checkpoints.atomic_write import (
    exchange,
    final_target,
    hidden_beside,
    one_line_errors,
    sync_folder,
    synced_file,
    try_lock,
)
from weightspace.checkpoints.file_format import SAFETENSORS_SUFFIX, TORCH_SUFFIXES
from weightspace.errors import CheckpointError, WeightspaceError


class Staging:
    """An open staging folder, locked against other processes.

    Attributes:
        out: the path as the user wrote it, whose ending says what the output is.
        target: where that path leads through links.
        folder: the staging folder.
        parts: where the output's files grow.
        resumed: whether an earlier run of the same plan left something behind.
    """

    def __init__(self, out: Path, target: Path, folder: Path, *, resumed: bool) -> None:
        self.out = out
        self.target = target
        self.folder = folder
        self.parts = folder / "parts"
        self.resumed = resumed

    def journal(self, shard: int, part: int) -> Path:
        """Return the journal of a shard that the maker of a part of it writes."""
        return self.folder / f"journal.{shard}.{part}"

    def journals(self, shard: int, name: str, size: int) -> list[Path]:
        """Return all journals of a shard; those of a file that is gone, or has another size, are thrown away."""
        paths = sorted(self.folder.glob(f"journal.{shard}.*"))
        with suppress(OSError):
            if (self.parts / name).stat().st_size == size:
                return paths
        for path in paths:
            path.unlink()
        return []

    def forget(self, *, fsync: bool) -> None:
        """Forget what is made, before it is changed: a run that goes on here has to begin with what was merged."""
        for path in self.folder.glob("journal.*"):
            path.unlink()
        if fsync:
            sync_folder(self.folder)

    def keep_only(self, names: Collection[str]) -> None:
        """Remove what an interrupted run left among the parts, but for files of these names."""
        for path in self.parts.iterdir():
            if path.name not in names:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def promote(self, made: str | None) -> None:
        """Give the output its name.

        Args:
            made: the name of the one file in ``parts``; None: all of the folder.

        Raises:
            CheckpointError: the disk refuses.
        """
        with one_line_errors(self.out, "written"):
            if made is not None:
                os.replace(self.parts / made, self.target)
            else:
                self._swap()
            sync_folder(self.target.parent)

    def _swap(self) -> None:
        """Put the folder in the place of the old one, in one step where the system can.

        Otherwise the old one is set aside first, where the next run finds it.
        """
        sync_folder(self.parts)
        if self.target.exists():
            if exchange(self.parts, self.target):
                return
            old = self.folder / "old"
            shutil.rmtree(old, ignore_errors=True)
            os.replace(self.target, old)
        os.replace(self.parts, self.target)


def is_file_name(path: Path) -> bool:
    """Return whether an output of that name is one file; any other name is a Hugging Face folder."""
    return path.suffix.lower() in (SAFETENSORS_SUFFIX, *TORCH_SUFFIXES)


def staging_folder(out: Path) -> Path:
    """Return where an output grows.

    Raises:
        OSError: the links of the output lead in a circle.
    """
    return hidden_beside(final_target(out), "merge")


@contextmanager
def open_staging(out: Path, digest: str, *, fsync: bool = True) -> Iterator[Staging]:
    """Yield the staging folder of an output; it goes when the block ends well, and stays to be resumed otherwise.

    It also goes after a user's mistake that no second try can mend (a NaN in an input, say), and it stays where the
    disk refused.

    Args:
        out: the final path.
        digest: of the plan; what another plan left behind is thrown away.
        fsync: force what is noted here to the disk.

    Raises:
        CheckpointError: another process is writing ``out``, something else stands in the way, or the disk refuses.
    """
    with one_line_errors(out, "written"):
        target = final_target(out)
        folder = staging_folder(out)
        target.parent.mkdir(parents=True, exist_ok=True)
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise CheckpointError(
                f"{folder} is {'a link' if folder.is_symlink() else 'a file'}; expected a folder in which {out.name} "
                "grows. Remove it."
            )
        folder.mkdir(exist_ok=True)
    with locked(folder, out):
        resumed = _restart(target, folder, digest, fsync=fsync)
        staging = Staging(out, target, folder, resumed=resumed)
        try:
            yield staging
        except WeightspaceError as error:
            if not isinstance(error.__cause__, OSError):
                _restore(target, folder)
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def _restart(target: Path, folder: Path, digest: str, *, fsync: bool) -> bool:
    """Return whether the folder continues the same plan; otherwise leave it empty, with the plan's digest."""
    with one_line_errors(folder, "written"):
        plan, parts = folder / "plan", folder / "parts"
        if _is_plain(folder) and plan.is_file() and parts.is_dir() and plan.read_bytes() == _note(digest, parts):
            return True
        _restore(target, folder)
        for path in folder.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        parts.mkdir()
        with synced_file(plan) if fsync else open(plan, "xb") as file:
            file.write(_note(digest, parts))
        return False


def _note(digest: str, parts: Path) -> bytes:
    """Return what ``plan`` says: what is made, and in which folder.

    After the last rename ``parts`` can be the old output, which is not to be taken for the new one.
    """
    return f"{digest} {os.lstat(parts).st_ino}".encode()


def _is_plain(folder: Path) -> bool:
    """Return whether there are only folders, and files that have no name elsewhere."""
    for path, folders, files in os.walk(folder):
        modes = [os.lstat(Path(path, name)) for name in (*folders, *files)]
        if not all(S_ISDIR(one.st_mode) or (S_ISREG(one.st_mode) and one.st_nlink == 1) for one in modes):
            return False
    return True


def _restore(target: Path, folder: Path) -> None:
    """Put the old output back if a crash came between the two renames of the swap."""
    old = folder / "old"
    if old.is_dir() and not old.is_symlink() and not target.exists():
        os.replace(old, target)


@contextmanager
def locked(folder: Path, out: Path) -> Iterator[None]:
    """Hold the lock of a staging folder: it goes with the process that holds it, however that ends."""
    lock = folder / "lock"
    with one_line_errors(lock, "written"):
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    try:
        status = os.fstat(descriptor)
        if not S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise CheckpointError(f"{lock} is no plain file of ours. Remove {folder}.")
        if try_lock(descriptor) is False:
            raise CheckpointError(f"{out} is being written by another merge. Wait for it, or choose another name.")
        yield
    finally:
        with suppress(OSError):
            os.close(descriptor)


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
