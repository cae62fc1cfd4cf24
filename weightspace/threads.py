"""The number of threads that torch uses, set for the duration of a block.

Small networks want one: two are 5 to 10 times slower below a width of 1,000, more so on a busy machine. And products
have the same bits everywhere on one thread only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Compute with ``count`` threads inside the block, then with as many as before; None changes nothing."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
