"""Checkpoints of Lightning, accelerate, timm and Megatron: the model's tensors, whatever stands beside them."""

import argparse
import io
import json
import os
import pickle
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.utils.checkpoint_saver import CheckpointSaver
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.state_dict_saver import save as save_dcp

import weightspace as ws
from weightspace.checkpoints.read_metadata import read_contents
from weightspace.errors import CheckpointError
from weightspace.runs import average_run, find_checkpoints

LIGHTNING = Path(__file__).parent / "lightning"

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::weightspace.errors.WeightspaceWarning")


def test_a_lightning_checkpoint_is_read_without_its_hyperparameters() -> None:
    path = LIGHTNING / "epoch=1-step=4.ckpt"
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    state, wanted = ws.load_checkpoint(path), torch.load(LIGHTNING / "last.pt")
    assert list(state) == list(wanted)
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    (note,) = read_contents(path).notes
    assert "left out, since only tensors are read: objects of __main__.Config" in note


def test_a_folder_of_lightning_with_sharded_weights_is_the_full_state_dict() -> None:
    folder = Path(__file__).parent / "lightning-sharded"
    state, full = ws.load_checkpoint(folder / "step=2.ckpt"), torch.load(folder / "full.pt")
    assert state.keys() == full.keys()
    assert all(torch.equal(state[name], full[name]) for name in full)
    (note,) = read_contents(folder / "step=2.ckpt").notes
    assert "Left out: " in note
    assert "optimizer tensors" in note
    assert find_checkpoints(folder)[0].step == 2


def test_a_run_of_lightning_is_averaged(tmp_path: Path) -> None:
    found = find_checkpoints(LIGHTNING)
    assert [checkpoint.step for checkpoint in found] == [2, 4]
    average_run(found, tmp_path / "a.safetensors")
    states = [ws.load_checkpoint(checkpoint.path) for checkpoint in found]
    average = ws.load_checkpoint(tmp_path / "a.safetensors")
    assert all(torch.equal(average[name], tensor) for name, tensor in ws.merge(states).items())


class Thing:
    """An object of a user's class."""


def test_views_and_ties_beside_objects_are_kept(tmp_path: Path) -> None:
    matrix = torch.arange(12.0).view(3, 4)
    state = {"w": matrix, "t": matrix.T, "part": matrix[1:, 2:], "tied": matrix, "b": torch.tensor([True, False])}
    torch.save({"state_dict": state, "args": argparse.Namespace(lr=0.1), "thing": Thing()}, tmp_path / "a.ckpt")
    read = ws.load_checkpoint(tmp_path / "a.ckpt")
    assert all(torch.equal(read[name], state[name]) for name in state)
    assert read["tied"].data_ptr() == read["w"].data_ptr()
    read["w"].zero_()  # never changes the file
    assert torch.equal(ws.load_checkpoint(tmp_path / "a.ckpt")["w"], matrix)


def test_an_object_among_the_weights_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(2), "q": Thing()}}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"'q' is an object of .*Thing, which needs code to be run"):
        ws.load_checkpoint(tmp_path / "a.ckpt")


