"""REPAIR in place: the units of a network between two get mean and deviation from those of the two."""

from __future__ import annotations

from torch import Tensor, nn

from weightspace.checkpoints import StateDict
from weightspace.connectivity.moments import Moments, goal, moments, pooled, setting
from weightspace.connectivity.path import interpolated
from weightspace.connectivity.statistics import SEED, batch_statistics, run_over
from weightspace.connectivity.units import fold, listening, unit_axis, unit_layers
from weightspace.errors import WeightspaceError
from weightspace.tasks.protocol import Task

#: Layer -> the mean and the standard deviation that its units should have.
_Goals = dict[str, tuple[Tensor, Tensor]]


class Renormaliser:
    """Sets the units of networks between ``a`` and ``b``; the two are measured once, when it is made.

    Args:
        task: has the training data, and the loss that runs a network on them.
        network: of the task, in evaluation mode; its weights are overwritten.
        a: weights at position 0.
        b: weights at position 1.

    Raises:
        WeightspaceError: there are no training data, or integer tensors of ``a`` and ``b`` differ.
    """

    def __init__(self, task: Task, network: nn.Module, a: StateDict, b: StateDict) -> None:
        self.task, self.network = task, network
        self.layers = layers_of_task(task, network)
        self.ends: list[dict[str, Moments]] = []
        for position in (0, 1):
            interpolated(network, a, b, position)
            self.ends.append(self._measured())
        self.layers = {name: layer for name, layer in self.layers.items() if all(name in end for end in self.ends)}

    def __call__(self, position: float, *, passes: int = 1) -> None:
        """Set the units of the network, which has the weights of a position between 0 and 1.

        Args:
            position: what share of ``b`` the units' statistics should have.
            passes: over the training data. The first corrects every batch by its own statistics, in all layers at
                once, as the paper does; each further one measures what came out and corrects what is left.
        """
        goals = {name: goal(self.ends[0][name], self.ends[1][name], position) for name in self.layers}
        with batch_statistics(self.network):
            found = self._measured(goals)
        self._fold(found, goals)
        for _ in range(passes - 1):
            self._fold(self._measured(), goals)

    def _measured(self, goals: _Goals | None = None) -> dict[str, Moments]:
        """Return the moments of all units over the training data; with goals, each batch goes on corrected."""
        found: dict[str, Moments] = {}

        def note(name: str, output: Tensor) -> Tensor | None:
            layer = self.layers[name]
            if not output.numel():
                return None
            batch = moments(output, unit_axis(layer))
            found[name] = pooled(found[name], batch) if name in found else batch
            return None if goals is None else _mapped(layer, output, *setting(batch, *goals[name]))

        with listening(self.layers.items(), note):
            run_over(self.network, self.task.batches("train", SEED), self.task.loss)
        return found

    def _fold(self, found: dict[str, Moments], goals: _Goals) -> None:
        """Put into every layer the map that takes its units from what was found to what they should have."""
        for name, before in found.items():
            fold(self.layers[name], *setting(before, *goals[name]))


def layers_of_task(task: Task, network: nn.Module) -> dict[str, nn.Module]:
    """Return the layers whose hidden units REPAIR sets, found on the task's first training batch.

    Raises:
        WeightspaceError: there are no training data, or the weight of such a layer cannot be set.
    """
    first = next(iter(task.batches("train", SEED)), None)
    if first is None:
        raise WeightspaceError(f"Task {task.name!r} has no training batches; its units cannot be measured.")
    return unit_layers(network, lambda: task.loss(network, first))


def _mapped(layer: nn.Module, output: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return the output as it would be with the map folded into the layer."""
    shape = [1] * output.dim()
    shape[unit_axis(layer)] = -1
    scaled = output * scale.to(output.dtype).view(shape)
    return scaled if layer.bias is None else scaled + shift.to(output.dtype).view(shape)
