"""``weightspace inspect`` shows what the library finds, to people and to machines."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from weightspace.checkpoints import save_checkpoint
from weightspace.errors import CheckpointError


def inspect(*args: object) -> Result:
    command = importlib.import_module("weightspace.cli.inspect").command
    return CliRunner().invoke(command, [str(arg) for arg in args])


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    weight = torch.full((2, 8), 0.5)
    a = {
        "embed": weight,
        "head": weight,
        "bias": torch.zeros(3),
        "steps": torch.tensor(1),
        "old": torch.ones(1),
    }
    far = 1.5 * weight
    b = {"embed": far, "head": far, "bias": torch.zeros(2), "steps": torch.tensor(2)}
    save_checkpoint(a, tmp_path / "a.safetensors", metadata={"method": "[linear]"})
    save_checkpoint(b, tmp_path / "b.pt")
    return tmp_path / "a.safetensors", tmp_path / "b.pt"


def test_one_file_shows_every_tensor_the_totals_and_the_metadata(pair: tuple[Path, Path]) -> None:
    result = inspect(pair[0])
    assert result.exit_code == 0
    rows = [line.split() for line in result.output.splitlines()]
    assert rows[0] == ["tensor", "shape", "dtype", "norm"]
    assert ["embed", "2×8", "float32", "2"] in rows
    assert ["head", "2×8", "float32", "2", "tied", "to", "embed"] in rows
    assert ["steps", "scalar", "int64", "-"] in rows
    assert "5 tensors, 21 parameters" in result.output
    assert "method: [linear]" in result.output


def test_two_files_show_what_differs_and_how_far_they_are(pair: tuple[Path, Path]) -> None:
    output = inspect(*pair).output
    for line in ("only in a: 1 (old)", "different shape: 1 (bias)", "different integers: 1 (steps)"):
        assert line in output
    assert "relative distance 0.5 (‖a − b‖ = 1, ‖a‖ = 2, 2 float tensors)" in output


def test_three_files_are_shown_one_after_the_other(pair: tuple[Path, Path]) -> None:
    assert inspect(*pair, pair[0]).output.count("tensors, ") == 3


def test_json_is_one_object(pair: tuple[Path, Path]) -> None:
    content = json.loads(inspect(*pair, "--json").output)
    assert [each["parameters"] for each in content["checkpoints"]] == [21, 19]
    assert content["checkpoints"][0]["tensors"][0]["norm"] == 2.0
    assert content["comparison"]["relative"] == 0.5
    assert json.loads(inspect(pair[0], "--json").output)["comparison"] is None


def test_json_has_no_numbers_that_json_has_not(tmp_path: Path) -> None:
    save_checkpoint({"w": torch.tensor([1.0, float("nan")])}, tmp_path / "a.pt")
    content = json.loads(inspect(tmp_path / "a.pt", "--json").output)
    assert content["checkpoints"][0]["norm"] is None
    assert content["checkpoints"][0]["non_finite"] == 1


def test_prefix_and_key_reach_the_reader(tmp_path: Path) -> None:
    torch.save({"net": {"module.w": torch.ones(1)}}, tmp_path / "a.pt")
    output = inspect(tmp_path / "a.pt", "--key", "net", "--strip-prefix", "module.").output
    assert output.splitlines()[1].split() == ["w", "1", "float32", "1"]


def test_a_terminal_gets_a_table_with_names_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint({"[bold]w": torch.ones(1)}, tmp_path / "a.pt")
    module = importlib.import_module("weightspace.cli.printing")
    monkeypatch.setattr(module, "on_terminal", lambda: True)
    assert "[bold]w" in inspect(tmp_path / "a.pt").output


def test_a_mistake_is_left_to_the_group(tmp_path: Path) -> None:
    assert isinstance(inspect(tmp_path / "nowhere.pt").exception, CheckpointError)


def test_help_shows_an_example() -> None:
    assert "weightspace inspect a.safetensors" in inspect("--help").output


def test_checkpoints_without_a_common_float_tensor_have_no_distance(tmp_path: Path) -> None:
    save_checkpoint({"w": torch.ones(2), "steps": torch.tensor(1)}, tmp_path / "a.pt")
    save_checkpoint({"w": torch.ones(3), "steps": torch.tensor(1)}, tmp_path / "b.pt")
    output = inspect(tmp_path / "a.pt", tmp_path / "b.pt").output
    assert "no distance: the two have no float tensor of the same name and shape" in output
    assert "relative distance 0" not in output
    assert json.loads(inspect(tmp_path / "a.pt", tmp_path / "b.pt", "--json").output)["comparison"]["relative"] is None
