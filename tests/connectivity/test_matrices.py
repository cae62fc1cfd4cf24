"""Matrices of barriers: every pair is the barrier of its curve, whatever the order and the number of workers."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import Quadratic, task, vector, weights

from weightspace.connectivity import BarrierMatrix, barrier, barrier_matrix, loss_curve
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.progress import Progress

HILL = Quadratic(torch.diag(torch.tensor([-2.0, 3.0]).double()), torch.tensor([1.0, -2.0]).double())
STATES = [vector(0.0, 1.0), vector(3.0, 1.0), vector(-1.0, 2.0), vector(0.5, -1.0)]


@pytest.mark.parametrize("baseline", ["linear", "mean"])
def test_every_pair_has_the_barrier_of_its_curve(baseline: Any) -> None:
    found = task("batch norm")
    states = [weights(found, seed) for seed in range(3)]
    matrix = barrier_matrix(found, states, points=3, baseline=baseline, split="validation", statistics="repair")
    assert (matrix.models, matrix.baseline, matrix.statistics) == (("0", "1", "2"), baseline, "repair")
    assert (matrix.split, matrix.task) == ("validation", "tiny")
    for i, j in ((0, 1), (0, 2), (1, 2)):
        curve = loss_curve(found, states[i], states[j], 3, statistics="repair", split="validation")
        assert matrix.barrier[i][j] == matrix.barrier[j][i] == barrier(curve, baseline=baseline)
        assert matrix.accuracy_barrier is not None
        fall = barrier(curve, baseline=baseline, score="accuracy")
        assert matrix.accuracy_barrier[i][j] == matrix.accuracy_barrier[j][i] == fall
        assert matrix.accuracy is not None
        assert curve.accuracy is not None
        assert (matrix.loss[i], matrix.loss[j]) == (curve.loss[0], curve.loss[-1])
        assert (matrix.accuracy[i], matrix.accuracy[j]) == (curve.accuracy[0], curve.accuracy[-1])
    assert all(matrix.barrier[i][i] == 0 for i in range(3))


def test_barriers_in_closed_form_are_found_and_reported() -> None:
    reports: list[Progress] = []
    matrix = barrier_matrix(HILL, STATES, names="abcd", points=3, on_progress=reports.append)
    assert matrix.accuracy is None
    assert matrix.accuracy_barrier is None
    for i, first in enumerate(STATES):
        for j, second in enumerate(STATES):
            apart = (second["weight"] - first["weight"])[0]
            rise = -float(apart @ HILL.matrix @ apart) / 8  # of a parabola above the middle of its chord
            assert matrix.barrier[i][j] == pytest.approx(max(rise, 0.0))
    assert [report.name for report in reports] == [f"{a} – {b}" for a, b in zip("aaabbc", "bcdcdd", strict=True)]
    assert [(report.index, report.total) for report in reports] == [(index, 6) for index in range(1, 7)]
    assert reports[0].value == matrix.barrier[0][1]


def test_workers_change_nothing(digits_mlp: Any, mlp_states: Any) -> None:
    states = [*mlp_states, mlp_states[0]]
    here, elsewhere = (barrier_matrix(digits_mlp, states, points=3, workers=workers) for workers in (1, 2))
    assert here == elsewhere
    assert here.barrier[0][1] > 0.3
    assert here.barrier[0][2] == 0


@pytest.mark.parametrize("suffix", [".csv", ".json"])
@pytest.mark.parametrize("accuracy", [True, False])
def test_a_saved_matrix_loads_as_an_equal_one(tmp_path: Path, suffix: str, accuracy: bool) -> None:
    matrix = BarrierMatrix(
        models=("a", "b, “the second”", "c"),
        barrier=((0.0, 0.1 + 0.2, -1e-17), (0.1 + 0.2, 0.0, math.inf), (-1e-17, math.inf, 0.0)),
        loss=(0.1, 1 / 3, 0.3),
        accuracy_barrier=((0.0, 0.2, 0.3), (0.2, 0.0, 0.4), (0.3, 0.4, 0.0)) if accuracy else None,
        accuracy=(0.9, 0.8, 0.7) if accuracy else None,
        baseline="mean",
        split="validation",
        statistics="reset",
        task="t",
        points=5,
    )
    matrix.save(tmp_path / f"matrix{suffix}")
    assert BarrierMatrix.load(tmp_path / f"matrix{suffix}") == matrix


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_a_matrix_of_an_older_version_has_no_number_of_points(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"matrix{suffix}"
    matrix = BarrierMatrix(("a", "b"), ((0.0, 1.0), (1.0, 0.0)), (0.1, 0.2))
    matrix.save(path)
    written = path.read_text()
    path.write_text(written.replace(',\n  "points": null', "").replace(",points\n", "\n").replace(",,\n", ",\n"))
    assert "points" not in path.read_text()
    assert BarrierMatrix.load(path) == matrix


@pytest.mark.parametrize("missing", [1, 2, 3])
def test_a_table_without_all_pairs_is_refused(tmp_path: Path, missing: int) -> None:
    path = tmp_path / "matrix.csv"
    barrier_matrix(HILL, STATES[:3], points=3).save(path)
    lines = path.read_text().splitlines()
    del lines[missing]
    path.write_text("\n".join(lines))
    with pytest.raises(WeightspaceError, match="isn't a matrix of barriers"):
        BarrierMatrix.load(path)


@pytest.mark.parametrize(
    ("states", "options", "message"),
    [
        (STATES[:1], {}, "at least two models"),
        ([], {}, "at least two models with distinct names.*found no models"),
        (STATES, {"names": "abca"}, "distinct names"),
        (STATES, {"names": "abc"}, "3 names for 4 models"),
        (STATES, {"points": 2}, "points=2"),
        (STATES, {"workers": 0}, "workers=0"),
        (STATES, {"workers": 2, "executor": "threads"}, "executor 'threads'"),
        (STATES, {"baseline": "median"}, "baseline 'median'"),
    ],
)
def test_invalid_barrier_matrices_are_refused(states: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(WeightspaceError, match=message):
        barrier_matrix(HILL, states, **options)


def test_a_model_of_another_network_is_refused() -> None:
    with pytest.raises(CheckpointError, match="quadratic and b"):
        barrier_matrix(HILL, [*STATES, vector(1.0)], points=3)


def test_scores_of_another_number_are_refused() -> None:
    matrix = barrier_matrix(HILL, STATES, points=3)
    with pytest.raises(WeightspaceError, match=r"4 models .* found \[3, 4\]"):
        replace(matrix, loss=matrix.loss[:3])
    with pytest.raises(WeightspaceError, match="distinct names"):
        replace(matrix, models=("a", "a", "b", "c"))
