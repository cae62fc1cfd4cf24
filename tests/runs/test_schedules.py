"""Weights of the checkpoints of a run, against the recursions and decays that they stand for."""

import math
from fractions import Fraction
from pathlib import Path

import pytest

from weightspace.errors import WeightspaceError
from weightspace.runs import schedule_weights
from weightspace.runs.schedules import DECAYS, decay_weights


@pytest.mark.parametrize("schedule", ["uniform", "ema:0.9", "ema:0", *(f"wsm:{name}" for name in DECAYS)])
@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_weights_are_shares(schedule: str, count: int) -> None:
    weights = schedule_weights(schedule, count)
    assert len(weights) == count
    assert min(weights) >= 0
    assert math.fsum(weights) == pytest.approx(1, abs=1e-15)


def test_a_moving_average_is_the_recursion() -> None:
    values = [Fraction(3), Fraction(-1), Fraction(7), Fraction(2)]
    average = values[0]
    for value in values[1:]:
        average = average * 3 / 4 + value / 4
    weights = schedule_weights("ema:0.75", 4)
    assert sum(Fraction(weight) * value for weight, value in zip(weights, values, strict=True)) == average


@pytest.mark.parametrize("name", DECAYS)
def test_an_average_is_the_run_with_decayed_updates(name: str) -> None:
    """The checkpoints 0 and the sums of the updates so far: their average is the sum of the decayed updates."""
    updates = [2.0, -3.0, 5.0, 1.0]
    count = len(updates) + 1
    decayed = math.fsum(DECAYS[name](number / count) * one for number, one in enumerate(updates, start=1))
    checkpoints = [math.fsum(updates[:number]) for number in range(count)]
    weights = schedule_weights(f"wsm:{name}", count)
    assert math.fsum(w * x for w, x in zip(weights, checkpoints, strict=True)) == pytest.approx(decayed, abs=1e-14)


def test_the_weights_of_a_decay_are_its_steps() -> None:
    assert decay_weights([1.0, 0.5, 0.5, 0.0]) == (0.0, 0.5, 0.0, 0.5, 0.0)
    assert schedule_weights("wsm:linear", 5) == pytest.approx((0.2,) * 5)
    first, *others = schedule_weights("wsm:1-sqrt", 9)
    assert first == pytest.approx(1 / 3)
    assert others == sorted(others, reverse=True)


def test_weights_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "w.txt").write_text("0.5\n.25\n\n2.5e-1\n")
    (tmp_path / "w.json").write_text("[1, 2, 3]")
    assert schedule_weights(str(tmp_path / "w.txt"), 3) == (0.5, 0.25, 0.25)
    assert schedule_weights(str(tmp_path / "w.json"), 3) == (1, 2, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1\n2\n", r"found 2 entries; expected 3 numbers"),
        ("1\n2\nthree\n", "found 'three'; expected 3 numbers"),
        ("1\n2\nnan\n", "found 'nan'; expected 3 numbers"),
        ("1\n-2\n1\n", "the weights sum to 0"),
        ("", "found 0 entries; expected 3 numbers"),
    ],
)
def test_a_file_without_one_number_per_checkpoint_is_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "w.txt").write_text(content)
    with pytest.raises(WeightspaceError, match=message):
        schedule_weights(str(tmp_path / "w.txt"), 3)


@pytest.mark.parametrize("content", ['{"a": 1}', "3", '["a", 2, 3]', "[true, 2, 3]", "[[1], 2, 3]"])
def test_json_that_is_no_list_of_numbers_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "w.json").write_text(content)
    with pytest.raises(WeightspaceError, match="expected 3 numbers"):
        schedule_weights(str(tmp_path / "w.json"), 3)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("wsm:lin", "Unknown schedule 'wsm:lin': expected uniform, .* Did you mean 'wsm:linear'?"),
        ("ema", "Unknown schedule 'ema'"),
        ("ema:1", "'ema:1': expected a decay from 0 to below 1"),
        ("ema:-0.1", "expected a decay from 0"),
        ("ema:nan", "expected a decay from 0"),
        ("ema:x", "expected a decay from 0"),
    ],
)
def test_unknown_schedules_are_one_line(schedule: str, message: str) -> None:
    with pytest.raises(WeightspaceError, match=message):
        schedule_weights(schedule, 3)
