"""Tasks whose networks run elsewhere: in another precision, from another source, on a device that is there."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.errors import WeightspaceError
from weightspace.matching import match
from weightspace.tasks import PlacedTask, Task, at_home, check_device, placed

#: Where a check can run; on a machine with a GPU that as well.
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def test_without_anything_to_change_the_task_is_itself(digits_mlp: Task) -> None:
    assert placed(digits_mlp) is digits_mlp


def test_a_network_in_another_precision_takes_the_tasks_inputs(digits_mlp: Task, mlp_states: Any) -> None:
    for dtype, near in (("float64", 1e-5), ("bfloat16", 0.05)):
        task = placed(digits_mlp, dtype=dtype)
        network = task.network()
        network.load_state_dict(mlp_states[0])
        assert {str(one.dtype) for one in network.parameters()} == {f"torch.{dtype}"}
        own = digits_mlp.network()
        own.load_state_dict(mlp_states[0])
        assert task.score(network)["loss"] == pytest.approx(digits_mlp.score(own)["loss"], abs=near)


def test_all_else_is_that_of_the_task(digits_cnn: Task) -> None:
    task = placed(digits_cnn, dtype="float64")
    assert isinstance(task, Task)
    assert (task.name, task.objective) == (digits_cnn.name, digits_cnn.objective)
    assert task.recipe == digits_cnn.recipe  # type: ignore[attr-defined]
    assert not hasattr(task, "fingerprint")
    for travelled in (copy.deepcopy(task), pickle.loads(pickle.dumps(task))):
        assert travelled.network().state_dict().keys() == task.network().state_dict().keys()
    home = at_home(task)
    assert next(home.network().parameters()).dtype == torch.float32
    assert ws.derive_spec(home.network(), home.example_args).groups


def test_curves_in_another_precision_are_near(digits_mlp: Task, mlp_states: Any) -> None:
    curves = [ws.loss_curve(task, *mlp_states, 3) for task in (digits_mlp, placed(digits_mlp, dtype="float64"))]
    assert curves[1].loss == pytest.approx(curves[0].loss, abs=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_training_measuring_and_matching_run_on_a_device(device: str, digits_mlp: Task) -> None:
    task = PlacedTask(digits_mlp, device)
    a, b = (ws.train(task, seed, epochs=1) for seed in (0, 1))
    assert {tensor.device.type for tensor in a.values()} == {"cpu"}
    curve = ws.loss_curve(task, a, b, 3)
    assert curve.loss == pytest.approx(ws.loss_curve(digits_mlp, a, b, 3).loss, rel=1e-4)
    spec = ws.derive_spec(digits_mlp.network(), digits_mlp.example_args)
    found = match(spec, a, b, "activation-matching", task=task)
    assert found.l2_reduction > 0


def test_a_source_builds_the_networks_and_the_task_has_the_data(tmp_path: Path, digits_mlp: Task) -> None:
    (tmp_path / "model.py").write_text(
        "from torch import nn\n"
        "def build(width=8):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))\n"
    )
    task = placed(digits_mlp, source=f"{tmp_path}/model.py:build,width=16")
    network = task.network()
    assert isinstance(network, nn.Sequential)
    assert network[1].out_features == 16
    assert torch.equal(task.example_args[0], digits_mlp.example_args[0])
    assert task.score(network)["accuracy"] < 0.5
    assert ws.derive_spec(network, task.example_args).groups == {"layer.1": 16}


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "", "cpu:x", "meta"])
def test_a_device_that_is_not_there_is_a_line(device: str) -> None:
    with pytest.raises(WeightspaceError, match="cannot be used: "):
        check_device(device)


def test_a_precision_that_does_not_exist_is_a_line(digits_mlp: Task) -> None:
    with pytest.raises(WeightspaceError, match=r"Unknown dtype 'bf16'.*bfloat16"):
        placed(digits_mlp, dtype="bf16")


class Stubborn:
    """A score that leaves its labels where they are."""

    name, objective, example_args = "stubborn", "loss", (torch.ones(1, 2),)

    def score(self, module: nn.Module, split: str = "test") -> dict[str, float]:
        raise RuntimeError("Expected all tensors to be on the same device, but found cpu and cuda:0!")


def test_a_score_that_leaves_its_data_behind_is_a_line() -> None:
    task = PlacedTask(Stubborn(), "cuda")  # type: ignore[arg-type]
    with pytest.raises(WeightspaceError, match=r"moves its batches to the device"):
        task.score(nn.Identity())
