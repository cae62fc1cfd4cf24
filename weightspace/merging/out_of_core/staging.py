"""Staging of a merge in a hidden folder beside the output: resumed after a crash, renamed at the end.

``.OUT.merge/`` holds ``plan`` (the digest of the plan, and the inode of ``parts``), ``parts/`` (the output's files at
full size), ``journal.N.P`` (the tensors of shard ``N`` that part ``P`` has written to disk) and ``lock``. Until the
last rename, the final name has its old content. Files that merges don't create (links, pipes, names with hard links
elsewhere) are never followed: nothing outside is written or removed.
"""

from __future__ import annotations

import errno
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
from weightspace.checkpoints.file_format import DCP_SUFFIX, GGUF_SUFFIX, SAFETENSORS_SUFFIX, TORCH_SUFFIXES
from weightspace.checkpoints.hf_folder import WEIGHTS
from weightspace.errors import CheckpointError, WeightspaceError

#: Maximum bytes of a file name, which the name of a torch file may exceed with the suffix of safetensors.
_LONGEST = 255


#: Errors of a disk, or a quota, without room.
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Staging:
    """An open staging folder, locked against other processes.

    Attributes:
        out: the path as the user wrote it, whose suffix decides between file and folder.
        target: that path with its links resolved.
        folder: the staging folder.
        parts: the folder of the output's files.
        resumed: whether an earlier run of the same plan left something behind.
    """

    def __init__(self, out: Path, target: Path, folder: Path, *, resumed: bool) -> None:
        self.out = out
        self.target = target
        self.folder = folder
        self.parts = folder / "parts"
        self.resumed = resumed

    def journal(self, shard: int, part: int) -> Path:
        """Return the path of the journal of a part of a shard."""
        return self.folder / f"journal.{shard}.{part}"

    def journals(self, shard: int, name: str, size: int) -> list[Path]:
        """Return all journals of a shard; remove them if its file is gone or has another size."""
        paths = sorted(self.folder.glob(f"journal.{shard}.*"))
        with suppress(OSError):
            if (self.parts / name).stat().st_size == size:
                return paths
        for path in paths:
            path.unlink()
        return []

    def forget(self, *, fsync: bool) -> None:
        """Remove all journals before merged tensors are changed, so that a resumed run merges them again."""
        for path in self.folder.glob("journal.*"):
            path.unlink()
        if fsync:
            sync_folder(self.folder)

    def keep_only(self, names: Collection[str]) -> None:
        """Remove what an interrupted run left among the parts, except for files with these relative paths."""
        kept = {self.parts / name for name in names}
        for path in sorted(self.parts.rglob("*"), reverse=True):  # what is in a folder before the folder
            if path.is_symlink() or not path.is_dir():
                if path not in kept:
                    path.unlink()
            elif not any(path.iterdir()):
                path.rmdir()

    def promote(self, made: str | None) -> None:
        """Move the output to its final path.

        Args:
            made: the name of the single file in ``parts``; None: the whole folder.

        Raises:
            CheckpointError: writing fails.
        """
        with one_line_errors(self.out, "written"):
            if made is not None:
                os.replace(self.parts / made, self.target)
            else:
                self._swap()
            sync_folder(self.target.parent)

    def _swap(self) -> None:
        """Replace the old folder, atomically where the system can.

        Otherwise the old one is first moved to where the next run finds it.
        """
        for folder in (*(path for path in self.parts.rglob("*") if path.is_dir()), self.parts):
            sync_folder(folder)
        if self.target.exists():
            if exchange(self.parts, self.target):
                return
            old = self.folder / "old"
            shutil.rmtree(old, ignore_errors=True)
            os.replace(self.target, old)
        os.replace(self.parts, self.target)


def is_file_name(path: Path) -> bool:
    """Return whether an output of that name holds only weights; any other name is a Hugging Face folder."""
    return path.suffix.lower() in (SAFETENSORS_SUFFIX, *TORCH_SUFFIXES, GGUF_SUFFIX, DCP_SUFFIX)


