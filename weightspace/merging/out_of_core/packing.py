"""Tensors of a GGUF output: rows in the order of GGUF, offsets, and Q8_0 blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from weightspace.checkpoints.gguf.quantise import quantise_q8_0
from weightspace.checkpoints.metadata import TensorInfo
from weightspace.merging.out_of_core.quantising import Chunks, grouped
from weightspace.merging.plan.plan import Packed


def packed(name: str, info: TensorInfo, form: Packed, chunks: Chunks) -> Chunks:
    """Yield ranges of a tensor's bytes in a GGUF file: the offset of the first, and uint8, 1-D.

    Args:
        name: its name, for errors.
        info: shape, and dtype of the chunks.
        form: its form in the file.
        chunks: its elements in Hugging Face's layout.

    Raises:
        WeightspaceError: an element is too large for Q8_0.
    """
    start, heads = 0, form.layout.heads
    group = info.numel // heads if heads else form.kind.elements
    for elements in grouped(chunks, group):
        if heads:
            elements = _by_pairs(elements, info.shape[0] // heads, group)
        if form.layout.shift:
            elements = elements + form.layout.shift
        content = elements.view(torch.uint8) if form.kind.dtype else quantise_q8_0(elements, name)
        yield start // form.kind.elements * form.kind.nbytes, content
        start += len(elements)


def _by_pairs(elements: Tensor, rows: int, size: int) -> Tensor:
    """Return whole heads with the rows of their two halves alternating.

    Args:
        elements: 1-D, of some heads.
        rows: rows of a head.
        size: elements of a head.
    """
    return elements.view(-1, 2, rows // 2, size // rows).transpose(1, 2).reshape(-1)
