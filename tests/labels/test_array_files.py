"""Files of numbers, names and edges: read as they are, or refused in a line before they take time or memory."""

import io
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weightspace.errors import WeightspaceError
from weightspace.labels.inputs import read_array, read_names, read_pairs

ARRAYS = {
    "a matrix": np.arange(6.0).reshape(2, 3),
    "in Fortran's order": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "no rows": np.zeros((0, 3)),
    "a number": np.float32(3).reshape(()),
    "big-endian": np.arange(4).astype(">i2"),
    "bools": np.array([True, False]),
    "half precision": np.ones((3, 1), np.float16),
}

#: What a header may claim of nine float64.
CLAIMS = {
    "more than memory": "{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776, 3)}",
    "fewer": "{'descr': '<f8', 'fortran_order': False, 'shape': (3, 2)}",
    "a negative length": "{'descr': '<f8', 'fortran_order': False, 'shape': (-3, -3)}",
    "hundreds of digits": "{'descr': '<f8', 'fortran_order': False, 'shape': (" + "9" * 400 + ",)}",
    "a dtype of no bytes": "{'descr': '|V0', 'fortran_order': False, 'shape': (1099511627776,)}",
    "objects": "{'descr': '|O', 'fortran_order': False, 'shape': (9,)}",
    "texts": "{'descr': '<U2', 'fortran_order': False, 'shape': (9,)}",
    "records": "{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (9,)}",
    "dates": "{'descr': '<M8[s]', 'fortran_order': False, 'shape': (9,)}",
    "no dtype": "{'descr': 'foo', 'fortran_order': False, 'shape': (9,)}",
    "a call": "__import__('os').system('touch pwned')",
    "nested": "[" * 3000 + "]" * 3000,
    "power": "{'descr': '<f8', 'fortran_order': False, 'shape': (9**9**9,)}",
    "lacking": "{'descr': '<f8'}",
    "not closed": "{'descr': '<f8', 'fortran_order': False, 'shape': (3, 3)",
    "long": "{'descr': '<f8', 'fortran_order': False, 'shape': (9,)}" + " " * 60_000,
    "nothing": "",
}


def npy(header: str, body: bytes = bytes(72), version: int = 1) -> bytes:
    """Return an array file with any header."""
    text = header.encode()
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + body


def refused(path: Path, read: Any = read_array) -> str:
    start = time.process_time()
    with pytest.raises(WeightspaceError) as raised:
        read(path)
    message = str(raised.value)
    assert message.isprintable()
    assert len(message) < 500
    assert path.name in message
    assert time.process_time() - start < 10
    return message


@pytest.mark.parametrize("case", ARRAYS)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_of_numbers_come_back(case: str, suffix: str, tmp_path: Path) -> None:
    path, array = tmp_path / f"x{suffix}", ARRAYS[case]
    if suffix == ".npy":
        np.save(path, array)
    else:
        np.savez_compressed(path, scores=array)
    again = read_array(path)
    assert again.dtype == array.dtype
    assert again.shape == array.shape
    np.testing.assert_array_equal(again, array)


@pytest.mark.parametrize("case", CLAIMS)
@pytest.mark.parametrize("version", [1, 2, 3])
def test_headers_that_claim_something_else_are_refused(
    case: str, version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content = npy(CLAIMS[case], version=version)
    (tmp_path / "x.npy").write_bytes(content)
    refused(tmp_path / "x.npy")
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("scores.npy", content)
    refused(tmp_path / "x.npz")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("length", [0, 5, 7, 9, 40, 127, 199])
def test_arrays_that_were_cut_short_are_refused(length: int, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.eye(3))
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:length])
    refused(tmp_path / "x.npy")


def test_archives_that_become_far_larger_than_they_are_are_refused(tmp_path: Path) -> None:
    header = "{'descr': '<f8', 'fortran_order': False, 'shape': (125000000,)}"
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a", "b"):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                file.write(npy(header, b""))
                for _ in range(300):
                    file.write(bytes(1_000_000))
    assert "would become 600,000,1" in refused(tmp_path / "x.npz")


@pytest.mark.parametrize("place", [18, 22])
def test_archives_that_lie_about_sizes_are_refused(place: int, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", scores=np.eye(100))
    content = bytearray((tmp_path / "x.npz").read_bytes())
    listed = content.rfind(b"PK\x01\x02")
    for at in (place, listed + place + 2):
        content[at : at + 4] = struct.pack("<I", 999_999)
    (tmp_path / "x.npz").write_bytes(content)
    refused(tmp_path / "x.npz")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        b"0,1\n1\n",
        b"\xff\xfe0,1",
        b"y" * 300_000,
        b"0,\0",
        b"\xed\xa0\x80,1",
        b"a," * 100_000,
        b"0;1",
        b'",1,2\n1,0,1\n2,1,0\n',
    ],
)
def test_tables_of_something_else_than_numbers_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(content)
    refused(tmp_path / "x.csv")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"a,b,c,d\n",
        b"a\n",
        b"\xff\xfea,b",
        b"y" * 300_000,
        b"\xed\xa0\x80,b",
        b"a," * 100_000,
        b"a,b,foo\n",
        b'"a,b\n',
        b'a,b\nc,"d\ne,f\n',
    ],
)
def test_edges_of_another_form_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(content)
    refused(tmp_path / "x.csv", read_pairs)


@pytest.mark.parametrize("content", [b"{}", b"[[1]]", b"[" * 2000, b'["\\ud800"]', b"\xff", b"[" + b"9" * 400 + b"]"])
def test_lists_of_names_of_another_form_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    refused(tmp_path / "x.json", read_names)


def test_a_byte_order_mark_is_no_part_of_the_content(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    (tmp_path / "x.csv").write_bytes(mark + b"0,1\n1,0\n")
    assert read_array(tmp_path / "x.csv").tolist() == [[0, 1], [1, 0]]
    (tmp_path / "x.csv").write_bytes(mark + b"a,b\r\n")
    assert read_pairs(tmp_path / "x.csv") == [("a", "b")]
    (tmp_path / "x.txt").write_bytes(mark + b"a\nb\n")
    assert read_names(tmp_path / "x.txt") == ["a", "b"]


def test_names_may_hold_what_ends_lines_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes('a\u2028b,c\n"d\ne",f\n'.encode())
    assert read_pairs(tmp_path / "x.csv") == [("a\u2028b", "c"), ("d\ne", "f")]


@pytest.mark.parametrize("count", [100, 200, 5000])
def test_a_list_of_names_may_be_longer_than_the_name_of_a_file(count: int) -> None:
    names = [f"n{number}" for number in range(count)]
    assert read_names(",".join(names)) == names


@pytest.mark.parametrize(
    ("method", "place", "byte"),
    [
        (zipfile.ZIP_DEFLATED, 6, 128),  # the version that is needed
        (zipfile.ZIP_DEFLATED, 8, 1),  # encrypted
        (zipfile.ZIP_DEFLATED, 10, 99),  # no way to compress that is known
        (zipfile.ZIP_BZIP2, None, 7),
        (zipfile.ZIP_LZMA, None, 7),
    ],
    ids=["version", "encrypted", "unknown method", "damaged bzip2", "damaged lzma"],
)
def test_records_that_cannot_be_unpacked_are_refused(method: int, place: int | None, byte: int, tmp_path: Path) -> None:
    npy = io.BytesIO()
    np.save(npy, np.arange(200.0))
    with zipfile.ZipFile(tmp_path / "x.npz", "w", method) as archive:
        archive.writestr("scores.npy", npy.getvalue())
    content = bytearray((tmp_path / "x.npz").read_bytes())
    if place is None:
        content[60:64] = bytes(byte ^ old for old in content[60:64])
    else:
        content[content.index(b"PK\1\2") + place] = byte
    (tmp_path / "x.npz").write_bytes(content)
    refused(tmp_path / "x.npz")
