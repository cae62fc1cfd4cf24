"""Checkpoints of a training run, found by the steps in their names."""

from pathlib import Path

import pytest
import torch

import weightspace as ws
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.runs import find_checkpoints


def steps(folder: Path, **options: object) -> list[int]:
    return [checkpoint.step for checkpoint in find_checkpoints(folder, **options)]  # type: ignore[arg-type]


def write(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            ws.save_checkpoint({"w": torch.zeros(2)}, path)
        else:
            torch.save({"w": torch.zeros(2)}, path)
    return folder


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("step_100.safetensors", "step_20.safetensors", "step_3.safetensors"), [3, 20, 100]),
        (("checkpoint-500/model.safetensors", "checkpoint-1000/model.safetensors"), [500, 1000]),
        (("epoch=0-step=200.ckpt", "epoch=1-step=400.ckpt"), [200, 400]),
        (("iter_0000100/model.safetensors", "iter_0002000/model.safetensors"), [100, 2000]),
        (("global_step30/model.safetensors", "global_step4/model.safetensors"), [4, 30]),
        (("step1000-tokens4B.pt", "step9000-tokens37B.pt"), [1000, 9000]),
        (("model_v2_epoch_9.pt", "model_v2_epoch_10.pt"), [9, 10]),
        (("ckpt7.th", "ckpt12.th"), [7, 12]),
        (("0010.pt", "0009.pt"), [9, 10]),
        (("net-3.pth.tar", "net-20.pth.tar"), [3, 20]),
    ],
)
def test_steps_are_read_from_usual_names(names: tuple[str, ...], expected: list[int], tmp_path: Path) -> None:
    assert steps(write(tmp_path, *names)) == expected


@pytest.mark.parametrize(
    "names",
    [
        ("step_500.pt", "step_1k.pt", "step_2k.pt"),
        ("step100M.pt", "step1B.pt"),
        ("step_0.5.pt", "step_1.5.pt", "step_2.0.pt"),
        ("step_900.pt", "step_1,000.pt"),
        ("step_9e2.pt", "step_1e3.pt"),
        ("500.pt", "1k.pt"),
    ],
)
def test_steps_in_different_units_are_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(WeightspaceError, match="count different things"):
        steps(write(tmp_path, *names))


def test_steps_in_one_unit_are_in_order(tmp_path: Path) -> None:
    assert steps(write(tmp_path, "step_2k.pt", "step_10k.pt")) == [2, 10]


def test_what_is_no_checkpoint_or_has_no_step_is_left_out(tmp_path: Path) -> None:
    write(tmp_path, "step_1.pt", "step_2.pt", "last.pt", "best/model.safetensors")
    (tmp_path / "step_3.json").write_text("{}")
    (tmp_path / "step_4").mkdir()
    (tmp_path / "events.12").write_bytes(b"\x00\x01")
    assert steps(tmp_path) == [1, 2]


def test_some_of_them_are_taken(tmp_path: Path) -> None:
    write(tmp_path, *(f"step_{step}.safetensors" for step in range(0, 100, 10)))
    assert steps(tmp_path, last=3) == [70, 80, 90]
    assert steps(tmp_path, window=(20, 40)) == [20, 30, 40]
    assert steps(tmp_path, window=(None, 10)) == [0, 10]
    assert steps(tmp_path, every=25) == [0, 30, 60, 90]
    assert steps(tmp_path, window=(15, None), every=20, last=2) == [70, 90]


def test_missing_checkpoints_are_reported(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    write(tmp_path, *(f"step_{step}.safetensors" for step in (10, 20, 30, 50, 60, 70, 74)))
    assert steps(tmp_path, window=(50, None)) == [50, 60, 70, 74]
    assert steps(tmp_path, window=(None, 30), every=20) == [10, 30]
    assert not recwarn.list
    expected = "checkpoints are 10 steps apart, but none is between 30 and 50. Are some missing?"
    with pytest.warns(ws.WeightspaceWarning, match=expected):
        assert steps(tmp_path, last=5) == [30, 50, 60, 70, 74]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"last": 5}, "Found 4 checkpoints that fit, expected at least 5"),
        ({"window": (50, None)}, "Found 0 checkpoints that fit, expected at least 1. .* from step 1 to 40"),
        ({"last": 0}, r"last \(--last\) must be at least 1; found 0"),
        ({"every": 0}, r"every \(--every\) must be at least 1"),
        ({"pattern": "step_*.pt"}, "A pattern needs {step} once"),
        ({"pattern": "steps_{step}.pt"}, "has no checkpoint whose name fits 'steps_{step}.pt'; it holds step_1.pt"),
    ],
)
def test_what_does_not_fit_is_one_line(options: dict[str, object], message: str, tmp_path: Path) -> None:
    write(tmp_path, "step_1.pt", "step_20.pt", "step_30.pt", "step_40.pt")
    with pytest.raises(WeightspaceError, match=message):
        steps(tmp_path, **options)


def test_an_order_that_is_not_clear_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "twice", "step_1.pt", "step_01.safetensors")
    with pytest.raises(WeightspaceError, match=r"step_01\.\w+ and step_1\.pt have the same step, 1.*step_{step}"):
        steps(tmp_path / "twice")
    assert steps(tmp_path / "twice", pattern="step_{step}.pt") == [1]
    write(tmp_path / "mixed", "step_1.pt", "epoch_2.pt")
    with pytest.raises(WeightspaceError, match=r"count different things: epoch_2\.pt \(epoch\), step_1\.pt \(step\)"):
        steps(tmp_path / "mixed")


def test_one_checkpoint_is_no_run(tmp_path: Path) -> None:
    write(tmp_path, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    for path in (tmp_path, tmp_path / "model-00001-of-00002.safetensors"):
        with pytest.raises(CheckpointError, match=r"is one checkpoint\. Expected a folder of several"):
            find_checkpoints(path)
    with pytest.raises(CheckpointError, match="No such file"):
        find_checkpoints(tmp_path / "none")
