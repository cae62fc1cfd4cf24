"""Pickles of torch files that claim memory, code or storages that are not theirs."""

import pickle
import struct
from pathlib import Path

import pytest
import torch
from torch_archives import archive

from weightspace.checkpoints import load_checkpoint
from weightspace.checkpoints.torch_file import read_torch
from weightspace.errors import CheckpointError


def view(key: str, count: int, sizes: str) -> bytes:
    """Return the pickle of a float32 tensor of so many elements, written by hand."""
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storage"
        + b"ctorch\nFloatStorage\nX\x01\0\0\0"
        + key.encode()
        + b"X\x03\0\0\0cpu"
        + b"K"
        + bytes([count])
        + b"tQ"
        + sizes.encode("latin-1")
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


SIZES_OF_2 = "K\x00K\x02\x85K\x01\x85"


def test_the_pickle_that_the_others_derive_from_is_valid(tmp_path: Path) -> None:
    pickled = b"\x80\x02}X\x01\0\0\0w" + view("0", 2, SIZES_OF_2) + b"s."
    assert read_torch(archive(tmp_path / "a.pt", pickled, {"0": struct.pack("<2f", 1, 2)}))[0]["w"].tolist() == [1, 2]


def state_pickle(value: bytes) -> bytes:
    return b"\x80\x02}X\x01\0\0\0w" + view("0", 2, SIZES_OF_2) + b"sX\x01\0\0\0x" + value + b"s."


#: Pickles that take memory, end the process or show foreign memory -> what a reader says of them.
HOSTILE = {
    "a bytearray of gigabytes": (state_pickle(b"cbuiltins\nbytearray\nJ\0\0\0\x7f\x85R"), "bytearray"),
    "one by its old name": (state_pickle(b"c__builtin__\nbytearray\nJ\0\0\0\x7f\x85R"), "bytearray"),
    "one by NEWOBJ": (state_pickle(b"cbuiltins\nbytearray\nJ\0\0\0\x7f\x85\x81"), "bytearray"),
    "memory that nobody wrote": (state_pickle(b"ctorch\nFloatTensor\nK\x08\x85R"), "FloatTensor"),
    "that of a plain tensor": (state_pickle(b"ctorch\nTensor\nK\x08\x85R"), "Tensor"),
    "a tensor without storage": (state_pickle(b"ctorch._utils\n_rebuild_wrapper_subclass\n)R"), "wrapper_subclass"),
    "a nested tensor": (state_pickle(b"ctorch._utils\n_rebuild_nested_tensor\n)R"), "nested_tensor"),
    "a tensor that is changed later": (state_pickle(view("0", 2, SIZES_OF_2) + b"(NNtb"), "after its creation"),
    "tuples that are nested deep": (b"\x80\x02})" + b"\x85" * 10**6 + b"Ks.", "nested"),
    "a storage of two lengths": (state_pickle(view("0", 3, SIZES_OF_2)), "two lengths or types"),
    "a storage that is missing": (state_pickle(view("7", 2, SIZES_OF_2)), "'7' is missing"),
    "lists without end": (b"\x80\x02" + b"]" * 15_000_000 + b".", "more objects"),
    "sets without end": (b"\x80\x02" + b"\x8f" * 10_000_000 + b".", "more objects"),
    "a stack that is empty": (b"\x80\x02R.", "damaged"),
    "a memory of nothing": (b"\x80\x02h\x05.", "damaged"),
    "no end": (b"\x80\x02}", "damaged"),
    "an instruction of newer protocols": (b"\x80\x04\x95" + bytes(8) + b"}.", "protocol 4"),
    "the storage of a list": (b"\x80\x02]Q.", "damaged|isn't a storage"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_pickle_is_refused_before_torch_reads_it(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pickled, message = HOSTILE[case]
    path = archive(tmp_path / "a.pt", pickled, {"0": struct.pack("<2f", 1, 2)})
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch was asked"))
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)


def old_format(path: Path, *, keys: list[str], sizes: list[int], value: bytes) -> Path:
    """Write a file of the old format with lists and lengths of one's own."""
    claims = b"\x80\x02}X\x01\0\0\0w" + value + b"s."
    parts = [pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    storages = [struct.pack("<q", size) + bytes(4 * size) for size in sizes]
    path.write_bytes(b"".join([*parts, claims, pickle.dumps(keys, protocol=2), *storages]))
    return path


def old_view(count: int, part: str = "N") -> bytes:
    return view("0", count, SIZES_OF_2).replace(b"tQ", part.encode("latin-1") + b"tQ")


def test_a_file_of_the_old_format_written_by_hand_is_read(tmp_path: Path) -> None:
    path = old_format(tmp_path / "a.pt", keys=["0"], sizes=[2], value=old_view(2))
    assert load_checkpoint(path)["w"].tolist() == [0, 0]


OLD = {
    "a storage that is never filled": {"keys": [], "sizes": [], "value": old_view(2)},
    "one that nobody asked for": {"keys": ["0", "1"], "sizes": [2, 2], "value": old_view(2)},
    "one filled twice": {"keys": ["0", "0"], "sizes": [2, 2], "value": old_view(2)},
    "one of another length": {"keys": ["0"], "sizes": [3], "value": old_view(2)},
    "a claim of much": {"keys": ["0"], "sizes": [2], "value": old_view(255)},
    "a view beyond the end": {"keys": ["0"], "sizes": [1], "value": old_view(1)},
    "a part beyond the end": {
        "keys": ["0"],
        "sizes": [2],
        "value": old_view(2, "(X\x01\0\0\0vK\x01K\x02t"),
    },
}


@pytest.mark.parametrize("case", OLD)
def test_a_false_file_of_the_old_format_is_refused(case: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a\.pt cannot be read"):
        load_checkpoint(old_format(tmp_path / "a.pt", **OLD[case]))
