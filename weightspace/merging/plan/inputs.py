"""The input files of a merge, and whether they have changed since it was planned."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from weightspace.checkpoints.companion_files import find_companions, is_tokenizer
from weightspace.errors import CheckpointError
from weightspace.merging.plan.plan import Member, Plan


def stamps_of(members: Iterable[Member], beside: Iterable[Path] = ()) -> dict[Path, tuple[int, int]]:
    """Return size and modification time, in nanoseconds, of the members' files and of the files in ``beside``."""
    known = list(members)
    computed = {member.contents.path: member.plan for member in known if member.plan is not None}
    files = dict.fromkeys(file for member in known for file in member.files)
    own = [path for path in beside if computed.keys().isdisjoint(path.parents)]  # a draft's files are not inputs
    below = {file: stamp for plan in computed.values() for file, stamp in plan.stamps.items()}
    return {**below, **{file: _stamp(file) for file in (*files, *own)}}


def companion_paths(donor: Path, copied: Iterable[str], tokenizer: Path | None) -> list[Path]:
    """Return the non-weight files that are copied to the output.

    Args:
        donor: the folder that they are copied from.
        copied: their names.
        tokenizer: folder that tokenizer files are copied from instead; None: the donor.
    """
    if tokenizer is None or tokenizer == donor:
        return [donor / name for name in copied]
    others = [tokenizer / name for name in find_companions(tokenizer).copied if is_tokenizer(name)]
    return [*(donor / name for name in copied if not is_tokenizer(name)), *others]


def read_paths(plan: Plan) -> tuple[Path, ...]:
    """Return all files and folders that a plan reads: weights, adapters, evidence, configuration and tokenizer."""
    members = [path for member in plan.members for path, files in member.inputs for path in (path, *files)]
    folders = [folder for folder in (plan.donor, plan.tokenizer) if folder is not None]
    return tuple(dict.fromkeys([*members, *folders]))


def check_unchanged(stamps: Mapping[Path, tuple[int, int]]) -> None:
    """Check that the files have not changed since their headers were read.

    Raises:
        CheckpointError: a file has changed or is missing. If it is missing, the cause is an ``OSError``.
    """
    for file, stamp in stamps.items():
        try:
            found = _stamp(file)
        except OSError as error:
            raise CheckpointError(
                f"{file} disappeared during the merge ({error.strerror}); nothing was written. Restore it and run the "
                "command again."
            ) from error
        if found != stamp:
            sizes = f"from {stamp[0]:,} to {found[0]:,} bytes" if found[0] != stamp[0] else "at its old size"
            raise CheckpointError(
                f"{file} changed during the merge, {sizes}; nothing was written. Is another process writing it? Run "
                "the command again when it is complete."
            )


def _stamp(file: Path) -> tuple[int, int]:
    """Return the size and modification time of a file."""
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns
