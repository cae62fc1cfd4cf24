r"""Barriers predicted by Taylor expansions at both endpoints.

Near ``a`` the loss along the path is ``L_a(λ) = L(a) + λ g_a·Δ + ½ λ² Δ·H_a Δ`` with ``Δ = b − a``, near ``b`` it is
``L_b(λ) = L(b) − (1−λ) g_b·Δ + ½ (1−λ)² Δ·H_b Δ``. Each end is trusted in the measure in which it is near, and the
rise of ``(1−λ) L_a + λ L_b`` above the straight line between the ends is

.. math::
    \hat B(λ) = λ (1−λ) [ (g_a − g_b)·Δ + ½ Δ·(λ H_a + (1−λ) H_b) Δ ],

a cubic in ``λ``, exact for a quadratic loss. Four numbers decide it: two derivatives along ``Δ`` at
either end.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from weightspace.arguments import checked
from weightspace.arithmetic.parametrizations import Coordinates
from weightspace.arithmetic.weight_norm import slice_norms
from weightspace.checkpoints import StateDict
from weightspace.connectivity.batchnorm import SEED
from weightspace.errors import WeightspaceError
from weightspace.lora.factor_files import check_is_model
from weightspace.matching import Losses
from weightspace.tasks.building import blank_network, check_belongs
from weightspace.tasks.protocol import Split, Task, threads_of
from weightspace.threads import torch_threads


@checked
def taylor_barrier(task: Task, a: StateDict, b: StateDict, *, split: Split = "train") -> float:
    """Return the highest point of the second-order estimate of the barrier between two networks, in nats.

    The loss is that of ``Losses``: no dropout, and BatchNorm on the statistics of the batch, so that the estimate is
    one of the curve with ``statistics="reset"``. Its derivatives are means over the batches of the split, which all
    count alike. The training batches are those of one epoch, shuffled and augmented by a fixed seed: the loss that the
    networks were trained to make small. Where the estimate and the barrier part, the networks are not near each other
    in the sense of Taylor. Under weight norm the loss is expanded in the weights, as the curve is straight in these.

    Args:
        task: builds the network, and has the data and the loss.
        a: weights at position 0.
        b: weights at position 1.
        split: the data.

    Returns:
        Zero or more, since the estimate is zero at both ends; NaN where a derivative isn't finite.

    Raises:
        CheckpointError: ``a`` or ``b`` has other names or shapes than the network.
        WeightspaceError: the split has no batches, or the network has spectral norm, whose singular vectors the
            expansion would have to follow.

    Source:
        derived; that the estimate fails after weight matching is the observation of Ito, Yamada, Kumagai 2024,
        https://arxiv.org/abs/2402.04051.

    Example:
        >>> import weightspace as ws
        >>> task = ws.load_task("digits-mlp")
        >>> a, b = (ws.train(task, seed, epochs=1) for seed in (0, 1))
        >>> ws.taylor_barrier(task, a, b) >= 0
        True
    """
    network = blank_network(task)
    for state, name in ((a, "a"), (b, "b")):
        check_is_model(state, name)
        check_belongs(task, network, state, name)
    coordinates = Coordinates([a, b])
    _check_followed(coordinates)
    names = [name for name, _ in network.named_parameters(remove_duplicate=False) if name not in coordinates.functions]
    difference = {name: coordinates.of(b, name).detach() - coordinates.of(a, name).detach() for name in names}
    losses = Losses(task)
    # The fused kernels of attention have no second derivative.
    with torch_threads(threads_of(task)), sdpa_kernel(SDPBackend.MATH), _PlainWeightNorm():
        first_a, second_a = _derivatives(losses, a, difference, split)
        first_b, second_b = _derivatives(losses, b, difference, split)
    return _highest(first_a - first_b, second_a, second_b)


class _PlainWeightNorm(TorchFunctionMode):
    """Compute weight norm by its formula: the second derivative of torch's own kernel takes norms for constants."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace the one function, and leave all others as they are."""
        if getattr(func, "__name__", "") == "_weight_norm":
            direction, magnitude = args[:2]
            return direction * (magnitude / slice_norms(direction, magnitude.shape))
        return func(*args, **(kwargs or {}))


def _check_followed(coordinates: Coordinates) -> None:
    """Refuse singular vectors, which change along the path."""
    for name in coordinates.parametrizations.spectral_norms:
        raise WeightspaceError(
            f"The barrier is estimated by derivatives along a line, and {name!r} is under spectral norm, whose vectors "
            "change on it. Expected the parametrization removed (torch.nn.utils.parametrize.remove_parametrizations), "
            "or measure a loss curve."
        )


def _derivatives(losses: Losses, state: StateDict, difference: StateDict, split: Split) -> tuple[float, float]:
    """Return ``g·Δ`` and ``Δ·H Δ`` at one end: a gradient and a Hessian-vector product a batch.

    Both are derivatives by one number, the step ``t`` along ``Δ``, so that nothing as large as the weights is kept.
    """
    firsts, seconds, coordinates = [], [], Coordinates([state])
    start = {name: coordinates.of(state, name).detach() for name in difference}
    for batch in losses.task.batches(split, SEED):
        step = torch.zeros((), dtype=torch.float64, requires_grad=True)
        moved = {name: tensor.detach() for name, tensor in state.items()}
        moved |= {name: start[name] + step * delta for name, delta in difference.items()}
        for direction, norm in coordinates.parametrizations.weight_norms.items():
            moved[norm.magnitude] = slice_norms(moved[direction], state[norm.magnitude].shape)
        (first,) = torch.autograd.grad(losses(moved, batch), step, create_graph=True)
        firsts.append(first.item())
        seconds.append(_derivative(first, step))
    if not firsts:
        raise WeightspaceError(f"Split {split!r} of task {losses.task.name!r} has no batches to expand the loss on.")
    return math.fsum(firsts) / len(firsts), math.fsum(seconds) / len(seconds)


def _derivative(value: Tensor, step: Tensor) -> float:
    """Return the derivative by the step; zero for a value that does not depend on it."""
    found = torch.autograd.grad(value, step, allow_unused=True)[0] if value.requires_grad else None
    return 0.0 if found is None else found.item()


def _highest(slope: float, curvature_a: float, curvature_b: float) -> float:
    """Return the maximum over ``0 ≤ λ ≤ 1`` of ``λ (1−λ) [slope + ½ (λ curvature_a + (1−λ) curvature_b)]``."""
    level, tilt = slope + curvature_b / 2, (curvature_a - curvature_b) / 2
    if not math.isfinite(level + tilt):
        return math.nan
    # The derivative is square·λ² + linear·λ + level; of its two roots none is a difference of nearly equal numbers.
    square, linear = -3 * tilt, 2 * (tilt - level)
    larger = -(linear + math.copysign(math.sqrt(max(linear**2 - 4 * square * level, 0.0)), linear)) / 2
    roots = [over / under for over, under in ((larger, square), (level, larger)) if under]
    return max([0.0, *(root * (1 - root) * (level + tilt * root) for root in roots if 0 < root < 1)])
