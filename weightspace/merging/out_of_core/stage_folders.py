"""Folders for the intermediate results of multi-document recipes: hidden next to the output, or chosen by the user.

Next to each result, ``.NAME.plan`` records the digest of its plan and the sizes and modification times of its files. A
result is reused only if both match. In a user's folder, only such results are replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from weightspace.checkpoints.atomic_write import final_target, hidden_beside, one_line_errors, replacing_file
from weightspace.checkpoints.detection import weight_files
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging.out_of_core.staging import is_file_name, locked
from weightspace.reprs import size

#: Names of documents that serve as folder names unchanged.
_PLAIN = re.compile(r"\w[\w.-]{0,99}", re.ASCII)


def hidden_folder(out: Path) -> Path:
    """Return the hidden folder for the intermediate results of an output.

    Raises:
        CheckpointError: the links of the output form a cycle.
    """
    with one_line_errors(out, "written"):
        return hidden_beside(final_target(out), "stages")


class StageFolders:
    """Folder that holds intermediate results.

    Attributes:
        out: the output.
        home: the folder.
        kept: whether it is kept after the merge.
    """

    def __init__(self, out: Path, kept_in: Path | None) -> None:
        self.out = out
        self.home = kept_in or hidden_folder(out)
        self.kept = kept_in is not None

    @staticmethod
    def name(document: str) -> str:
        """Return the folder name for a document: its own name if that is a plain name, else a digest of it."""
        is_file = is_file_name(Path(document)) or document.lower().endswith((".yml", ".yaml"))
        if _PLAIN.fullmatch(document) and not is_file:
            return document
        return f"document-{hashlib.sha256(document.encode()).hexdigest()[:16]}"

    def place(self, document: str) -> Path:
        """Return the path of a document's result."""
        return self.home / self.name(document)

    def check(self, document: str) -> None:
        """Check that a result does not replace anything else.

        Raises:
            CheckpointError: its path overlaps the output, or holds something that is not the result of a document.
        """
        place, output = Path(os.path.realpath(self.place(document))), Path(os.path.realpath(self.out))
        if output == place or output in place.parents or place in output.parents:
            raise CheckpointError(
                f"{self.place(document)} and {self.out} overlap; expected separate paths. Choose another folder."
            )
        for path in (self.place(document), self._note(document)):
            if path.is_symlink():
                raise CheckpointError(f"{path} is a link; expected a free name for an intermediate result. Remove it.")
        if self.kept and os.path.lexists(self.place(document)) and self._noted(document) is None:
            raise CheckpointError(
                f"{self.place(document)} exists already and was not made by a merge of a recipe's documents. Move it "
                "away, or choose another folder for the intermediate results."
            )

    def check_room(self, needed: int) -> None:
        """Check that the disk has space for all results and the output, counting what is already written.

        Args:
            needed: total number of bytes.

        Raises:
            CheckpointError: there is not enough space, or the disk cannot be queried.
        """
        with one_line_errors(self.home, "written"):
            existing = next(path for path in (self.home, *self.home.absolute().parents) if path.exists())
            free = shutil.disk_usage(existing).free
            there = sum(path.stat().st_blocks * 512 for path in self.home.rglob("*") if path.is_file())
        if needed > free + there:
            raise CheckpointError(
                f"{self.out} and its intermediate results need {size(needed)}, but the disk has "
                f"{size(free + there)} free. Make room, or write somewhere else."
            )

    @contextmanager
    def open(self) -> Iterator[None]:
        """Lock the folder. A hidden folder is removed at the end, and after errors that a rerun cannot fix.

        Raises:
            CheckpointError: another process has locked it, the path is taken, or writing fails.
        """
        with one_line_errors(self.home, "written"):
            if self.home.is_symlink() and not self.kept:
                raise CheckpointError(f"{self.home} is a link; expected a folder for intermediate results. Remove it.")
            self.home.mkdir(parents=True, exist_ok=True)
        if self.kept:
            yield
            return
        with locked(self.home, self.out):
            try:
                yield
            except WeightspaceError as error:
                if not isinstance(error.__cause__, OSError):
                    shutil.rmtree(self.home, ignore_errors=True)
                raise
            shutil.rmtree(self.home, ignore_errors=True)

    def holds(self, document: str, digest: str) -> bool:
        """Return whether the result of a plan exists and is unchanged."""
        return self._noted(document) == [digest, *self._stamps(document)]

    def note(self, document: str, digest: str) -> None:
        """Record that the result of a plan is complete.

        Raises:
            CheckpointError: writing fails.
        """
        with replacing_file(self._note(document)) as file:
            file.write(json.dumps([digest, *self._stamps(document)]).encode())

    def _note(self, document: str) -> Path:
        return self.home / f".{self.name(document)}.plan"

    def _noted(self, document: str) -> list[object] | None:
        """Return the record of a document's result; None if there is none."""
        try:
            content = json.loads(self._note(document).read_bytes()[:1_000_000])
        except (OSError, ValueError, RecursionError):
            return None
        return content if isinstance(content, list) else None

    def _stamps(self, document: str) -> list[object]:
        """Return names, sizes and modification times of a result's weight files."""
        try:
            files = weight_files(self.place(document))
            return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
        except (CheckpointError, OSError):
            return []
