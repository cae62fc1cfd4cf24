"""Tensors of safetensors files mapped into memory: nothing is read before it is used, and nothing is copied.

A mapped page is the system's to keep or to drop; changing a tensor in place does not change the file.
"""

from __future__ import annotations

import mmap
from pathlib import Path

import torch
from torch import Tensor

from weightspace.checkpoints.contents import Contents, Place
from weightspace.checkpoints.disk import one_line_errors
from weightspace.checkpoints.dtypes import DTYPES
from weightspace.checkpoints.files import read_state
from weightspace.checkpoints.state import StateDict


def load_contents(contents: Contents) -> StateDict:
    """Return all tensors of a checkpoint under the names of its contents."""
    state, _ = read_state(contents.path, contents.key)
    return {name: state[contents.renamed.get(name, name)] for name in contents.tensors}


class Mapped:
    """The tensors of a checkpoint, by what is known of its headers; torch files are loaded as they always are."""

    def __init__(self, contents: Contents) -> None:
        self.contents = contents
        self._loaded: StateDict | None = None
        self._files: dict[Path, Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.contents.tensors

    def __getitem__(self, name: str) -> Tensor:
        """Return a tensor of the shape and dtype that the header says.

        Raises:
            CheckpointError: the file is gone or cannot be read.
        """
        place = self.contents.places.get(name)
        if place is None:
            if self._loaded is None:
                self._loaded, _ = read_state(self.contents.path, self.contents.key)
            return self._loaded[self.contents.renamed.get(name, name)]
        info = self.contents.tensors[name]
        dtype = DTYPES[info.dtype]
        content = self._bytes(place)[place.start : place.start + info.nbytes]
        if place.start % dtype.itemsize:  # the format allows it
            content = content.clone()
        return content.view(dtype).view(info.shape)

    def _bytes(self, place: Place) -> Tensor:
        """Return all bytes of a file."""
        if place.file not in self._files:
            with one_line_errors(place.file, "read"), open(place.file, "rb") as file:
                mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            self._files[place.file] = torch.frombuffer(mapping, dtype=torch.uint8)
        return self._files[place.file]
