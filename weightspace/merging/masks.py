"""Random numbers for masks that come from names alone: the same in any order, on any number of threads and workers.

Every piece of every tensor of every model has a generator of its own, numpy's SFC64, whose stream never changes between
versions; its seed is a SHA-256 of the merge's seed, the tensor, the model and the piece.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np


def random_words(seed: int, tensor: str, model: str, start: int, count: int) -> np.ndarray:
    """Return ``count`` random numbers below 2³², uint32.

    Args:
        seed: of the merge.
        tensor: its name.
        model: its label.
        start: index of the piece's first element.
        count: how many.
    """
    key = json.dumps([seed, tensor, model, start]).encode()
    entropy = int.from_bytes(hashlib.sha256(key).digest(), "little")
    words = np.random.SFC64(entropy).random_raw((count + 1) // 2).astype("<u8", copy=False)
    return words.view("<u4")[:count]
