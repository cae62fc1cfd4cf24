"""The methods that do without a task, or with its data only, behind the signature of those that learn from it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
from torch import nn

from weightspace.checkpoints import StateDict, check_compatible
from weightspace.matching.activation_matching import activation_matching
from weightspace.matching.coordinate_ascent import Sweep
from weightspace.matching.result import Matching
from weightspace.matching.weight_matching import match_weights
from weightspace.symmetry import PermutationSpec
from weightspace.tasks.failures import task_errors
from weightspace.tasks.protocol import Task, threads_of
from weightspace.threads import torch_threads

#: Training batches that activations are compared on, at most.
_BATCHES = 100


def by_weights(
    spec: PermutationSpec,
    task: Task | None,
    target: StateDict,
    source: StateDict,
    *,
    seed: int,
    on_sweep: Callable[[Sweep], None] | None,
    **options: Any,
) -> Matching:
    """Return what weight matching finds; the task is not looked at."""
    return match_weights(spec, target, source, seed=seed, on_sweep=on_sweep, **options)


def by_activations(
    spec: PermutationSpec,
    task: Task,
    target: StateDict,
    source: StateDict,
    *,
    seed: int,
    on_sweep: Callable[[Sweep], None] | None = None,
) -> Matching:
    """Return what activation matching finds over the training batches of a task."""
    ends = [_network(task, state, label) for state, label in ((target, "the target"), (source, "the source"))]
    with torch_threads(threads_of(task)):
        batches = islice(task.batches("train", seed), _BATCHES)
        with task_errors(task, "on its training batches"):
            return activation_matching(spec, ends[0], ends[1], batches, forward=task.loss, seed=seed, on_sweep=on_sweep)


def by_activations_then_weights(
    spec: PermutationSpec,
    task: Task,
    target: StateDict,
    source: StateDict,
    *,
    seed: int,
    on_sweep: Callable[[Sweep], None] | None,
    **options: Any,
) -> Matching:
    """Return what weight matching finds from where activation matching ends."""
    start = by_activations(spec, task, target, source, seed=seed).permutation
    return match_weights(spec, target, source, seed=seed, start=start, on_sweep=on_sweep, **options)


def _network(task: Task, state: StateDict, label: str) -> nn.Module:
    """Return the task's network with these weights."""
    with torch.random.fork_rng(devices=[]):  # the weights that it draws are overwritten
        network = task.network()
    check_compatible(network.state_dict(), state, names=(f"the network of {task.name}", label))
    network.load_state_dict(state)
    return network
