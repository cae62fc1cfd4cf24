"""Tasks with a part of their validation data, for cheaper scores and for the noise of a score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from weightspace.tasks.batches import batch_length
from weightspace.tasks.protocol import Task

#: The order of the validation batches does not depend on it.
_SEED = 0


@dataclass(frozen=True)
class ValidationPart:
    """A function that loads all examples, with every ``parts``-th one of the validation split from ``index`` on.

    Attributes:
        examples: returns all examples by split: tensors, or tuples of objects that a tensor of indices selects from.
        index, parts: which of the examples of the validation split remain.
    """

    examples: Any
    index: int
    parts: int

    def __call__(self) -> Mapping[Any, Any]:
        """Return the examples."""
        found = dict(self.examples())
        whole = found["validation"]
        count = len(whole) if isinstance(whole, torch.Tensor) else len(whole[-1])
        chosen = torch.arange(self.index, count, self.parts)
        found["validation"] = (
            whole[chosen] if isinstance(whole, torch.Tensor) else type(whole)(*(one[chosen] for one in whole))
        )
        return found


def part_of(task: Task, index: int, parts: int) -> Task | None:
    """Return the task with every ``parts``-th validation example from ``index`` on; None if it has no parts."""
    make: Any = getattr(task, "part", None)
    return None if make is None else make(index, parts)


def count_validation(task: Task) -> int:
    """Return the number of validation examples."""
    return sum(batch_length(batch) for batch in task.batches("validation", _SEED))
