"""REPAIR in place: the mean and standard deviation of an interpolated network's units are matched to the endpoints'."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from weightspace.checkpoints import StateDict
from weightspace.connectivity.batchnorm import SEED, batch_statistics, run_over
from weightspace.connectivity.interpolated_network import interpolated
from weightspace.connectivity.unit_weights import has_weight, obstacle, set_weight, weight_of
from weightspace.errors import WeightspaceError
from weightspace.tasks.protocol import Task

#: Layer -> target mean and standard deviation of its units.
_Goals = dict[str, tuple[Tensor, Tensor]]


class Renormaliser:
    """Renormalise the units of networks between ``a`` and ``b``; the endpoints are measured once, on construction.

    Args:
        task: provides the training data, and the loss that runs a network on them.
        network: network of the task, in evaluation mode; its weights are overwritten.
        a: weights at position 0.
        b: weights at position 1.

    Raises:
        WeightspaceError: there is no training data, or integer tensors of ``a`` and ``b`` differ.
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
        """Correct the units of the network, whose weights are those of a position between 0 and 1.

        Args:
            position: the weight of ``b``'s statistics in the target.
            passes: passes over the training data. The first corrects every batch by its own statistics, in all layers
                at once, as in the paper; each further pass measures the result and corrects the remainder.
        """
        goals = {name: goal(self.ends[0][name], self.ends[1][name], position) for name in self.layers}
        with batch_statistics(self.network):
            found = self._measured(goals)
        self._fold(found, goals)
        for _ in range(passes - 1):
            self._fold(self._measured(), goals)

    def _measured(self, goals: _Goals | None = None) -> dict[str, Moments]:
        """Return the moments of all units over the training data; with goals, each batch is corrected on the way."""
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
        """Fold into every layer the map from the measured statistics to the goals."""
        for name, before in found.items():
            fold(self.layers[name], *setting(before, *goals[name]))


def layers_of_task(task: Task, network: nn.Module) -> dict[str, nn.Module]:
    """Return the layers whose hidden units REPAIR corrects, found on the task's first training batch.

    Raises:
        WeightspaceError: there is no training data, or the weight of such a layer can't be set.
    """
    first = next(iter(task.batches("train", SEED)), None)
    if first is None:
        raise WeightspaceError(f"Task {task.name!r} has no training batches to measure its units on.")
    return unit_layers(network, lambda: task.loss(network, first))


