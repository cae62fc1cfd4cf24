r"""Barriers predicted by Taylor expansions at both endpoints.

Near ``a`` the loss along the path is ``L_a(λ) = L(a) + λ g_a·Δ + ½ λ² Δ·H_a Δ`` with ``Δ = b − a``; near ``b`` it is
``L_b(λ) = L(b) − (1−λ) g_b·Δ + ½ (1−λ)² Δ·H_b Δ``. Weighting each expansion by the proximity of its endpoint, the rise
of ``(1−λ) L_a + λ L_b`` above the straight line between the endpoints is

.. math::
    \hat B(λ) = λ (1−λ) [ (g_a − g_b)·Δ + ½ Δ·(λ H_a + (1−λ) H_b) Δ ],

a cubic in ``λ``, exact for a quadratic loss. It is determined by four numbers: two derivatives along ``Δ`` at each
endpoint.
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
from weightspace.tasks.building import blank_network, fitted
from weightspace.tasks.protocol import Split, Task, threads_of
from weightspace.threads import torch_threads


@checked
def taylor_barrier(task: Task, a: StateDict, b: StateDict, *, split: Split = "train") -> float:
    """Return the maximum of the second-order estimate of the barrier between two networks, in nats.

    The loss is that of ``Losses``: no dropout, and BatchNorm uses the statistics of the batch, so the estimate
    corresponds to the curve with ``statistics="reset"``. Its derivatives are means over the batches of the split, with
    equal weights. The training batches are those of one epoch, shuffled and augmented by a fixed seed, as in the
    training loss. If estimate and barrier disagree, the networks are too far apart for a second-order expansion. Under
    weight norm the loss is expanded in the effective weights, in which the curve is straight.

    Args:
        task: builds the network, and provides the data and the loss.
        a: weights at position 0.
        b: weights at position 1.
        split: the data to expand the loss on.

    Returns:
        At least zero, since the estimate is zero at both endpoints; NaN if a derivative isn't finite.

    Raises:
        CheckpointError: the names or shapes of ``a`` or ``b`` differ from the network's.
        WeightspaceError: the split has no batches, or the network has spectral norm, whose singular vectors the
            expansion would have to follow.

    Source:
        derived; the failure of the estimate after weight matching was observed by Ito, Yamada, Kumagai 2024,
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
    a, b = (fitted(task, network, state, name) for state, name in ((a, "a"), (b, "b")))
    coordinates = Coordinates([a, b])
    _check_followed(coordinates)
    names = [name for name, _ in network.named_parameters(remove_duplicate=False) if name not in coordinates.functions]
    difference = {name: coordinates.of(b, name).detach() - coordinates.of(a, name).detach() for name in names}
    losses = Losses(task)
    # Fused attention kernels have no second derivative.
    with torch_threads(threads_of(task)), sdpa_kernel(SDPBackend.MATH), _PlainWeightNorm():
        first_a, second_a = _derivatives(losses, a, difference, split)
        first_b, second_b = _derivatives(losses, b, difference, split)
    return _highest(first_a - first_b, second_a, second_b)


class _PlainWeightNorm(TorchFunctionMode):
    """Compute weight norm by its formula: the second derivative of torch's kernel treats the norms as constants."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace this one function; call all others unchanged."""
        if getattr(func, "__name__", "") == "_weight_norm":
            direction, magnitude = args[:2]
            return direction * (magnitude / slice_norms(direction, magnitude.shape))
        return func(*args, **(kwargs or {}))


def _check_followed(coordinates: Coordinates) -> None:
    """Refuse spectral norm, whose singular vectors change along the path."""
    for name in coordinates.parametrizations.spectral_norms:
        raise WeightspaceError(
            f"The barrier is estimated from derivatives on a line, but {name!r} is under spectral norm, whose vectors "
            "change along it. Remove the parametrization (torch.nn.utils.parametrize.remove_parametrizations), "
            "or measure a loss curve."
        )


def _derivatives(losses: Losses, state: StateDict, difference: StateDict, split: Split) -> tuple[float, float]:
    """Return ``g·Δ`` and ``Δ·H Δ`` at one endpoint, from one gradient and one Hessian-vector product per batch.

    Both are derivatives with respect to a scalar, the step ``t`` along ``Δ``, so nothing as large as the weights is
    kept.
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
    """Return the derivative with respect to the step; zero for a value that doesn't depend on it."""
    found = torch.autograd.grad(value, step, allow_unused=True)[0] if value.requires_grad else None
    return 0.0 if found is None else found.item()


def _highest(slope: float, curvature_a: float, curvature_b: float) -> float:
    """Return the maximum over ``0 ≤ λ ≤ 1`` of ``λ (1−λ) [slope + ½ (λ curvature_a + (1−λ) curvature_b)]``."""
    level, tilt = slope + curvature_b / 2, (curvature_a - curvature_b) / 2
    if not math.isfinite(level + tilt):
        return math.nan
    # The derivative is square·λ² + linear·λ + level; neither root is computed as a difference of nearly equal numbers.
    square, linear = -3 * tilt, 2 * (tilt - level)
    larger = -(linear + math.copysign(math.sqrt(max(linear**2 - 4 * square * level, 0.0)), linear)) / 2
    roots = [over / under for over, under in ((larger, square), (level, larger)) if under]
    return max([0.0, *(root * (1 - root) * (level + tilt * root) for root in roots if 0 < root < 1)])
