"""Entropy of a network's predictions on the inputs of a task's batch."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from weightspace.errors import WeightspaceError
from weightspace.tasks.protocol import Task


class _Predicted(BaseException):
    """Leaves a task's loss with the output of the network, before the loss reads a label."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


def prediction_entropy(task: Task, network: nn.Module, batch: Any) -> Tensor:
    """Return the mean entropy of the predictions on a batch in nats, a differentiable scalar.

    The logits are those that the task's optional method ``logits(module, batch)`` returns, otherwise the output of the
    network in its first call by the task's ``loss``, which is left there. They are ``(n, classes)`` or ``(n, length,
    classes)``; a ``ModelOutput`` of transformers has them as ``logits``.

    Raises:
        WeightspaceError: there are no logits of that shape, or the task's loss doesn't call the network.
    """
    logits = _logits(task, network, batch)
    logs = logits.log_softmax(dim=-1)
    return -(logs.exp() * logs).sum(dim=-1).mean()


def _logits(task: Task, network: nn.Module, batch: Any) -> Tensor:
    """Return the logits of a batch."""
    own = getattr(task, "logits", None)
    output = _output(task, network, batch) if own is None else own(network, batch)
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor) or logits.dim() not in (2, 3) or logits.shape[-1] < 2:
        found = f"a tensor of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(output).__name__
        raise WeightspaceError(
            "Entropy needs logits of shape (n, classes) or (n, length, classes), of two classes or more; the network "
            f"of task {task.name!r} returns {found}. Give the task a method logits(module, batch)."
        )
    return logits


def _output(task: Task, network: nn.Module, batch: Any) -> Any:
    """Return what the network returns when a task begins to compute its loss."""

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        raise _Predicted(output)

    handle = network.register_forward_hook(leave)
    try:
        task.loss(network, batch)
    except _Predicted as predicted:
        return predicted.output
    finally:
        handle.remove()
    raise WeightspaceError(
        f"The loss of task {task.name!r} doesn't call the network, so that its predictions are unknown. Give the task "
        "a method logits(module, batch)."
    )
