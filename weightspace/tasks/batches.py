"""Batches of any structure, cut to a number of examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from weightspace.errors import WeightspaceError
from weightspace.tasks.failures import task_errors
from weightspace.tasks.protocol import Task


def first_examples(batches: Iterable[Any], examples: int) -> Iterator[Any]:
    """Yield batches up to a number of examples, the last one cut.

    Raises:
        WeightspaceError: there are no batches, or one whose number of examples is unclear.
    """
    remaining = examples
    for batch in batches:
        length = batch_length(batch)
        yield batch if length <= remaining else part_of_batch(batch, 0, remaining)
        remaining -= length
        if remaining <= 0:
            return
    if remaining == examples:
        raise WeightspaceError("Found no batches to collect statistics from; expected training data.")


def training_batches(task: Task, examples: int, seed: int) -> list[Any]:
    """Return training batches of a task up to a number of examples, the last one cut.

    Raises:
        WeightspaceError: the task fails, or as for ``first_examples``.
    """
    with task_errors(task, "on its training batches"):
        return list(first_examples(task.batches("train", seed), examples))


def batch_length(batch: Any) -> int:
    """Return the number of examples in a batch.

    Raises:
        WeightspaceError: its tensors don't determine it.
    """
    lengths = {len(tensor) if tensor.dim() else -1 for tensor in _tensors(batch)}
    if len(lengths) != 1 or -1 in lengths:
        raise WeightspaceError(
            f"A batch is a {type(batch).__name__} whose tensors have the first sizes {sorted(lengths)}; expected "
            "tuples, lists or dicts of tensors with one row per example."
        )
    return lengths.pop()


def part_of_batch(batch: Any, start: int, stop: int) -> Any:
    """Return some examples of a batch, in the same structure."""
    if isinstance(batch, Tensor):
        return batch[start:stop]
    if isinstance(batch, Mapping):
        return {name: part_of_batch(value, start, stop) for name, value in batch.items()}
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        parts = [part_of_batch(value, start, stop) for value in batch]
        return parts if isinstance(batch, list) else tuple(parts)
    return batch


def _tensors(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, Sequence) and not isinstance(batch, str):
        for value in batch:
            yield from _tensors(value)
