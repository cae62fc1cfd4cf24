"""Detection of checkpoint formats by the first bytes of a file, or by its name if they are inconclusive.

Training scripts write torch files under any ending (``.ckpt``, ``.pth.tar``, ``.th``, none), and a renamed file keeps
its bytes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, TypeAlias

from weightspace.checkpoints.atomic_write import one_line_errors
from weightspace.checkpoints.gguf.header import MAGIC
from weightspace.checkpoints.hub_names import missing_checkpoint
from weightspace.checkpoints.msgpack_items import SUFFIX as MSGPACK_SUFFIX
from weightspace.checkpoints.msgpack_items import looks_like_msgpack
from weightspace.checkpoints.safetensors_header import MAX_HEADER
from weightspace.errors import CheckpointError

Format: TypeAlias = Literal["safetensors", "torch", "gguf", "flax"]

#: File endings of weight files that this library writes.
SAFETENSORS_SUFFIX = ".safetensors"
TORCH_SUFFIXES = (".pt", ".pth", ".bin")
GGUF_SUFFIX = ".gguf"

#: Ending of folders that are written as distributed checkpoints of torch.
DCP_SUFFIX = ".dcp"

#: First bytes of other files -> description and advice.
_FOREIGN = {
    b"\x89HDF": "an HDF5 file (Keras, TensorFlow). Convert it to safetensors",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself. Run: git lfs pull",
    b"<!DOCTYPE": "a web page, not the file itself. Download it again",
    b"<html": "a web page, not the file itself. Download it again",
    b"<?xml": "a server response, not the file itself. Download it again",
    b'{"error"': "a server response, not the file itself. Download it again",
    b"Access to": "a server response, not the file itself. Download it again",
    b"Entry not found": "a server response, not the file itself. Download it again",
    b"Repository not found": "a server response, not the file itself. Download it again",
    b"\x1f\x8b": "a gzip archive. Unpack it",
    b"BZh": "a bzip2 archive. Unpack it",
    b"\xfd7zXZ": "an xz archive. Unpack it",
    b"\x28\xb5\x2f\xfd": "a zstandard archive. Unpack it",
    b"7z\xbc\xaf": "a 7z archive. Unpack it",
}

#: First bytes of torch files: a zip archive; a pickle of protocol 2 to 5.
_TORCH = (b"PK\x03\x04", b"PK\x05\x06", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


#: The files that list a folder's components: of diffusers, and of sentence-transformers.
PIPELINE, MODULES = "model_index.json", "modules.json"

#: The files that accelerate saves on each rank of FSDP, and what to do instead.
FSDP_RANK = "pytorch_model_fsdp_*rank*.bin"
FSDP_RANK_ADVICE = "Save it with state_dict_type SHARDED_STATE_DICT, by DCP (use_dcp=True), or FULL_STATE_DICT."


def file_format(path: Path) -> Format:
    """Return the format of an existing checkpoint file.

    Args:
        path: a file of any name.

    Raises:
        CheckpointError: the file doesn't exist, cannot be read, or isn't a checkpoint.
    """
    if not path.exists():
        raise CheckpointError(missing_checkpoint(str(path)))
    if not path.is_file():
        raise CheckpointError(f"{path} is not a checkpoint: expected a folder or a regular file.")
    if path.name == ".metadata" or path.suffix == ".distcp":
        raise CheckpointError(f"{path} is a part of a distributed checkpoint (DCP). Name its folder, {path.parent}.")
    if path.match(FSDP_RANK):
        raise CheckpointError(
            f"{path} is the part of one rank of an FSDP state dict, which is not read. {FSDP_RANK_ADVICE}"
        )
    with one_line_errors(path, "read"), open(path, "rb") as file:
        start = file.read(32)
        size = os.fstat(file.fileno()).st_size
    # Checked first: the length of a header can look like the start of another format (1,152 bytes like a pickle), but
    # no other format starts with a header length that fits the file.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= min(size - 8, MAX_HEADER):
        return "safetensors"
    if start.startswith(MAGIC):
        return "gguf"
    for magic, description in _FOREIGN.items():
        if start.lstrip().lower().startswith(magic.lower()):
            raise CheckpointError(f"{path} is {description}.")
    if start.startswith(_TORCH):
        return "torch"
    if start[8:9] == b"{" or path.suffix.lower() == SAFETENSORS_SUFFIX:
        return "safetensors"
    if path.suffix.lower() in TORCH_SUFFIXES:
        return "torch"
    if path.suffix.lower() == GGUF_SUFFIX:
        return "gguf"
    if path.suffix.lower() == MSGPACK_SUFFIX or looks_like_msgpack(start):
        return "flax"
    raise CheckpointError(
        f"{path} is not a checkpoint: it begins neither like a safetensors file nor like a torch, GGUF or flax file."
    )
