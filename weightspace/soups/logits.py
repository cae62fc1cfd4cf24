"""What a network returns while it is scored: recorded, replaced or scaled by a hook, whatever the task does with it.

The task runs the network on the same batches in the same order each time that it scores a split. So the outputs of
several networks can be put together one network after the other, without two of them in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from weightspace.errors import WeightspaceError

#: Takes the number of the call, from 0, and the logits; returns those that count from there on.
OnLogits = Callable[[int, Tensor], Tensor]


@contextmanager
def hearing(network: nn.Module, on_logits: OnLogits) -> Iterator[None]:
    """Let ``on_logits`` have its way with all that the network returns inside the block.

    Raises:
        WeightspaceError: the network returns something else than a tensor.
    """
    calls = 0

    def hook(module: nn.Module, inputs: Any, output: Any) -> Tensor:
        nonlocal calls
        if not isinstance(output, Tensor):
            raise WeightspaceError(f"Expected a network that returns a tensor of logits; found {type(output)}.")
        calls += 1
        return on_logits(calls - 1, output)

    handle = network.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def recording(into: list[Tensor]) -> OnLogits:
    """Return a function that appends the logits to a list, in float64, and lets them pass."""

    def record(number: int, logits: Tensor) -> Tensor:
        into.append(logits.detach().double().clone())
        return logits

    return record


def replaying(recorded: list[Tensor]) -> OnLogits:
    """Return a function that puts recorded logits in the place of those of the network."""
    return lambda number, logits: nth(recorded, number, logits).to(logits)


def scaling(factor: float) -> OnLogits:
    """Return a function that multiplies the logits."""
    return lambda number, logits: logits * factor


def nth(recorded: list[Tensor], number: int, logits: Tensor) -> Tensor:
    """Return the recorded logits of a call.

    Raises:
        WeightspaceError: they are of another shape, or there are none: the batches were others.
    """
    if number >= len(recorded) or recorded[number].shape != logits.shape:
        found = tuple(recorded[number].shape) if number < len(recorded) else "none"
        raise WeightspaceError(
            f"Call {number + 1} of the network returned logits of shape {tuple(logits.shape)}, and of the network "
            f"before {found}. Expected a task that scores on the same batches each time."
        )
    return recorded[number]