class Attack:
    """An object whose pickle calls ``os.system``."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch hacked",)


def test_an_attack_beside_the_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"w": torch.ones(2)}, "thing": Thing(), "x": Attack()}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"needs code to be run \(posix\.system\)"):
        ws.load_checkpoint(tmp_path / "a.ckpt")
    assert not (tmp_path / "hacked").exists()


def test_the_average_of_timm_is_said_and_can_be_chosen(tmp_path: Path) -> None:
    network = nn.Linear(2, 1)
    average = ModelEmaV3(network)
    with torch.no_grad():
        average.module.weight += 1
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    saver = CheckpointSaver(
        network, optimizer, argparse.Namespace(model="linear"), average, checkpoint_dir=str(tmp_path)
    )
    saver.save_checkpoint(1, 0.5)
    path = tmp_path / "checkpoint-1.pth.tar"
    assert any("'state_dict_ema'" in note for note in read_contents(path).notes)
    assert torch.equal(ws.load_checkpoint(path)["weight"], network.weight)
    found = ws.load_checkpoint(path, key="state_dict_ema")
    assert found.keys() == {"weight", "bias"}
    assert torch.equal(found["weight"], average.module.weight)


ACCELERATE = Path(__file__).parent / "accelerate"


@pytest.mark.parametrize("name", ["fsdp1-sharded", "fsdp1-full", "fsdp2-sharded", "fsdp2-full"])
def test_a_folder_saved_by_accelerate_with_fsdp_is_the_full_state_dict(name: str) -> None:
    state, full = ws.load_checkpoint(ACCELERATE / name), torch.load(ACCELERATE / f"{name}.pt")
    assert state.keys() == full.keys()
    assert all(torch.equal(state[key], full[key]) for key in full)


@pytest.mark.parametrize("name", ["fsdp1-local", "fsdp2-ranks"])
def test_what_each_rank_of_fsdp_saved_by_itself_is_refused_with_advice(name: str) -> None:
    folder = ACCELERATE / name
    for path in (folder, *folder.iterdir()):
        with pytest.raises(CheckpointError, match=r"FSDP state dict.* not read\. Save it with .*SHARDED_STATE_DICT"):
            ws.load_checkpoint(path)


def test_a_run_of_accelerate_with_fsdp_is_averaged(tmp_path: Path) -> None:
    for step, name in ((10, "fsdp2-sharded"), (20, "fsdp2-full")):
        shutil.copytree(ACCELERATE / name, tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-10" / "config.json").write_text('{"model_type": "llama"}')
    found = find_checkpoints(tmp_path)
    assert [checkpoint.step for checkpoint in found] == [10, 20]
    average_run(found, tmp_path / "average")
    expected = ws.merge([torch.load(ACCELERATE / f"{name}.pt") for name in ("fsdp2-sharded", "fsdp2-full")])
    average = ws.load_checkpoint(tmp_path / "average")
    assert all(torch.equal(average[key], tensor) for key, tensor in expected.items())
    names = sorted(path.name for path in (tmp_path / "average").iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]


def megatron(folder: Path, backend: str = "torch_dist") -> Path:
    """Save a checkpoint as Megatron-LM's ``torch_dist`` does: flat names, and files beside ``.metadata``."""
    state = {
        "decoder.layers.mlp.weight": torch.ones(2, 3),
        "decoder.layers.mlp._extra_state/shard_0_2": io.BytesIO(b"x"),
        "optimizer.state.exp_avg.decoder.layers.mlp.weight": torch.zeros(2, 3),
        "rng_state/shard_0_1": io.BytesIO(b"y"),
    }
    planner = DefaultSavePlanner(flatten_state_dict=False)
    save_dcp(state, checkpoint_id=folder, planner=planner, no_dist=True)
    torch.save({"args": Thing(), "iteration": 100}, folder / "common.pt")
    (folder / "metadata.json").write_text(json.dumps({"sharded_backend": backend, "sharded_backend_version": 1}))
    return folder


def test_a_run_of_megatron_is_read_without_optimizer_and_objects(tmp_path: Path) -> None:
    for number in (100, 200):
        megatron(tmp_path / f"iter_{number:07d}")
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("200")
    assert [checkpoint.step for checkpoint in find_checkpoints(tmp_path)] == [100, 200]
    assert list(ws.load_checkpoint(tmp_path)) == ["decoder.layers.mlp.weight"]
    (note,) = read_contents(tmp_path / "iter_0000100").notes
    assert "Left out: 1 optimizer tensor; 2 objects (decoder.layers.mlp._extra_state/shard_0_2, rng_state" in note
    ws.merge_files([tmp_path / "iter_0000100", tmp_path / "iter_0000200"], tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "model.safetensors"]


def test_a_checkpoint_by_the_library_of_megatron_is_read() -> None:
    path = Path(__file__).parent / "megatron" / "iter_0000010"
    (note,) = read_contents(path).notes
    assert "Left out: 1 optimizer tensor; 1 object (rng_state/shard_0_1)" in note
    state = ws.load_checkpoint(path)
    assert state.keys() == {"decoder.layers.mlp.weight", "decoder.layers.mlp.bias"}
    assert torch.equal(state["decoder.layers.mlp.weight"], torch.arange(24.0).reshape(8, 3) / 8)
    assert torch.equal(state["decoder.layers.mlp.bias"], torch.arange(4.0).bfloat16())


REFUSED = {
    "zarr": (["metadata.json"], "zarr"),
    "megatron": (["mp_rank_00/model_optim_rng.pt"], "Megatron-LM in the format torch "),
    "a run of megatron": (["iter_0000010/mp_rank_00/model_optim_rng.pt"], "Megatron-LM in the format torch "),
    "universal": (["zero/w/fp32.pt"], "universal"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_formats_are_refused_with_advice(tmp_path: Path, case: str) -> None:
    names, word = REFUSED[case]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"sharded_backend": "zarr"}))
    with pytest.raises(CheckpointError, match=rf"{word}.*(Save|Convert|Use)"):
        ws.load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "arrays"),
    [("checkpointer", "checkpointer"), ("manager/100", "manager/100/default"), ("manager", "manager/100/default")],
)
def test_checkpoints_of_orbax_are_refused_with_the_command_that_converts_them(name: str, arrays: str) -> None:
    """The command was run on both: Orbax restores its manager's checkpoints only from the inner folder."""
    folder = Path(__file__).parent / "orbax"
    with pytest.raises(CheckpointError, match=r"Orbax.*not read.*Convert them") as error:
        ws.load_checkpoint(folder / name)
    assert str(error.value).endswith(f'restore(sys.argv[1])))" {shlex.quote(str(folder / arrays))}')
