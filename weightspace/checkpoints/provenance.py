"""Where a checkpoint comes from, as metadata: enough to make it again, nothing that changes by run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightspace.checkpoints.disk import one_line_errors
from weightspace.checkpoints.files import StrPath, weight_files
from weightspace.errors import CheckpointError
from weightspace.version import __version__

_PIECE = 2**20


def provenance(inputs: Sequence[StrPath], method: str, parameters: Mapping[str, Any]) -> dict[str, str]:
    """Describe how a checkpoint was made, to be passed to ``save_checkpoint`` as metadata.

    There is no time and no folder of somebody's machine in it: the same inputs give the same bytes anywhere.

    Args:
        inputs: the checkpoints that went in, in their order.
        method: what was done, for example ``"linear"``.
        parameters: its parameters, anything that JSON can hold.

    Returns:
        ``inputs``: JSON list of ``{"name": …, "sha256": …}``, one for each weight file;
        ``method``;
        ``parameters``: JSON object with sorted keys;
        ``version``: ``weightspace`` and its version.

    Raises:
        CheckpointError: an input is missing or cannot be read, or JSON cannot hold the parameters.
    """
    files = [
        {
            "name": file.name if file == Path(path) else f"{Path(path).resolve().name}/{file.name}",
            "sha256": _sha256(file),
        }
        for path in inputs
        for file in weight_files(path)
    ]
    try:
        encoded = json.dumps(dict(parameters), sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"The parameters of {method!r} cannot be kept as JSON: {error}.") from error
    return {
        "inputs": json.dumps(files),
        "method": method,
        "parameters": encoded,
        "version": f"weightspace {__version__}",
    }


def _sha256(path: Path) -> str:
    """Return the hexadecimal digest of a file, read a piece at a time."""
    digest = hashlib.sha256()
    with one_line_errors(path, "read"), open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
