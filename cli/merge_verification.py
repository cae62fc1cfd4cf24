"""``--verify``: load and run the output of a merge with transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightspace import WeightspaceError

if TYPE_CHECKING:
    from weightspace.merging import LoadVerification


def check_verifiable(output: str, *, dry_run: bool) -> None:
    """Check that the output can be verified.

    Raises:
        WeightspaceError: the output is a single file, or a dry run writes nothing.
    """
    from pathlib import Path

    from weightspace.merging.out_of_core.staging import is_file_name

    if dry_run:
        raise WeightspaceError("--verify has no effect with --dry-run, which writes nothing to load. Leave it out.")
    if is_file_name(Path(output)):
        raise WeightspaceError(
            f"--verify needs a folder with a config.json, but {output} is a single file. Leave it out."
        )


def verified(output: str) -> LoadVerification:
    """Load the output with transformers and return the verification.

    Raises:
        WeightspaceError: the output does not load; the message says that it was written nevertheless.
    """
    from weightspace.cli.progress import progress

    from weightspace.merging import verify_loading

    try:
        with progress(f"loading {output} in transformers"):
            return verify_loading(output)
    except WeightspaceError as error:
        raise WeightspaceError(f"{output} was written, but did not pass --verify: {error}") from error


def verification_line(found: LoadVerification) -> str:
    """Return the line to print for a verification."""
    ran = "one forward pass, finite outputs" if found.forward else found.note
    return f"transformers loads it: {found.network}, {found.parameters:,} weights, all in place; {ran}"
