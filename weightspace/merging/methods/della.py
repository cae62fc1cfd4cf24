r"""DELLA: differences dropped at random, the small ones of a row more often than the large ones.

An element whose size has rank :math:`r` among the :math:`n` along dim 1 stays with the probability

.. math:: p = \text{density} - \varepsilon + 2\varepsilon\,\frac{r}{n - 1}

and what stays is scaled and merged as in DARE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from weightspace.errors import WeightspaceError
from weightspace.merging.methods._tensor_stack import Formula, Stack
from weightspace.merging.methods.dare import Masked, masked_consensus, masked_sum


def della(
    stack: Stack,
    weights: Sequence[float],
    *,
    density: Sequence[float],
    epsilon: Sequence[float],
    lambda_: float,
    normalize: bool,
    rescale: str,
    seed: int,
) -> Formula:
    """Return the formula of the consensus of signs.

    Args:
        stack: the models and their base.
        weights: any finite numbers.
        density: the mean share of the differences that is kept, one per model; 1 keeps all, and scales nothing.
        epsilon: half the range of the probabilities, one per model; ``0 < density − ε`` and ``density + ε < 1``.
        lambda_: factor of the merged difference.
        normalize: divide by the weights of those that agree.
        rescale: ``l1``, ``density`` or ``none``.
        seed: of the masks, which depend on it, the tensor's name and the model's label alone.

    Raises:
        WeightspaceError: density and epsilon do not fit together.

    Source:
        Deep et al. 2024, https://arxiv.org/abs/2406.11617, section 3.
    """
    masked = Masked(stack, density, seed, _by_rank(density, epsilon))
    return masked_consensus(masked, weights, lambda_, normalize, rescale)


def della_linear(
    stack: Stack,
    weights: Sequence[float],
    *,
    density: Sequence[float],
    epsilon: Sequence[float],
    lambda_: float,
    normalize: bool,
    rescale: str,
    seed: int,
) -> Formula:
    """Return the formula of task arithmetic.

    Args, raises and source: as ``della``; ``normalize`` divides by the sum of the weights, which must not be zero.
    """
    masked = Masked(stack, density, seed, _by_rank(density, epsilon))
    return masked_sum(masked, weights, lambda_, normalize, rescale)


def _by_rank(density: Sequence[float], epsilon: Sequence[float]) -> Callable[[Tensor, int], float | np.ndarray]:
    """Return the function from a piece's differences and a model to their probabilities."""
    for share, half in zip(density, epsilon, strict=True):
        if share < 1 and not (share - half > 0 and share + half < 1):
            raise WeightspaceError(
                f"density {share:g} and epsilon {half:g} give keep probabilities from {share - half:g} to "
                f"{share + half:g}; expected them between 0 and 1. Choose a smaller epsilon."
            )

    def probabilities(back: Tensor, index: int) -> float | np.ndarray:
        sizes = np.abs(back.numpy())
        count = sizes.shape[1]
        if count == 1 or not epsilon[index]:
            return density[index]
        order = _order(sizes)
        ranks = np.empty_like(order)
        steps = np.arange(count).reshape(1, count, *[1] * (sizes.ndim - 2))
        np.put_along_axis(ranks, order, np.broadcast_to(steps, order.shape), axis=1)
        return density[index] - epsilon[index] + 2 * epsilon[index] * ranks / (count - 1)

    return probabilities


def _order(sizes: np.ndarray) -> np.ndarray:
    """Return the indices that sort along dim 1, equal numbers in their order: ``argsort``, ten times as fast."""
    if sizes.dtype != np.float32 or sizes.shape[1] >= 2**32:
        return np.argsort(sizes, axis=1, kind="stable")
    # The bits of numbers of 0 and above sort as the numbers do; below them stands the index.
    index = np.arange(sizes.shape[1], dtype=np.uint64).reshape(1, -1, *[1] * (sizes.ndim - 2))
    keys = np.left_shift(sizes.view(np.uint32), 32, dtype=np.uint64) | index
    keys.sort(axis=1)
    return (keys & np.uint64(2**32 - 1)).astype(np.int64)
