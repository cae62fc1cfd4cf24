"""Detection of training checkpoints: the kind of a folder, and the folder inside it that holds the tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from weightspace.checkpoints.dcp import dcp_contents
from weightspace.checkpoints.dcp_metadata import METADATA
from weightspace.checkpoints.hf_folder import ENTRANCES
from weightspace.checkpoints.metadata import CheckpointMetadata

#: Reads a training checkpoint: the checkpoint as the user names it, the folder of its tensors, and the entry to take.
Reader = Callable[[Path, Path, "str | None"], CheckpointMetadata]

#: Folders inside a checkpoint that hold its tensors: those of accelerate with FSDP and DeepSpeed, and of Lightning.
_INSIDE = ("pytorch_model_fsdp_0", "pytorch_model", "checkpoint")


@dataclass(frozen=True)
class TrainingFolder:
    """A training checkpoint: its reader, and the folder that holds its tensors."""

    reader: Reader
    folder: Path


def find_training(path: Path) -> TrainingFolder | None:
    """Return how a folder is read if it is a training checkpoint without weights in a Hugging Face format, or None.

    Raises:
        OSError: the folder cannot be read.
    """
    if any((path / name).is_file() for name in ENTRANCES):
        return None
    for folder in (path, *(path / name for name in _INSIDE)):
        if (folder / METADATA).is_file():
            return TrainingFolder(dcp_contents, folder)
    return None
