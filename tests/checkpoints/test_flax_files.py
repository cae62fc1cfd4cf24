"""Flax files: every array by its place, chunks, states of training, damage, and the names of transformers' models.

``flax/state.msgpack`` was written by flax 0.12.8 with chunks of 64 bytes, and ``state.json`` holds the same arrays.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch

import weightspace as ws
from weightspace.checkpoints.flax_file import flax_contents
from weightspace.checkpoints.msgpack_items import MsgpackFile
from weightspace.errors import CheckpointError
from weightspace.merging import ReadingOptions

FLAX = Path(__file__).parent / "flax"
pytestmark = pytest.mark.filterwarnings("ignore::weightspace.WeightspaceWarning")


def array(values: np.ndarray, *, kind: int = 1) -> msgpack.ExtType:
    """Return an array as flax writes it."""
    content = (values.shape, values.dtype.name, values.tobytes("C"))
    return msgpack.ExtType(kind, msgpack.packb(content, use_bin_type=True))


def written(path: Path, tree: Any) -> Path:
    path.write_bytes(msgpack.packb(tree) or b"")
    return path


def test_arrays_written_by_flax_are_read_to_the_bit() -> None:
    expected = json.loads((FLAX / "state.json").read_text())
    found = ws.load_checkpoint(FLAX / "state.msgpack")
    assert list(found) == [name for name in expected if not name.startswith("opt_state")]
    for name, tensor in found.items():
        assert str(tensor.dtype).removeprefix("torch.") == expected[name]["dtype"]
        assert list(tensor.shape) == expected[name]["shape"]
        assert bytes(tensor.flatten().view(torch.uint8).tolist()).hex() == expected[name]["hex"]


def test_what_is_left_out_is_said() -> None:
    with pytest.warns(ws.WeightspaceWarning, match=r"left out: 2 arrays of the optimiser .*1 entries that are no arr"):
        ws.load_checkpoint(FLAX / "state.msgpack")


def test_arrays_are_read_by_range_from_their_places(tmp_path: Path) -> None:
    contents = flax_contents(FLAX / "state.msgpack")
    assert len(contents.pieces["params.big"]) == 3  # chunks of 16 numbers
    out = tmp_path / "merged.safetensors"
    ws.merge_files([FLAX / "state.msgpack", FLAX / "state.msgpack"], out)
    expected = ws.load_checkpoint(FLAX / "state.msgpack")
    merged = ws.load_checkpoint(out)
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("transpose", [False, True])
def test_arrays_in_chunks_get_names_by_maps(transpose: bool, tmp_path: Path) -> None:
    rule = {"a": "params.big", "b": "model.big", "transpose": transpose}
    reading = ReadingOptions(names={"sides": ["a", "b"], "to": "b", "rules": [rule]})
    out = tmp_path / "out.safetensors"
    ws.merge_files([FLAX / "state.msgpack"], out, method="passthrough", reading=reading)
    expected = ws.load_checkpoint(FLAX / "state.msgpack")["params.big"]
    assert torch.equal(ws.load_checkpoint(out)["model.big"], expected.T if transpose else expected)


@pytest.mark.parametrize("family", ["llama", "mistral", "bert", "gpt2"])
def test_models_of_transformers_compute_the_same_in_pytorch(family: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    reading = ReadingOptions(names="flax=torch")
    ws.merge_files([FLAX / family], tmp_path / "torch", method="passthrough", reading=reading)
    kind = transformers.AutoModelForMaskedLM if family == "bert" else transformers.AutoModelForCausalLM
    network, report = kind.from_pretrained(tmp_path / "torch", output_loading_info=True)
    assert not report["unexpected_keys"]
    with torch.no_grad():
        logits = network(torch.arange(2, 12)[None]).logits
    torch.testing.assert_close(logits, torch.from_numpy(np.load(FLAX / family / "logits.npy")), rtol=1e-4, atol=1e-5)


def test_the_names_of_flax_come_back(tmp_path: Path) -> None:
    original = ws.load_checkpoint(FLAX / "llama")
    for side, source in (("torch", FLAX / "llama"), ("flax", tmp_path / "torch")):
        reading = ReadingOptions(names=f"flax={side}")
        ws.merge_files([source], tmp_path / side, method="passthrough", reading=reading)
    found = ws.load_checkpoint(tmp_path / "flax")
    assert found.keys() == original.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in original.items())


def test_a_mix_with_pytorch_names_the_map_and_merges_by_it(tmp_path: Path) -> None:
    reading = ReadingOptions(names="flax=torch")
    ws.merge_files([FLAX / "llama"], tmp_path / "torch", method="passthrough", reading=reading)
    with pytest.raises(CheckpointError, match=r"has no tensor '.*embedding', which llama has.*--names flax"):
        ws.merge_files([FLAX / "llama", tmp_path / "torch"], tmp_path / "out")
    ws.merge_files([tmp_path / "torch", FLAX / "llama"], tmp_path / "out", reading=ReadingOptions(names="flax"))
    expected, found = ws.load_checkpoint(tmp_path / "torch"), ws.load_checkpoint(tmp_path / "out")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_shards_are_read_by_their_index(tmp_path: Path) -> None:
    parts = {"flax_model-00001-of-00002.msgpack": "a", "flax_model-00002-of-00002.msgpack": "b"}
    for name, key in parts.items():
        written(tmp_path / name, {"model": {key: array(np.arange(3.0, dtype=np.float32))}})
    index = {"metadata": {}, "weight_map": {f"model/{key}": name for name, key in parts.items()}}
    (tmp_path / "flax_model.msgpack.index.json").write_text(json.dumps(index))
    assert list(ws.load_checkpoint(tmp_path)) == ["model.a", "model.b"]


W = np.arange(6, dtype=np.float32).reshape(2, 3)
DAMAGED: dict[str, tuple[Any, str]] = {
    "no arrays": ({"a": {"b": 1}}, "has no arrays"),
    "a list": ([array(W)], "begins with a list"),
    "dtype": ({"w": msgpack.ExtType(1, msgpack.packb(((1,), "object", b"12345678")))}, "dtype object"),
    "size": ({"w": msgpack.ExtType(1, msgpack.packb(((2, 3), "float32", b"1234")))}, "has 4 bytes of 'w', expected 24"),
    "negative": ({"w": msgpack.ExtType(1, msgpack.packb(((-1,), "float32", b"")))}, "with the size -1"),
    "no list": ({"w": msgpack.ExtType(1, msgpack.packb(3))}, "without shape, dtype and bytes"),
    "twice": ({"a.b": array(W), "a": {"b": array(W)}}, "two arrays of the name 'a.b'"),
    "key": ({b"w": array(W)}, "neither a short text nor a number"),
    "chunks": (
        {"w": {"__msgpack_chunked_array__": True, "shape": {"0": 9}, "chunks": {"0": array(W)}}},
        r"chunks of 'w' that do not fit its shape \(9,\)",
    ),
    "order": (
        {"w": {"__msgpack_chunked_array__": True, "shape": {"0": 12}, "chunks": {"1": array(W), "0": array(W)}}},
        "not numbered in order",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_refused(case: str, tmp_path: Path) -> None:
    tree, message = DAMAGED[case]
    with pytest.raises(CheckpointError, match=message):
        ws.load_checkpoint(written(tmp_path / "m.msgpack", tree))


def test_files_that_end_early_or_late_are_refused(tmp_path: Path) -> None:
    whole = (FLAX / "state.msgpack").read_bytes()
    for length in range(1, len(whole), 7):
        (tmp_path / "m.msgpack").write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            ws.load_checkpoint(tmp_path / "m.msgpack")
    (tmp_path / "m.msgpack").write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="1 bytes after its map"):
        ws.load_checkpoint(tmp_path / "m.msgpack")


def test_deep_nesting_and_promised_entries_end_in_an_error(tmp_path: Path) -> None:
    (tmp_path / "m.msgpack").write_bytes(b"\x81\xa1a" * 5000 + b"\xc0")
    with pytest.raises(CheckpointError, match="levels deep"):
        ws.load_checkpoint(tmp_path / "m.msgpack")
    (tmp_path / "m.msgpack").write_bytes(b"\xdf" + struct.pack(">I", 2**32 - 1) + b"\xa1a\xc0")
    with pytest.raises(CheckpointError, match="within an item"):
        ws.load_checkpoint(tmp_path / "m.msgpack")


def test_files_are_known_by_their_first_bytes(tmp_path: Path) -> None:
    path = written(tmp_path / "weights", {"params": {"w": array(W)}})
    assert torch.equal(ws.load_checkpoint(path)["params.w"], torch.from_numpy(W))


VALUES = [None, True, False, 0, 127, 128, -1, -32, -33, 2**16, -(2**40), 2**63, 1.5, "x", "x" * 40, "x" * 300]


def test_items_are_those_of_msgpack(tmp_path: Path) -> None:
    tree = {"k" * 20: [*VALUES, b"b" * 300, {str(number): number for number in range(20)}, list(range(70000))]}
    file = MsgpackFile(written(tmp_path / "m", tree))

    def read(at: int) -> tuple[Any, int]:
        item = file.item(at)
        if item.kind == "bytes":
            return (tmp_path / "m").read_bytes()[item.start : item.stop], item.stop
        if item.kind not in ("map", "list"):
            return item.value, item.stop
        found, at = [], item.start
        for _ in range(item.value * (2 if item.kind == "map" else 1)):
            value, at = read(at)
            found.append(value)
        return (dict(zip(found[::2], found[1::2], strict=True)) if item.kind == "map" else found), at

    assert read(0) == (tree, file.size)
    file.close()
