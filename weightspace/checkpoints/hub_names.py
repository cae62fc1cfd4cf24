"""Names of models on the Hugging Face Hub given as paths: ``ORG/MODEL`` and ``ORG/MODEL@REVISION``."""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"(?P<model>(?P<owner>\w[\w.-]{0,95})/\w[\w.-]{0,95})(@(?P<revision>[\w./-]{1,80}))?")


def missing_checkpoint(path: str) -> str:
    """Return the error message for a missing path, with advice to download it if it looks like a name on the Hub.

    Args:
        path: the missing path, as the user wrote it.
    """
    match = _NAME.fullmatch(path)
    if match is None or Path(match["owner"]).exists():
        return f"{path} does not exist. Expected a checkpoint file or folder; is the path right?"
    revision = f" --revision {match['revision']}" if match["revision"] else ""
    return (
        f"{path} does not exist here. If it is a model on the Hugging Face Hub, use hf://{path}, or the folder that "
        f"`hf download {match['model']}{revision}` prints."
    )
