"""The tensors of a GGUF file under Hugging Face names, read by ranges in Hugging Face's layout."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from weightspace.checkpoints.gguf.block_types import BY_NAME, BlockType
from weightspace.checkpoints.gguf.header import read_header
from weightspace.checkpoints.gguf.name_maps import Layout, layout_of, names_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

#: Elements that are decoded at a time, a multiple of every block; and bytes that this takes per element.
_PIECE, _COPIES = 2**18, 24


#: safetensors name of the dtypes of plain tensors -> torch name.
_TORCH = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8"},
}


class Bytes(Protocol):
    """The stored bytes of a tensor, read by range."""

    def read(self, start: int, stop: int) -> Tensor:
        """Return the bytes from ``start`` up to ``stop``, uint8, 1-D."""
        ...


@dataclass(frozen=True)
class LocatedTensor:
    """A tensor of a file.

    Attributes:
        name: its name as merged: Hugging Face's if the family is known.
        stored: its name in the file.
        kind: how its elements are stored.
        shape: its shape.
        start: offset of its first byte in the file.
        nbytes: the number of its bytes.
        layout: how it differs from Hugging Face's layout.
    """

    name: str
    stored: str
    kind: BlockType
    shape: tuple[int, ...]
    start: int
    nbytes: int
    layout: Layout

    @property
    def dtype(self) -> str:
        """The safetensors name of the dtype that it is read in."""
        return "F32" if self.layout.shift else self.kind.value_dtype

    @property
    def is_plain(self) -> bool:
        """Whether its bytes are those of a tensor in Hugging Face's layout."""
        return self.kind.dtype is not None and self.layout.is_plain

    @property
    def overhead(self) -> int:
        """Bytes that reading a range needs in addition to its elements: pieces being decoded, and a head."""
        numel = math.prod(self.shape)
        return _COPIES * min(numel, _PIECE) + 8 * numel // (self.layout.heads or max(1, numel))

    def reader(self, content: Bytes) -> GgufTensor:
        """Return a reader of its elements from its bytes."""
        return GgufTensor(content, self.kind, self.shape, self.layout)


@dataclass(frozen=True)
class FileTensors:
    """The tensors of a file.

    Attributes:
        tensors: the tensors in the order of the file.
        is_known: whether they have Hugging Face names, since the family is known.
        notes: one-line notes on names, layouts and omitted tensors.
    """

    tensors: tuple[LocatedTensor, ...]
    is_known: bool
    notes: tuple[str, ...]


def read_tensors(path: Path) -> FileTensors:
    """Read the header of a file.

    Raises:
        CheckpointError: as ``read_header``, or the numbers of heads are missing or do not fit.
    """
    header = read_header(path)
    names = names_of(header)
    tensors = tuple(
        LocatedTensor(
            name,
            stored,
            header.entries[stored].kind,
            header.shape(stored),
            header.data_start + header.entries[stored].start,
            header.entries[stored].nbytes,
            layout_of(path, header, names.family, stored),
        )
        for stored, name in names.names.items()
    )
    if names.family is None:
        notes = [f"{path}: the tensors keep their GGUF names and layout, since {names.reason}."]
    else:
        rows = "; the rows of Q and K are put in its order" if names.family.permuted else ""
        norms = "; 1 is subtracted from the weights of norms" if names.family.shift else ""
        notes = [f"{path}: the tensors get the names of Hugging Face's {names.family.title}{rows}{norms}."]
    left = [name for name in header.entries if name not in names.names]
    if left:
        notes.append(f"{path}: left out, since the configuration determines it: {', '.join(left)}.")
    return FileTensors(tensors, names.family is not None, tuple(notes))


def common_dtype(tensors: Iterable[LocatedTensor]) -> str:
    """Return the dtype of most elements of plain float matrices, or F32 if there are none.

    Vectors are always stored in float32, whatever the model's dtype.
    """
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.kind.name in ("F32", "F16", "BF16") and len(tensor.shape) > 1:
            sizes[tensor.kind.name] += math.prod(tensor.shape)
    return max(sizes, key=lambda dtype: sizes[dtype], default="F32")


def settings_of(tensor: LocatedTensor) -> dict[str, Any]:
    """Return what ``decoder`` needs besides the bytes."""
    return {"type": tensor.kind.name, "layout": tensor.layout}


def decoder(parts: Mapping[str, Bytes], tensor: Any) -> GgufTensor:
    """Return a reader of a tensor from its bytes, whose settings are those of ``settings_of``."""
    return GgufTensor(parts["blocks"], BY_NAME[tensor.settings["type"]], tensor.shape, tensor.settings["layout"])


class GgufTensor:
    """A tensor decoded and put in Hugging Face's layout, read by ranges of elements.

    Args:
        content: its bytes.
        kind: how its elements are stored.
        shape: its shape.
        layout: how it differs from Hugging Face's layout.
    """

    def __init__(self, content: Bytes, kind: BlockType, shape: tuple[int, ...], layout: Layout) -> None:
        import torch

        self.dtype = torch.float32 if layout.shift else _torch_dtype(kind.value_dtype)
        self.shape = shape
        self._content, self._kind, self._layout = content, kind, layout
        self._head, self._elements = -1, torch.empty(0)

    def read(self, start: int, stop: int) -> Tensor:
        """Return the elements from ``start`` up to ``stop``, 1-D, not to be modified."""
        import torch

        if not self._layout.heads:
            return self._stored(start, stop)
        size = math.prod(self.shape) // self._layout.heads
        parts = []
        while start < stop:
            head = start // size
            end = min(stop, (head + 1) * size)
            parts.append(self._in_order(head, size)[start - head * size : end - head * size])
            start = end
        return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else torch.empty(0, dtype=self.dtype)

    def _in_order(self, head: int, size: int) -> Tensor:
        """Return the elements of a head, whose rows are stored in pairs, one of each half; the last is kept."""
        if head != self._head:
            elements = self._stored(head * size, (head + 1) * size)
            rows = self.shape[0] // self._layout.heads
            self._elements = elements.view(rows // 2, 2, -1).transpose(0, 1).reshape(-1)
            self._head = head
        return self._elements

    def _stored(self, start: int, stop: int) -> Tensor:
        """Return the elements from ``start`` up to ``stop`` in the order of the file."""
        import torch

        elements = torch.empty(stop - start, dtype=self.dtype)
        at = start
        while at < stop:
            first = at - at % self._kind.elements
            end = min(stop, first + _PIECE)
            elements[at - start : end - start] = self._decoded(first, end)[at - first :]
            at = end
        return elements

    def _decoded(self, first: int, end: int) -> Tensor:
        """Return the elements from the start of a block up to ``end``."""
        from weightspace.checkpoints.gguf.dequantise import dequantise

        kind = self._kind
        last = -(-end // kind.elements)
        content = self._content.read(first // kind.elements * kind.nbytes, last * kind.nbytes)
        if kind.dtype is not None:
            elements = content.view(_torch_dtype(kind.dtype))
        else:
            elements = dequantise(content.view(-1, kind.nbytes), kind.name).view(-1)[: end - first]
        return elements.to(self.dtype) - self._layout.shift if self._layout.shift else elements


def _torch_dtype(name: str) -> torch.dtype:
    import torch

    return getattr(torch, _TORCH[name])
