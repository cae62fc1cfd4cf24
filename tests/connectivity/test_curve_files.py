import json
import math
from pathlib import Path

import pytest

from weightspace.connectivity import Curve
from weightspace.errors import CheckpointError, WeightspaceError

CURVE = Curve((0.0, 1 / 3, 1.0), (0.1, 1e-17, 2.0), (0.98, 0.1 + 0.2, 1.0), "validation", "reset", "a, “task”")
every_format = pytest.mark.parametrize("suffix", [".csv", ".json", ".CSV"])


@every_format
@pytest.mark.parametrize("accuracy", [CURVE.accuracy, None])
def test_a_saved_curve_loads_as_an_equal_one(tmp_path: Path, suffix: str, accuracy) -> None:
    curve = Curve(CURVE.positions, CURVE.loss, accuracy, CURVE.split, CURVE.statistics, CURVE.task)
    curve.save(tmp_path / f"curve{suffix}")
    assert Curve.load(tmp_path / f"curve{suffix}") == curve
    assert len(list(tmp_path.iterdir())) == 1


@every_format
def test_infinite_and_nan_losses_survive(tmp_path: Path, suffix: str) -> None:
    Curve((0.0, 0.5, 1.0), (1.0, math.inf, math.nan)).save(tmp_path / f"curve{suffix}")
    loaded = Curve.load(tmp_path / f"curve{suffix}").loss
    assert loaded[1] == math.inf
    assert math.isnan(loaded[2])


def test_the_json_has_the_names_that_scripts_rely_on(tmp_path: Path) -> None:
    CURVE.save(tmp_path / "curve.json")
    assert json.loads((tmp_path / "curve.json").read_text())["positions"] == list(CURVE.positions)


def test_another_suffix_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(WeightspaceError, match=r"\.csv or a \.json"):
        CURVE.save(tmp_path / "curve.txt")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "curve.csv").mkdir()
    with pytest.raises(CheckpointError, match=r"curve\.csv"):
        CURVE.save(tmp_path / "curve.csv")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", "{"),
        ("b.json", "[1, 2]"),
        ("c.json", '{"positions": [0, 1]}'),
        ("d.csv", ""),
        ("e.csv", "x,y\n1,2\n"),
        ("f.csv", "position,loss,accuracy,split,statistics,task\n0,one,,test,none,\n"),
    ],
)
def test_a_file_that_is_no_curve_is_one_line_that_names_it(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(WeightspaceError, match=f"{name} (isn't a curve|is not valid JSON)") as caught:
        Curve.load(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightspaceError, match=r"absent\.json cannot be read"):
        Curve.load(tmp_path / "absent.json")


def test_scores_that_do_not_fit_the_positions_are_refused() -> None:
    with pytest.raises(WeightspaceError, match="3 positions, 2 losses"):
        Curve((0.0, 0.5, 1.0), (1.0, 2.0))
    with pytest.raises(WeightspaceError, match="1 accuracies"):
        Curve((0.0, 0.5, 1.0), (1.0, 2.0, 3.0), (0.5,))