def weights_file(out: Path) -> str | None:
    """Return the name of a single file of weights, from which other formats are converted; None for a folder."""
    if not is_file_name(out):
        return None
    name = out.name if out.suffix.lower() == GGUF_SUFFIX else f"{out.stem}{SAFETENSORS_SUFFIX}"
    return name if len(os.fsencode(name)) <= _LONGEST else WEIGHTS


def staging_folder(out: Path) -> Path:
    """Return the path of an output's staging folder.

    Raises:
        OSError: the links of the output form a cycle.
    """
    return hidden_beside(final_target(out), "merge")


@contextmanager
def open_staging(out: Path, digest: str, *, fsync: bool = True) -> Iterator[Staging]:
    """Yield the staging folder of an output; it is removed if the block succeeds, and kept for a resumed run otherwise.

    It is also removed after an error that another run cannot fix (a NaN in an input, say), and kept if writing
    failed.

    Args:
        out: the final path.
        digest: digest of the plan; what another plan left behind is removed.
        fsync: flush the records to disk.

    Raises:
        CheckpointError: another process is writing ``out``, something else is in the way, or writing fails.
    """
    with one_line_errors(out, "written"):
        target = final_target(out)
        folder = staging_folder(out)
        target.parent.mkdir(parents=True, exist_ok=True)
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise CheckpointError(
                f"{folder} is {'a link' if folder.is_symlink() else 'a file'}; expected a folder for the "
                f"staging of {out.name}. Remove it."
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
            elif error.__cause__.errno in _FULL:
                raise CheckpointError(f"{error} Make room and rerun the command to resume.") from error.__cause__
            raise
        shutil.rmtree(folder, ignore_errors=True)


def _restart(target: Path, folder: Path, digest: str, *, fsync: bool) -> bool:
    """Return whether the folder continues the same plan; otherwise empty it and record the plan's digest."""
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
    """Return the content of ``plan``: the digest of the plan, and the inode of ``parts``.

    After the last rename ``parts`` can be the old output, which must not be taken for the new one.
    """
    return f"{digest} {os.lstat(parts).st_ino}".encode()


def _is_plain(folder: Path) -> bool:
    """Return whether there are only folders, and regular files without hard links."""
    for path, folders, files in os.walk(folder):
        modes = [os.lstat(Path(path, name)) for name in (*folders, *files)]
        if not all(S_ISDIR(one.st_mode) or (S_ISREG(one.st_mode) and one.st_nlink == 1) for one in modes):
            return False
    return True


def _restore(target: Path, folder: Path) -> None:
    """Put the old output back if a crash occurred between the two renames of the swap."""
    old = folder / "old"
    if old.is_dir() and not old.is_symlink() and not target.exists():
        os.replace(old, target)


@contextmanager
def locked(folder: Path, out: Path) -> Iterator[None]:
    """Hold the lock of a staging folder, which is released when its process ends, however that happens."""
    lock = folder / "lock"
    with one_line_errors(lock, "written"):
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    try:
        status = os.fstat(descriptor)
        if not S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise CheckpointError(f"{lock} is not a regular file of a merge. Remove {folder}.")
        if try_lock(descriptor) is False:
            raise CheckpointError(f"{out} is being written by another merge. Wait for it, or choose another name.")
        yield
    finally:
        with suppress(OSError):
            os.close(descriptor)


class Journal:
    """Journal of the complete tensors of one shard.

    Names are added by any thread and written by ``commit``, after the bytes of their tensors.
    """

    def __init__(self, path: Path, descriptor: int, *, fsync: bool) -> None:
        """Open the journal.

        Args:
            path: the journal.
            descriptor: the open file of the shard.
            fsync: flush bytes and journal to disk, so that they survive a crash of the machine too.
        """
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
        os.ftruncate(self._file, len(_whole_lines(path)))
        self._data = descriptor
        self._fsync = fsync
        self._pending: list[str] = []
        self._lock = threading.Lock()

    def add(self, name: str) -> None:
        """Add a tensor whose bytes were all handed to the system."""
        with self._lock:
            self._pending.append(name)

    def commit(self) -> None:
        """Write the added names.

        Raises:
            OSError: writing fails.
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
    """Return the names in journals; lines that are not JSON strings are ignored."""
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
