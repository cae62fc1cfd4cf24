"""The checkpoints of a training run, in the order of their steps."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median_low

from weightspace.checkpoints.atomic_write import one_line_errors
from weightspace.checkpoints.detection import is_checkpoint
from weightspace.checkpoints.training_folders import find_training
from weightspace.errors import CheckpointError, WeightspaceError, warn_caller

#: Counters in names, the most precise first: the unit -> the pattern of its spellings.
_COUNTERS = {
    "step": "(?:global_?)?steps?",
    "iteration": "iter(?:ation)?s?",
    "checkpoint": "checkpoints?|ckpt",
    "epoch": "epochs?",
}

#: Names of the parts of one checkpoint.
_SHARD = re.compile(r"\d+-of-\d+")

#: What may follow the digits of a number and belongs to it: ``1k``, ``1.5``, ``1e3``, ``1,000``.
_REST = r"(?:[.,]\d+)?(?:e\d+)?(?:[kmbgt](?![a-z]))?"

#: Placeholder for the step in a pattern.
_STEP = "{step}"

#: Maximum number of digits of a step.
_DIGITS = 18

#: A distance between two steps that is larger than this multiple of the median shows that checkpoints are missing.
_GAP = 1.5


@dataclass(frozen=True)
class RunCheckpoint:
    """A checkpoint of a run.

    Attributes:
        path: a file or a folder.
        step: the number in its name, of steps, iterations or epochs.
    """

    path: Path
    step: int


def find_checkpoints(
    run: str | os.PathLike[str],
    *,
    last: int | None = None,
    window: tuple[int | None, int | None] = (None, None),
    every: int | None = None,
    pattern: str | None = None,
) -> tuple[RunCheckpoint, ...]:
    """Return the checkpoints in a folder by increasing step.

    The step is the number after ``step`` in a name (``epoch=3-step=1200.ckpt``, ``global_step1200``), else after
    ``iter``, ``checkpoint`` or ``epoch`` (``iter_0001200``, ``checkpoint-1200``), else the only number in it. Files and
    folders that aren't checkpoints, and names without a number (``last.ckpt``), are left out. Steps such as ``1k`` are
    taken if all names have the same unit.

    A warning names steps between which checkpoints seem to be missing: their distance is larger than the usual one.

    Args:
        run: the folder.
        last: number of checkpoints to take, from the end; by default all.
        window: first and last step, both included; None for an open end.
        every: minimum distance between steps, from the end.
        pattern: names to take, such as ``epoch=*-step={step}.ckpt``; ``*`` stands for any text.

    Raises:
        CheckpointError: the folder cannot be read, holds no such checkpoint or is a checkpoint itself.
        WeightspaceError: the pattern has no ``{step}``, names count different things, two checkpoints have the same
            step, a number is too small, or there are fewer checkpoints than ``last``.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> from weightspace.runs import find_checkpoints
        >>> for step in (100, 1000, 200):
        ...     ws.save_checkpoint({"w": torch.zeros(2)}, f"run/step_{step}.safetensors")
        >>> [checkpoint.step for checkpoint in find_checkpoints("run")]
        [100, 200, 1000]
        >>> [checkpoint.step for checkpoint in find_checkpoints("run", last=2)]
        [200, 1000]
    """
    found = _all_in(Path(run), pattern)
    for name, value in (("last", last), ("every", every)):
        if value is not None and value < 1:
            raise WeightspaceError(f"{name} (--{name}) must be at least 1; found {value}.")
    first, end = window
    kept: list[RunCheckpoint] = []
    for checkpoint in reversed(found):
        is_inside = (first is None or checkpoint.step >= first) and (end is None or checkpoint.step <= end)
        if is_inside and (every is None or not kept or kept[-1].step - checkpoint.step >= every):
            kept.append(checkpoint)
    if len(kept) < (last or 1):
        raise WeightspaceError(
            f"Found {len(kept)} checkpoints that fit, expected at least {last or 1}. {run} has {len(found)}, from step "
            f"{found[0].step} to {found[-1].step}."
        )
    chosen = tuple(reversed(kept[:last]))
    _warn_of_gaps(run, [one.step for one in found if chosen[0].step <= one.step <= chosen[-1].step])
    return chosen


def check_output(checkpoints: Sequence[RunCheckpoint], out: str | os.PathLike[str]) -> None:
    """Check that there are checkpoints, and that an output would not be taken for one of them afterwards.

    Raises:
        WeightspaceError: there are no checkpoints, or it is in their folder, and its name has a number.
    """
    if not checkpoints:
        raise WeightspaceError("Expected at least one checkpoint to average; found none.")
    path = Path(out)
    if _numbered(path.name) is not None and path.parent.resolve() in {one.path.parent.resolve() for one in checkpoints}:
        raise WeightspaceError(
            f"{path} would be a checkpoint of the run in its folder, by its name. Choose another folder, or a name "
            "without a number, such as average.safetensors."
        )


def _warn_of_gaps(run: str | os.PathLike[str], steps: Sequence[int]) -> None:
    """Warn of steps that are further apart than usual, between which checkpoints are missing."""
    distances = [after - before for before, after in pairwise(steps)]
    usual = median_low(distances) if distances else 0
    gaps = [f"{steps[index]} and {steps[index + 1]}" for index, one in enumerate(distances) if one > _GAP * usual]
    if gaps:
        more = f" and {len(gaps) - 3:,} more" if len(gaps) > 3 else ""
        warn_caller(
            f"{os.fspath(run)}: its checkpoints are {usual:g} steps apart, but none is between "
            f"{', '.join(gaps[:3])}{more}. Are some missing? The weights take all distances as equal."
        )


def _all_in(folder: Path, pattern: str | None) -> tuple[RunCheckpoint, ...]:
    """Return all checkpoints of a run by increasing step."""
    wanted = None if pattern is None else _compiled(pattern)
    if folder.is_file():
        raise CheckpointError(_nothing(folder, (), None))
    with one_line_errors(folder, "read"):
        names = sorted(entry.name for entry in folder.iterdir())
        training = find_training(folder)
    if training is not None and training.folder == folder:
        raise CheckpointError(_nothing(folder, (), None))
    found: dict[str, list[RunCheckpoint]] = {}
    empty: list[str] = []
    for name in names:
        numbered = _numbered(name) if wanted is None else _matched(name, wanted)
        if numbered is None:
            continue
        if is_checkpoint(folder / name):
            found.setdefault(numbered[0], []).append(RunCheckpoint(folder / name, numbered[1]))
        elif (folder / name).is_dir():
            empty.append(name)
    if not found:
        raise CheckpointError(_nothing(folder, names, pattern))
    if len(found) > 1:
        examples = ", ".join(f"{checkpoints[0].path.name} ({counter})" for counter, checkpoints in found.items())
        raise WeightspaceError(
            f"The names in {folder} count different things: {examples}. Choose by a pattern (--pattern), such as "
            f"{_example(next(iter(found.values()))[0])}."
        )
    if empty:
        listed = ", ".join(empty[:3]) + (f" and {len(empty) - 3:,} more" if len(empty) > 3 else "")
        warn_caller(f"{folder}: left out, since there are no weights in it: {listed}.")
    return _in_order(next(iter(found.values())))


def _compiled(pattern: str) -> re.Pattern[str]:
    """Return a pattern of names as a regular expression with the step as its group."""
    if pattern.count(_STEP) != 1:
        raise WeightspaceError(
            f"A pattern needs {_STEP} once, in place of the number, such as checkpoint-{_STEP}; found {pattern!r}."
        )
    before, after = (".*".join(map(re.escape, part.split("*"))) for part in pattern.split(_STEP))
    return re.compile(rf"{before}(\d{{1,{_DIGITS}}}){after}", re.DOTALL)


def _matched(name: str, wanted: re.Pattern[str]) -> tuple[str, int] | None:
    match = wanted.fullmatch(name)
    return None if match is None else ("", int(match[1]))


def _numbered(name: str) -> tuple[str, int] | None:
    """Return the unit that a name counts in, and the number; None if they aren't clear."""
    if _SHARD.search(name):
        return None
    for counter, word in _COUNTERS.items():
        numbers = re.findall(rf"(?<![a-z])(?:{word})[-_=. ]*(\d{{1,{_DIGITS}}})(?!\d)({_REST})", name, re.IGNORECASE)
        if len(numbers) == 1:
            return _counted(counter, *numbers[0])
    if len(re.findall(rf"(?<!\d)\d{{1,{_DIGITS}}}(?!\d)", name)) == 1:
        number = re.search(rf"(?<!\d)(\d{{1,{_DIGITS}}})(?!\d)({_REST})", name, re.IGNORECASE)
        return None if number is None else _counted("number", number[1], number[2])
    return None


