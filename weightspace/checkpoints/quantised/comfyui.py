"""ComfyUI's descriptions of quantised layers: tensors ``LAYER.comfy_quant`` that hold JSON, or one entry of the header.

Its NVFP4 and MXFP8 have the names and often the shapes of ModelOpt's, but order scales and numbers differently, so the
description decides. Only FP8 with a scale is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from weightspace.checkpoints.metadata import CheckpointMetadata
from weightspace.checkpoints.quantised.format import Stored
from weightspace.checkpoints.safetensors_header import read_header
from weightspace.errors import CheckpointError

#: Last part of the name of a layer's description, the key of a header's, and the mark of its first files with scales.
MARK, _KEY, FILE_MARK = "comfy_quant", "_quantization_metadata", "scaled_fp8"

#: Formats that are read, and keys of a description that don't change the values.
_READ = ("float8_e4m3fn", "float8_e5m2")
_HARMLESS = frozenset({"format", "full_precision_matrix_mult", "orig_dtype", "orig_shape"})


def check_marks(contents: CheckpointMetadata, stored: Stored) -> None:
    """Refuse a checkpoint whose layers are in a format of ComfyUI other than FP8.

    Raises:
        CheckpointError: a layer is in another format, or its description cannot be read.
    """
    for layer, mark in (*_of_tensors(stored), *_of_headers(contents)):
        form, others = mark.get("format"), sorted(key for key in mark.keys() - _HARMLESS if mark[key])
        if form in _READ and not others:
            continue
        what = f"format {str(form)[:80]!r}" if form is not None else "a format whose description cannot be read"
        also = f" with {others[0][:80]!r}" if form in _READ else ""
        raise CheckpointError(
            f"{contents.path} is quantised: {what} of ComfyUI{also} ({layer[:200]!r}). Of ComfyUI's formats, only "
            f"{' and '.join(_READ)} are read. Use the model that it was quantised from, or dequantise it first."
        )


def is_described(contents: CheckpointMetadata) -> bool:
    """Return whether ComfyUI wrote a quantised checkpoint, whose matrices without a scale are cast to FP8.

    Args:
        contents: its metadata, as ``dequantised`` returns it.
    """
    left_out = (name for tensor in contents.quantised.values() for name in tensor.left_out)
    return any(name.rpartition(".")[2] in (MARK, FILE_MARK) for name in left_out) or any(_of_headers(contents))


def _of_tensors(stored: Stored) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the layers that are described by a tensor, and the description."""
    for layer, parts in stored.modules.items():
        if MARK in parts:
            yield layer, _parsed(stored.content(parts[MARK]))


def _of_headers(contents: CheckpointMetadata) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the layers that the headers of safetensors files describe, and the description."""
    if not any(info.dtype.startswith(("F8", "U8", "I8", "I32")) for info in contents.tensors.values()):
        return
    for path in contents.files:
        if path.suffix != ".safetensors":
            continue
        text = read_header(path).metadata.get(_KEY)
        if text is None:
            continue
        layers = _parsed(text.encode()).get("layers")
        if not isinstance(layers, Mapping):
            yield path.name, {}
            continue
        yield from ((layer, mark if isinstance(mark, Mapping) else {}) for layer, mark in layers.items())


def _parsed(text: bytes | None) -> Mapping[str, Any]:
    """Return a description, empty if it cannot be read."""
    try:
        found = json.loads(text or b"")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, Mapping) else {}
