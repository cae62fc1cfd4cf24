"""The format of a checkpoint file, decided by its first bytes; its name is only believed where they say nothing.

Training scripts write torch files under any ending (``.ckpt``, ``.pth.tar``, ``.th``, none), and a renamed file keeps
its bytes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, TypeAlias

from weightspace.checkpoints.atomic_write import one_line_errors
from weightspace.checkpoints.hub_names import missing_checkpoint
from weightspace.checkpoints.safetensors_header import MAX_HEADER
from weightspace.errors import CheckpointError

Format: TypeAlias = Literal["safetensors", "torch"]

#: How the names of files of weights end that this library writes.
SAFETENSORS_SUFFIX = ".safetensors"
TORCH_SUFFIXES = (".pt", ".pth", ".bin")

#: First bytes of files that are something else -> what they are and what to do.
_FOREIGN = {
    b"GGUF": "a GGUF file, which is quantised or packed for llama.cpp. Take the original safetensors",
    b"\x89HDF": "an HDF5 file (Keras, TensorFlow). Convert it to safetensors",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself. Run: git lfs pull",
    b"<!DOCTYPE": "a web page, not the file itself. Download it again",
    b"<html": "a web page, not the file itself. Download it again",
    b"<?xml": "an answer of a server, not the file itself. Download it again",
    b'{"error"': "an answer of a server, not the file itself. Download it again",
    b"Access to": "an answer of a server, not the file itself. Download it again",
    b"Entry not found": "an answer of a server, not the file itself. Download it again",
    b"Repository not found": "an answer of a server, not the file itself. Download it again",
    b"\x1f\x8b": "a gzip archive. Unpack it",
    b"BZh": "a bzip2 archive. Unpack it",
    b"\xfd7zXZ": "an xz archive. Unpack it",
    b"\x28\xb5\x2f\xfd": "a zstandard archive. Unpack it",
    b"7z\xbc\xaf": "a 7z archive. Unpack it",
}

#: First bytes of torch files: a zip archive; a pickle of protocol 2 to 5.
_TORCH = (b"PK\x03\x04", b"PK\x05\x06", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def file_format(path: Path) -> Format:
    """Return the format of an existing checkpoint file.

    Args:
        path: a file of any name.

    Raises:
        CheckpointError: there is no such file, it cannot be read, or it is no checkpoint.
    """
    if not path.exists():
        raise CheckpointError(missing_checkpoint(str(path)))
    if not path.is_file():
        raise CheckpointError(f"{path} is not a checkpoint: expected a folder or a regular file.")
    with one_line_errors(path, "read"), open(path, "rb") as file:
        start = file.read(32)
        size = os.fstat(file.fileno()).st_size
    # First: the length of a header can look like the start of anything else (1,152 bytes like that of a pickle), while
    # no other format has the length of a header there that the file could hold.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= min(size - 8, MAX_HEADER):
        return "safetensors"
    for magic, description in _FOREIGN.items():
        if start.lstrip().lower().startswith(magic.lower()):
            raise CheckpointError(f"{path} is {description}.")
    if start.startswith(_TORCH):
        return "torch"
    if start[8:9] == b"{" or path.suffix.lower() == SAFETENSORS_SUFFIX:
        return "safetensors"
    if path.suffix.lower() in TORCH_SUFFIXES:
        return "torch"
    raise CheckpointError(f"{path} is not a checkpoint: it begins neither as a safetensors file nor as one of torch.")
