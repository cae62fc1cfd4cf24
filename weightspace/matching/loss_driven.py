"""Shared parts of loss-driven matching: Adam steps, and selection of the best permutation on held-out data.

The best permutation is copied when it is found, so later steps can't change it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from weightspace.checkpoints import StateDict, check_compatible
from weightspace.checkpoints.state_dict import tied_names
from weightspace.errors import WeightspaceError
from weightspace.matching.gains import Indices, precise
from weightspace.matching.result import Matching, check_matchable, matched
from weightspace.progress import Progress
from weightspace.symmetry import Permutation, PermutationSpec, permute
from weightspace.tasks.failures import task_errors
from weightspace.tasks.protocol import Split, Task, threads_of
from weightspace.threads import torch_threads

#: Seed of the fixed batches of a split.
_SEED = 0

#: Result of a search: the permutation of one model, or those of several.
Found = TypeVar("Found")
Found_co = TypeVar("Found_co", covariant=True)


@dataclass(frozen=True)
class Schedule:
    """The schedule of a descent: ``steps`` of Adam, evaluated after every ``every`` steps and at the end."""

    steps: int
    learning_rate: float
    every: int

    def __post_init__(self) -> None:
        if self.steps < 0 or self.every < 1:
            raise WeightspaceError(
                f"steps must be at least 0 and every at least 1; found {self.steps} and {self.every}."
            )
        if not 0 < self.learning_rate < math.inf:
            raise WeightspaceError(f"The learning rate must be positive and finite; found {self.learning_rate}.")


class Parametrization(Protocol[Found_co]):
    """A parametrization to optimise: some leaves, a differentiable loss, and the permutations they represent."""

    @property
    def leaves(self) -> list[Tensor]:
        """The tensors that Adam updates."""
        ...

    def loss(self, batch: Any) -> Tensor:
        """Return the loss of a batch, differentiable in the leaves."""
        ...

    def indices(self) -> Found_co:
        """Return the permutations that the leaves currently represent: of one model, or of several."""
        ...


class Best(Generic[Found]):
    """The best permutations so far, and the best loss after every trial."""

    def __init__(self, found: Found, loss: float) -> None:
        self.found, self.history = deepcopy(found), [loss]

    def offer(self, found: Found, loss: float) -> None:
        """Keep a copy if the loss is the lowest so far; ties keep the first."""
        if loss < self.history[-1]:
            self.found = deepcopy(found)
        self.history.append(min(loss, self.history[-1]))


def search(
    parametrization: Parametrization[Found],
    judge: Callable[[Found], float],
    identity: Found,
    batches: Iterable[Any],
    schedule: Schedule,
    on_progress: Callable[[Progress], None] | None,
) -> Best[Found]:
    """Run the steps of a schedule, and return the best permutations found.

    Args:
        parametrization: the parametrization to optimise.
        judge: returns the loss of permutations, lower is better.
        identity: identity permutations, which stand for the unmatched networks.
        batches: at least as many as steps.
        schedule: number and length of steps.
        on_progress: called after every ``"trial"``, with its loss and the ``best`` so far.

    Returns:
        The best permutations, and the lowest loss so far for ``identity``, at the start of the descent, and after every
        trial.

    Raises:
        WeightspaceError: the loss is no longer finite.
    """
    best = Best(identity, judge(identity))
    best.offer(start := parametrization.indices(), judge(start))
    optimizer = torch.optim.Adam([{"params": parametrization.leaves}], lr=schedule.learning_rate)
    for step, batch in zip(range(1, schedule.steps + 1), batches, strict=False):
        optimizer.zero_grad()
        loss = parametrization.loss(batch)
        if not bool(loss.isfinite()):
            raise WeightspaceError(f"The loss is {loss.item()} at step {step}. Is the learning rate too high?")
        loss.backward()
        optimizer.step()
        if step % schedule.every == 0 or step == schedule.steps:
            best.offer(found := parametrization.indices(), bad := judge(found))
            if on_progress is not None:
                on_progress(Progress("trial", step, schedule.steps, bad, details={"best": best.history[-1]}))
    return best


def descend(
    ends: EndpointPair,
    parametrization: Parametrization[Indices],
    judge: Callable[[StateDict], float],
    batches: Iterable[Any],
    schedule: Schedule,
    on_progress: Callable[[Progress], None] | None,
) -> Matching:
    """Search for the permutation of the source whose permuted parameters have the lowest loss.

    Args:
        ends: the two networks.
        parametrization: the parametrization to optimise.
        judge: returns the loss of the permuted parameters of the source.
        batches: at least as many as steps.
        schedule: number and length of steps.
        on_progress: called after every ``"trial"``, with its loss and the ``best`` so far.

    Raises:
        WeightspaceError: the loss is no longer finite.
    """
    if not ends.spec.groups:  # nothing to learn
        schedule = replace(schedule, steps=0)
    identity = Permutation.identity(ends.spec).indices
    best = search(
        parametrization, lambda indices: judge(ends.permuted(indices)), identity, batches, schedule, on_progress
    )
    history = tuple(best.history)
    settled = len(history) > 2 and history[-1] == history[-2]
    permutation = Permutation(ends.spec, best.found)
    return matched(ends.spec, ends.target, ends.source, permutation, history, converged=settled)


def task_of(method: str, task: Task | None) -> Task:
    """Return the task of a method that requires one.

    Raises:
        WeightspaceError: there is no task.
    """
    if task is None:
        raise WeightspaceError(f"{method} learns from data: pass the task of the networks, task=….")
    return task


def endless(task: Task, generator: Generator) -> Iterator[Any]:
    """Yield training batches forever, reshuffled in each epoch.

    Raises:
        WeightspaceError: there are no training batches.
    """
    while True:
        empty = True
        for batch in task.batches("train", int(torch.randint(2**62, (), generator=generator))):
            empty = False
            yield batch
        if empty:
            raise WeightspaceError(f"Task {task.name!r} has no training batches, which loss-driven matching needs.")


@dataclass(frozen=True, eq=False)
class EndpointPair:
    """A fixed target, a source to permute, and the spec of both.

    Only parameters are moved: floats that aren't statistics, in float32 (float64 unchanged). Names that share a tensor
    keep sharing it.
    """

    spec: PermutationSpec
    target: StateDict
    source: StateDict

    @cached_property
    def fixed(self) -> StateDict:
        """The parameters of the target."""
        return self._parameters(self.target)

    @cached_property
    def movable(self) -> StateDict:
        """The parameters of the source."""
        return self._parameters(self.source)

    def permuted(self, indices: Indices) -> StateDict:
        """Return the permuted parameters of the source."""
        return self._parameters(permute(self.spec, Permutation(self.spec, indices), self.source))

    def between(self, moved: StateDict, position: float) -> StateDict:
        """Return every tensor of the network at a position from the target (0) to moved parameters (1)."""
        line = {name: self.fixed[name] + position * (tensor - self.fixed[name]) for name, tensor in moved.items()}
        return {**self.target, **line}

    def distance(self, moved: StateDict) -> Tensor:
        """Return the squared distance of moved parameters from the target's."""
        return torch.stack([(tensor - self.fixed[name]).square().sum() for name, tensor in moved.items()]).sum()

    def _parameters(self, state: StateDict) -> StateDict:
        tied = tied_names(state)
        result: StateDict = {}
        for name in self.spec.axes:
            if name not in self.spec.statistics and state[name].is_floating_point():
                twin = result.get(tied.get(name, ""))
                result[name] = precise(state[name]) if twin is None else twin
        return result


