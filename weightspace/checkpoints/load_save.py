"""Loading and saving of checkpoints by path, in any format.

The format of a file is detected by its first bytes, regardless of its name; a folder is a Hugging Face checkpoint. When
writing, the ending decides: ``.safetensors``, ``.pt``, ``.pth`` and ``.bin`` for torch files, ``.dcp`` for folders of
distributed checkpoints.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from weightspace.arguments import checked
from weightspace.checkpoints.atomic_write import one_line_errors, replacing_file, replacing_folder, synced_file
from weightspace.checkpoints.companion_files import check_replaceable, copy_companions, find_companions
from weightspace.checkpoints.components import Component, find_components, owner_of
from weightspace.checkpoints.dcp_output import write_dcp
from weightspace.checkpoints.dcp_record import check_dcp_replaceable
from weightspace.checkpoints.fetching import fetched_path, local_path
from weightspace.checkpoints.file_format import DCP_SUFFIX, SAFETENSORS_SUFFIX, TORCH_SUFFIXES
from weightspace.checkpoints.hf_folder import WEIGHTS
from weightspace.checkpoints.output_paths import check_name, check_named
from weightspace.checkpoints.reader import read_state
from weightspace.checkpoints.safetensors_file import write_safetensors
from weightspace.checkpoints.safetensors_header import TIED
from weightspace.checkpoints.state_dict import StateDict, check_finite, check_storable, without_prefix
from weightspace.checkpoints.torch_file import write_torch
from weightspace.errors import CheckpointError, WeightspaceWarning

_log = logging.getLogger(__name__)

#: Path of a checkpoint to read or write.
StrPath: TypeAlias = str | os.PathLike[str]


@checked
def load_checkpoint(
    path: StrPath, *, strip_prefix: str | None = None, key: str | None = None, finite: bool = False
) -> StateDict:
    """Read the named tensors of a checkpoint, memory-mapped if the format allows it.

    Modifying a tensor in place never changes the file. Tied tensors stay tied.

    Args:
        path: a safetensors file, a torch file (with any ending: ``.pt``, ``.ckpt``, ``.pth.tar``), a GGUF file (under
            Hugging Face names; quantised tensors become float32), a flax file (under flax's names), a folder of
            transformers, sentence-transformers or diffusers (names in a pipeline start with the component: ``unet.``),
            or the folder of a training checkpoint (torch DCP, DeepSpeed ZeRO); or, as a string, a URL of one
            (``hf://org/model``), which is downloaded to ``$WEIGHTSPACE_CACHE`` first, or ``ORG/MODEL``,
            ``ORG/MODEL@REVISION`` on the Hugging Face Hub, read from its cache if present.
        strip_prefix: prefix to remove from names that start with it, for example ``"module."``.
        key: the entry of a torch file that holds the state dict, ``""`` for the top level; by default the top
            level, or ``state_dict``, ``model_state_dict`` or ``model``, with a ``WeightspaceWarning`` if another
            network (``state_dict_ema``) is stored beside it. Other formats are flat and ignore it.
        finite: reject NaN and infinity; this reads every float tensor.

    Returns:
        Name -> tensor on the CPU, in the file's order, with the saved shapes and dtypes.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, ambiguous, needs code to be unpickled, or isn't
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


@checked
def save_checkpoint(
    state: StateDict,
    path: StrPath,
    *,
    metadata: Mapping[str, str] | None = None,
    companions_from: StrPath | None = None,
) -> None:
    """Write named tensors atomically: ``path`` always shows either the old checkpoint or the complete new one.

    Equal tensors and metadata give equal bytes.

    Args:
        state: name -> tensor of any shape.
        path: a safetensors file if it ends in ``.safetensors``, a torch file if in ``.pt``, ``.pth`` or ``.bin``, the
            folder of a distributed checkpoint (DCP) if in ``.dcp``; otherwise a Hugging Face folder, which replaces an
            existing one that holds nothing but a checkpoint.
        metadata: strings to store with the tensors, usually ``provenance(…)``.
        companions_from: a checkpoint whose files beside the weights (configuration, tokenizer, code) are copied, if
            both it and ``path`` are folders.

    Raises:
        CheckpointError: a tensor cannot be stored, or writing fails (the disk is full, read-only, …); the old
            checkpoint is intact.

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
    if suffix == DCP_SUFFIX:
        check_dcp_replaceable(path)
        with replacing_folder(path) as staging:
            write_dcp(state, staging, kept)
        return
    donor = None if companions_from is None else local_path(companions_from)
    donor = None if donor is None or donor.is_file() else donor
    check_name(path)
    check_replaceable(path, () if donor is None else find_companions(donor).copied)
    parts = {WEIGHTS: dict(state)} if donor is None else _divided(state, find_components(donor), path)
    with replacing_folder(path) as staging:
        for name, part in parts.items():
            (staging / name).parent.mkdir(exist_ok=True)
            with synced_file(staging / name) as file:
                write_safetensors(part, file, kept, path)
        if donor is not None:
            copy_companions(donor, staging, find_companions(donor).copied)


def _divided(state: StateDict, components: Sequence[Component], path: Path) -> dict[str, StateDict]:
    """Return the tensors of each component of a folder: relative path of its file -> tensors under their own names.

    Raises:
        CheckpointError: a tensor belongs to no component.
    """
    parts: dict[str, StateDict] = {f"{one.path}{one.weights.stem}.safetensors": {} for one in components}
    for name, tensor in state.items():
        owner = owner_of(name, components)
        if owner is None:
            raise CheckpointError(
                f"{path}: {name!r} belongs to none of the components {[one.name for one in components]}."
            )
        parts[f"{owner.path}{owner.weights.stem}.safetensors"][name.removeprefix(owner.prefix)] = tensor
    return parts


def _checked_metadata(metadata: Mapping[str, str], path: Path) -> dict[str, str]:
    """Return a copy of the metadata after checking that it maps strings to strings and lacks the reserved key."""
    for name, value in metadata.items():
        if not isinstance(name, str) or not isinstance(value, str) or name == TIED:
            raise CheckpointError(
                f"{path}: metadata must map strings to strings, and {TIED!r} is reserved; found {name!r}: {value!r}."
            )
    return dict(metadata)
