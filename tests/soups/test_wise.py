"""WiSE-FT: the line between two models, whose best point validation data choose."""

from pathlib import Path

import pytest
from kitchen import PLAIN, TASK, equal, fine_tunes, saved

import weightspace as ws
from weightspace.connectivity import reset_statistics
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.tasks import network_with


def test_every_position_is_the_network_there_with_its_statistics() -> None:
    base, (tuned, *_) = fine_tunes(TASK, 1)
    line = ws.wise_ft(base, tuned, TASK, (0, 0.4, 1, 1.2))
    for position, scores in zip(line.positions, line.scores["test"], strict=True):
        state = ws.interpolate(base, tuned, position)
        state = state if position in (0, 1) else reset_statistics(TASK, state)
        assert TASK.score(network_with(TASK, state)) == scores


def test_the_best_on_validation_is_returned_and_of_equal_ones_the_first() -> None:
    base, (tuned, *_) = fine_tunes(PLAIN, 1)
    line = ws.wise_ft(base, tuned, PLAIN)
    values = [scores["accuracy"] for scores in line.scores["validation"]]
    assert line.position == line.positions[values.index(max(values))]
    assert equal(line.state, ws.interpolate(base, tuned, line.position))
    assert equal(ws.wise_ft(base, base, PLAIN, (0.2, 0.4)).state, base)
    assert ws.wise_ft(base, base, PLAIN, (0.2, 0.4)).position == 0.2


def test_files_and_states_give_the_same_line(tmp_path: object) -> None:
    base, (tuned, *_) = fine_tunes(TASK, 1)
    a, b = saved([base, tuned], tmp_path)  # type: ignore[arg-type]
    assert ws.wise_ft(a, b, TASK, (0, 0.5), cache=False).scores == ws.wise_ft(base, tuned, TASK, (0, 0.5)).scores


def test_invalid_lines_are_refused() -> None:
    base, (tuned, *_) = fine_tunes(PLAIN, 1)
    with pytest.raises(WeightspaceError, match="found 0 positions"):
        ws.wise_ft(base, tuned, PLAIN, ())
    with pytest.raises(WeightspaceError, match="including validation"):
        ws.wise_ft(base, tuned, PLAIN, splits=["test"])
    with pytest.raises(CheckpointError, match="0 and 1 do not fit"):
        ws.wise_ft(base, {**tuned, "more": tuned["0.bias"]}, PLAIN)


def test_positions_are_told_in_their_order_where_some_are_known_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIGHTSPACE_CACHE", str(tmp_path / "cache"))
    base, (tuned, *_) = fine_tunes(PLAIN, 1)
    a, b = saved([base, tuned], tmp_path)
    ws.wise_ft(a, b, PLAIN, (0.5, 1))
    told: list[float] = []
    ws.wise_ft(a, b, PLAIN, (0, 0.25, 0.5, 1), on_progress=lambda event: told.append(event.details["position"]))
    assert told == [0, 0.25, 0.5, 1]
