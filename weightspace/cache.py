"""Cache folders: downloads, pretrained networks, evaluations."""

from __future__ import annotations

import os
from pathlib import Path

_VARIABLE = "WEIGHTSPACE_CACHE"


def cache_folder() -> Path:
    """Return the folder of downloads and pretrained networks: ``$WEIGHTSPACE_CACHE``, or ``remote`` in the default."""
    return _named() or _default() / "remote"


def evaluations_folder() -> Path:
    """Return the folder of evaluations: ``evaluations`` in ``$WEIGHTSPACE_CACHE``, or in the default."""
    return (_named() or _default()) / "evaluations"


def _named() -> Path | None:
    """Return the folder named by the environment variable."""
    named = os.environ.get(_VARIABLE)
    return Path(named).expanduser().absolute() if named else None


def _default() -> Path:
    return Path.home() / ".cache" / "weightspace"
