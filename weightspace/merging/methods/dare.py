r"""DARE: differences from the base dropped at random, and the remainder enlarged.

.. math:: \tilde\delta_i = c_i\, m_i \odot (x_i - b), \qquad m_i \sim \operatorname{Bernoulli}(p_i)

then task arithmetic (``dare_linear``) or the consensus of signs (``dare_ties``). With ``rescale: density`` the factor
is :math:`1/p_i`, as in the paper, and the mean over all masks is the difference itself; with ``l1``, as in mergekit,
the factor restores the L1 norm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from weightspace.merging.methods._random_masks import random_mask
from weightspace.merging.methods._registry import PIECE
from weightspace.merging.methods._sparsify import (
    back_differences,
    elected_mean,
    restored,
    scale,
    summed,
    taken_from,
    visible,
)
from weightspace.merging.methods._sums import row_sums
from weightspace.merging.methods._tensor_stack import Chunk, Formula, Stack
from weightspace.merging.methods.linear import normalised


def dare_linear(
    stack: Stack,
    weights: Sequence[float],
    *,
    density: Sequence[float],
    lambda_: float,
    normalize: bool,
    rescale: str,
    seed: int,
) -> Formula:
    """Return the formula of task arithmetic on dropped differences.

    Args:
        stack: the models and their base.
        weights: any finite numbers.
        density: share of the differences that is kept, one per model; 1 keeps all, and scales nothing.
        lambda_: factor of the merged difference.
        normalize: divide by the sum of the weights.
        rescale: ``l1``, ``density`` or ``none``.
        seed: of the masks, which depend on it, the tensor's name and the model's label alone.

    Raises:
        WeightspaceError: with ``normalize``, the weights sum to zero.

    Source:
        Yu et al. 2024, https://arxiv.org/abs/2311.03099, section 3.
    """
    masked = Masked(stack, density, seed, lambda _, index: density[index])
    return masked_sum(masked, weights, lambda_, normalize, rescale)


def dare_ties(
    stack: Stack,
    weights: Sequence[float],
    *,
    density: Sequence[float],
    lambda_: float,
    normalize: bool,
    rescale: str,
    seed: int,
) -> Formula:
    """Return the formula of the consensus of signs on dropped differences.

    Args, raises and source: as ``dare_linear``; ``normalize`` divides by the weights of those that agree.
    """
    masked = Masked(stack, density, seed, lambda _, index: density[index])
    return masked_consensus(masked, weights, lambda_, normalize, rescale)


#: Elements whose masks are drawn at once: beginning costs as much as thousands of bits.
_BLOCK = 8 * PIECE
#: Bytes of masks that are kept for the next pass.
_KEPT = 2**23


class Masked:
    """The differences of a stack under random masks.

    ``keep(sizes, index)`` gives, for the sizes of a piece's differences and a model, the probabilities that they stay:
    one number, or one an element.
    """

    def __init__(
        self, stack: Stack, density: Sequence[float], seed: int, keep: Callable[[Tensor, int], float | np.ndarray]
    ) -> None:
        self.stack = stack
        self.density = density
        self.seed = seed
        self.keep = keep
        self._bits: dict[tuple[int, int], np.ndarray] = {}
        self._last: dict[int, tuple[int, np.ndarray]] = {}  # of every model the last one that had no room
        self._room = _KEPT

    def scales(self, rescale: str) -> list[float]:
        """Return the factors of what is kept."""
        if rescale in ("none", "false"):
            return [1.0] * len(self.density)
        if rescale == "density":
            return [1 / share if 0 < share < 1 else 1.0 for share in self.density]
        if all(share >= 1 for share in self.density):
            return [1.0] * len(self.density)
        before, after = np.zeros(len(self.density)), np.zeros(len(self.density))
        for piece in self.stack.working_pieces():
            sizes = back_differences(piece).abs_()
            before += row_sums(sizes.flatten(1)).numpy()
            after += row_sums(self._drop(sizes, piece.start).flatten(1)).numpy()
        sums = zip(before.tolist(), after.tolist(), self.density, strict=True)
        return [restored(whole, kept) if share < 1 else 1.0 for whole, kept, share in sums]

    def terms(self, piece: Chunk, factors: Sequence[float]) -> Tensor:
        """Return the masked differences of a piece, times the factors."""
        return scale(self._drop(back_differences(piece), piece.start), factors)

    def _drop(self, backs: Tensor, start: int) -> Tensor:
        """Set the elements of differences to zero that their masks drop, in place."""
        for index, (back, share) in enumerate(zip(backs, self.density, strict=True)):
            if share < 1:
                array = back.numpy()
                np.multiply(array, self._mask(back, index, start).reshape(array.shape), out=array)
        return backs

    def _mask(self, back: Tensor, index: int, start: int) -> np.ndarray:
        """Return a mask of 0 and 1, 1-D: drawn once where its bits can be kept for the next pass."""
        first, count = start, back.numel()
        if self.stack.grain == "elements":
            first -= start % _BLOCK
            count = min(_BLOCK, self.stack.numel - first)
        bits = self._bits.get((index, first))
        if bits is None and index in self._last and self._last[index][0] == first:
            bits = self._last[index][1]
        if bits is None:
            name, label = self.stack.name, self.stack.labels[index]
            bits = random_mask(self.seed, name, label, first, count, self.keep(back.to(self.stack.dtype), index))
            if bits.nbytes <= self._room:
                self._room -= bits.nbytes
                self._bits[index, first] = bits
            else:
                self._last[index] = first, bits
        return np.unpackbits(bits[(start - first) // 8 :], count=back.numel())


def masked_sum(masked: Masked, weights: Sequence[float], factor: float, normalize: bool, rescale: str) -> Formula:
    """Return the formula of task arithmetic on masked differences.

    Raises:
        WeightspaceError: with ``normalize``, the weights sum to zero.
    """
    shown, (own,) = visible(weights, masked.stack), visible([factor], masked.stack)
    shares = normalised(shown) if normalize else shown
    factors = [share * scale for share, scale in zip(shares, masked.scales(rescale), strict=True)]
    return lambda piece: taken_from(piece.origin, summed(masked.terms(piece, factors)), own)


def masked_consensus(masked: Masked, weights: Sequence[float], factor: float, normalize: bool, rescale: str) -> Formula:
    """Return the formula of the consensus of signs on masked differences."""
    shown, (own,) = visible(weights, masked.stack), visible([factor], masked.stack)
    factors = [weight * scale for weight, scale in zip(shown, masked.scales(rescale), strict=True)]

    def formula(piece: Chunk) -> Tensor:
        agreed = elected_mean(masked.terms(piece, factors), shown, normalize=normalize)
        return taken_from(piece.origin, agreed, own)

    return formula
