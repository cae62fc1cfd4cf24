"""Random weights that reveal what a symmetry moves.

Weights that are constant along an axis (unit norms, zero biases, layer scales) would hide a tensor that should have
been moved, so they are perturbed, running statistics included. Tensors without values are drawn.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from weightspace.symmetry.buffers import moves_with_units


def randomise(module: nn.Module, seed: int) -> None:
    """Randomise every tensor that is constant along an axis, and all running statistics, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in _distinct(module):
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
                perturb(name, tensor, lambda noise=noise: noise)


def perturb(name: str, tensor: Tensor, noise: Callable[[], Tensor]) -> None:
    """Randomise a floating-point tensor in place if it is constant along an axis, or a running statistic.

    Args:
        name: of the tensor.
        tensor: its values.
        noise: returns normal noise of its shape, float64.
    """
    if name.endswith("running_var"):
        tensor.copy_(noise().abs() + 0.5)
    elif name.endswith("running_mean"):
        tensor.copy_(noise() * 0.1)
    elif _is_constant_somewhere(tensor):
        typical = tensor.abs().mean() or torch.tensor(0.1)
        tensor.add_(noise() * 0.3 * typical.clamp_min(0.1).double())


def draw(name: str, tensor: Tensor, seed: int) -> Tensor:
    """Return weights for a tensor without values, float64 on the CPU; integers are zero.

    They are uniform, on the scale of usual initialisations; vectors named like gains and variances are centred at 1.

    Args:
        name: of the tensor.
        tensor: its shape and dtype.
        seed: with the name, determines the values.
    """
    if not tensor.is_floating_point():
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu")
    drawn = torch.rand(tensor.shape, generator=seeded(name, seed), device="cpu").double().sub_(0.5)
    if tensor.ndim > 1:
        return drawn.mul_((12 * tensor.shape[0] / max(1, tensor.numel())) ** 0.5)
    is_gain = name.rpartition(".")[2] in ("weight", "gamma", "scale", "running_var")
    return drawn.add_(1) if is_gain else drawn.mul_(0.2)


def seeded(name: str, seed: int) -> torch.Generator:
    """Return a generator for one tensor, independent of what is drawn for others."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))


def _distinct(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    parameters = dict(module.named_parameters())
    yield from parameters.items()
    yield from ((name, buffer) for name, buffer in module.named_buffers() if moves_with_units(name, parameters))


def _is_constant_somewhere(tensor: Tensor) -> bool:
    return any(size > 1 and bool((tensor == tensor.narrow(axis, 0, 1)).all()) for axis, size in enumerate(tensor.shape))
