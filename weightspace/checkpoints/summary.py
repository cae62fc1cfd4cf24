"""Summary of a checkpoint: its tensors, their norms and their sizes.

Tied tensors are listed under each of their names and counted once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from weightspace.checkpoints.dtypes import NAMES
from weightspace.checkpoints.fetching import fetched_path
from weightspace.checkpoints.file_format import file_format
from weightspace.checkpoints.load_save import StrPath, load_checkpoint
from weightspace.checkpoints.measure import count_non_finite, is_inexact, norm
from weightspace.checkpoints.quantisation import find_quantised
from weightspace.checkpoints.read_metadata import read_contents
from weightspace.checkpoints.state_dict import StateDict, dtype_name, tied_names
from weightspace.checkpoints.stored_metadata import load_metadata
from weightspace.reprs import brief


@dataclass(frozen=True)
class TensorSummary:
    """Summary of one tensor.

    Attributes:
        norm: Euclidean norm; ``None`` for integers and bools.
        non_finite: number of NaN or infinite elements.
        bytes: number of elements times item size.
        tied_to: the earlier name of the same memory, if there is one.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    norm: float | None
    non_finite: int
    bytes: int
    tied_to: str | None = None


@brief
@dataclass(frozen=True)
class CheckpointSummary:
    """Summary of one checkpoint: its tensors in the file's order, and totals.

    Attributes:
        parameters: number of elements of all tensors, including buffers and counters, which files don't distinguish.
        bytes: size of all tensors.
        norm: Euclidean norm over the float tensors.
        quantised: the format of quantised weights, or None; their stored numbers and scales are listed as they are,
            but those of a GGUF file as the float32 tensors that they represent.
    """

    path: str
    tensors: tuple[TensorSummary, ...]
    parameters: int
    bytes: int
    norm: float
    non_finite: int
    metadata: dict[str, str]
    quantised: str | None = None


def summarise(path: StrPath, *, strip_prefix: str | None = None, key: str | None = None) -> CheckpointSummary:
    """Summarise a checkpoint, reading each tensor once.

    Args:
        path: as for ``load_checkpoint``, like the options.
        strip_prefix: prefix to remove from the names.
        key: the entry of a torch file that holds the state dict.

    Raises:
        CheckpointError: the checkpoint cannot be read.
    """
    state = load_checkpoint(path, strip_prefix=strip_prefix, key=key)
    tensors = _summaries(state)
    marks = find_quantised({name: (NAMES.get(own.dtype, "F32"), own.ndim) for name, own in state.items()})
    stored = [tensor for tensor in tensors if tensor.tied_to is None]
    return CheckpointSummary(
        path=str(path),
        tensors=tensors,
        parameters=sum(math.prod(tensor.shape) for tensor in stored),
        bytes=sum(tensor.bytes for tensor in stored),
        norm=math.hypot(*(tensor.norm for tensor in stored if tensor.norm is not None)),
        non_finite=sum(tensor.non_finite for tensor in stored),
        metadata=load_metadata(path),
        quantised=_decoded(path) if marks is None else marks.format,
    )


def _decoded(path: StrPath) -> str | None:
    """Return the formats of the tensors of a GGUF file that are dequantised on reading, if any are."""
    local = fetched_path(path)
    if local.is_dir() or file_format(local) != "gguf":
        return None
    tensors = read_contents(local).quantised.values()
    return ", ".join(dict.fromkeys(tensor.format for tensor in tensors if not tensor.is_exact)) or None


def _summaries(state: StateDict) -> tuple[TensorSummary, ...]:
    """Summarise each tensor."""
    tied = tied_names(state)
    return tuple(_summary(name, tensor, tied.get(name)) for name, tensor in state.items())


def _summary(name: str, tensor: torch.Tensor, tied_to: str | None) -> TensorSummary:
    """Summarise one tensor; NaN and infinity are counted only if the norm isn't finite."""
    length = norm(tensor) if is_inexact(tensor) else None
    return TensorSummary(
        name=name,
        shape=tuple(tensor.shape),
        dtype=dtype_name(tensor.dtype),
        norm=length,
        non_finite=0 if length is None or math.isfinite(length) else count_non_finite(tensor),
        bytes=tensor.numel() * tensor.dtype.itemsize,
        tied_to=tied_to,
    )
