"""The linear path between two networks: the network at any position, with corrected statistics."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args
from warnings import warn

from torch import nn

from weightspace.arithmetic.parametrizations import Coordinates
from weightspace.checkpoints import StateDict
from weightspace.connectivity.activation_statistics import Renormaliser, layers_of_task
from weightspace.connectivity.batchnorm import SEED, has_batchnorm_statistics, reset_batchnorm
from weightspace.connectivity.interpolated_network import interpolated
from weightspace.errors import WeightspaceWarning
from weightspace.lora.factor_files import check_is_model
from weightspace.suggestions import unknown
from weightspace.tasks.building import blank_network, fitted
from weightspace.tasks.protocol import Task

#: Correction between the endpoints: none, recomputed BatchNorm statistics, or corrected units of all layers.
Statistics: TypeAlias = Literal["auto", "none", "reset", "repair"]


class LinearPath:
    """The networks on the straight line from ``a`` to ``b``, in one module.

    The endpoints are the models as trained; statistics are corrected only strictly between them.

    Args:
        task: builds the network and provides the training data.
        a: weights at position 0.
        b: weights at position 1.
        statistics: as for ``loss_curve``.
        passes: as for ``repair``.

    Attributes:
        statistics: the resolved correction: ``"none"``, ``"reset"`` or ``"repair"``.

    Raises:
        CheckpointError: the names or shapes of ``a`` or ``b`` differ from the network's.
        WeightspaceError: unknown ``statistics``.
    """

    def __init__(
        self, task: Task, a: StateDict, b: StateDict, statistics: Statistics = "auto", *, passes: int = 1
    ) -> None:
        self.task, self.passes = task, passes
        self.network = blank_network(task)
        for state, name in ((a, "a"), (b, "b")):
            check_is_model(state, name)
        self.a, self.b = (fitted(task, self.network, state, name) for state, name in ((a, "a"), (b, "b")))
        Coordinates([self.a, self.b])  # refuses incompatible models before anything is scored
        self.statistics = resolved(statistics, self.network, task)
        self._renormalise = Renormaliser(task, self.network, self.a, self.b) if self.statistics == "repair" else None

    def at(self, position: float) -> nn.Module:
        """Return the network at a position: the same module on every call, with different weights.

        Raises:
            WeightspaceError: integer tensors of ``a`` and ``b`` differ, or there is no training data.
        """
        interpolated(self.network, self.a, self.b, position)
        if 0 < position < 1:
            if self._renormalise is not None:
                self._renormalise(position, passes=self.passes)
            elif self.statistics == "reset":
                reset_batchnorm(self.network, self.task.batches("train", SEED), self.task.loss)
        return self.network


def resolved(statistics: str, network: nn.Module, task: Task) -> str:
    """Return the correction that a choice of statistics implies for a network.

    ``"reset"`` becomes ``"none"`` if no BatchNorm has running statistics; ``"auto"`` becomes ``"reset"``, and so does
    ``"repair"``, with a warning, if the network has no layers of hidden units.

    Args:
        statistics: the choice.
        network: in evaluation mode.
        task: provides the network and training data.

    Raises:
        WeightspaceError: the choice is unknown, or REPAIR can't set a layer.
    """
    if statistics not in get_args(Statistics):
        raise unknown("choice of statistics", statistics, get_args(Statistics))
    if statistics == "none" or (statistics == "repair" and layers_of_task(task, network)):
        return statistics
    done = "reset" if has_batchnorm_statistics(network) else "none"
    if statistics == "repair":
        warn(
            f"The network of task {task.name!r} has no layer of hidden units for REPAIR (linear, convolution, "
            f"BatchNorm, each with its own parameters and run once); using {done!r} instead.",
            WeightspaceWarning,
            stacklevel=3,
        )
    return done
