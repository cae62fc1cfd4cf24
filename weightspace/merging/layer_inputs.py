"""Inputs of linear layers and convolutions as matrices: a row for every product with the weight.

The weight of a convolution is the matrix of its kernels, one per group, and its inputs are the patches of the images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import Tensor, nn

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
