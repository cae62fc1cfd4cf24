"""IDX files, the format of MNIST: big-endian, a magic number, the sizes, then the bytes.

Source:
    LeCun, Cortes, Burges, The MNIST database, http://yann.lecun.com/exdb/mnist/
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from weightspace.errors import WeightspaceError

_UNSIGNED_BYTES = 0x08


def read_idx(path: Path) -> np.ndarray:
    """Return the array in a ``.gz`` IDX file of unsigned bytes, with the shape from its header, uint8.

    Raises:
        WeightspaceError: the file can't be read, isn't IDX, or has a length that differs from its header.
    """
    try:
        with gzip.open(path, "rb") as file:
            data = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise WeightspaceError(f"{path} cannot be read: {error}. Expected a complete .gz file.") from error
    if len(data) < 4 or data[:3] != bytes((0, 0, _UNSIGNED_BYTES)) or len(data) < 4 + 4 * data[3]:
        raise WeightspaceError(f"{path} isn't an IDX file of unsigned bytes: it begins with {data[:4].hex(' ')}.")
    start = 4 + 4 * data[3]
    shape = struct.unpack(f">{data[3]}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise WeightspaceError(
            f"{path} has {len(data) - start:,} bytes of data, but its header says {shape}, "
            f"which is {math.prod(shape):,} bytes."
        )
    return np.frombuffer(data, dtype=np.uint8, offset=start).reshape(shape)
