"""On-disk cache of evaluations: one file per evaluation, named by the digest of everything that it depends on.

Files are written atomically by renaming, so that a killed process leaves complete evaluations or none; any number of
processes may write at once. A file is trusted only if it has the requested key and finite scores, and the files it
lists still have the same digests.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightspace.cache import evaluations_folder
from weightspace.checkpoints.atomic_write import replacing_file
from weightspace.soups.file_dependencies import are_unchanged
from weightspace.version import __version__

#: Largest size of an evaluation file, in bytes.
_LARGEST = 2**26


@dataclass(frozen=True)
class Evaluations:
    """A folder of cached scores; None disables the cache."""

    folder: Path | None

    def find(self, key: Mapping[str, Any]) -> dict[str, float] | None:
        """Return the scores under a key, or None if there are none or the file isn't trustworthy."""
        if self.folder is None:
            return None
        path = _place(self.folder, key)
        try:
            if not path.is_file() or path.stat().st_size > _LARGEST:
                return None
            content = json.loads(path.read_bytes())
            scores, reads = content["scores"], content["reads"]
            named = _is_named(scores, float) and _is_named(reads, str) and bool(scores)
            if not named or content["key"] != _plain(key) or not all(map(math.isfinite, scores.values())):
                return None
            return scores if are_unchanged(reads) else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def keep(self, key: Mapping[str, Any], scores: Mapping[str, float], reads: Mapping[str, str]) -> None:
        """Store scores; non-finite ones aren't cached.

        Args:
            key: everything that they depend on.
            scores: name -> score.
            reads: path -> SHA-256 of the files read for them.

        Raises:
            CheckpointError: the file cannot be written.
        """
        if self.folder is not None and all(map(math.isfinite, scores.values())):
            content = {"key": _full(key), "scores": dict(scores), "reads": dict(reads)}
            with replacing_file(_place(self.folder, key)) as file:
                file.write((json.dumps(content, indent=1) + "\n").encode())


def kept_evaluations(cache: bool) -> Evaluations:
    """Return the user's evaluations, in ``$WEIGHTSPACE_CACHE/evaluations`` or below ``~/.cache/weightspace``.

    Args:
        cache: if False, nothing is stored or found.
    """
    return Evaluations(evaluations_folder() if cache else None)


def _place(folder: Path, key: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(_full(key), sort_keys=True).encode()).hexdigest()
    return folder / digest[:2] / f"{digest[2:]}.json"


def _full(key: Mapping[str, Any]) -> dict[str, Any]:
    return {**key, "version": __version__}


def _plain(key: Mapping[str, Any]) -> Any:
    """Return a key as it is read back from a file."""
    return json.loads(json.dumps(_full(key)))


def _is_named(content: Any, kind: type) -> bool:
    """Return whether content maps names to values of one type."""
    return isinstance(content, dict) and all(type(value) is kind for value in content.values())
