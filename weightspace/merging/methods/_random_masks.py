"""Random masks that come from names alone: the same in any order, on any number of threads and workers.

Every piece of every tensor of every model has a generator of its own, numpy's SFC64, whose stream never changes between
versions; its seed is a SHA-256 of the merge's seed, the tensor, the model and the piece.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np

#: An element is decided by 8 bits, and where these are the first 8 of its probability, by 32 more.
_STEPS, _FINER = 2.0**8, 2.0**32

#: One probability for all that is a multiple of 1/2^k takes k bits an element: for 0.5 a single one. So many at most.
_FEW = 4


def random_mask(seed: int, tensor: str, model: str, start: int, count: int, keep: float | np.ndarray) -> np.ndarray:
    """Draw which elements of a piece stay.

    Args:
        seed: of the merge.
        tensor: its name.
        model: its label.
        start: index of the piece's first element.
        count: elements in the piece.
        keep: the probability that an element stays, from 0 to 1: one number, or one an element.

    Returns:
        A bit an element, as ``np.packbits`` packs them, each set with its probability, up to 2⁻⁴⁰.
    """
    key = json.dumps([seed, tensor, model, start]).encode()
    generator = np.random.Generator(np.random.SFC64(int.from_bytes(hashlib.sha256(key).digest(), "little")))
    if np.ndim(keep) == 0:
        numerator, denominator = float(keep).as_integer_ratio()
        if 1 < denominator <= 2**_FEW:
            return _from_halves(generator, numerator, denominator.bit_length() - 1, count)
    return np.packbits(_compared(generator, np.ravel(keep), count))


def _from_halves(generator: np.random.Generator, numerator: int, digits: int, count: int) -> np.ndarray:
    """Draw bits, set as often as a binary fraction says: with a coin, ``or`` makes p (1 + p) / 2, and ``and`` p / 2."""
    words = (count + 63) // 64
    mask = np.zeros(words, "<u8")
    for place, coins in enumerate(_words(generator, digits * words).reshape(digits, words)):
        (np.bitwise_or if numerator >> place & 1 else np.bitwise_and)(mask, coins, out=mask)
    return mask.view("u1")[: (count + 7) // 8]


def _compared(generator: np.random.Generator, keep: np.ndarray, count: int) -> np.ndarray:
    """Compare a random number with each element's probability; return bools."""
    drawn = _words(generator, (count + 7) // 8).view("u1")[:count]
    scaled = keep * _STEPS
    steps = np.minimum(scaled, _STEPS - 1).astype(np.uint8)  # 1 is the last step and all of what follows it
    mask = drawn < steps
    rest = scaled - steps
    if rest.any():
        undecided = np.flatnonzero(drawn == steps)
        finer = _words(generator, (len(undecided) + 1) // 2).view("<u4")[: len(undecided)]
        mask[undecided] = finer < _FINER * (rest if len(rest) == 1 else rest[undecided])
    return mask


def _words(generator: np.random.Generator, count: int) -> np.ndarray:
    """Draw 64 random bits ``count`` times; ``random_raw`` would do the same, but hold the interpreter meanwhile."""
    return generator.integers(0, 2**64 - 1, count, dtype=np.uint64, endpoint=True).astype("<u8", copy=False)
