"""The out-of-core average of the checkpoints of a run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from weightspace.arguments import checked
from weightspace.merging import ExecutionOptions, MergeReport, OutputOptions, ReadingOptions, merge_files
from weightspace.progress import Progress
from weightspace.runs.checkpoints import RunCheckpoint, check_output
from weightspace.runs.schedules import schedule_weights

if TYPE_CHECKING:
    from weightspace.checkpoints import StateDict
    from weightspace.tasks.protocol import Task


@checked
def average_run(
    checkpoints: Sequence[RunCheckpoint],
    out: str | os.PathLike[str],
    *,
    schedule: str = "uniform",
    task: Task | None = None,
    dtype: str | None = None,
    reading: ReadingOptions | None = None,
    output: OutputOptions | None = None,
    execution: ExecutionOptions | None = None,
    dry_run: bool = False,
    lenient: bool = False,
    warn: Callable[[str], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> MergeReport:
    """Average checkpoints of one training run, out of core: ``merge_files`` with the weights of the schedule.

    Args:
        checkpoints: from ``find_checkpoints``.
        out: as for ``merge_files``.
        schedule: ``uniform``, ``ema:DECAY``, ``wsm:DECAY`` or a file of weights; see ``schedule_weights``.
        task: if given, the BatchNorm statistics of the average are recomputed on its training data.
        dtype, reading, output, execution, dry_run, lenient, warn, on_progress: as for ``merge_files``.

    Raises:
        CheckpointError, WeightspaceError: as ``merge_files``; there are no checkpoints, the schedule is unknown, or
            ``out`` would be a checkpoint of the run.

    Source:
        Kaddour 2022, https://arxiv.org/abs/2209.14981; Li et al. 2025, https://arxiv.org/abs/2505.12082.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> from weightspace.runs import average_run, find_checkpoints
        >>> for step in (10, 20, 30):
        ...     ws.save_checkpoint({"w": torch.tensor([float(step)])}, f"run/step_{step}.safetensors")
        >>> report = average_run(find_checkpoints("run", last=2), "average.safetensors")
        >>> ws.load_checkpoint("average.safetensors")
        {'w': tensor([25.])}
    """
    check_output(checkpoints, out)
    execution = execution or ExecutionOptions()
    if os.path.isfile(schedule):
        execution = replace(execution, reads=(*execution.reads, schedule))
    return merge_files(
        [checkpoint.path for checkpoint in checkpoints],
        out,
        weights=schedule_weights(schedule, len(checkpoints)),
        dtype=dtype,
        reading=reading,
        output=output,
        execution=execution,
        finish=None if task is None else lambda state: _reset_statistics(task, state),
        dry_run=dry_run,
        lenient=lenient,
        warn=warn,
        on_progress=on_progress,
    )


def _reset_statistics(task: Task, state: StateDict) -> StateDict:
    """Return the average with its BatchNorm statistics recomputed; only this needs torch in this process."""
    from weightspace.connectivity import reset_statistics

    return reset_statistics(task, state)
