"""The files of a plan's output before it is made: of the right names, headers and sizes, with holes for the tensors."""

from __future__ import annotations

from pathlib import Path

from weightspace.checkpoints.disk import one_line_errors
from weightspace.merging.engine.finishing import finish_folder
from weightspace.merging.engine.plan import Plan


def write_skeleton(plan: Plan, folder: Path) -> None:
    """Write a folder from which the next merge can be planned.

    Args:
        plan: the merge that would make it.
        folder: a free name.

    Raises:
        CheckpointError: the disk refuses.
    """
    with one_line_errors(folder, "written"):
        folder.mkdir(parents=True)
        finish_folder(plan, folder, plan.metadata)
        for shard in plan.shards:
            with open(folder / shard.name, "wb") as file:
                file.write(shard.header)
                file.truncate(shard.size)
