"""Checkpoints: files to named tensors and back.

A checkpoint is files; a state dict is the tensors in them, matched by name. Nothing is unpickled, and a file
is written beside its place and renamed.
"""

from weightspace.checkpoints.comparison import Comparison, Difference, TensorDistance, compare
from weightspace.checkpoints.files import load_checkpoint, load_metadata, save_checkpoint
from weightspace.checkpoints.provenance import provenance
from weightspace.checkpoints.state import StateDict, check_compatible, check_finite
from weightspace.checkpoints.summary import CheckpointSummary, TensorSummary, summarise

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
