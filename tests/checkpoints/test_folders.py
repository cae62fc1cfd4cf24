"""Hugging Face folders: one file, shards, companions, and an index that lies."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from weightspace.checkpoints import StateDict, load_checkpoint, load_metadata, save_checkpoint
from weightspace.errors import CheckpointError

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
PLACES = {"a": FIRST, "c": SECOND, "b": FIRST}


def sharded(folder: Path, places: Any = PLACES, metadata: Any = None) -> Path:
    folder.mkdir(exist_ok=True)
    safetensors.torch.save_file({"a": torch.full((2,), 1.0), "b": torch.full((2,), 2.0)}, folder / FIRST)
    safetensors.torch.save_file({"c": torch.full((2,), 3.0)}, folder / SECOND)
    index = {"metadata": metadata or {"total_size": 24}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def test_shards_come_back_in_the_order_of_the_index(tmp_path: Path) -> None:
    state = load_checkpoint(sharded(tmp_path / "m"))
    assert list(state) == ["a", "c", "b"]
    assert [tensor[0].item() for tensor in state.values()] == [1.0, 3.0, 2.0]
    assert load_metadata(tmp_path / "m") == {"total_size": "24"}


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_single_file_is_found(name: str, state: StateDict, tmp_path: Path) -> None:
    save_checkpoint(state, tmp_path / name, metadata={"a": "1"})
    assert list(load_checkpoint(tmp_path)) == list(state)
    assert load_metadata(tmp_path)["a"] == "1"


def test_torch_shards_are_read(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": torch.zeros(1)}, tmp_path / "pytorch_model-00002-of-00002.bin")
    places = {"b": "pytorch_model-00002-of-00002.bin", "a": "pytorch_model-00001-of-00002.bin"}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    assert {name: tensor.item() for name, tensor in load_checkpoint(tmp_path).items()} == {"b": 0.0, "a": 1.0}


def test_a_missing_shard_is_named_with_a_tensor_that_it_held(tmp_path: Path) -> None:
    (sharded(tmp_path) / SECOND).unlink()
    with pytest.raises(CheckpointError, match=rf"{SECOND} is missing: .* holds 'c', 1 tensors"):
        load_checkpoint(tmp_path)


WRONG_PLACES = {
    "a tensor that the shard lacks": ({**PLACES, "d": SECOND}, f"{SECOND} lacks tensor 'd'"),
    "a tensor in the other shard": ({**PLACES, "c": FIRST}, f"{FIRST} lacks tensor 'c'"),
    "a tensor left out": ({"a": FIRST, "c": SECOND}, "holds tensor 'b', which"),
    "a file outside": ({"a": "../secret.safetensors"}, "places tensor 'a' in '../secret.safetensors'"),
    "an absolute path": ({"a": "/etc/passwd"}, "places tensor 'a' in '/etc/passwd'"),
    "the folder above": ({"a": ".."}, "places tensor 'a'"),
    "a number": ({"a": 3}, "places tensor 'a' in '3'"),
    "a shard of unknown kind": ({"a": INDEX}, f"{INDEX} is not a checkpoint"),
    "nothing": ({}, "no 'weight_map'"),
    "a list": (["a"], "no 'weight_map'"),
}


@pytest.mark.parametrize("case", WRONG_PLACES)
def test_a_false_index_is_detected(case: str, tmp_path: Path) -> None:
    places, message = WRONG_PLACES[case]
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(sharded(tmp_path, places))


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"weight_map": 3}'])
def test_an_index_that_is_no_index_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match=INDEX):
        load_checkpoint(tmp_path)


def test_a_folder_without_weights_says_what_it_holds(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match=r"holds no checkpoint: .* holds other\.pt: name the file itself"):
        load_checkpoint(tmp_path)


def test_missing_and_foreign_paths_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"nowhere\.pt does not exist"):
        load_checkpoint(tmp_path / "nowhere.pt")
    with pytest.raises(CheckpointError, match=r"a\.txt is not a checkpoint"):
        load_checkpoint(tmp_path / "a.txt")


def test_all_but_weights_and_training_is_copied(state: StateDict, tmp_path: Path) -> None:
    source = tmp_path / "source"
    save_checkpoint({"old": torch.ones(1)}, source)
    for name in ("config.json", "tokenizer.json", "optimizer.pt", "notes.md", INDEX):
        (source / name).write_text(name)
    save_checkpoint(state, tmp_path / "out", companions_from=source)
    found = {path.name for path in (tmp_path / "out").iterdir()}
    assert found == {"model.safetensors", "config.json", "tokenizer.json", "notes.md"}
    assert (tmp_path / "out" / "config.json").read_text() == "config.json"
    assert list(load_checkpoint(tmp_path / "out")) == list(state)


def test_a_single_file_has_no_companions(state: StateDict, tmp_path: Path) -> None:
    save_checkpoint(state, tmp_path / "a.safetensors")
    save_checkpoint(state, tmp_path / "out", companions_from=tmp_path / "a.safetensors")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    with pytest.raises(CheckpointError, match="nowhere cannot be read"):
        save_checkpoint(state, tmp_path / "out", companions_from=tmp_path / "nowhere")


def test_shards_of_an_earlier_model_do_not_survive(state: StateDict, tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m")
    (folder / "config.json").write_text("{}")
    save_checkpoint(state, folder, companions_from=folder)
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("names", [["notes.md"], ["config.json"], ["model.safetensors", "thesis.tex"]])
def test_a_folder_with_anything_else_is_never_replaced(names: list[str], state: StateDict, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in names:
        (folder / name).write_text("precious")
    with pytest.raises(CheckpointError, match=rf"mine exists .*'{names[-1]}'"):
        save_checkpoint(state, folder)
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_a_folder_with_a_folder_in_it_is_never_replaced(state: StateDict, tmp_path: Path) -> None:
    save_checkpoint(state, tmp_path / "m")
    (tmp_path / "m" / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"'config\.json', which is not part of a checkpoint"):
        save_checkpoint(state, tmp_path / "m")


def test_an_empty_folder_is_filled(state: StateDict, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    save_checkpoint(state, tmp_path / "m")
    assert list(load_checkpoint(tmp_path / "m")) == list(state)
