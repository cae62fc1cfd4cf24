"""Alignment on the data of a task: streams by activations, heads by outputs, and learning."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from typing import Any

import torch
from torch import nn

from weightspace.arithmetic.mean import mean
from weightspace.checkpoints import StateDict, check_compatible
from weightspace.errors import WeightspaceError
from weightspace.matching.aligning.closed_form import ascend
from weightspace.matching.aligning.heads import choose_heads
from weightspace.matching.aligning.inner_products import families
from weightspace.matching.aligning.midpoint import Midpoint, Outputs, logits_of
from weightspace.matching.aligning.refine import Descent, refine
from weightspace.matching.aligning.streams import match_streams, with_weights
from weightspace.progress import Progress
from weightspace.symmetry.kinds.element import Element
from weightspace.symmetry.kinds.symmetry_spec import SymmetrySpec
from weightspace.tasks.building import blank_network
from weightspace.tasks.failures import task_errors
from weightspace.tasks.protocol import Task, threads_of
from weightspace.threads import torch_threads

#: Networks are compared on at least so many rows of logits, and on so many batches.
_ROWS, _LEAST, _MOST = 600, 2, 100


def align_on_data(
    spec: SymmetrySpec,
    target: StateDict,
    source: StateDict,
    task: Task,
    *,
    seed: int,
    descent: Descent | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> tuple[Element, list[float]]:
    """Turn streams by activations, fit all else to the weights, choose the order of heads by outputs, and learn.

    A step is kept if it lowers the divergence of the midpoint's outputs from the mean logits of the two networks.

    Args:
        spec: of the architecture.
        target: canonical weights.
        source: canonical weights.
        task: builds the network, and provides training batches.
        seed: determines the order of the batches.
        descent: options of learning; None for the closed form.
        on_progress: called after every ``"sweep"``, ``"heads"`` of a layer, and ``"step"``.

    Returns:
        The element, and the divergence in nats initially and after each step.

    Raises:
        CheckpointError: the weights aren't those of the task's network.
        WeightspaceError: the task has no training batches, or activations aren't finite.
    """
    network = blank_network(task)
    check_compatible(network.state_dict(), target, names=(f"the network of {task.name}", "the target"))
    with torch_threads(threads_of(task)), task_errors(task, "on its training batches"):
        ends = [with_weights(network, state) for state in (target, source)]
        batches = _sample(task, ends[0], seed)
        midpoint = Midpoint(spec, target, source, Outputs(network, (target, source), batches, task.loss))
        listed = families(spec, target, source)
        best = Element.identity(spec)
        values = [midpoint.of(best)]
        streams = match_streams(spec, ends[0], ends[1], batches, task.loss)
        maps = ascend(listed, streams, max_sweeps=1, on_progress=on_progress).maps
        found = Element.of(spec, choose_heads(listed, maps, midpoint, on_progress=on_progress))
        best = _better(found, best, midpoint, values)
        if descent is not None:
            moved, epochs = best.apply(source), (batch for epoch in count(seed) for batch in _shuffled(task, epoch))
            more = refine(spec, blank_network(task), target, moved, epochs, task.loss, descent, on_progress=on_progress)
            best = _better(more.compose(best), best, midpoint, values)
    return best, values


def _better(found: Element, best: Element, midpoint: Midpoint, values: list[float]) -> Element:
    """Return what was found if its divergence is lower than the last one, and append the lower one."""
    value = midpoint.of(found)
    is_better = value < values[-1]
    values.append(value if is_better else values[-1])
    return found if is_better else best


class ByOutputs:
    """The objective of an alignment of several networks: the outputs of their mean.

    Args:
        task: builds the network, and provides training batches.
        parents: weights of the networks.
        seed: determines the order of the batches.
    """

    def __init__(self, task: Task, parents: Sequence[StateDict], *, seed: int) -> None:
        self.task, network = task, blank_network(task)
        with torch_threads(threads_of(task)), task_errors(task, "on its training batches"):
            batches = _sample(task, with_weights(network, parents[0]), seed)
            self.outputs = Outputs(network, parents, batches, task.loss)

    def objective(self, moved: Sequence[StateDict]) -> float:
        """Return minus the divergence of the mean's outputs from the mean logits of the networks, in nats."""
        with torch_threads(threads_of(self.task)), task_errors(self.task, "on its training batches"):
            self.outputs.write(mean(moved))
            return -self.outputs.divergence()


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
