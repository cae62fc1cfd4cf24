"""``--verify``: load and run the output of a merge with transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from weightspace import WeightspaceError

if TYPE_CHECKING:
    from weightspace.merging import LoadVerification


def check_verifiable(output: str, *, dry_run: bool) -> None:
    """Check that the output can be verified.

    Raises:
        WeightspaceError: the output is a single file, or a dry run writes nothing.
    """
    from weightspace.merging.out_of_core.staging import is_file_name

    if dry_run:
        raise WeightspaceError("--verify has no effect with --dry-run, which writes nothing to load. Leave it out.")
    if is_file_name(Path(output)):
        raise WeightspaceError(
            f"--verify needs a folder with a config.json, but {output} is a single file. Leave it out."
        )


def check_configured(sources: Sequence[str], base: str | None) -> None:
    """Check that the output of a merge will have the configuration that transformers needs.

    Args:
        sources: a recipe, or checkpoints; what isn't a local path is not checked.
        base: the base of checkpoints.

    Raises:
        WeightspaceError: the model that gives the output's other files has no config.json.
    """
    donor = Path(_donor(sources, base)) if sources else None
    if donor is not None and donor.exists() and not (donor / "config.json").is_file():
        raise WeightspaceError(
            f"--verify needs a config.json, and {donor}, from which the output's configuration is taken, has none. "
            "Leave --verify out."
        )


def _donor(sources: Sequence[str], base: str | None) -> str:
    """Return the model that gives the output its configuration."""
    from weightspace.merging.merge_files import is_recipe
    from weightspace.merging.recipe.parse import read_recipe

    if len(sources) != 1 or not is_recipe(sources[0]):
        return base or sources[0]
    recipe = read_recipe(Path(sources[0]), warn=_discard, ignored=_discard)
    results = {document.name: document for document in recipe.documents}
    donor = recipe.donor
    while donor in results:
        donor = results[donor].donor
    return donor


def _discard(line: str) -> None:
    """Discard a message, which the merge gives again."""


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
