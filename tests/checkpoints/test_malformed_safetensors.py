"""A header that lies is found out, and the message names the file and the tensor."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weightspace.checkpoints import load_checkpoint, save_checkpoint
from weightspace.errors import CheckpointError

W = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
V = {"dtype": "U8", "shape": [4], "data_offsets": [8, 12]}
DATA = bytes(12)


def write(path: Path, header: Any, data: bytes = DATA) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def with_w(**changes: Any) -> dict[str, Any]:
    return {"w": {**W, **changes}, "v": V}


#: What is wrong -> (header, part of the message).
LIES = {
    "offset beyond the file": (with_w(shape=[200], data_offsets=[0, 800]), "'w' ends at byte 800"),
    "too few bytes for the shape": (with_w(data_offsets=[0, 4]), r"'w' .* needs 8 bytes"),
    "too many bytes for the shape": (with_w(shape=[1]), r"'w' .* needs 4 bytes"),
    "a dtype of another size": (with_w(dtype="F64"), r"'w' .* needs 16 bytes"),
    "an unknown dtype": (with_w(dtype="F31"), "'w' has dtype 'F31'"),
    "a dtype that is no string": (with_w(dtype=["F32"]), "'w' has dtype"),
    "end before start": (with_w(data_offsets=[8, 0]), r"'w' has data_offsets \[8, 0\]"),
    "a negative offset": (with_w(data_offsets=[-8, 0]), "'w' has data_offsets"),
    "three offsets": (with_w(data_offsets=[0, 4, 8]), "'w' has data_offsets"),
    "a fraction as offset": (with_w(data_offsets=[0, 8.0]), "'w' has data_offsets"),
    "a negative size": (with_w(shape=[-2]), "'w' has shape"),
    "true as size": (with_w(shape=[True, 2]), "'w' has shape"),
    "a huge size": (with_w(shape=[2**70, 0], data_offsets=[0, 0]), "'w' has shape"),
    "sizes whose product is huge": (with_w(shape=[2**62, 2**62]), "'w' .* needs"),
    "a shape that is no list": (with_w(shape=2), "'w' has shape 2"),
    "sizes of which one is 0": (with_w(shape=[2**62, 2**62, 0], data_offsets=[0, 0]), "'w' has shape"),
    "a hundred dimensions": (with_w(shape=[1] * 100), "'w' has 100 dimensions"),
    "a million of them": (with_w(shape=[2**62] * 1_000_000), "'w' has 1,000,000 dimensions"),
    "400 digits": (b'{"w":{"dtype":"F32","shape":[' + b"9" * 400 + b'],"data_offsets":[0,8]}}', "400 digits"),
    "many names twice": (json.dumps({f"w{n}": W for n in range(50_000)}).encode()[:-1] + b',"w0":1}', "occurs twice"),
    "half of a surrogate pair": (b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', "not valid Unicode"),
    "2,000 lists": (b'{"w":' + b"[" * 2000 + b"]" * 2000 + b"}", "nested"),
    "a long name": ({"n" * 3000: W, "v": V}, "a name of 3,000 characters"),
    "overlap": ({"w": W, "v": {**V, "data_offsets": [4, 8]}}, "'v' overlaps 'w'"),
    "the same place twice": ({"w": W, "x": W, "v": V}, "'x' overlaps 'w'"),
    "a gap": ({"v": V}, "'v' leaves a gap after the header"),
    "bytes left over": ({"w": W}, "4 bytes after 'w' belong to no tensor"),
    "a missing field": ({"w": {"dtype": "F32"}, "v": V}, "'w' must have dtype, shape and data_offsets"),
    "an entry that is no object": ({"w": 3, "v": V}, "'w' must have"),
    "a name twice": (b'{"w":1,"w":2}', "'w' occurs twice"),
    "not JSON": (b'{"w"', "not valid JSON"),
    "not UTF-8": (b'{"\xff":1}', "not valid JSON"),
    "nested beyond reason": (b"[" * 100_000, "not valid JSON"),
    "a number of many digits": (b'{"w":' + b"9" * 10_000 + b"}", "not valid JSON"),
    "a list": ([W], "JSON list"),
    "metadata of numbers": ({"__metadata__": {"a": 1}, "w": W, "v": V}, "__metadata__"),
    "metadata as a list": ({"__metadata__": [], "w": W, "v": V}, "__metadata__"),
    "ties that are not JSON": (
        {"__metadata__": {"weightspace.tied": "{"}, "w": W, "v": V},
        "weightspace.tied",
    ),
    "ties that are a list": (
        {"__metadata__": {"weightspace.tied": "[]"}, "w": W, "v": V},
        "weightspace.tied",
    ),
    "a tie to nothing": (
        {"__metadata__": {"weightspace.tied": '{"x": "y"}'}, "w": W, "v": V},
        "ties 'x' to 'y'",
    ),
    "a tie over a tensor": (
        {"__metadata__": {"weightspace.tied": '{"w": "v"}'}, "w": W, "v": V},
        "ties 'w' to 'v'",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_false_header_is_detected(lie: str, tmp_path: Path) -> None:
    header, message = LIES[lie]
    path = write(tmp_path / "liar.safetensors", header)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_header_that_the_false_ones_derive_from_is_valid(tmp_path: Path) -> None:
    state = load_checkpoint(write(tmp_path / "good.safetensors", {"w": W, "v": V}))
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {"w": (2,), "v": (4,)}


def test_a_tensor_at_an_odd_address_is_read(tmp_path: Path) -> None:
    header = {
        "flag": {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]},
        "w": {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]},
    }
    path = write(tmp_path / "odd.safetensors", header, b"\1" + struct.pack("<f", 2.5))
    assert load_checkpoint(path)["w"].item() == 2.5


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 100_000_001, 1000])
def test_a_header_longer_than_the_file_or_the_format_allows_is_refused(length: int, tmp_path: Path) -> None:
    path = tmp_path / "huge.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(CheckpointError, match=r"huge\.safetensors: the header claims"):
        load_checkpoint(path)


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no tensors"):
        load_checkpoint(write(tmp_path / "none.safetensors", {}, b""))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("good") / "good.safetensors"
    weight = torch.arange(6.0).reshape(2, 3)
    save_checkpoint({"w": weight, "tied": weight, "n": torch.tensor(3), "h": torch.ones(3).bfloat16()}, path)
    return path


def test_every_truncation_is_refused(good: Path, tmp_path: Path) -> None:
    content = good.read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=r"cut\.safetensors"):
            load_checkpoint(cut)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_corruption_gives_anything_but_tensors_or_a_checkpoint_error(data: st.DataObject, good: Path) -> None:
    content = bytearray(good.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = good.with_name("corrupt.safetensors")
    path.write_bytes(content)
    try:
        state, message = load_checkpoint(path), ""
    except CheckpointError as error:
        state, message = {}, str(error)
    assert state or "corrupt.safetensors" in message
    assert sum(tensor.nbytes for tensor in state.values()) <= 2 * len(content)
    assert all(tensor.tolist() is not None for tensor in state.values())
