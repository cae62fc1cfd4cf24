"""Single ``.safetensors`` files: read lazily by memory mapping, written one tensor at a time.

Tied tensors are stored once, under the first of their names, as in other libraries. The other names are stored in the
metadata under ``weightspace.tied``, a JSON object *name -> stored name*; reading restores all names, still tied. The
bytes written depend only on the state dict and the metadata, not on time or hash order.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO

import torch

from weightspace.checkpoints.dtypes import NAMES
from weightspace.checkpoints.safetensors_header import (
    METADATA,
    TIED,
    encode_header,
    place_entries,
    read_header,
    tied_entries,
)
from weightspace.checkpoints.state_dict import StateDict, dtype_name, tied_names
from weightspace.errors import CheckpointError


def read_safetensors(path: Path) -> StateDict:
    """Memory-map all tensors of the file; bytes are read from disk when they are used.

    Modifying a tensor in place doesn't change the file.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    from safetensors import safe_open

    header = read_header(path)
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            state = {name: file.get_tensor(name) for name in header.entries}
    except Exception as error:  # the header passed our checks, so the file is at fault
        raise CheckpointError(f"{path} cannot be read: {_first_line(error)}.") from error
    for name, owner in tied_entries(path, header).items():
        state[name] = state[owner]
    return state


def read_safetensors_metadata(path: Path) -> dict[str, str]:
    """Return the file's metadata without the record of tied names.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    return {key: value for key, value in read_header(path).metadata.items() if key != TIED}


def write_safetensors(state: StateDict, file: BinaryIO, metadata: dict[str, str], path: Path) -> None:
    """Write a state dict to an open file; ``path`` is only used in errors.

    ``format: pt``, which other readers expect, is added to the metadata.

    Raises:
        CheckpointError: the format doesn't support a dtype, a name or the metadata.
    """
    tied = tied_names(state)
    stored = {name: tensor for name, tensor in state.items() if name not in tied}
    if METADATA in state:
        raise CheckpointError(f"{path}: {METADATA!r} cannot be a tensor name in safetensors. Rename the tensor.")
    for name, tensor in stored.items():
        if tensor.dtype not in NAMES:
            raise CheckpointError(
                f"{path}: {name!r} has dtype {dtype_name(tensor.dtype)}, which safetensors cannot hold. "
                "Convert it, or save to a .pt file."
            )
    record = {TIED: json.dumps(tied)} if tied else {}
    entries = place_entries({name: (NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in stored.items()})
    try:
        file.write(encode_header(entries, {"format": "pt", **metadata, **record}))
    except UnicodeEncodeError as error:
        raise CheckpointError(f"{path}: a name or metadata value is not valid Unicode: {error}.") from error
    for name in sorted(entries, key=lambda name: entries[name].start):
        _write_tensor(stored[name], file)


def _write_tensor(tensor: torch.Tensor, file: BinaryIO) -> None:
    """Write the elements in row-major order."""
    if tensor.numel():
        plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        file.write(plain.reshape(-1).view(torch.uint8).numpy().data)


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type."""
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
