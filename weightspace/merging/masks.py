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
        Bools of shape ``(count,)``, each True with its probability, up to 2⁻⁴⁰.
    """
    key = json.dumps([seed, tensor, model, start]).encode()
    generator = np.random.Generator(np.random.SFC64(int.from_bytes(hashlib.sha256(key).digest(), "little")))
    words = _words(generator, (count + 7) // 8).view("u1")[:count]
    scaled = np.ravel(keep) * _STEPS
    steps = np.minimum(scaled, _STEPS - 1).astype(np.uint8)  # 1 is the last step and all of what follows it
    mask = words < steps
    rest = scaled - steps
    if rest.any():
        undecided = np.flatnonzero(words == steps)
        finer = _words(generator, (len(undecided) + 1) // 2).view("<u4")[: len(undecided)]
        mask[undecided] = finer < _FINER * (rest if len(rest) == 1 else rest[undecided])
    return mask


def _words(generator: np.random.Generator, count: int) -> np.ndarray:
    """Draw 64 random bits ``count`` times; ``random_raw`` would do the same, but hold the interpreter meanwhile."""
    return generator.integers(0, 2**64 - 1, count, dtype=np.uint64, endpoint=True).astype("<u8", copy=False)
