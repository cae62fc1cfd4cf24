"""Detection of training checkpoints: the kind of a folder, and the folder inside it that holds the tensors."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from weightspace.checkpoints.dcp import dcp_contents
from weightspace.checkpoints.dcp_metadata import METADATA
from weightspace.checkpoints.file_format import FSDP_RANK, FSDP_RANK_ADVICE
from weightspace.checkpoints.hf_folder import ENTRANCES
from weightspace.checkpoints.json_file import read_json_object
from weightspace.checkpoints.metadata import CheckpointMetadata
from weightspace.checkpoints.zero import MODEL, zero_contents
from weightspace.errors import CheckpointError

#: Reads a training checkpoint: the checkpoint as the user names it, the folder of its tensors, and the entry to take.
Reader = Callable[[Path, Path, "str | None"], CheckpointMetadata]

#: Folders inside a checkpoint that hold its tensors: those of accelerate with FSDP and with DeepSpeed.
_INSIDE = ("pytorch_model_fsdp_0", "pytorch_model")

#: Files that name the last checkpoint in a folder: DeepSpeed's (also in checkpoints of Lightning and of transformers'
#: Trainer) and Megatron's.
_LATEST = ("latest", "latest_checkpointed_iteration.txt")

#: Maximum number of bytes of a folder's name.
_LONGEST = 255

#: Files of formats that aren't read -> the format, and what to do instead.
_ORBAX = (
    "a checkpoint of Orbax (JAX)",
    'Its arrays are in a database that only Orbax reads. Convert them to a flax file: python -c "import sys, flax, '
    "orbax.checkpoint as o; open('flax_model.msgpack', 'wb').write(flax.serialization.to_bytes("
    'o.StandardCheckpointer().restore(sys.argv[1])))" {folder}',
)
#: Subfolder of the arrays where Orbax's CheckpointManager saves, and a file that is beside them.
_ORBAX_ITEM, _ORBAX_ARRAYS = "default", "_METADATA"
_MEGATRON = (
    "a checkpoint of Megatron-LM in the format torch",
    "Convert it with Megatron-LM's --ckpt-convert-format torch_dist.",
)
_NOT_READ = {
    **dict.fromkeys(("manifest.ocdbt", "_CHECKPOINT_METADATA", "default/manifest.ocdbt", "default/_METADATA"), _ORBAX),
    "*/_CHECKPOINT_METADATA": ("a folder of checkpoints of Orbax (JAX)", _ORBAX[1]),
    "zero/*/fp32.pt": ("a universal checkpoint of DeepSpeed", "Use the checkpoint that it was made from."),
    FSDP_RANK: ("an FSDP state dict that each rank saved by itself", FSDP_RANK_ADVICE),
    **dict.fromkeys(("mp_rank_*/model_optim_rng.pt", "iter_*/mp_rank_*/model_optim_rng.pt"), _MEGATRON),
    "metadata.json": (_MEGATRON[0].replace("format torch", "format zarr"), _MEGATRON[1]),
}


@dataclass(frozen=True)
class TrainingFolder:
    """A training checkpoint: its reader, and the folder that holds its tensors."""

    reader: Reader
    folder: Path


def find_training(path: Path) -> TrainingFolder | None:
    """Return how a folder is read if it is a training checkpoint without weights in a Hugging Face format, or None.

    Raises:
        CheckpointError: it is one in a format that isn't read.
        OSError: the folder cannot be read.
    """
    if any((path / name).is_file() for name in ENTRANCES):
        return None
    for folder in (path, *(path / name for name in _INSIDE), *_latest(path)):
        if (folder / METADATA).is_file():
            return TrainingFolder(dcp_contents, folder)
        if any(folder.glob(f"*{MODEL}")):
            return TrainingFolder(zero_contents, folder)
    _check_known(path)
    return None


def _check_known(path: Path) -> None:
    """Check that a folder isn't a training checkpoint in a format that isn't read.

    Raises:
        CheckpointError: it is.
    """
    for pattern, (kind, advice) in _NOT_READ.items():
        file = max(path.glob(pattern), default=None)
        if file is not None and (file.name != "metadata.json" or _is_zarr(file)):
            inner = file.parent / _ORBAX_ITEM
            folder = (inner if (inner / _ORBAX_ARRAYS).is_file() else file.parent).absolute()
            advice = advice.replace("{folder}", shlex.quote(str(folder)))
            raise CheckpointError(f"{path} is {kind} ({file.relative_to(path)}), which is not read. {advice}")


def _is_zarr(file: Path) -> bool:
    """Return whether a ``metadata.json`` is Megatron's, of its format zarr."""
    try:
        return read_json_object(file).get("sharded_backend") == "zarr"
    except CheckpointError:
        return False


def _latest(path: Path) -> Iterator[Path]:
    """Yield the folder of the last checkpoint, if a file names it."""
    for name in _LATEST:
        if (path / name).is_file():
            with open(path / name, "rb") as file:
                tag = file.read(_LONGEST).decode(errors="replace").strip()
            tag = f"iter_{int(tag):07d}" if name != "latest" and tag.isascii() and tag.isdigit() else tag
            if tag not in ("", ".", "..") and Path(tag).name == tag and "\0" not in tag and (path / tag).is_dir():
                yield path / tag
