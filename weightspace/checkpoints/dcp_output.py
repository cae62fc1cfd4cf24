"""Writing of distributed checkpoints (DCP): ``.metadata`` and one ``.distcp`` file, as torch saves from one process.

Names are those of the state dict, at the top level: ``torch.distributed.checkpoint.load(network.state_dict(), …)``.
Equal tensors give equal bytes; our metadata is a JSON file beside them, which torch ignores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from pickle import dumps
from typing import Any

import torch

from weightspace.checkpoints.atomic_write import synced_file
from weightspace.checkpoints.dcp_metadata import METADATA
from weightspace.checkpoints.dcp_record import RECORD, SHARD
from weightspace.checkpoints.state_dict import StateDict, tied_names

#: Pickle protocol of ``.metadata``.
_PROTOCOL = 4


def write_dcp(state: StateDict, folder: Path, metadata: Mapping[str, str]) -> None:
    """Write tensors into an empty folder; tied ones are stored once.

    Args:
        state: name -> tensor.
        folder: an existing folder.
        metadata: strings to store beside the tensors.

    Raises:
        OSError: writing fails.
    """
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    from torch.distributed.checkpoint.metadata import MetadataIndex

    places: dict[str, Any] = {}
    tied = tied_names(state)
    with synced_file(folder / SHARD) as file:
        for name, tensor in state.items():
            if name not in tied:
                start = file.tell()
                torch.save(_compact(tensor), file)
                places[name] = _StorageInfo(SHARD, start, file.tell() - start)
    stored = {
        MetadataIndex(name, torch.Size([0] * tensor.ndim)): places[tied.get(name, name)]
        for name, tensor in state.items()
    }
    with synced_file(folder / METADATA) as file:
        file.write(dumps(_described(state, stored), _PROTOCOL))
    with synced_file(folder / RECORD) as file:
        file.write(json.dumps({"metadata": dict(metadata)}, indent=2, ensure_ascii=False).encode())


def _described(state: StateDict, stored: Mapping[Any, Any]) -> Any:
    """Return the metadata in torch's classes."""
    from torch.distributed.checkpoint.metadata import (
        ChunkStorageMetadata,
        Metadata,
        TensorProperties,
        TensorStorageMetadata,
    )

    entries = {}
    for name, tensor in state.items():
        chunk = ChunkStorageMetadata(torch.Size([0] * tensor.ndim), tensor.shape)
        entries[name] = TensorStorageMetadata(TensorProperties(tensor.dtype), tensor.shape, [chunk])
    return Metadata(entries, planner_data={name: (name,) for name in state}, storage_data=dict(stored))


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    """Return a contiguous tensor on the CPU whose storage has exactly its size, since torch saves whole storages."""
    plain = tensor.detach().cpu().contiguous()
    return plain if plain.untyped_storage().nbytes() == plain.nbytes else plain.clone()
