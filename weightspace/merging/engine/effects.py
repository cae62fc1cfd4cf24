"""What a recipe leaves as it is, as the checkpoints show: filters that match nothing, tensors outside its modules."""

from __future__ import annotations

from weightspace.errors import WeightspaceError
from weightspace.merging.engine.members import Reading, ignored_revision
from weightspace.merging.engine.names import Outputs
from weightspace.merging.recipe import Recipe, Warn
from weightspace.merging.schedule import unmatched_filters


def check_effects(recipe: Recipe, named: Outputs, reading: Reading, ignored: Warn | None) -> None:
    """Tell of settings that change nothing, and of tensors that no setting is for.

    Args:
        recipe: the recipe.
        named: the output's tensors.
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
    names = [output.name for output in named.outputs]
    if named.beside:
        more = f" and {len(named.beside) - 1:,} more tensors" if named.beside[1:] else ""
        line = f"{named.beside[0]!r}{more} belong to none of the recipe's modules: copied from {recipe.donor}."
        _tell(line, "Expected all modules of the model.", ignored)
    if named.computed:
        more = f" and {len(named.computed) - 1:,} like it" if named.computed[1:] else ""
        line = (
            f"Not all models have {named.computed[0]!r}{more}: copied, since networks compute them when they are built."
        )
        _tell(line, "Expected the same tensors in all.", ignored)
    for key, text in unmatched_filters(recipe, names):
        line = f"The filter {text!r} of {key!r} matches no tensor, of {names[0]!r} and {len(names) - 1:,} more."
        _tell(line, "Is it misspelt?", ignored)


def _tell(line: str, advice: str, ignored: Warn | None) -> None:
    if ignored is None:
        raise WeightspaceError(f"{line} {advice}")
    ignored(line)
