"""Checks that the best merge of a search can be written, made before the first trial."""

from __future__ import annotations

import os
from pathlib import Path

from weightspace.checkpoints.atomic_write import one_line_errors
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging import ExecutionOptions, OutputOptions, ReadingOptions, merge_files
from weightspace.merging.out_of_core.planner import PlanOptions, make_plan
from weightspace.merging.out_of_core.run import check_runnable
from weightspace.merging.plan.listeners import Listeners, discard
from weightspace.merging.recipe.types import Recipe
from weightspace.searching.candidates import Candidate
from weightspace.searching.space import SearchSpace

#: Positions along all ranges of the candidates that are checked: their methods, and so their memory, may differ.
_SHARES = (0.5, 0.0, 1.0)


def check_output(space: SearchSpace, out: str | Path, reading: ReadingOptions, execution: ExecutionOptions) -> None:
    """Check path, memory and free space for the merge that a search will write.

    Candidates that are impossible are left to their trials.

    Args:
        space: the recipe with its searched values.
        out: path of the output.
        reading: options for reading the models.
        execution: options of the merge that is written.

    Raises:
        CheckpointError: the output cannot be written or replaced, the disk is too small, or a model cannot be read.
        WeightspaceError: the merge needs more memory than the limit.
    """
    path = Path(out)
    check_folder(path)
    for share in _SHARES:
        text = space.written({dimension.name: dimension.at(share) for dimension in space.dimensions})
        _check_merge(Candidate(text, space.where, reading).recipe, path, reading, execution)


def check_folder(path: Path) -> None:
    """Check that the folder of an output, or the one in which it will be created, can be written to.

    Raises:
        CheckpointError: it cannot, or isn't a folder.
    """
    with one_line_errors(path, "written"):
        existing = next(folder for folder in path.absolute().parents if folder.exists())
    if not existing.is_dir():
        raise CheckpointError(f"{path} cannot be written: {existing} is not a folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise CheckpointError(f"{path} cannot be written: the folder {existing} is read-only. Write somewhere else.")


def _check_merge(recipe: Recipe, path: Path, reading: ReadingOptions, execution: ExecutionOptions) -> None:
    """Check that one candidate can be written, unless it is impossible."""
    output = OutputOptions(hashes=False)
    try:
        if recipe.documents:
            merge_files(recipe, path, reading=reading, output=output, execution=execution, dry_run=True, warn=discard)
            return
        plan = make_plan(recipe, path, PlanOptions(output, reading), Listeners(None, discard, discard))
    except CheckpointError:
        raise
    except WeightspaceError:
        return
    check_runnable(plan, path, execution)
