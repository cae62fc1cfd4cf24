"""DeepSpeed checkpoints of ZeRO 1, 2 and 3, put together as DeepSpeed's own ``zero_to_fp32`` does."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import weightspace as ws
from weightspace.checkpoints.read_metadata import read_contents
from weightspace.checkpoints.reader import CheckpointReader
from weightspace.errors import CheckpointError

FOLDER = Path(__file__).parent / "deepspeed"
STAGES = (1, 2, 3)

pytestmark = pytest.mark.filterwarnings("ignore::weightspace.errors.WeightspaceWarning")


def checkpoint(stage: int) -> Path:
    """Return the committed checkpoint of a stage."""
    return FOLDER / f"stage{stage}" / "global_step2"


@pytest.mark.parametrize("stage", STAGES)
def test_the_weights_are_those_of_zero_to_fp32(stage: int) -> None:
    wanted, state = torch.load(FOLDER / f"stage{stage}.pt"), ws.load_checkpoint(checkpoint(stage))
    assert [name for name in state if name in wanted] == list(wanted)
    for name, tensor in wanted.items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor)
    assert state["head.weight"] is state["embed.weight"]


def test_frozen_weights_that_zero_to_fp32_loses_are_kept() -> None:
    wanted, state = torch.load(FOLDER / "stage2.pt"), ws.load_checkpoint(checkpoint(1))
    assert "frozen.weight" not in torch.load(FOLDER / "stage1.pt")
    assert torch.equal(state["frozen.weight"], wanted["frozen.weight"])


@pytest.mark.parametrize("stage", STAGES)
def test_every_range_is_read(stage: int) -> None:
    contents, wanted = read_contents(checkpoint(stage)), torch.load(FOLDER / f"stage{stage}.pt")
    assert contents.pieces
    for name in contents.pieces:
        stored, elements = CheckpointReader(contents).stored(name), wanted[name].reshape(-1)
        assert stored is not None
        for start in range(len(elements)):
            for stop in range(start, len(elements) + 1):
                assert torch.equal(stored.read(start, stop), elements[start:stop])


@pytest.mark.parametrize("stage", STAGES)
def test_the_folder_above_leads_to_the_latest_checkpoint(stage: int) -> None:
    above = ws.load_checkpoint(checkpoint(stage).parent)
    assert above.keys() == ws.load_checkpoint(checkpoint(stage)).keys()


@pytest.mark.parametrize("tag", ["../stage2/global_step2", "..", "", "/", "nowhere"])
def test_a_latest_file_leads_nowhere_else(tmp_path: Path, tag: str) -> None:
    shutil.copytree(checkpoint(1), tmp_path / "stage1" / "global_step2")
    (tmp_path / "stage1" / "latest").write_text(tag)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        ws.load_checkpoint(tmp_path / "stage1")


def copy(stage: int, folder: Path) -> Path:
    """Copy a checkpoint."""
    return Path(shutil.copytree(checkpoint(stage), folder / "copy"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_missing_rank_is_refused(tmp_path: Path, stage: int) -> None:
    folder = copy(stage, tmp_path)
    first, second = sorted(folder.glob("*_optim_states.pt"))
    second.unlink()
    with pytest.raises(CheckpointError, match=r"expected 2 files \*_optim_states.pt, one per rank; found 1"):
        ws.load_checkpoint(folder)
    first.rename(second)
    with pytest.raises(CheckpointError, match=r"of rank 0\. Copy all files"):
        ws.load_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mp_rank_01_model_states.pt", "tensor-parallel"),
        ("layer_0_expert_1_mp_rank_00_model_states.pt", "mixture of experts"),
    ],
)
def test_other_parallelism_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    folder = copy(1, tmp_path)
    (folder / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=reason):
        ws.load_checkpoint(folder)


def test_parameters_that_do_not_fill_the_partitions_are_refused(tmp_path: Path) -> None:
    folder = copy(2, tmp_path)
    path = folder / "mp_rank_00_model_states.pt"
    content = torch.load(path, weights_only=False)
    content["param_shapes"][0]["body.weight"] = torch.Size((50, 5))
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"have .* of 250 elements"):
        ws.load_checkpoint(folder)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    folder = copy(3, tmp_path)
    file = next(folder.glob("*rank_1*_optim_states.pt"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is damaged"):
        ws.load_checkpoint(folder)


class Attack:
    """An object whose pickle calls ``os.system``."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch hacked",)


def test_a_file_that_calls_a_function_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = copy(2, tmp_path)
    torch.save({"module": {}, "x": Attack()}, folder / "mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match=r"needs code to be run \(posix.system\)"):
        ws.load_checkpoint(folder)
    assert not (tmp_path / "hacked").exists()


def test_a_checkpoint_without_zero_is_its_module(tmp_path: Path) -> None:
    torch.save({"module": {"w": torch.arange(3.0)}, "optimizer": None}, tmp_path / "mp_rank_00_model_states.pt")
    assert ws.load_checkpoint(tmp_path)["w"].tolist() == [0, 1, 2]


def test_a_merge_and_a_key(tmp_path: Path) -> None:
    ws.merge_files([checkpoint(2), checkpoint(3)], tmp_path / "merged")
    assert sorted(path.name for path in (tmp_path / "merged").iterdir()) == ["README.md", "model.safetensors"]
    with pytest.raises(CheckpointError, match="has one model"):
        ws.load_checkpoint(checkpoint(2), key="model")
