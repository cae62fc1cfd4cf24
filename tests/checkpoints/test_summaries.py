"""Norms, counts and distances that are known beforehand, and where a checkpoint comes from."""

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch

from weightspace import __version__
from weightspace.checkpoints import (
    StateDict,
    compare,
    load_checkpoint,
    load_metadata,
    measure,
    provenance,
    save_checkpoint,
    summarise,
)
from weightspace.errors import CheckpointError


def test_a_summary_counts_and_measures(tmp_path: Path) -> None:
    weight = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    state = {
        "w": weight,
        "tied": weight,
        "h": torch.full((4,), 6.0).bfloat16(),
        "n": torch.tensor(7),
        "e": torch.ones(0),
    }
    save_checkpoint(state, tmp_path / "a.safetensors", metadata={"method": "none"})
    summary = summarise(tmp_path / "a.safetensors")
    by_name = {tensor.name: tensor for tensor in summary.tensors}
    assert (by_name["w"].norm, by_name["h"].norm, by_name["n"].norm, by_name["e"].norm) == (
        5.0,
        12.0,
        None,
        0.0,
    )
    assert (by_name["h"].shape, by_name["h"].dtype, by_name["h"].bytes) == ((4,), "bfloat16", 8)
    assert [tensor.name for tensor in summary.tensors if tensor.tied_to == "w"] == ["tied"]
    assert (summary.parameters, summary.bytes, summary.norm, summary.non_finite) == (9, 32, 13.0, 0)
    assert summary.metadata == {"format": "pt", "method": "none"}


def test_norms_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.randn(40, 25).half()
    whole = tensor.double().norm().item()
    for piece in (1, 7, 1000, 10_000):
        monkeypatch.setattr(measure, "_PIECE", piece)
        assert measure.norm(tensor) == pytest.approx(whole, rel=1e-12)
        assert measure.distance(tensor, -tensor.float()) == pytest.approx(2 * whole, rel=1e-12)


def test_values_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    save_checkpoint({"w": torch.tensor([1.0, math.nan, math.inf, 2.0])}, tmp_path / "a.pt")
    summary = summarise(tmp_path / "a.pt")
    assert summary.non_finite == summary.tensors[0].non_finite == 2


def test_a_planted_distance_is_found(state: StateDict, tmp_path: Path) -> None:
    save_checkpoint(state, tmp_path / "a.safetensors")
    save_checkpoint({**state, "layer.weight": 1.25 * state["layer.weight"]}, tmp_path / "b.pt")
    comparison = compare(tmp_path / "a.safetensors", tmp_path / "b.pt")
    by_name = {tensor.name: tensor.relative for tensor in comparison.tensors}
    assert by_name == {"layer.weight": pytest.approx(0.25, rel=1e-6), "layer.bias": 0.0}
    weight, bias = state["layer.weight"].double().norm().item(), state["layer.bias"].double().norm().item()
    assert comparison.relative == pytest.approx(0.25 * weight / math.hypot(weight, bias), rel=1e-6)
    assert comparison.only_a + comparison.only_b + comparison.shapes + comparison.dtypes == ()


def test_a_checkpoint_is_at_no_distance_from_itself_in_another_format(state: StateDict, tmp_path: Path) -> None:
    save_checkpoint(state, tmp_path / "a")
    save_checkpoint(state, tmp_path / "b.pt")
    comparison = compare(tmp_path / "a", tmp_path / "b.pt")
    assert (comparison.distance, comparison.relative, comparison.unequal) == (0.0, 0.0, ())


def test_everything_that_differs_is_named(state: StateDict, tmp_path: Path) -> None:
    other = {
        "layer.weight": torch.ones(3, 5),
        "layer.bias": state["layer.bias"].float(),
        "steps": torch.tensor(8, dtype=torch.int32),
        "new": torch.ones(1),
    }
    save_checkpoint({**state, "gone": torch.ones(1)}, tmp_path / "a.pt")
    save_checkpoint(other, tmp_path / "b.pt")
    comparison = compare(tmp_path / "a.pt", tmp_path / "b.pt")
    assert (comparison.only_a, comparison.only_b) == (("gone",), ("new",))
    assert [(each.name, each.a, each.b) for each in comparison.shapes] == [("layer.weight", (5, 3), (3, 5))]
    assert [(each.name, each.a, each.b) for each in comparison.dtypes] == [
        ("layer.bias", "bfloat16", "float32"),
        ("steps", "int64", "int32"),
    ]
    assert comparison.unequal == ("steps",)


def test_the_distance_from_the_origin_is_infinite_in_units_of_its_norm(tmp_path: Path) -> None:
    save_checkpoint({"w": torch.zeros(2)}, tmp_path / "a.pt")
    save_checkpoint({"w": torch.ones(2)}, tmp_path / "b.pt")
    assert compare(tmp_path / "a.pt", tmp_path / "b.pt").relative == math.inf


def test_a_tensor_tied_in_both_counts_once(tmp_path: Path) -> None:
    for name, scale in (("a.pt", 1.0), ("b.pt", 2.0)):
        weight = torch.full((4,), scale)
        save_checkpoint({"embed": weight, "head": weight}, tmp_path / name)
    assert compare(tmp_path / "a.pt", tmp_path / "b.pt").distance == 2.0


def test_provenance_says_what_went_in_and_repeats_itself(state: StateDict, tmp_path: Path) -> None:
    save_checkpoint(state, tmp_path / "a.pt")
    save_checkpoint(state, tmp_path / "folder")
    inputs = [tmp_path / "a.pt", tmp_path / "folder"]
    found = provenance(inputs, "linear", {"weights": [0.6, 0.4], "align": True})
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (inputs[0], inputs[1] / "model.safetensors")]
    assert json.loads(found["inputs"]) == [
        {"name": "a.pt", "sha256": digests[0]},
        {"name": "folder/model.safetensors", "sha256": digests[1]},
    ]
    assert found["method"] == "linear"
    assert json.loads(found["parameters"]) == {"weights": [0.6, 0.4], "align": True}
    assert found["version"] == f"weightspace {__version__}"
    assert found == provenance(inputs, "linear", {"align": True, "weights": [0.6, 0.4]})
    save_checkpoint(load_checkpoint(inputs[0]), tmp_path / "out.safetensors", metadata=found)
    assert found.items() <= load_metadata(tmp_path / "out.safetensors").items()


def test_provenance_refuses_missing_inputs_and_parameters_beyond_json(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.pt does not exist"):
        provenance([tmp_path / "nowhere.pt"], "linear", {})
    with pytest.raises(CheckpointError, match="parameters of 'linear' cannot be stored as JSON"):
        provenance([], "linear", {"weights": torch.ones(2)})
