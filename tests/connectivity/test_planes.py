"""Planes through three models: true to scale, and scores that are those of the networks they name."""

import math
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Quadratic, task, vector, weights

from weightspace.checkpoints import StateDict
from weightspace.connectivity import Plane, loss_plane, reset_statistics
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging import merge
from weightspace.progress import Progress

BOWL = Quadratic(torch.diag(torch.tensor([1.0, 4.0, 2.0]).double()), torch.tensor([1.0, -2.0, 0.5]).double())
A, B, C = vector(0.0, 1.0, 0.0), vector(3.0, 1.0, 4.0), vector(2.0, -5.0, 1.0)


def distance(a: StateDict, b: StateDict) -> float:
    names = [name for name in a if "running" not in name and "num_batches" not in name]
    return math.sqrt(sum(float((a[name].double() - b[name].double()).square().sum()) for name in names))


def test_distances_are_true_to_scale() -> None:
    found = task("residual batch norm")
    states = [weights(found, seed) for seed in range(3)]
    plane = loss_plane(found, *states, resolution=2)
    assert plane.positions[0] == (0, 0)
    assert plane.positions[1][1] == 0
    assert plane.positions[2][1] > 0
    for i, j in combinations(range(3), 2):
        assert math.dist(plane.positions[i], plane.positions[j]) == pytest.approx(distance(states[i], states[j]))


def test_the_grid_has_the_losses_of_the_networks_at_its_points() -> None:
    plane = loss_plane(BOWL, A, B, C, resolution=4, margin=0.3)
    u, w = B["weight"][0] - A["weight"][0], C["weight"][0] - A["weight"][0]
    first = u / u.norm()
    second = w - (w @ first) * first
    second /= second.norm()
    for row, y in zip(plane.loss, plane.y, strict=True):
        for loss, x in zip(row, plane.x, strict=True):
            point = A["weight"][0] + x * first + y * second
            assert loss == pytest.approx(float(point @ BOWL.matrix @ point / 2 + BOWL.linear @ point))
    assert plane.accuracy is None
    assert (plane.task, plane.split, plane.statistics) == ("quadratic", "test", "none")


def test_the_margin_goes_around_the_three() -> None:
    plane = loss_plane(BOWL, A, B, C, resolution=3, margin=0.5)
    for axis, values in ((0, plane.x), (1, plane.y)):
        side = [position[axis] for position in plane.positions]
        longest = max(max(p[k] for p in plane.positions) - min(p[k] for p in plane.positions) for k in (0, 1))
        assert values[0] == pytest.approx(min(side) - longest / 2)
        assert values[-1] == pytest.approx(max(side) + longest / 2)
    tight = loss_plane(BOWL, A, B, C, resolution=2, margin=0)
    assert tight.loss[0][0] == pytest.approx(tight.model_loss[0])  # the first model is the lower left corner


def test_models_are_scored_as_they_are_and_the_grid_with_statistics_of_its_own() -> None:
    found = task("residual batch norm")
    states = [weights(found, seed) for seed in range(3)]
    plane = loss_plane(found, *states, resolution=2, margin=0)
    assert plane.statistics == "reset"
    assert plane.model_loss == tuple(score(found, state)["loss"] for state in states)
    assert plane.model_accuracy == tuple(score(found, state)["accuracy"] for state in states)
    # The upper right corner of the box, by hand.
    (width, _), (along, height) = plane.positions[1:]
    second = (plane.x[-1] - along) / width
    corner = merge(states, weights=[1 - second - 1, second, 1], parameters={"normalize": False})
    assert plane.y[-1] == pytest.approx(height)
    reset = score(found, reset_statistics(found, corner))
    assert plane.loss[-1][-1] == pytest.approx(reset["loss"], rel=1e-6)
    stale = loss_plane(found, *states, resolution=2, margin=0, statistics="none")
    assert stale.statistics == "none"
    assert stale.loss != plane.loss
    assert stale.model_loss == plane.model_loss


def score(found: Any, state: StateDict) -> dict[str, float]:
    network = found.network()
    network.load_state_dict(state)
    return dict(found.score(network))


def test_every_point_is_reported_and_the_inputs_stay() -> None:
    before = [state["weight"].clone() for state in (A, B, C)]
    reports: list[Progress] = []
    plane = loss_plane(BOWL, A, B, C, resolution=3, on_progress=reports.append)
    assert [report.index for report in reports] == list(range(1, 10))
    assert {report.total for report in reports} == {9}
    assert tuple(report.value for report in reports) == sum(plane.loss, ())
    assert reports[5].details == {"x": plane.x[2], "y": plane.y[1]}
    assert all(torch.equal(state["weight"], old) for state, old in zip((A, B, C), before, strict=True))


@pytest.mark.parametrize("suffix", [".csv", ".json"])
@pytest.mark.parametrize("accuracy", [True, False])
def test_a_saved_plane_loads_as_an_equal_one(tmp_path: Path, suffix: str, accuracy: bool) -> None:
    plane = Plane(
        models=("a", "b, “the second”", "c"),
        positions=((0.0, 0.0), (1 / 3, 0.0), (-1e-17, 2.0)),
        model_loss=(0.1, 0.2, math.inf),
        x=(-0.5, 0.1 + 0.2, 7.0),
        y=(0.0, 1.0),
        loss=((1.0, 2.0, 3.0), (4.0, 5.0, math.inf)),
        model_accuracy=(0.9, 0.8, 0.7) if accuracy else None,
        accuracy=((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)) if accuracy else None,
        split="validation",
        statistics="reset",
        task="t",
    )
    plane.save(tmp_path / f"plane{suffix}")
    assert Plane.load(tmp_path / f"plane{suffix}") == plane


@pytest.mark.parametrize(("name", "text"), [("a.json", "{}"), ("b.csv", "x,y\n1,2\n"), ("c.json", "[]")])
def test_a_file_that_is_no_plane_is_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(WeightspaceError, match=rf"{name} isn't a plane"):
        Plane.load(tmp_path / name)


@pytest.mark.parametrize(
    ("third", "options", "message"),
    [
        (vector(6.0, 1.0, 8.0), {}, "collinear"),
        (A, {}, "collinear"),
        (vector(math.nan, 1.0, 8.0), {}, "collinear or not finite"),
        (C, {"resolution": 1}, "at least two points"),
        (C, {"margin": -0.1}, "of at least 0"),
        (C, {"margin": math.nan}, "of at least 0"),
        (C, {"statistics": "repair"}, "REPAIR is defined between two"),
        (C, {"statistics": "rest"}, "choice of statistics"),
        (C, {"names": ("a", "b")}, "three models with distinct names"),
        (C, {"names": ("a", "b", "a")}, "three models with distinct names"),
    ],
)
def test_invalid_planes_are_refused(third: StateDict, options: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightspaceError, match=message):
        loss_plane(BOWL, A, B, third, **options)


def test_a_model_of_another_network_is_refused_by_its_name() -> None:
    with pytest.raises(CheckpointError, match="quadratic and third"):
        loss_plane(BOWL, A, B, vector(1.0), names=("first", "second", "third"))


def test_scores_that_do_not_fit_the_grid_are_refused() -> None:
    plane = loss_plane(BOWL, A, B, C, resolution=2)
    with pytest.raises(WeightspaceError, match="one score per point"):
        replace(plane, loss=plane.loss[:1])
    with pytest.raises(WeightspaceError, match="three models"):
        replace(plane, models=("a", "b"))
