"""The files of a distributed checkpoint (DCP) that this library wrote, told from those of training runs by a record."""

from __future__ import annotations

from pathlib import Path

from weightspace.checkpoints.atomic_write import one_line_errors
from weightspace.checkpoints.dcp_metadata import METADATA
from weightspace.checkpoints.json_file import read_json_object
from weightspace.errors import CheckpointError

#: The file of the tensors, and that of our metadata.
SHARD = "__0_0.distcp"
RECORD = "weightspace.json"


def read_dcp_record(folder: Path) -> dict[str, str]:
    """Return the metadata beside a distributed checkpoint that this library wrote; empty for others.

    Raises:
        CheckpointError: it is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        return {}
    metadata = read_json_object(path).get("metadata")
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: expected an object 'metadata' of strings.")
    return metadata


def check_dcp_replaceable(folder: Path) -> None:
    """Check that nothing but a distributed checkpoint that this library wrote is lost when a folder is replaced.

    Raises:
        CheckpointError: the path is a file, or the folder holds something else, such as a checkpoint of a training run.
    """
    with one_line_errors(folder, "written"):
        if not folder.exists():
            return
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is a file; a name that ends in .dcp is written as a folder.")
        names = sorted(path.name for path in folder.iterdir())
    other = next((name for name in names if name not in (METADATA, SHARD, RECORD)), None)
    if names and (other is not None or RECORD not in names):
        raise CheckpointError(
            f"{folder} exists and holds {other or METADATA!r}, which this program didn't write and would be lost. "
            "Choose a new folder."
        )
