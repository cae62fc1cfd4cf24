"""The hidden folder beside the output in which a merge grows: resumed after a crash, renamed at the end.

``.OUT.merge/`` holds ``plan`` (the digest of what is being made), ``parts/`` (the output's files at their full
size), ``journal.N.P`` (which tensors of shard ``N`` the maker of part ``P`` has put on the disk) and ``lock``. Until
the last rename there is nothing under the final name but what was there before.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from weightspace.checkpoints.disk import one_line_errors, sync_folder, synced_file
from weightspace.checkpoints.file_format import SAFETENSORS_SUFFIX, TORCH_SUFFIXES
from weightspace.errors import CheckpointError, WeightspaceError


class Staging:
    """An open staging folder, locked against other processes.

    Attributes:
        out: the final path.
        folder: the staging folder.
        parts: where the output's files grow.
        resumed: whether an earlier run of the same plan left something behind.
    """

    def __init__(self, out: Path, folder: Path, *, resumed: bool) -> None:
        self.out = out
        self.folder = folder
        self.parts = folder / "parts"
        self.resumed = resumed

    def journal(self, shard: int, part: int) -> Path:
        """Return the journal of a shard that the maker of a part of it writes."""
        return self.folder / f"journal.{shard}.{part}"

    def journals(self, shard: int, name: str) -> list[Path]:
        """Return all journals of a shard; those of a file which is not there any more are thrown away."""
        paths = sorted(self.folder.glob(f"journal.{shard}.*"))
        if (self.parts / name).exists():
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

    def promote(self) -> None:
        """Give the output its name: the whole folder, or the one file where the name has a suffix of a file."""
        made = self.parts if not is_file_name(self.out) else self.parts / self.out.name
        with one_line_errors(self.out, "written"):
            if made.is_file():
                os.replace(made, self.out)
            else:
                self._swap(made)
            sync_folder(self.out.parent)

    def _swap(self, made: Path) -> None:
        """Put a folder in the place of the old one, which is set aside where the next run would find it."""
        sync_folder(made)
        old = self.folder / "old"
        if self.out.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.replace(self.out, old)
        os.replace(made, self.out)


def is_file_name(path: Path) -> bool:
    """Return whether an output of that name is one file; any other name is a Hugging Face folder."""
    return path.suffix.lower() in (SAFETENSORS_SUFFIX, *TORCH_SUFFIXES)


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
        CheckpointError: another process is writing ``out``, or the disk refuses.
    """
    target = Path(os.path.realpath(out))
    folder = target.with_name(f".{target.name}.merge")
    with one_line_errors(out, "written"):
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(exist_ok=True)
    with _locked(folder, out):
        resumed = _restart(target, folder, digest, fsync=fsync)
        staging = Staging(target, folder, resumed=resumed)
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
        plan = folder / "plan"
        if plan.is_file() and plan.read_text() == digest:
            (folder / "parts").mkdir(exist_ok=True)  # a crash can come after the last rename, too
            return True
        _restore(target, folder)
        for path in folder.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        (folder / "parts").mkdir()
        with synced_file(plan) if fsync else open(plan, "xb") as file:
            file.write(digest.encode())
        return False


def _restore(target: Path, folder: Path) -> None:
    """Put the old output back if a crash came between the two renames of the swap."""
    old = folder / "old"
    if old.exists() and not target.exists():
        os.replace(old, target)


@contextmanager
def _locked(folder: Path, out: Path) -> Iterator[None]:
    """Hold the lock of a staging folder: it goes with the process that holds it, however that ends."""
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        yield
        return
    with one_line_errors(folder, "written"):
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"{out} is being written by another merge. Wait for it, or choose another name."
            ) from None
        except OSError:  # a file system without locks: the user's care has to do
            pass
        yield
    finally:
        with suppress(OSError):
            os.close(descriptor)
