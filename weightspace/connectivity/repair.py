r"""REPAIR: activation statistics of an interpolated network matched to those of its endpoints.

Averaging two units with correlation ``ρ`` shrinks their variance a little in every layer, so the activations of deep
interpolated networks collapse. REPAIR undoes this unit by unit. Let ``X`` be the output of a hidden unit before its
nonlinearity, over the training data, in the network at position ``λ``. It is replaced by ``s X + t`` such that

.. math::
    E[sX+t] = (1-λ) E[X_a] + λ E[X_b],  \qquad  σ(sX+t) = (1-λ) σ(X_a) + λ σ(X_b),

that is, ``s = σ*/σ(X)`` and ``t = μ* − s E[X]``. The map is folded into the layer, ``W ← s W`` and ``b ← s b + t``
row by row, so the result is an ordinary state dict of the network.

With BatchNorm, ``X`` is BatchNorm's output, and the map is folded into its affine parameters, ``γ ← s γ`` and
``β ← s β + t``, while the running statistics are recomputed. If the endpoints' statistics are those of their data and
``γ`` has the same sign in both, ``E[X] = β`` and ``σ(X) = |γ|``, which are interpolated already: resetting the
statistics is then equivalent to REPAIR, up to the errors of the endpoints' running statistics. A reset leaves layers
without BatchNorm unchanged; REPAIR corrects these as well.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, get_args

from weightspace.arguments import checked
from weightspace.checkpoints import StateDict
from weightspace.connectivity.linear_path import LinearPath
from weightspace.errors import WeightspaceError
from weightspace.suggestions import unknown
from weightspace.tasks.protocol import Task, threads_of
from weightspace.threads import torch_threads

RepairMethod: TypeAlias = Literal["repair", "reset"]


@checked
def repair(
    task: Task,
    a: StateDict,
    b: StateDict,
    position: float,
    *,
    method: RepairMethod = "repair",
    passes: int = 1,
) -> StateDict:
    """Return an interpolated network with corrected statistics of its hidden units.

    As in the paper, the endpoints are measured as they are, and the interpolated network is corrected in one pass over
    the training data, in all layers at once: every batch is corrected by its own statistics on the way, and the
    averages over the batches are folded in. This matches means and deviations to a few per cent; with as many passes as
    there are successive layers, the match is exact.

    The layers with hidden units are found by running the network (``unit_layers``): linear layers, convolutions and
    BatchNorm, except for the network's outputs. In a layer without a bias and without BatchNorm directly after it, only
    standard deviations are corrected. Under weight norm and pruning, the effective weights are corrected. LayerNorm,
    embeddings, fused attention and recurrent layers stay interpolated; linear layers around a LayerNorm are corrected
    like all others. For a constant unit, only the mean is corrected.

    Args:
        task: builds the network and provides the training data.
        a: weights at position 0.
        b: weights at position 1.
        position: from 0 to 1; at the endpoints, the result is ``a`` or ``b``.
        method: ``"repair"``, or ``"reset"`` to only recompute BatchNorm's statistics.
        passes: correcting passes over the training data; each one after the first makes one more layer exact.

    Returns:
        New tensors with the names, shapes and dtypes of the task's network.

    Raises:
        CheckpointError: the names or shapes of ``a`` or ``b`` differ from the network's.
        WeightspaceError: a position, method or number of passes out of range, no training data, different integer
            tensors, or a hidden layer under a parametrization that would undo REPAIR (spectral norm).

    Warns:
        WeightspaceWarning: the network has no layer of hidden units, so nothing is repaired.

    Source:
        Jordan et al. 2023, https://arxiv.org/abs/2211.08403; BatchNorm's reset on paths
        Izmailov et al. 2018, https://arxiv.org/abs/1803.05407.

    Example:
        >>> import weightspace as ws
        >>> task = ws.load_task("digits-mlp")
        >>> a, b = (ws.train(task, seed, epochs=1) for seed in (0, 1))
        >>> midpoint = ws.repair(task, a, b, 0.5)
    """
    if method not in get_args(RepairMethod):
        raise unknown("method of repair", method, get_args(RepairMethod))
    if not (math.isfinite(position) and 0 <= position <= 1):
        raise WeightspaceError(f"Expected a position from 0 to 1; found {position}.")
    if passes < 1:
        raise WeightspaceError(f"REPAIR needs at least one pass over the training data; found passes={passes}.")
    with torch_threads(threads_of(task)):
        network = LinearPath(task, a, b, method, passes=passes).at(position)
    return {name: tensor.detach() for name, tensor in network.state_dict().items()}
