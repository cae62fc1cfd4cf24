"""Inputs of linear layers and convolutions as matrices: a row for every product with the weight.

The weight of a convolution is the matrix of its kernels, one per group, and its inputs are the patches of the images.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from weightspace.checkpoints import StateDict

#: A layer whose inputs can be written as rows.
MatrixLayer: TypeAlias = "nn.Linear | nn.Conv2d"


def is_matrix_layer(module: nn.Module) -> bool:
    """Return whether a module is a linear layer, or a 2-d convolution with zero padding, grouped or not."""
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.padding_mode == "zeros")


def groups_of(layer: MatrixLayer) -> int:
    """Return the number of groups of a layer, each with inputs and outputs of its own."""
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def input_rows(layer: MatrixLayer, inputs: Tensor) -> Tensor:
    """Return the inputs of a layer, ``(groups, rows, n)`` for ``n`` inputs per unit."""
    if isinstance(layer, nn.Linear):
        return inputs.reshape(1, -1, inputs.shape[-1])
    padding = layer.padding
    if isinstance(padding, str):
        sizes = zip(layer.dilation, layer.kernel_size, strict=True)
        both = [0 if padding == "valid" else dilation * (size - 1) for dilation, size in sizes]
        inputs = nn.functional.pad(inputs, [side for total in both[::-1] for side in (total // 2, total - total // 2)])
        padding = (0, 0)
    batch = inputs if inputs.ndim == 4 else inputs[None]
    patches = nn.functional.unfold(
        batch, layer.kernel_size, dilation=layer.dilation, padding=padding, stride=layer.stride
    )
    return patches.unflatten(1, (layer.groups, -1)).permute(1, 0, 3, 2).flatten(1, 2)


@contextmanager
def on_inputs(module: nn.Module, record: Callable[[str, Any, Tensor], None]) -> Iterator[None]:
    """Call ``record(name, layer, inputs)`` before every run of a linear layer or convolution inside the block."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        return lambda layer, args, kwargs: record(name, layer, args[0] if args else kwargs["input"])

    handles = [
        layer.register_forward_pre_hook(hook(name), with_kwargs=True)
        for name, layer in module.named_modules()
        if is_matrix_layer(layer)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class InputProducts:
    """Means of ``xᵀx`` over the inputs ``x`` of linear layers and ungrouped convolutions, in float64.

    Args:
        names: names of the layers, or None for all.
    """

    def __init__(self, names: Collection[str] | None = None) -> None:
        self._names = names
        self._totals: StateDict = {}
        self._counts: dict[str, int] = {}

    def record(self, name: str, layer: MatrixLayer, inputs: Tensor) -> None:
        """Add the inputs of one run of a layer; for ``on_inputs``."""
        if (self._names is None or name in self._names) and groups_of(layer) == 1:
            (rows,) = input_rows(layer, inputs).double()
            weight = f"{name}.weight" if name else "weight"
            self._totals[weight] = self._totals.get(weight, 0) + rows.T @ rows
            self._counts[weight] = self._counts.get(weight, 0) + len(rows)

    def means(self) -> StateDict:
        """Return the means by name of the weight, ``(n, n)`` for ``n`` inputs per unit."""
        return {name: total / self._counts[name] for name, total in self._totals.items()}


def has_own_parameters(name: str, layer: nn.Module, network: nn.Module) -> bool:
    """Return whether a layer has rows of inputs, and plain parameters that no other module shares."""
    if not is_matrix_layer(layer):
        return False
    own = {f"{name}.{part}" if name else part for part, _ in layer.named_parameters(recurse=False)}
    users: dict[int, set[str]] = {}
    for other, parameter in network.named_parameters(remove_duplicate=False):
        users.setdefault(id(parameter), set()).add(other)
    expected = {"weight"} if layer.bias is None else {"weight", "bias"}
    return own == {f"{name}.{part}" if name else part for part in expected} and all(
        users[id(parameter)] <= own for parameter in layer.parameters(recurse=False)
    )


def other_layers(network: nn.Module, fitted: Collection[str]) -> list[str]:
    """Return the names of the layers with matrices that were not fitted."""
    kinds = (nn.Linear, _ConvNd, nn.MultiheadAttention)
    return [name for name, layer in network.named_modules() if isinstance(layer, kinds) and name not in fitted]
