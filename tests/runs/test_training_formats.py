"""Runs whose checkpoints are in the formats of training libraries."""

from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.state_dict_saver import save as save_dcp

import weightspace as ws
from weightspace.errors import WeightspaceError
from weightspace.runs import average_run, find_checkpoints, schedule_weights, score_windows

pytestmark = pytest.mark.filterwarnings("ignore::weightspace.errors.WeightspaceWarning", "ignore::UserWarning")


def dcp_run(folder: Path, steps: range) -> Path:
    """Save a run of distributed checkpoints with an optimizer."""
    for step in steps:
        values = torch.randn(5, 7, generator=torch.Generator().manual_seed(step))
        state = {
            "model": {"w": values, "bn.num_batches_tracked": torch.tensor(step)},
            "optim": {"state": {"w": {"exp_avg": values}}},
        }
        save_dcp(state, checkpoint_id=folder / f"step-{step}", no_dist=True)
    return folder


@pytest.mark.parametrize("schedule", ["uniform", "ema:0.7", "wsm:1-sqrt"])
def test_an_average_of_distributed_checkpoints_is_the_merge_with_its_weights(tmp_path: Path, schedule: str) -> None:
    found = find_checkpoints(dcp_run(tmp_path / "run", range(100, 600, 100)), last=4)
    assert [checkpoint.step for checkpoint in found] == [200, 300, 400, 500]
    paths, weights = [one.path for one in found], schedule_weights(schedule, 4)
    average_run(found, tmp_path / "average.safetensors", schedule=schedule)
    ws.merge_files(paths, tmp_path / "merged.safetensors", weights=weights)
    average, merged = (ws.load_checkpoint(tmp_path / f"{name}.safetensors") for name in ("average", "merged"))
    in_memory = ws.merge([ws.load_checkpoint(path) for path in paths], weights=weights)
    assert all(torch.equal(average[name], merged[name]) for name in merged)
    assert torch.equal(average["w"], in_memory["w"])


def test_one_distributed_checkpoint_is_no_run(tmp_path: Path) -> None:
    folder = dcp_run(tmp_path / "run", range(1, 2)) / "step-1"
    with pytest.raises(WeightspaceError, match="is one checkpoint"):
        find_checkpoints(folder)


def test_one_line_tells_what_is_left_out_of_all_checkpoints(tmp_path: Path) -> None:
    found = find_checkpoints(dcp_run(tmp_path / "run", range(1, 4)))
    lines: list[str] = []
    average_run(found, tmp_path / "a.safetensors", warn=lines.append)
    (line,) = [line for line in lines if "optimizer" in line]
    assert "step-1 (like 2 more) is a training checkpoint" in line


def test_a_score_sees_every_window_in_the_same_format(tmp_path: Path) -> None:
    found = find_checkpoints(dcp_run(tmp_path / "run", range(1, 4)))
    paths: list[Path] = []

    def score(path: Path) -> float:
        paths.append(path)
        return float(ws.load_checkpoint(path)["w"].norm())

    windows = score_windows(found, score)
    assert [path.suffix for path in paths] == [".safetensors"] * 3
    assert windows.scores["score"][0] == float(ws.load_checkpoint(found[-1].path)["w"].norm())
