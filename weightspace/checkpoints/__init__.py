"""Checkpoints: reading and writing named tensors.

A checkpoint consists of files; a state dict holds their tensors by name. Nothing is unpickled, and files are written
to a temporary name in the same folder and renamed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightspace.lazy import resolver

if TYPE_CHECKING:
    from weightspace.checkpoints.comparison.compare import Comparison, Difference, TensorDistance, compare
    from weightspace.checkpoints.load_save import load_checkpoint, save_checkpoint
    from weightspace.checkpoints.provenance import provenance
    from weightspace.checkpoints.quantised.view import load_dequantised
    from weightspace.checkpoints.state_dict import StateDict, check_compatible, check_finite
    from weightspace.checkpoints.stored_metadata import load_metadata
    from weightspace.checkpoints.summary import CheckpointSummary, TensorSummary, summarise

#: Public name -> the module that defines it.
_HOMES = {
    "CheckpointSummary": "summary",
    "Comparison": "comparison.compare",
    "Difference": "comparison.compare",
    "StateDict": "state_dict",
    "TensorDistance": "comparison.compare",
    "TensorSummary": "summary",
    "check_compatible": "state_dict",
    "check_finite": "state_dict",
    "compare": "comparison.compare",
    "load_checkpoint": "load_save",
    "load_dequantised": "quantised.view",
    "load_metadata": "stored_metadata",
    "provenance": "provenance",
    "save_checkpoint": "load_save",
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
    "load_dequantised",
    "load_metadata",
    "provenance",
    "save_checkpoint",
    "summarise",
]

__getattr__ = resolver(__name__, _HOMES)
