from typing import ClassVar

import pytest
import torch

from weightspace.checkpoints import StateDict
from weightspace.connectivity import barrier, interpolated, loss_curve
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging import interpolate
from weightspace.progress import Progress
from weightspace.tasks import Task


class Parabola:
    """One weight ``w``, loss ``w²``, no accuracy: curves known in closed form."""

    name, objective = "parabola", "loss"
    example_args: ClassVar = (torch.ones(1, 1),)

    def network(self):
        return torch.nn.Linear(1, 1, bias=False).double()

    def score(self, module, split="test"):
        return {"loss": module.weight.item() ** 2}

    def batches(self, split, seed):
        return []

    def loss(self, module, batch):
        return (module.weight**2).sum()


def weight(value: float) -> StateDict:
    return {"weight": torch.tensor([[value]], dtype=torch.float64)}


def score(task: Task, state: StateDict) -> dict[str, float]:
    network = task.network()
    network.load_state_dict(state)
    return dict(task.score(network))


@pytest.mark.parametrize("points", [3, 5, 25])
def test_a_curve_in_closed_form_is_found(points: int) -> None:
    curve = loss_curve(Parabola(), weight(-1.0), weight(3.0), points)
    assert curve.loss == pytest.approx([(4 * position - 1) ** 2 for position in curve.positions])
    assert curve.accuracy is None
    assert (curve.positions[0], curve.positions[-1], len(curve.positions)) == (0, 1, points)
    assert (curve.task, curve.split, curve.statistics) == ("parabola", "test", "none")
    assert barrier(curve) == 0
    # (4λ−1)² against the mean of 1 and 9 is highest at λ = 1
    assert barrier(curve, baseline="mean") == 4


def test_the_endpoints_are_the_scores_of_the_models_exactly(digits_mlp, digits_cnn, mlp_states, cnn_states) -> None:
    for task, states in ((digits_mlp, mlp_states), (digits_cnn, cnn_states)):
        curve = loss_curve(task, *states, points=2)
        for index, state in enumerate(states):
            expected = score(task, state)
            assert curve.accuracy is not None
            assert (curve.loss[index], curve.accuracy[index]) == (expected["loss"], expected["accuracy"])


def test_two_seeds_are_far_apart_along_the_straight_line(digits_mlp, mlp_states) -> None:
    curve = loss_curve(digits_mlp, *mlp_states, points=5)
    assert barrier(curve) > 0.3
    assert barrier(curve, score="accuracy") > 0.01
    assert curve.statistics == "none"


def test_two_seeds_with_batchnorm_are_far_apart_and_nearer_with_statistics_of_their_own(digits_cnn, cnn_states) -> None:
    reset = loss_curve(digits_cnn, *cnn_states, points=3)
    stale = loss_curve(digits_cnn, *cnn_states, points=3, statistics="none")
    assert (reset.statistics, stale.statistics) == ("reset", "none")
    assert 0.2 < barrier(reset) < barrier(stale)
    assert (reset.loss[0], reset.loss[-1]) == (stale.loss[0], stale.loss[-1])


def test_a_model_and_itself_have_a_flat_curve(digits_mlp, digits_cnn, mlp_states, cnn_states) -> None:
    assert len(set(loss_curve(digits_mlp, mlp_states[0], mlp_states[0], 5).loss)) == 1
    stale = loss_curve(digits_cnn, cnn_states[0], cnn_states[0], 3, statistics="none")
    assert len(set(stale.loss)) == 1
    assert abs(barrier(loss_curve(digits_cnn, cnn_states[0], cnn_states[0], 3))) < 0.02


def test_equal_calls_give_equal_curves_and_leave_the_inputs_alone(digits_cnn, cnn_states) -> None:
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in cnn_states]
    rng = torch.get_rng_state()
    first, again = (loss_curve(digits_cnn, *cnn_states, points=3, split="validation") for _ in range(2))
    assert first == again
    assert first.split == "validation"
    assert torch.equal(torch.get_rng_state(), rng)
    for state, old in zip(cnn_states, before, strict=True):
        assert all(torch.equal(tensor, old[name]) for name, tensor in state.items())


@pytest.mark.parametrize("position", [0.0, 0.3, 0.5, 0.7, 1.0, 1.5])
def test_points_computed_in_place_agree_with_interpolate_bit_for_bit(digits_cnn, cnn_states, position) -> None:
    walked = interpolated(digits_cnn.network(), *cnn_states, position).state_dict()
    for name, tensor in interpolate(*cnn_states, position).items():
        assert torch.equal(walked[name], tensor), name


def test_every_point_is_reported(digits_mlp, mlp_states) -> None:
    reports: list[Progress] = []
    curve = loss_curve(digits_mlp, *mlp_states, points=3, on_progress=reports.append)
    assert [(report.index, report.total, report.details["position"]) for report in reports] == [
        (1, 3, 0.0),
        (2, 3, 0.5),
        (3, 3, 1.0),
    ]
    assert tuple(report.value for report in reports) == curve.loss
    assert tuple(report.details["accuracy"] for report in reports) == curve.accuracy


@pytest.mark.parametrize("damage", ["missing", "extra", "shape"])
def test_models_of_another_network_are_refused_by_name(digits_mlp, mlp_states, damage: str) -> None:
    other = dict(mlp_states[1])
    if damage == "missing":
        del other["head.bias"]
    if damage == "extra":
        other["head.gain"] = torch.ones(1)
    if damage == "shape":
        other["head.bias"] = torch.ones(11)
    with pytest.raises(CheckpointError, match=r"digits-mlp and b .*head\."):
        loss_curve(digits_mlp, mlp_states[0], other)


def test_settings_that_make_no_curve_are_refused(mlp_states) -> None:
    with pytest.raises(WeightspaceError, match="at least two points"):
        loss_curve(Parabola(), weight(0), weight(1), 1)
    with pytest.raises(WeightspaceError, match="auto, none, reset, repair"):
        loss_curve(Parabola(), weight(0), weight(1), statistics="repiar")  # pyright: ignore[reportArgumentType]


def test_a_task_without_a_loss_is_refused() -> None:
    task = Parabola()
    task.score = lambda module, split="test": {"accuracy": 1.0}
    with pytest.raises(WeightspaceError, match="expected 'loss'"):
        loss_curve(task, weight(0), weight(1))
