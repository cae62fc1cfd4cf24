"""Settings of a recipe without effect, as the checkpoints show: filters that match nothing, revisions of folders."""

from __future__ import annotations

from collections.abc import Sequence

from weightspace.errors import WeightspaceError
from weightspace.merging.engine.members import Reading, ignored_revision
from weightspace.merging.recipe import Recipe, Warn
from weightspace.merging.schedule import unmatched_filters


def check_effects(recipe: Recipe, names: Sequence[str], reading: Reading, ignored: Warn | None) -> None:
    """Tell of settings that change nothing.

    Args:
        recipe: the recipe.
        names: of the output's tensors.
        reading: how the checkpoints are read.
        ignored: takes a line for each; None: they are refused.

    Raises:
        WeightspaceError: there is one, and it is refused.
    """
    sources = [source for source in recipe.models if source not in reading.intermediates]
    for part in dict.fromkeys(filter(None, map(ignored_revision, sources))):
        path, _, revision = part.rpartition("@")
        line = f"The revision {revision!r} of {path} has no effect: it is a path on this machine."
        _tell(line, "Leave it out.", ignored)
    for key, text in unmatched_filters(recipe, names):
        line = f"The filter {text!r} of {key!r} matches no tensor, of {names[0]!r} and {len(names) - 1:,} more."
        _tell(line, "Is it misspelt?", ignored)


def _tell(line: str, advice: str, ignored: Warn | None) -> None:
    if ignored is None:
        raise WeightspaceError(f"{line} {advice}")
    ignored(line)
