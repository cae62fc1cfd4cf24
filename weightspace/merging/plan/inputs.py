"""The files that a merge reads: which they are, and whether they are still what they were when it was planned."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from weightspace.checkpoints.companion_files import find_companions, is_tokenizer
from weightspace.errors import CheckpointError
from weightspace.merging.plan.plan import Member, Plan


def stamps_of(members: Iterable[Member], beside: Iterable[Path] = ()) -> dict[Path, tuple[int, int]]:
    """Return size and time of change, in nanoseconds, of every file of some members, and of files beside them."""
    known = list(members)
    computed = {member.contents.path: member.plan for member in known if member.plan is not None}
    files = dict.fromkeys(file for member in known for file in member.files)
    own = [path for path in beside if computed.keys().isdisjoint(path.parents)]  # those of a draft are its own inputs'
    below = {file: stamp for plan in computed.values() for file, stamp in plan.stamps.items()}
    return {**below, **{file: _stamp(file) for file in (*files, *own)}}


def companion_paths(donor: Path, copied: Iterable[str], tokenizer: Path | None) -> list[Path]:
    """Return the files beside the weights that are copied when everything else is done.

    Args:
        donor: the folder that they come from.
        copied: their names.
        tokenizer: another folder, from which those of the tokenizer come; None: the donor.
    """
    if tokenizer is None or tokenizer == donor:
        return [donor / name for name in copied]
    others = [tokenizer / name for name in find_companions(tokenizer).copied if is_tokenizer(name)]
    return [*(donor / name for name in copied if not is_tokenizer(name)), *others]


def read_paths(plan: Plan) -> tuple[Path, ...]:
    """Return every file and folder that a plan reads: weights, adapters, evidence, configuration and tokenizer."""
    members = [path for member in plan.members for path, files in member.inputs for path in (path, *files)]
    folders = [folder for folder in (plan.donor, plan.tokenizer) if folder is not None]
    return tuple(dict.fromkeys([*members, *folders]))


def check_unchanged(stamps: Mapping[Path, tuple[int, int]]) -> None:
    """Check that files are what they were when their headers were read.

    Raises:
        CheckpointError: one has changed, or is gone: then an ``OSError`` is the cause, and it may come back.
    """
    for file, stamp in stamps.items():
        try:
            found = _stamp(file)
        except OSError as error:
            raise CheckpointError(
                f"{file} has gone while it was merged ({error.strerror}); nothing was written. Bring it back, and run "
                "the command again."
            ) from error
        if found != stamp:
            sizes = f"from {stamp[0]:,} to {found[0]:,} bytes" if found[0] != stamp[0] else "at its old size"
            raise CheckpointError(
                f"{file} has changed while it was merged, {sizes}; nothing was written. Is something still writing it? "
                "Run the command again when it is whole."
            )


def _stamp(file: Path) -> tuple[int, int]:
    """Return the size and the time of change of a file."""
    status = os.stat(file)
    return status.st_size, status.st_mtime_ns
