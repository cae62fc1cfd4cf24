"""The number of torch threads, set for the duration of a block.

Small networks need one: two are 5 to 10 times slower below a width of 1,000, and worse on a busy machine. Moreover,
products are only bit-reproducible across machines with one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Use ``count`` torch threads inside the block, and restore the previous number after it; None changes nothing."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
