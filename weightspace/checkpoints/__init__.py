"""Checkpoints: files to named tensors and back.

A checkpoint is files; a state dict is the tensors in them, matched by name. Nothing is unpickled, and a file
is written beside its place and renamed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightspace.lazy import resolver

if TYPE_CHECKING:
    from weightspace.checkpoints.comparison import Comparison, Difference, TensorDistance, compare
    from weightspace.checkpoints.files import load_checkpoint, load_metadata, save_checkpoint
    from weightspace.checkpoints.origins import provenance
    from weightspace.checkpoints.state import StateDict, check_compatible, check_finite
    from weightspace.checkpoints.summary import CheckpointSummary, TensorSummary, summarise

#: Public name -> the file that defines it.
_HOMES = {
    "CheckpointSummary": "summary",
    "Comparison": "comparison",
    "Difference": "comparison",
    "StateDict": "state",
    "TensorDistance": "comparison",
    "TensorSummary": "summary",
    "check_compatible": "state",
    "check_finite": "state",
    "compare": "comparison",
    "load_checkpoint": "files",
    "load_metadata": "files",
    "provenance": "origins",
    "save_checkpoint": "files",
    "summarise": "summary",
}

__all__ = [
    "CheckpointSummary",
    "Comparison",
    "Difference",
    "StateDict",
    "TensorDistance",
    "TensorSummary",
    "check_compatible",
    "check_finite",
    "compare",
    "load_checkpoint",
    "load_metadata",
    "provenance",
    "save_checkpoint",
    "summarise",
]

__getattr__ = resolver(__name__, _HOMES)
