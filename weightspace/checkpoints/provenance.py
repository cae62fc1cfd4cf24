"""Provenance of a checkpoint as metadata: sufficient to reproduce it, and identical in every run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightspace.checkpoints.detection import weight_files
from weightspace.checkpoints.fetching import fetched_path
from weightspace.checkpoints.hashing import sha256_of
from weightspace.checkpoints.hub_cache import folder_name
from weightspace.errors import CheckpointError
from weightspace.version import __version__


def provenance(inputs: Sequence[str | Path], method: str, parameters: Mapping[str, Any]) -> dict[str, str]:
    """Describe how a checkpoint was made, as metadata for ``save_checkpoint``.

    It contains neither times nor local folders, so that the same inputs give the same bytes anywhere.

    Args:
        inputs: the input checkpoints, in order.
        method: name of the method, for example ``"linear"``.
        parameters: its parameters, as JSON-serialisable values.

    Returns:
        ``inputs``: JSON list of ``{"name": …, "sha256": …}``, one per weight file;
        ``method``;
        ``parameters``: JSON object with sorted keys;
        ``version``: ``weightspace`` and its version.

    Raises:
        CheckpointError: an input is missing or cannot be read, or the parameters aren't JSON-serialisable.
    """
    paths = [fetched_path(path) for path in inputs]
    files = {path: weight_files(path) for path in paths}
    digests = {file: sha256_of(file) for several in files.values() for file in several}
    return described([(path, files[path]) for path in paths], digests, method, parameters)


def described(
    inputs: Sequence[tuple[Path, Sequence[Path]]],
    digests: Mapping[Path, str],
    method: str,
    parameters: Mapping[str, Any],
) -> dict[str, str]:
    """Return the same as ``provenance``, from known hexadecimal digests of the checkpoints' files.

    Raises:
        CheckpointError: the parameters aren't JSON-serialisable.
    """
    files = [{"name": _name(file, path), "sha256": digests[file]} for path, several in inputs for file in several]
    try:
        encoded = json.dumps(dict(parameters), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"The parameters of {method!r} cannot be stored as JSON: {error}.") from error
    return {
        "inputs": json.dumps(files),
        "method": method,
        "parameters": encoded,
        "version": f"weightspace {__version__}",
    }


def _name(file: Path, checkpoint: Path) -> str:
    """Return the name of a file of a checkpoint: in a folder with the folder's name and those of components."""
    if file == checkpoint:
        return file.name
    inside = file.relative_to(checkpoint) if file.is_relative_to(checkpoint) else Path(file.name)
    return f"{folder_name(checkpoint)}/{inside.as_posix()}"
