"""Evaluations that are kept on the disk: a file a score, under the digest of all that it depends on.

A file is written beside its place and renamed, so that a process that is killed leaves whole evaluations or none; any
number of processes may write at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightspace.checkpoints.disk import replacing_file
from weightspace.version import __version__


@dataclass(frozen=True)
class Evaluations:
    """A folder of scores; None keeps nothing."""

    folder: Path | None

    def find(self, key: Mapping[str, Any]) -> dict[str, float] | None:
        """Return the scores under a key; None where there are none, or only a damaged file."""
        if self.folder is None:
            return None
        try:
            content = json.loads(_place(self.folder, key).read_text(encoding="utf-8"))
            return {name: float(value) for name, value in content["scores"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def keep(self, key: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """Write scores down.

        Raises:
            CheckpointError: the disk refuses.
        """
        if self.folder is not None:
            with replacing_file(_place(self.folder, key)) as file:
                file.write((json.dumps({"key": _full(key), "scores": dict(scores)}, indent=1) + "\n").encode())


def kept_evaluations(cache: bool) -> Evaluations:
    """Return the evaluations of this user: in ``$WEIGHTSPACE_CACHE/evaluations``, or below ``~/.cache/weightspace``.

    Args:
        cache: False: nothing is kept, and nothing that was kept is found.
    """
    if not cache:
        return Evaluations(None)
    named = os.environ.get("WEIGHTSPACE_CACHE")
    home = Path(named).expanduser().absolute() if named else Path.home() / ".cache" / "weightspace"
    return Evaluations(home / "evaluations")


def _place(folder: Path, key: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(_full(key), sort_keys=True).encode()).hexdigest()
    return folder / digest[:2] / f"{digest[2:]}.json"


def _full(key: Mapping[str, Any]) -> dict[str, Any]:
    return {**key, "version": __version__}
