"""Dtype promotion by safetensors names, following torch's promotion rules."""

from __future__ import annotations

from collections.abc import Sequence

from weightspace.checkpoints.safetensors_header import ITEMSIZES
from weightspace.errors import CheckpointError

#: Name of an output dtype in recipes and on the command line -> safetensors name.
FLOATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


def promoted(name: str, dtypes: Sequence[str]) -> str:
    """Return the dtype that can represent the values of all given dtypes.

    Args:
        name: name of the tensor, for errors.
        dtypes: safetensors names, either all floating point or complex, or all integers and bools.

    Raises:
        CheckpointError: no dtype can represent all values (such as unsigned and signed 64-bit integers).
    """
    distinct = list(dict.fromkeys(dtypes))
    if len(distinct) == 1:
        return distinct[0]
    if "C64" in distinct:
        if "F64" in distinct:
            raise CheckpointError(
                f"{name!r} is C64 in one model and F64 in another; safetensors has no dtype that can represent both."
            )
        return "C64"
    if any(dtype[0] == "F" or dtype == "BF16" for dtype in distinct):
        return "F64" if "F64" in distinct else "F32"
    signed = [ITEMSIZES[dtype] for dtype in distinct if dtype[0] == "I"]
    unsigned = [ITEMSIZES[dtype] for dtype in distinct if dtype[0] == "U"]
    size = max([*signed, *(2 * width if signed else width for width in unsigned)], default=1)
    if size > 8:
        raise CheckpointError(f"{name!r} is {' and '.join(distinct)}; no integer dtype can represent all of them.")
    return f"{'I' if signed else 'U'}{8 * size}"