def _mapped(layer: nn.Module, output: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return the output as if the map were folded into the layer."""
    shape = [1] * output.dim()
    shape[unit_axis(layer)] = -1
    scaled = output * scale.to(output.dtype).view(shape)
    return scaled if layer.bias is None else scaled + shift.to(output.dtype).view(shape)


#: A unit whose standard deviation is below this fraction of its target, or of its mean, is constant up to rounding:
#: scaling it up would only amplify noise.
_CONSTANT = 1e-5


@dataclass(frozen=True)
class Moments:
    """Mean and population variance of ``count`` values per unit, float64 of shape ``(units,)``."""

    count: int
    mean: Tensor
    variance: Tensor

    @property
    def std(self) -> Tensor:
        """The population standard deviation."""
        return self.variance.sqrt()


def moments(outputs: Tensor, axis: int) -> Moments:
    """Return the moments of every unit over all other axes of a batch of outputs.

    Args:
        outputs: float, of any shape.
        axis: the axis of the units.
    """
    values = outputs.detach().movedim(axis, -1).flatten(0, -2).double()
    variance, mean = torch.var_mean(values, dim=0, correction=0)
    return Moments(len(values), mean, variance)


def pooled(first: Moments, second: Moments) -> Moments:
    """Return the moments of the union of two sets of values.

    Source:
        Chan, Golub, LeVeque 1979, http://i.stanford.edu/pub/cstr/reports/cs/tr/79/773/CS-TR-79-773.pdf.
    """
    count = first.count + second.count
    share = second.count / count
    apart = second.mean - first.mean
    mean = first.mean + share * apart
    variance = (1 - share) * first.variance + share * second.variance + share * (1 - share) * apart.square()
    return Moments(count, mean, variance)


def goal(first: Moments, second: Moments, position: float) -> tuple[Tensor, Tensor]:
    """Return the interpolated means and the interpolated standard deviations, ``(1 − λ) x + λ y`` of each."""
    mean = (1 - position) * first.mean + position * second.mean
    return mean, (1 - position) * first.std + position * second.std


def setting(found: Moments, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``(scale, shift)`` such that ``scale · x + shift`` has the given mean and standard deviation.

    A unit that is constant up to rounding can't be scaled to one that isn't: only its mean is corrected.

    Args:
        found: the moments of ``x``.
        mean: float64 of shape ``(units,)``.
        std: likewise, non-negative.
    """
    alive = found.std > _CONSTANT * torch.maximum(std, found.mean.abs())
    scale = torch.where(alive, std / torch.where(alive, found.std, 1), 1)
    return scale, mean - scale * found.mean


#: Called with the name and output of a layer; a returned tensor replaces the output.
OnOutput = Callable[[str, Tensor], "Tensor | None"]


def unit_layers(network: nn.Module, loss: Callable[[], Tensor]) -> dict[str, nn.Module]:
    """Return the layers with units to correct, by name, in execution order.

    They are the linear, convolutional and BatchNorm layers with weights, except those

    - whose output reaches the loss without passing another such layer: it is the network's output, not hidden;
    - whose output goes directly into BatchNorm, which determines mean and deviation itself;
    - that run more than once or share a parameter, since one affine map can't serve two places.

    Weights under weight norm or pruning are supported; a module registered under two names counts once. Other layers
    with weights (LayerNorm, embeddings, ``nn.MultiheadAttention``, recurrent layers) are left alone.

    Args:
        network: in evaluation mode; gradients of all its floating-point parameters are switched on.
        loss: runs the network once and returns a scalar that depends on its output.

    Raises:
        WeightspaceError: the loss has no gradient, or the weight of such a layer can't be set, for example under
            spectral norm, which would undo the folded map.
    """
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    named = {
        name: layer for name, layer in network.named_modules() if isinstance(layer, (nn.Linear, _ConvNd, _BatchNorm))
    }
    nodes: dict[str, list[Any]] = {}
    normalised: set[Any] = set()

    def note(name: str, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nodes.setdefault(name, []).append(output.grad_fn)
        if isinstance(layer, _BatchNorm):
            normalised.add(inputs[0].grad_fn)

    handles = [layer.register_forward_hook(partial(note, name)) for name, layer in named.items()]
    try:
        with torch.enable_grad():
            end = loss().grad_fn
    finally:
        for handle in handles:
            handle.remove()
    if end is None:
        raise WeightspaceError("The task's loss has no gradient in the weights, so its layers cannot be found.")
    last = _first_met(end, {node for found in nodes.values() for node in found})
    owners = Counter(id(one) for layer in network.modules() for one in layer.parameters(recurse=False))
    hidden: dict[str, nn.Module] = {
        name: named[name]
        for name, found in nodes.items()
        if len(found) == 1 and found[0] not in last | normalised and _has_own_weight(named[name], owners)
    }
    for name, layer in hidden.items():
        if (problem := obstacle(layer)) is not None:
            raise WeightspaceError(
                f"REPAIR cannot correct the units of {name!r}: {problem}. Expected a plain weight, or one under weight "
                "norm or pruning. Remove the parametrization from the networks, or use statistics='reset' or 'none'."
            )
    return hidden


def _first_met(end: Any, wanted: set[Any]) -> set[Any]:
    """Return the nodes of ``wanted`` that are reached first on the paths back from ``end``."""
    met, seen, waiting = set(), {end}, [end]
    while waiting:
        node = waiting.pop()
        if node in wanted:
            met.add(node)
            continue
        for earlier, _ in node.next_functions:
            if earlier is not None and earlier not in seen:
                seen.add(earlier)
                waiting.append(earlier)
    return met


def _has_own_weight(layer: nn.Module, owners: Counter[int]) -> bool:
    """Return whether the layer has a weight and shares none of its parameters with another layer."""
    return has_weight(layer) and all(owners[id(one)] == 1 for one in layer.parameters())


@contextmanager
def listening(layers: Iterable[tuple[str, nn.Module]], on_output: OnOutput) -> Iterator[None]:
    """Call ``on_output`` with every output of the layers while the block runs."""

    def hook(name: str, layer: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        return on_output(name, output)

    handles = [layer.register_forward_hook(partial(hook, name)) for name, layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def unit_axis(layer: nn.Module) -> int:
    """Return the axis of the layer's output that holds its units."""
    if isinstance(layer, _ConvNd):
        return 1 - layer.weight.dim()  # counted from the end, since an image may lack a batch axis
    return 1 if isinstance(layer, _BatchNorm) else -1


@torch.no_grad()
def fold(layer: nn.Module, scale: Tensor, shift: Tensor) -> None:
    """Fold the map ``scale · output + shift`` of a unit layer into its weight and bias, in place.

    Args:
        layer: one of ``unit_layers``; without a bias, it is only scaled.
        scale: float64 of shape ``(units,)``.
        shift: likewise.
    """
    weight = weight_of(layer).double()
    if isinstance(layer, _ConvTransposeNd):  # (in, units per group, …): the groups are on the first axis
        parts = weight.unflatten(0, (layer.groups, -1))
        factors = scale.view(layer.groups, 1, -1, *(1 for _ in weight.shape[2:]))
        set_weight(layer, (parts * factors).flatten(0, 1))
    else:
        set_weight(layer, weight * scale.view(-1, *(1 for _ in weight.shape[1:])))
    bias: Tensor | None = layer.bias  # pyright: ignore[reportAssignmentType]
    if bias is not None:
        bias.copy_(bias.double() * scale + shift)
