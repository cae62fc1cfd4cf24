"""Checkpoints by path, in any format.

A file is read by what its first bytes say it is, whatever its name; a folder is a Hugging Face checkpoint. A file is
written as its name says: ``.safetensors``, or a torch file with ``.pt``, ``.pth`` or ``.bin``.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from weightspace.arguments import checked
from weightspace.checkpoints.atomic_write import one_line_errors, replacing_file, replacing_folder, synced_file
from weightspace.checkpoints.companion_files import check_replaceable, copy_companions, find_companions
from weightspace.checkpoints.fetching import fetched_path, local_path
from weightspace.checkpoints.file_format import SAFETENSORS_SUFFIX, TORCH_SUFFIXES, file_format
from weightspace.checkpoints.hf_folder import WEIGHTS, find_weights, index_metadata, read_folder
from weightspace.checkpoints.output_paths import check_name, check_named
from weightspace.checkpoints.safetensors_file import read_safetensors, read_safetensors_metadata, write_safetensors
from weightspace.checkpoints.safetensors_header import TIED
from weightspace.checkpoints.state_dict import StateDict, check_finite, check_storable, without_prefix
from weightspace.checkpoints.torch_file import read_torch, read_torch_metadata, write_torch
from weightspace.errors import CheckpointError, WeightspaceWarning

#: Where a checkpoint is or shall be.
_log = logging.getLogger(__name__)

StrPath: TypeAlias = str | os.PathLike[str]


@checked
def load_checkpoint(
    path: StrPath, *, strip_prefix: str | None = None, key: str | None = None, finite: bool = False
) -> StateDict:
    """Read the named tensors of a checkpoint, memory-mapped where the format allows.

    Changing a tensor in place never changes the file. Tied tensors come back tied.

    Args:
        path: a safetensors file, a torch file (any name will do: ``.pt``, ``.ckpt``, ``.pth.tar``) or a Hugging Face
            folder; or, as a string, a URL of one (``hf://org/model``), which is brought into ``$WEIGHTSPACE_CACHE``
            first, or ``ORG/MODEL``, ``ORG/MODEL@REVISION`` of the Hugging Face Hub, from its cache if it is there.
        strip_prefix: taken off every name that starts with it, for example ``"module."``.
        key: the entry of a torch file that holds the state dict, ``""`` for the top level; by default the top
            level, or ``state_dict``, ``model_state_dict`` or ``model``, with a ``WeightspaceWarning`` where another
            network (``state_dict_ema``) lies beside it. Other formats are flat and ignore it.
        finite: refuse NaN and infinity; this reads every float tensor.

    Returns:
        Name -> tensor on the CPU, in the file's order, each with the shape and dtype that it was saved with.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, ambiguous, needs code to be unpickled, or is not
            finite.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> ws.save_checkpoint({"w": torch.arange(3.0)}, "model.safetensors")
        >>> ws.load_checkpoint("model.safetensors")
        {'w': tensor([0., 1., 2.])}
    """
    path = fetched_path(path)
    with one_line_errors(path, "read"):
        state, notes = read_state(path, key)
    for note in notes:
        warnings.warn(note, WeightspaceWarning, stacklevel=3)  # the caller, behind ``checked``
    if strip_prefix:
        state = without_prefix(state, strip_prefix, path)
    if finite:
        check_finite(state, path)
    _log.info("read %s: %d tensors", path, len(state))
    return state


def read_state(path: Path, key: str | None = None) -> tuple[StateDict, tuple[str, ...]]:
    """Return the named tensors of a local checkpoint, and notes on what was chosen while reading.

    See ``load_checkpoint``.
    """
    notes: list[str] = []

    def read(file: Path) -> StateDict:
        if file_format(file) == "safetensors":
            state = read_safetensors(file)
            check_storable(state, file)
        else:
            state, choices = read_torch(file, key)
            notes.extend(choices)
        return state

    state = read_folder(path, read) if path.is_dir() else read(path)
    return state, tuple(notes)


@checked
def save_checkpoint(
    state: StateDict,
    path: StrPath,
    *,
    metadata: Mapping[str, str] | None = None,
    companions_from: StrPath | None = None,
) -> None:
    """Write named tensors so that ``path`` shows the old checkpoint or the whole new one, whatever happens.

    Equal tensors and metadata give equal bytes.

    Args:
        state: name -> tensor of any shape.
        path: one file if it ends in ``.safetensors``, a torch file if in ``.pt``, ``.pth`` or ``.bin``;
            anything else is a Hugging Face folder, which replaces an old one if nothing but a checkpoint is
            in there.
        metadata: strings to keep with the tensors, usually ``provenance(…)``.
        companions_from: a checkpoint whose files beside the weights (configuration, tokenizer, code) are copied, if
            both it and ``path`` are folders.

    Raises:
        CheckpointError: a tensor cannot be stored, or the disk refuses (it is full, read-only, …); the old
            file is intact.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> ws.save_checkpoint({"w": torch.arange(3.0)}, "model.safetensors", metadata={"note": "three numbers"})
        >>> ws.load_checkpoint("model.safetensors")
        {'w': tensor([0., 1., 2.])}
    """
    check_named(path)
    path = Path(path)
    check_storable(state, path)
    kept = _checked_metadata(metadata or {}, path)
    suffix = path.suffix.lower()
    _log.info("writing %s: %d tensors", path, len(state))
    if suffix in TORCH_SUFFIXES or suffix == SAFETENSORS_SUFFIX:
        write = write_torch if suffix in TORCH_SUFFIXES else write_safetensors
        with replacing_file(path) as file:
            write(state, file, kept, path)
        return
    donor = None if companions_from is None else local_path(companions_from)
    donor = None if donor is None or donor.is_file() else donor
    check_name(path)
    check_replaceable(path, () if donor is None else find_companions(donor).copied)
    with replacing_folder(path) as staging:
        with synced_file(staging / WEIGHTS) as file:
            write_safetensors(state, file, kept, path)
        if donor is not None:
            copy_companions(donor, staging)


def load_metadata(path: StrPath) -> dict[str, str]:
    """Return the metadata of a checkpoint, without reading its tensors.

    ``format`` (``pt``) is the one key that safetensors files have without being asked.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
    """
    path = local_path(path)
    with one_line_errors(path, "read"):
        if path.is_dir():
            weights = find_weights(path)
            if weights.index is not None:
                return index_metadata(weights.entrance)
            path = weights.entrance
        return read_torch_metadata(path) if file_format(path) == "torch" else read_safetensors_metadata(path)


def _checked_metadata(metadata: Mapping[str, str], path: Path) -> dict[str, str]:
    """Return a copy of the metadata if it maps strings to strings and leaves our own key alone."""
    for name, value in metadata.items():
        if not isinstance(name, str) or not isinstance(value, str) or name == TIED:
            raise CheckpointError(
                f"{path}: metadata maps strings to strings, and {TIED!r} is reserved; found {name!r}: {value!r}."
            )
    return dict(metadata)
