"""Scoring of soup candidates by one network of a task, into which their tensors are copied in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from weightspace.checkpoints import StateDict
from weightspace.checkpoints.state_dict import tied_names
from weightspace.connectivity.batchnorm import SEED, has_batchnorm_statistics, reset_batchnorm
from weightspace.errors import WeightspaceError, warn_caller
from weightspace.merging.running_statistics import statistics_advice
from weightspace.suggestions import unknown
from weightspace.tasks.building import blank_network, check_belongs, experts_for, fitted, shapes_of
from weightspace.tasks.protocol import Task, threads_of
from weightspace.tasks.scores import scores_of
from weightspace.threads import torch_threads

#: BatchNorm statistics of a mixture: averaged ("none"), re-estimated ("reset"), or the latter if possible ("auto").
Statistics: TypeAlias = Literal["auto", "none", "reset"]
#: Names and tensors.
Tensors: TypeAlias = "Iterable[tuple[str, Tensor]]"


class Scorer:
    """A network of a task that holds the weights of one candidate at a time.

    Args:
        task: task that builds and scores the network.
        statistics: treatment of BatchNorm statistics in mixtures.
        device: device of the network; by default, the one on which the task builds it.

    Attributes:
        network: the network, in evaluation mode.
        resets: whether BatchNorm statistics are re-estimated.
        aliases: name of a tied tensor -> its first name.
        shapes: the network's tensors, name -> shape.

    Raises:
        WeightspaceError: the choice of statistics is unknown.
    """

    def __init__(self, task: Task, statistics: Statistics = "auto", *, device: str | None = None) -> None:
        if statistics not in get_args(Statistics):
            raise unknown("choice of statistics", statistics, get_args(Statistics))
        self.task, self.network = task, blank_network(task).to(device)
        self.aliases = tied_names(self.network.state_dict())
        self.shapes = shapes_of(self.network)
        self.resets = (
            statistics != "none"
            and has_batchnorm_statistics(self.network)
            and (statistics == "reset" or has_training_batches(task))
        )

    def check(self, state: StateDict, name: str) -> None:
        """Check that a model has the names and shapes of the network.

        Raises:
            CheckpointError: names or shapes differ.
        """
        check_belongs(self.task, self.network, state, name)

    def fitted(self, state: StateDict, name: str) -> StateDict:
        """Return a model with the names and shapes of the network; separate experts are stacked where it has them so.

        Raises:
            CheckpointError: names or shapes differ.
        """
        return fitted(self.task, self.network, state, name)

    @torch.no_grad()
    def put(self, tensors: Tensors, *, mixed: bool) -> nn.Module:
        """Set the weights of the network and return it.

        Args:
            tensors: all tensors of a checked model.
            mixed: whether the model is a mixture, whose activations BatchNorm hasn't seen.
        """
        own = self.network.state_dict()
        for name, tensor in tensors:
            own[name].copy_(tensor)
            del tensor  # before the next one is made
        if mixed and self.resets:
            with torch_threads(threads_of(self.task)):
                reset_batchnorm(self.network, self.task.batches("train", SEED), self.task.loss)
        return self.network

    def settled(self, state: StateDict) -> StateDict:
        """Return a mixture with re-estimated BatchNorm statistics, if they are; experts may be separate, and stay so.

        Raises:
            CheckpointError: names or shapes differ.
        """
        layout, given = experts_for(self.network, state), state
        state = layout.stacked(state)
        self.check(state, "the soup")
        if not self.resets:
            return given
        network = self.put(state.items(), mixed=True)
        measured = {
            f"{prefix}.{name}" if prefix else name: buffer
            for prefix, layer in network.named_modules(remove_duplicate=False)
            if isinstance(layer, _BatchNorm)
            for name, buffer in layer.named_buffers(recurse=False)
        }
        return layout.separate(
            {
                name: measured[name].to(tensor.device, tensor.dtype, copy=True) if name in measured else tensor
                for name, tensor in state.items()
            }
        )

    def scores(self, split: str) -> Mapping[str, float]:
        """Return the task's scores on a split, or on one of its shifts, as plain floats."""
        with torch_threads(threads_of(self.task)):
            return scores_of(self.task, self.network, split)


def has_training_batches(task: Task) -> bool:
    """Return whether the task has training batches to estimate statistics on."""
    return next(iter(task.batches("train", SEED)), None) is not None


def settled(task: Task | None, state: StateDict, statistics: Statistics) -> StateDict:
    """Return a mixture with re-estimated BatchNorm statistics, if it has any.

    Args:
        task: task with the data; without a task, the state is returned unchanged.
        state: weights of the task's network; experts may be separate, and stay so.
        statistics: ``"none"`` leaves the statistics unchanged; see ``Scorer``.

    Raises:
        CheckpointError: the names or shapes of the weights differ from the task's network.
        WeightspaceError: ``"reset"`` is requested, but there is no task or it has no training batches.
    """
    if task is None:
        if statistics == "reset":
            raise WeightspaceError("Statistics are re-estimated on a task's training batches; found no task.")
        advice = statistics_advice(state, "Give the task, whose training data recompute them.")
        if advice is not None and statistics == "auto":
            warn_caller(advice)
        return state
    return Scorer(task, statistics).settled(state)


#: A user-defined score of a state dict; higher is better unless ``mode="min"``.
Score: TypeAlias = Callable[[StateDict], float]
