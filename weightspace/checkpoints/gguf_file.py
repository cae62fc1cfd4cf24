"""GGUF files, read into memory as named tensors; see ``weightspace.checkpoints.gguf``."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from weightspace.checkpoints.gguf.tensors import LocatedTensor, read_tensors
from weightspace.checkpoints.open_files import OpenFile
from weightspace.checkpoints.state_dict import StateDict


class _Content:
    """The bytes of a tensor in an open file."""

    def __init__(self, file: OpenFile, tensor: LocatedTensor) -> None:
        self._file, self._start = file, tensor.start

    def read(self, start: int, stop: int) -> Tensor:
        """Return the bytes from ``start`` up to ``stop``, uint8, 1-D."""
        content = torch.empty(stop - start, dtype=torch.uint8)
        self._file.read_into(content, self._start + start)
        return content


def read_gguf(path: Path) -> tuple[StateDict, tuple[str, ...]]:
    """Read all tensors of a file, under Hugging Face's names and in its layout if the family is known.

    Quantised tensors become float32; the others keep their dtypes.

    Returns:
        The tensors, and a note if they keep their GGUF names and layout.

    Raises:
        CheckpointError: the file is damaged, or cannot be read.
    """
    found = read_tensors(path)
    file = OpenFile(path)
    state = {
        tensor.name: tensor.reader(_Content(file, tensor)).read(0, math.prod(tensor.shape)).view(tensor.shape)
        for tensor in found.tensors
    }
    return state, () if found.is_known else found.notes
