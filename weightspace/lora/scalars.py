"""Single numbers in safetensors files, such as alphas, read without torch."""

from __future__ import annotations

import math
import struct

from weightspace.checkpoints.atomic_write import one_line_errors
from weightspace.checkpoints.metadata import CheckpointMetadata
from weightspace.errors import CheckpointError

#: dtype -> format of ``struct``.
_FORMATS = {"F64": "<d", "F32": "<f", "F16": "<e", "I64": "<q", "I32": "<i", "I16": "<h", "I8": "<b", "U8": "<B"}


def read_scalar(contents: CheckpointMetadata, name: str) -> float:
    """Return the value of a tensor with one element.

    Raises:
        CheckpointError: it has several elements or isn't a finite number, or the file cannot be read.
    """
    info, place = contents.tensors[name], contents.places.get(name)
    is_fp8 = info.dtype in ("F8_E4M3", "F8_E5M2")
    if info.numel != 1 or not (is_fp8 or info.dtype in (*_FORMATS, "BF16")):
        raise CheckpointError(f"{contents.path}: {name!r} is {info.dtype} {info.shape}; expected one number.")
    if place is None or is_fp8:  # a torch file, or a dtype of torch
        from weightspace.checkpoints.reader import CheckpointReader

        value = float(CheckpointReader(contents)[name])
    else:
        with one_line_errors(place.file, "read"), open(place.file, "rb") as file:
            file.seek(place.start)
            data = file.read(info.nbytes)
        if len(data) != info.nbytes:
            raise CheckpointError(f"{place.file} has become shorter; expected {name!r} in it. Read it again.")
        widened = info.dtype == "BF16"  # the upper half of a float32
        (value,) = struct.unpack("<f" if widened else _FORMATS[info.dtype], b"\0\0" + data if widened else data)
    if not math.isfinite(value):
        raise CheckpointError(f"{contents.path}: {name!r} is {value}; expected a finite number.")
    return float(value)
