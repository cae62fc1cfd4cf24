"""Detection of checkpoints and their files by path."""

from __future__ import annotations

from pathlib import Path

from weightspace.checkpoints.components import find_components
from weightspace.checkpoints.file_format import MODULES, PIPELINE, file_format
from weightspace.checkpoints.training_folders import find_training
from weightspace.errors import CheckpointError


def is_checkpoint(path: Path) -> bool:
    """Return whether a path is that of a checkpoint: a file that begins like one, or a folder with weights."""
    try:
        if path.is_dir():
            below = ("", "*/") if any((path / name).is_file() for name in (PIPELINE, MODULES)) else ("",)
            endings = ("*.safetensors", "*pytorch_model*.bin")
            weights = any(any(path.glob(f"{one}{name}")) for one in below for name in endings)
            return weights or find_training(path) is not None
        return path.is_file() and bool(file_format(path))
    except CheckpointError:
        return False


def weight_files(path: Path) -> tuple[Path, ...]:
    """Return the files that hold a checkpoint's weights: the file itself, or those of the folder by component and name.

    Raises:
        CheckpointError: the checkpoint or a shard is missing.
    """
    if path.is_dir():
        training = find_training(path)
        if training is None:
            return tuple(file for one in find_components(path) for file in one.weights.files)
        return tuple(sorted(file for file in training.folder.iterdir() if file.is_file()))
    file_format(path)
    return (path,)
