"""Copies of a network without the memory of its parameters, and networks on the meta device.

Tensors on the meta device have shapes and no values. Parameters get theirs one at a time when such a network runs
(``streamed.py``); its constants (buffers that aren't saved, tables, masks) are unknown, which tracing takes into
account: floats are drawn at random, integers and booleans are zero.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from weightspace.errors import SpecError
from weightspace.symmetry.buffers import moves_with_units
from weightspace.symmetry.module_copy import attributes, copy_module, is_plain
from weightspace.symmetry.random_weights import seeded


def lacks_values(module: nn.Module) -> bool:
    """Return whether some tensors of a network are on the meta device."""
    return any(tensor.is_meta for tensor in attributes(module))


def check_constants(module: nn.Module) -> None:
    """Check that buffers that aren't weights have values, since their effect on units depends on them.

    Raises:
        SpecError: some are on the meta device.
    """
    buffers = dict(module.named_buffers())
    unknown = [name for name, buffer in buffers.items() if buffer.is_meta and not moves_with_units(name, buffers)]
    if unknown:
        raise SpecError(
            f"{type(module).__name__}: what may be moved depends on constants without values, as {unknown[0]} is on "
            "the meta device. Only parameters may be there: build the network with buffers on the CPU (as "
            "accelerate.init_empty_weights does), or set them."
        )


def is_unknown(value: Tensor) -> bool:
    """Return whether a tensor has a shape but no values."""
    return value.is_meta or isinstance(value, FakeTensor)


def shape_copy(module: nn.Module) -> tuple[nn.Module, FakeTensorMode]:
    """Return a copy of a network on the meta device that computes with shapes, as on the CPU, and the mode for it.

    Raises:
        SpecError: the network can't be copied, or has a tensor of unknown shape.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    substitutes: dict[int, Tensor] = {}
    for tensor in _on_meta(module):
        with mode:
            shaped = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
        is_parameter = isinstance(tensor, nn.Parameter)
        substitutes[id(tensor)] = nn.Parameter(shaped, tensor.requires_grad) if is_parameter else shaped
    return with_legible_experts(copy_module(module, substitutes=substitutes)), mode


def stand_in_copy(module: nn.Module, seed: int) -> nn.Module:
    """Return a copy of a network in float64 whose parameters hold one NaN each and whose constants have values.

    Args:
        module: the network; not modified.
        seed: of constants on the meta device.

    Raises:
        SpecError: the network can't be copied, or has a tensor of unknown shape.
    """
    constants = (tensor for tensor in _on_meta(module) if not isinstance(tensor, nn.Parameter))
    substitutes: dict[int, Tensor] = {id(tensor): _drawn(tensor, seed) for tensor in constants}
    for parameter in module.parameters():
        if is_plain(parameter):
            dtype = torch.float64 if parameter.is_floating_point() else parameter.dtype
            device = "cpu" if parameter.is_meta else parameter.device
            missing = torch.nan if parameter.is_floating_point() else 0  # NaN shows wherever a stand-in is not replaced
            one = torch.full((), missing, dtype=dtype, device=device)
            substitutes[id(parameter)] = nn.Parameter(one.expand(parameter.shape), requires_grad=False)
    return with_legible_experts(copy_module(module, substitutes=substitutes)).double()


def with_legible_experts(module: nn.Module) -> nn.Module:
    """Make the mixtures of experts of transformers look up the weights of the chosen experts, in place.

    Their other implementations (sorted and grouped products, a loop over the used experts) hide from the graph which
    weights belong to which expert, and some don't support float64.
    """
    for part in module.modules():
        config = getattr(part, "config", None)
        if getattr(config, "_experts_implementation", None) is not None:
            setattr(config, "_experts_implementation", "batched_mm")  # noqa: B010
    return module


def _on_meta(module: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors of a network that are on the meta device.

    Raises:
        SpecError: one of them has no shape yet.
    """
    for tensor in attributes(module):
        if tensor.is_meta:
            if type(tensor) not in (Tensor, nn.Parameter):
                raise SpecError(
                    f"{type(module).__name__} has a {type(tensor).__name__} on the meta device; expected plain "
                    "parameters and buffers there. Build the network with values."
                )
            yield tensor


def _drawn(tensor: Tensor, seed: int) -> Tensor:
    """Return values for a constant that has none."""
    if tensor.is_floating_point():
        generator = seeded(str(tuple(tensor.shape)), seed)
        return torch.rand(tensor.shape, generator=generator, device="cpu").to(tensor.dtype)
    return torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu")
