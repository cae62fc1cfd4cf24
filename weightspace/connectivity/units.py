"""The layers whose hidden units have a mean and a standard deviation that can be set by the layer's own parameters.

They are found by running the network once, not by name: where an output goes decides, and the graph of the gradient
knows that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from weightspace.connectivity.unit_weights import has_weight, obstacle, set_weight, weight_of
from weightspace.errors import WeightspaceError

_KINDS = (nn.Linear, _ConvNd, _BatchNorm)
#: Takes the name of a layer and its output; what it returns, if it is a tensor, is the output from there on.
OnOutput = Callable[[str, Tensor], "Tensor | None"]


def unit_layers(network: nn.Module, loss: Callable[[], Tensor]) -> dict[str, nn.Module]:
    """Return the layers that have units to set, by name, in the order in which they run.

    They are the linear layers, convolutions and BatchNorm layers with weights, save those

    - whose output reaches the loss by way of no other such layer: it is the output of the network, not hidden;
    - whose output BatchNorm takes up at once, since that layer has the last word on mean and deviation;
    - that run more than once or share a parameter, since one affine map cannot serve two places.

    A weight under weight norm or pruning is set as well; a module that is registered under two names counts once.
    Whatever else has weights (LayerNorm, embeddings, ``nn.MultiheadAttention``, recurrent layers) is left alone.

    Args:
        network: in evaluation mode; gradients of all its floating-point parameters are switched on.
        loss: runs the network once and returns a scalar that depends on its output.

    Raises:
        WeightspaceError: the loss has no gradient, or the weight of such a layer cannot be set: it is under spectral
            norm, say, which undoes what is folded into it.
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
        raise WeightspaceError("The loss of the task has no gradient in the weights, so its layers cannot be found.")
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
                f"REPAIR cannot set the units of {name!r}: {problem}. Expected a weight that is plain, or under weight "
                "norm or pruning. Remove the parametrization from the networks, or use statistics='reset' or 'none'."
            )
    return hidden


def _first_met(end: Any, wanted: set[Any]) -> set[Any]:
    """Return the nodes of ``wanted`` that lie on a way back from ``end`` before any other of them."""
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
    """Return whether the layer has a weight, and no other layer has a parameter of it."""
    return has_weight(layer) and all(owners[id(one)] == 1 for one in layer.parameters())


@contextmanager
def listening(layers: Iterable[tuple[str, nn.Module]], on_output: OnOutput) -> Iterator[None]:
    """Call ``on_output`` with every output of the layers inside the block."""

    def hook(name: str, layer: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        return on_output(name, output)

    handles = [layer.register_forward_hook(partial(hook, name)) for name, layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def unit_axis(layer: nn.Module) -> int:
    """Return the axis of the layer's output that its units lie on."""
    if isinstance(layer, _ConvNd):
        return 1 - layer.weight.dim()  # from the end, since an image may come without a batch
    return 1 if isinstance(layer, _BatchNorm) else -1


@torch.no_grad()
def fold(layer: nn.Module, scale: Tensor, shift: Tensor) -> None:
    """Put the map ``scale · output + shift`` of a unit layer into its own weight and bias, in place.

    Args:
        layer: one of ``unit_layers``; without a bias it is only scaled.
        scale: float64 of shape ``(units,)``.
        shift: likewise.
    """
    weight = weight_of(layer).double()
    if isinstance(layer, _ConvTransposeNd):  # (in, units of a group, …): the groups lie on the first axis
        parts = weight.unflatten(0, (layer.groups, -1))
        factors = scale.view(layer.groups, 1, -1, *(1 for _ in weight.shape[2:]))
        set_weight(layer, (parts * factors).flatten(0, 1))
    else:
        set_weight(layer, weight * scale.view(-1, *(1 for _ in weight.shape[1:])))
    bias: Tensor | None = layer.bias  # pyright: ignore[reportAssignmentType]
    if bias is not None:
        bias.copy_(bias.double() * scale + shift)