def endpoints(spec: PermutationSpec, target: StateDict, source: StateDict) -> EndpointPair:
    """Return two networks that fit the spec and each other.

    Raises:
        CheckpointError: they don't fit, or have non-finite weights.
    """
    check_matchable(spec, target, source)
    return EndpointPair(spec, target, source)


class Losses:
    """The task's loss as a differentiable function of the weights.

    Args:
        task: builds the network, and provides the data and the loss.
        device: where the network runs; by default, where the task builds it.
    """

    def __init__(self, task: Task, *, device: torch.device | str | None = None) -> None:
        with torch.random.fork_rng(devices=[]):  # its random initial weights are never used
            network = task.network().to(device).eval()
        for layer in network.modules():
            if isinstance(layer, _BatchNorm):
                layer.training, layer.track_running_stats = True, False
        self.task = task
        self._loss = _LossOfTask(task, network)
        self._own = network.state_dict()
        tied = tied_names(self._own)
        self._names = {name: f"network.{name}" for name in self._own if name not in tied}

    def __call__(self, state: StateDict, batch: Any) -> Tensor:
        """Return the loss of one batch at some weights.

        Args:
            state: every tensor of the network by name, of any float dtype, on any device; not modified. Of tied names,
                the first counts.
            batch: a batch from ``task.batches``.

        Returns:
            A scalar in nats, differentiable in the tensors of ``state``.

        Raises:
            CheckpointError: the names or shapes of the state differ from those of the task's network.
        """
        check_compatible(self._own, state, names=(f"the network of {self.task.name}", "the state"))
        moved = {inside: state[name].to(self._own[name]) for name, inside in self._names.items()}
        return functional_call(self._loss, moved, (batch,))

    @torch.no_grad()
    def mean(self, state: StateDict, split: Split = "validation") -> float:
        """Return the mean loss, in nats, over the batches of a split, which are the same on every call.

        Raises:
            CheckpointError: the names or shapes of the state differ from those of the task's network.
            WeightspaceError: the split has no batches.
        """
        with torch_threads(threads_of(self.task)):
            losses = [float(self(state, batch)) for batch in self.task.batches(split, _SEED)]
        if not losses:
            raise WeightspaceError(f"Split {split!r} of task {self.task.name!r} has no batches to measure a loss on.")
        return math.fsum(losses) / len(losses)


class _LossOfTask(nn.Module):
    """A network and its loss as one module, so that its weights can be replaced from outside."""

    def __init__(self, task: Task, network: nn.Module) -> None:
        super().__init__()
        self.task, self.network = task, network

    def forward(self, batch: Any) -> Tensor:
        with task_errors(self.task, "on its batches"):
            return self.task.loss(self.network, batch)
