"""Merged pieces of running variances, none of them negative."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial

from torch import Tensor

from weightspace.checkpoints.buffers import is_variance
from weightspace.elementwise.variances import not_negative
from weightspace.merging.stack import Stack


def sound_pieces(stack: Stack, pieces: Iterable[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor]]:
    """Yield the pieces of a merge of a stack; of a running variance what would be negative is the models' mean."""
    if not is_variance(stack.name):
        yield from pieces
        return
    for start, values in pieces:
        models = partial(_models, stack, start, start + len(values))
        yield start, not_negative(stack.name, values, models)


def _models(stack: Stack, start: int, stop: int) -> list[Tensor]:
    return [source.read(start, stop) for source in stack.sources]
