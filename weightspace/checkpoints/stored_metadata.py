"""Metadata of checkpoints in all formats, read without their tensors."""

from __future__ import annotations

import os

from weightspace.checkpoints.atomic_write import one_line_errors
from weightspace.checkpoints.components import find_components, folder_metadata
from weightspace.checkpoints.dcp_record import read_dcp_record
from weightspace.checkpoints.fetching import local_path
from weightspace.checkpoints.file_format import file_format
from weightspace.checkpoints.gguf.metadata import read_gguf_metadata
from weightspace.checkpoints.safetensors_file import read_safetensors_metadata
from weightspace.checkpoints.torch_file import read_torch_metadata
from weightspace.checkpoints.training_folders import find_training


def load_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return the metadata of a checkpoint, without reading its tensors.

    Safetensors files always have the key ``format`` (``pt``). The lists in a GGUF file are omitted, and
    flax files have no metadata.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
    """
    path = local_path(path)
    with one_line_errors(path, "read"):
        if path.is_dir():
            if find_training(path) is not None:
                return read_dcp_record(path)
            if (metadata := folder_metadata(path)) is not None:
                return metadata
            path = find_components(path)[0].weights.entrance
        readers = {"torch": read_torch_metadata, "gguf": read_gguf_metadata, "safetensors": read_safetensors_metadata}
        form = file_format(path)
        return {} if form == "flax" else readers[form](path)
