"""``--verify``: the output of a merge, loaded and run by transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightspace import WeightspaceError

if TYPE_CHECKING:
    from weightspace.merging import LoadVerification


def check_verifiable(output: str, *, dry_run: bool) -> None:
    """Check that an output is a folder that will be there.

    Raises:
        WeightspaceError: it is one file, or nothing is written.
    """
    from pathlib import Path

    from weightspace.merging.out_of_core.staging import is_file_name

    if dry_run:
        raise WeightspaceError("--verify has no effect with --dry-run, which writes nothing to load. Leave it out.")
    if is_file_name(Path(output)):
        raise WeightspaceError(f"--verify loads a folder with its config.json, and {output} is one file. Leave it out.")


def verified(output: str) -> LoadVerification:
    """Return what transformers makes of the output.

    Raises:
        WeightspaceError: it does not load; the message says that the output stands all the same.
    """
    from weightspace.cli.progress import progress

    from weightspace.merging import verify_loading

    try:
        with progress(f"loading {output} in transformers"):
            return verify_loading(output)
    except WeightspaceError as error:
        raise WeightspaceError(f"{output} was written, but did not pass --verify: {error}") from error


def verification_line(found: LoadVerification) -> str:
    """Return what to say of a verification."""
    ran = "one forward pass, finite outputs" if found.forward else found.note
    return f"transformers loads it: {found.network}, {found.parameters:,} weights, all in place; {ran}"