def _counted(counter: str, digits: str, rest: str) -> tuple[str, int]:
    """Return the unit and the number. Numbers whose digits alone are not in order, such as 500 and 1k, differ in it."""
    return (f"{counter} with {rest}" if rest else counter), int(digits)


def _in_order(found: Sequence[RunCheckpoint]) -> tuple[RunCheckpoint, ...]:
    """Return checkpoints by step.

    Raises:
        WeightspaceError: two have the same step.
    """
    by_step: dict[int, RunCheckpoint] = {}
    for checkpoint in found:
        other = by_step.setdefault(checkpoint.step, checkpoint)
        if other is not checkpoint:
            raise WeightspaceError(
                f"{other.path.name} and {checkpoint.path.name} have the same step, {checkpoint.step}. Expected one "
                f"checkpoint per step: choose by a pattern (--pattern), such as {_example(other)}."
            )
    return tuple(by_step[step] for step in sorted(by_step))


def _example(checkpoint: RunCheckpoint) -> str:
    """Return a pattern that a checkpoint's name fits."""
    name = checkpoint.path.name
    return re.sub(rf"0*{checkpoint.step}(?!\d)", _STEP, name, count=1)


def _nothing(folder: Path, names: Sequence[str], pattern: str | None) -> str:
    """Return the message for a folder without numbered checkpoints."""
    if pattern is not None:
        shown = ", ".join(names[:3]) or "nothing"
        return f"{folder} has no checkpoint whose name fits {pattern!r}; it holds {shown}."
    if is_checkpoint(folder):
        return f"{folder} is one checkpoint. Expected a folder of several, such as step_1000 and step_2000."
    return (
        f"{folder} has no checkpoints with steps in their names. Expected names such as checkpoint-500, "
        "step_1000.safetensors or epoch=3-step=1200.ckpt, or a pattern (--pattern)."
    )
