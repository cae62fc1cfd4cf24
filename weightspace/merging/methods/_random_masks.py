"""Random masks that depend only on names, so they are the same in any order, on any number of threads and workers.

Every chunk of every tensor of every model has its own generator, numpy's SFC64, whose stream is stable across versions;
its seed is a SHA-256 of the merge's seed, the tensor, the model and the chunk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from weightspace.merging.methods._sparsify import restored
from weightspace.merging.methods._sums import row_sums
from weightspace.merging.methods._task_vectors import TaskVectors
from weightspace.merging.methods._tensor_stack import CHUNK, Chunk, TensorStack

#: An element is decided by 8 bits, and where these are the first 8 of its probability, by 32 more.
_STEPS, _FINER = 2.0**8, 2.0**32

#: One probability for all that is a multiple of 1/2^k takes k bits an element: for 0.5 a single one. So many at most.
_FEW = 4

#: Number of elements whose masks are drawn together: starting a generator costs as much as thousands of bits.
_BLOCK = 8 * CHUNK
#: Maximum size of the masks cached for the next pass, in bytes.
_KEPT = 2**23


class MaskedVectors:
    """The task vectors of a stack under random masks.

    ``keep(differences, index)`` returns the keep probabilities of the elements of a model's chunk: one number, or one
    per element.
    """

    def __init__(
        self, stack: TensorStack, density: Sequence[float], seed: int, keep: Callable[[Tensor, int], float | np.ndarray]
    ) -> None:
        self.stack = stack
        self.density = density
        self.seed = seed
        self.keep = keep
        self._bits: dict[tuple[int, int], np.ndarray] = {}
        self._last: dict[int, tuple[int, np.ndarray]] = {}  # the last mask of each model that was too large to cache
        self._room = _KEPT

    def scales(self, rescale: str) -> list[float]:
        """Return the scaling factor of each model."""
        if rescale in ("none", "false"):
            return [1.0] * len(self.density)
        if rescale == "density":
            return [1 / share if 0 < share < 1 else 1.0 for share in self.density]
        if all(share >= 1 for share in self.density):
            return [1.0] * len(self.density)
        before, after = np.zeros(len(self.density)), np.zeros(len(self.density))
        for chunk in self.stack.working_chunks():
            vectors = TaskVectors(chunk)
            before += row_sums(vectors.magnitudes().flatten(1)).numpy()
            after += row_sums(self._drop(vectors).negated.flatten(1)).numpy()
        sums = zip(before.tolist(), after.tolist(), self.density, strict=True)
        return [restored(whole, kept) if share < 1 else 1.0 for whole, kept, share in sums]

    def vectors(self, chunk: Chunk, factors: Sequence[float]) -> TaskVectors:
        """Return the masked task vectors of a chunk, times the factors."""
        return self._drop(TaskVectors(chunk)).scale(factors)

    def _drop(self, vectors: TaskVectors) -> TaskVectors:
        """Zero the elements that the masks drop."""
        for index, share in enumerate(self.density):
            if share < 1:
                vectors.mask(index, self._mask(vectors.negated[index], index, vectors.start))
        return vectors

    def _mask(self, back: Tensor, index: int, start: int) -> np.ndarray:
        """Return a mask of 0 and 1, 1-D; its bits are cached for the next pass if there is room."""
        first, count = start, back.numel()
        if self.stack.granularity == "elements":
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


def random_mask(seed: int, tensor: str, model: str, start: int, count: int, keep: float | np.ndarray) -> np.ndarray:
    """Draw the elements of a chunk to keep.

    Args:
        seed: seed of the merge.
        tensor: name of the tensor.
        model: label of the model.
        start: index of the chunk's first element.
        count: number of elements in the chunk.
        keep: the probability that an element is kept, from 0 to 1: one number, or one per element.

    Returns:
        One bit per element, packed as by ``np.packbits``, each set with its probability, up to 2⁻⁴⁰.
    """
    key = json.dumps([seed, tensor, model, start]).encode()
    generator = np.random.Generator(np.random.SFC64(int.from_bytes(hashlib.sha256(key).digest(), "little")))
    if np.ndim(keep) == 0:
        numerator, denominator = float(keep).as_integer_ratio()
        if 1 < denominator <= 2**_FEW:
            return _from_halves(generator, numerator, denominator.bit_length() - 1, count)
    return np.packbits(_compared(generator, np.ravel(keep), count))


def _from_halves(generator: np.random.Generator, numerator: int, digits: int, count: int) -> np.ndarray:
    """Draw bits that are set with a dyadic probability: with a coin, ``or`` makes p (1 + p) / 2, and ``and`` p / 2."""
    words = (count + 63) // 64
    mask = np.zeros(words, "<u8")
    for place, coins in enumerate(_words(generator, digits * words).reshape(digits, words)):
        (np.bitwise_or if numerator >> place & 1 else np.bitwise_and)(mask, coins, out=mask)
    return mask.view("u1")[: (count + 7) // 8]


def _compared(generator: np.random.Generator, keep: np.ndarray, count: int) -> np.ndarray:
    """Compare a random number with each element's probability; return bools."""
    drawn = _words(generator, (count + 7) // 8).view("u1")[:count]
    scaled = keep * _STEPS
    steps = np.minimum(scaled, _STEPS - 1).astype(np.uint8)  # 1 is the last step and its whole remainder
    mask = drawn < steps
    rest = scaled - steps
    if rest.any():
        undecided = np.flatnonzero(drawn == steps)
        finer = _words(generator, (len(undecided) + 1) // 2).view("<u4")[: len(undecided)]
        mask[undecided] = finer < _FINER * (rest if len(rest) == 1 else rest[undecided])
    return mask


def _words(generator: np.random.Generator, count: int) -> np.ndarray:
    """Draw 64 random bits ``count`` times; ``random_raw`` does the same, but holds the GIL."""
    return generator.integers(0, 2**64 - 1, count, dtype=np.uint64, endpoint=True).astype("<u8", copy=False)
