import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from weightspace.errors import WeightspaceError
from weightspace.zoo.idx import read_idx


def write(path: Path, header: bytes, data: bytes) -> Path:
    path.write_bytes(gzip.compress(header + data))
    return path


def test_an_array_comes_back(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    header = bytes((0, 0, 8, 3)) + struct.pack(">3I", *array.shape)
    assert np.array_equal(read_idx(write(tmp_path / "x.gz", header, array.tobytes())), array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not gzip at all", "cannot be read"),
        (gzip.compress(b"other bytes"), "isn't an IDX file"),
        (gzip.compress(b""), "isn't an IDX file"),
        (gzip.compress(bytes((0, 0, 8, 2)) + b"\0\0"), "isn't an IDX file"),
        (gzip.compress(bytes((0, 0, 8, 1)) + struct.pack(">I", 5) + b"abc"), "3 bytes of data"),
        (gzip.compress(bytes(range(256)) * 20)[:-30], "cannot be read"),
    ],
    ids=["not gzip", "no magic", "empty", "header cut", "data cut", "gzip cut"],  # gzip's bytes hold the time
)
def test_a_broken_file_is_one_line_that_names_it(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "labels.gz"
    path.write_bytes(content)
    with pytest.raises(WeightspaceError, match=message) as caught:
        read_idx(path)
    assert "labels.gz" in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightspaceError, match=r"absent\.gz"):
        read_idx(tmp_path / "absent.gz")
