"""Reading of a checkpoint's metadata: names, dtypes, shapes and locations of its tensors, from headers alone.

Safetensors headers need no torch; the tensors of a torch file are listed in its pickle, which only torch can read.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from weightspace.checkpoints.atomic_write import one_line_errors
from weightspace.checkpoints.components import Component, find_components
from weightspace.checkpoints.file_format import file_format
from weightspace.checkpoints.flax_file import flax_contents
from weightspace.checkpoints.hf_folder import Weights, check_index
from weightspace.checkpoints.metadata import (
    CheckpointMetadata,
    Place,
    QuantisedTensor,
    StoredPart,
    TensorInfo,
    dequantising_note,
)
from weightspace.checkpoints.safetensors_header import read_header, tied_entries
from weightspace.checkpoints.training_folders import find_training
from weightspace.errors import CheckpointError


def read_contents(path: Path, *, key: str | None = None, components: Collection[str] = ()) -> CheckpointMetadata:
    """Read the metadata of a checkpoint.

    Args:
        path: a safetensors file, a torch file, a GGUF file, a training checkpoint, or a folder of transformers,
            diffusers or sentence-transformers.
        key: the entry of torch files that holds the state dict; see ``load_checkpoint``.
        components: the components of a folder that are read; by default all.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
        WeightspaceError: a component is unknown.
    """
    with one_line_errors(path, "read"):
        if not path.is_dir():
            return _file_contents(path, key)
        if (training := find_training(path)) is not None:
            return training.reader(path, training.folder, key)
        found = find_components(path, components)
        parts = [_folder_contents(path / one.folder, one.weights, key) for one in found]
    named = [
        part.under_names({name: one.prefix + name for name in part.tensors}, "") if one.prefix else part
        for one, part in zip(found, parts, strict=True)
    ]
    return _united(path, found, named)


def _united(path: Path, components: tuple[Component, ...], parts: Sequence[CheckpointMetadata]) -> CheckpointMetadata:
    """Return the metadata of a folder from that of its components."""
    tensors: dict[str, TensorInfo] = {}
    for one, part in zip(components, parts, strict=True):
        if twice := next((name for name in part.tensors if name in tensors), None):
            raise CheckpointError(f"{path}: {twice!r} is a tensor of {one.name} and of another component.")
        tensors |= part.tensors
    return CheckpointMetadata(
        path,
        tuple(file for part in parts for file in part.files),
        tensors,
        {name: owner for part in parts for name, owner in part.tied.items()},
        {name: place for part in parts for name, place in part.places.items()},
        next((part.key for part in parts if part.key is not None), None),
        {},
        tuple(note for part in parts for note in part.notes),
        pieces={name: pieces for part in parts for name, pieces in part.pieces.items()},
        components=components,
    )


def _folder_contents(folder: Path, weights: Weights, key: str | None) -> CheckpointMetadata:
    """Return the metadata of a folder with one set of weights."""
    parts = {file.name: _file_contents(file, key) for file in weights.files}
    if weights.index is None:
        (part,) = parts.values()
        return replace(part, path=folder)
    return _sharded(folder, weights, parts, weights.index)


def _sharded(
    path: Path, weights: Weights, parts: dict[str, CheckpointMetadata], index: dict[str, str]
) -> CheckpointMetadata:
    """Return the metadata of shards, in the order of their index."""
    check_index(path, weights.entrance, index, {shard: part.tensors for shard, part in parts.items()})
    tensors = {name: parts[shard].tensors[name] for name, shard in index.items()}
    tied = {name: owner for part in parts.values() for name, owner in part.tied.items()}
    places = {name: place for part in parts.values() for name, place in part.places.items()}
    notes = tuple(note for part in parts.values() for note in part.notes)
    pieces = {name: own for part in parts.values() for name, own in part.pieces.items()}
    key = next(iter(parts.values())).key
    return CheckpointMetadata(path, weights.files, tensors, tied, places, key, notes=notes, pieces=pieces)


def _file_contents(path: Path, key: str | None) -> CheckpointMetadata:
    """Return the metadata of one file."""
    form = file_format(path)
    if form == "torch":
        return _torch_contents(path, key)
    if form == "gguf":
        return _gguf_contents(path)
    if form == "flax":
        return flax_contents(path)
    header = read_header(path)
    tied = tied_entries(path, header)
    tensors = {name: TensorInfo(entry.dtype, entry.shape) for name, entry in header.entries.items()}
    tensors |= {name: tensors[owner] for name, owner in tied.items()}
    places = {name: Place(path, header.data_start + entry.start) for name, entry in header.entries.items()}
    places |= {name: places[owner] for name, owner in tied.items()}
    return CheckpointMetadata(path, (path,), tensors, tied, places)


def _gguf_contents(path: Path) -> CheckpointMetadata:
    """Return the metadata of a GGUF file; tensors that aren't stored plainly are decoded on reading."""
    from weightspace.checkpoints.gguf.tensors import common_dtype, decoder, read_tensors, settings_of

    found = read_tensors(path)
    dtype = common_dtype(found.tensors)
    tensors = {own.name: TensorInfo(own.dtype, own.shape) for own in found.tensors}
    places = {own.name: Place(path, own.start) for own in found.tensors if own.is_plain}
    decoded = {
        own.name: QuantisedTensor(
            f"GGUF {own.kind.name}",
            own.shape,
            {"blocks": StoredPart(own.stored, TensorInfo("U8", (own.nbytes,)), Place(path, own.start))},
            decoder,
            settings_of(own),
            dtype=own.dtype if own.kind.dtype else dtype,
            overhead=own.overhead,
            is_exact=own.kind.dtype is not None,
        )
        for own in found.tensors
        if not own.is_plain
    }
    renamed = {own.name: own.stored for own in found.tensors}
    notes = (*found.notes, *dequantising_note(path, decoded.values()))
    return CheckpointMetadata(path, (path,), tensors, {}, places, renamed=renamed, notes=notes, quantised=decoded)


def _torch_contents(path: Path, key: str | None) -> CheckpointMetadata:
    """Return the metadata of a torch file."""
    from weightspace.checkpoints.dtypes import NAMES
    from weightspace.checkpoints.memory_map import mapped_places
    from weightspace.checkpoints.state_dict import dtype_name, tied_names
    from weightspace.checkpoints.torch_file import read_torch

    state, notes = read_torch(path, key)
    for name, tensor in state.items():
        if tensor.dtype not in NAMES:
            raise CheckpointError(
                f"{path}: {name!r} has dtype {dtype_name(tensor.dtype)}, which cannot be merged. Convert it first."
            )
    tensors = {name: TensorInfo(NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in state.items()}
    places = {name: Place(path, start, strides) for name, (start, strides) in mapped_places(path, state).items()}
    return CheckpointMetadata(path, (path,), tensors, tied_names(state), places, key, notes=notes)
