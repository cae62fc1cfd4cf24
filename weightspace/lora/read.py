"""Reading of an adapter from the headers of its folder or file; no tensor is read."""

from __future__ import annotations

from pathlib import Path

from weightspace.lora.adapter import Adapter
from weightspace.lora.adapter_file import read_adapter_file
from weightspace.lora.config import CONFIG
from weightspace.lora.formats.diffusers import WEIGHTS_NAME
from weightspace.lora.peft_folder import read_peft


def read_adapter(path: Path) -> Adapter:
    """Read an adapter from headers.

    Args:
        path: a folder written by PEFT's ``save_pretrained`` or by diffusers' ``save_lora_weights``, or a file of kohya,
            LyCORIS or diffusers.

    Raises:
        CheckpointError: configuration or weights are missing, damaged or inconsistent, or the adapter is of a kind that
            can't be merged.
    """
    path = Path(path)
    if path.is_dir() and not (path / CONFIG).is_file() and (path / WEIGHTS_NAME).is_file():
        return read_adapter_file(path / WEIGHTS_NAME)
    return read_adapter_file(path) if path.is_file() else read_peft(path)
