"""SymmetryMatching on the data of a task: streams by activations, heads by outputs, and learning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from typing import Any

import torch
from torch import nn

from weightspace.checkpoints import StateDict, check_compatible
from weightspace.errors import WeightspaceError
from weightspace.matching.aligning.closed_form import ascend
from weightspace.matching.aligning.families import Family
from weightspace.matching.aligning.heads import choose_heads
from weightspace.matching.aligning.midpoint import Midpoint, logits_of
from weightspace.matching.aligning.refine import Descent, refine
from weightspace.matching.aligning.streams import match_streams, with_weights
from weightspace.progress import Progress
from weightspace.symmetry.kinds.element import Element
from weightspace.tasks.failures import task_errors
from weightspace.tasks.protocol import Task, threads_of
from weightspace.threads import torch_threads

#: Networks are compared on at least so many rows of logits, and on so many batches.
_ROWS, _LEAST, _MOST = 600, 2, 100


def by_activations(
    listed: Sequence[Family],
    target: StateDict,
    source: StateDict,
    task: Task,
    *,
    seed: int,
    on_progress: Callable[[Progress], None] | None = None,
) -> Element:
    """Turn streams by activations, fit everything else to the weights, and choose the order of heads by outputs.

    Args:
        listed: the families of all groups.
        target: canonical weights.
        source: canonical weights.
        task: builds the network, and provides training batches.
        seed: determines the order of the batches.
        on_progress: called after every ``"sweep"`` and every ``"heads"`` of a layer.

    Raises:
        CheckpointError: the weights aren't those of the task's network.
        WeightspaceError: the task has no training batches, or activations aren't finite.
    """
    spec, network = listed[0].spec, _network(task)
    check_compatible(network.state_dict(), target, names=(f"the network of {task.name}", "the target"))
    with torch_threads(threads_of(task)), task_errors(task, "on its training batches"):
        ends = [with_weights(network, state) for state in (target, source)]
        batches = _sample(task, ends[0], seed)
        streams = match_streams(spec, ends[0], ends[1], batches, task.loss)
        maps = ascend(listed, streams, max_sweeps=1, on_progress=on_progress).maps
        midpoint = Midpoint(spec, network, target, source, batches, task.loss)
        return Element.of(spec, choose_heads(listed, maps, midpoint, on_progress=on_progress))


def learned(
    element: Element,
    target: StateDict,
    source: StateDict,
    task: Task,
    descent: Descent,
    *,
    on_progress: Callable[[Progress], None] | None = None,
) -> Element:
    """Return the element, found by gradient descent, that moves an aligned source further.

    Args:
        element: brings the source near the target.
        target: canonical weights.
        source: canonical weights, not moved yet.
        task: builds the network, and provides training batches and the loss.
        descent: options.
        on_progress: called after every ``"step"``, with the divergence or loss in nats.
    """
    with torch_threads(threads_of(task)), task_errors(task, "on its training batches"):
        batches = (batch for epoch in count(descent.seed) for batch in _shuffled(task, epoch))
        moved = element.apply(source)
        return refine(element.spec, _network(task), target, moved, batches, task.loss, descent, on_progress=on_progress)


def _network(task: Task) -> nn.Module:
    """Return a network of the task, whose weights don't matter."""
    with torch.random.fork_rng(devices=[]):
        return task.network().eval()


def _shuffled(task: Task, seed: int) -> Iterator[Any]:
    """Yield the training batches of an epoch.

    Raises:
        WeightspaceError: there are none.
    """
    batch = None
    for batch in task.batches("train", seed):
        yield batch
    if batch is None:
        raise WeightspaceError(f"Task {task.name!r} has no training batches; alignment on data needs some.")


@torch.no_grad()
def _sample(task: Task, network: nn.Module, seed: int) -> list[Any]:
    """Return the first training batches that hold enough rows of logits."""
    batches: list[Any] = []
    rows = 0
    for batch in islice(_shuffled(task, seed), _MOST):
        batches.append(batch)
        rows += len(logits_of(network, task.loss, batch))
        if rows >= _ROWS and len(batches) >= _LEAST:
            break
    return batches
