"""The dtype of a merge by the format's names, as torch promotes: two that differ become one that holds both."""

from __future__ import annotations

from collections.abc import Sequence

from weightspace.checkpoints.safetensors_header import ITEMSIZES
from weightspace.errors import CheckpointError

#: What recipes and the command line call the float dtypes that can be written -> the format's name.
FLOATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


def promoted(name: str, dtypes: Sequence[str]) -> str:
    """Return the dtype that holds the values of all of them.

    Args:
        name: the tensor, for the error.
        dtypes: the format's names, all of float or complex numbers, or all of integers and bools.

    Raises:
        CheckpointError: no dtype holds them all (unsigned and signed 64-bit integers, say).
    """
    distinct = list(dict.fromkeys(dtypes))
    if len(distinct) == 1:
        return distinct[0]
    if "C64" in distinct:
        if "F64" in distinct:
            raise CheckpointError(
                f"{name!r} is C64 in one model and F64 in another, which safetensors cannot hold as one."
            )
        return "C64"
    if any(dtype[0] == "F" or dtype == "BF16" for dtype in distinct):
        return "F64" if "F64" in distinct else "F32"
    signed = [ITEMSIZES[dtype] for dtype in distinct if dtype[0] == "I"]
    unsigned = [ITEMSIZES[dtype] for dtype in distinct if dtype[0] == "U"]
    size = max([*signed, *(2 * width if signed else width for width in unsigned)], default=1)
    if size > 8:
        raise CheckpointError(f"{name!r} is {' and '.join(distinct)}, which no integer dtype holds together.")
    return f"{'I' if signed else 'U'}{8 * size}"
