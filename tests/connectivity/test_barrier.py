import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightspace.connectivity import Curve, barrier
from weightspace.errors import WeightspaceError

CURVE = Curve((0.0, 0.25, 0.5, 1.0), (1.0, 3.0, 2.5, 2.0), (0.9, 0.5, 0.7, 0.7))
losses = st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=9)


def evenly(loss: list[float]) -> Curve:
    return Curve(tuple(index / (len(loss) - 1) for index in range(len(loss))), tuple(loss))


def test_a_barrier_is_the_one_worked_out_by_hand() -> None:
    assert barrier(CURVE) == 3.0 - 1.25
    assert barrier(CURVE, baseline="mean") == 3.0 - 1.5
    assert barrier(CURVE, score="accuracy") == pytest.approx(0.85 - 0.5)
    assert barrier(CURVE, score="accuracy", baseline="mean") == pytest.approx(0.8 - 0.5)


@given(losses)
def test_a_barrier_agrees_with_the_definition_written_out(loss: list[float]) -> None:
    curve = evenly(loss)
    points = zip(curve.positions, loss, strict=True)
    rises = [value - ((1 - position) * loss[0] + position * loss[-1]) for position, value in points]
    assert barrier(curve) == pytest.approx(max(rises), abs=1e-9)


@given(losses)
def test_a_curve_and_its_reverse_have_one_barrier(loss: list[float]) -> None:
    assert barrier(evenly(loss)) == pytest.approx(barrier(evenly(loss[::-1])), abs=1e-9)


@given(st.floats(-1e3, 1e3), st.integers(3, 30))
def test_a_flat_curve_has_none(level: float, points: int) -> None:
    assert barrier(evenly([level] * points)) == pytest.approx(0, abs=1e-9)


def test_a_valley_below_the_endpoints_is_not_clipped_against_their_mean() -> None:
    assert barrier(Curve((0, 0.5, 1), (1.0, 0.2, 1.0)), baseline="linear") == 0
    assert barrier(Curve((0, 0.5, 1), (1.0, 0.2, 2.0)), baseline="mean") == 0.5


def test_a_loss_that_is_nan_gives_a_barrier_that_is_nan() -> None:
    assert math.isnan(barrier(Curve((0, 0.5, 1), (1.0, math.nan, 1.0))))


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ((0.0, 1.0), "three points"),
        ((), "three points"),
        ((0.0, 0.5, 0.9), "from 0 to 1"),
        ((0.1, 0.5, 1.0), "from 0 to 1"),
        ((0.0, 0.6, 0.5, 1.0), "from 0 to 1; found 0, 0.6, 0.5, 1"),
        ((0.0, 0.5, 0.5, 1.0), "from 0 to 1"),
        ((0.0, math.nan, 1.0), "from 0 to 1"),
    ],
)
def test_positions_that_are_no_path_between_two_are_refused(positions, message: str) -> None:
    with pytest.raises(WeightspaceError, match=message):
        barrier(Curve(positions, tuple(1.0 for _ in positions)))


def test_an_accuracy_that_is_not_there_is_refused() -> None:
    with pytest.raises(WeightspaceError, match="no accuracy"):
        barrier(replace(CURVE, accuracy=None), score="accuracy")


def test_an_unknown_baseline_is_answered_with_the_known_ones() -> None:
    with pytest.raises(WeightspaceError, match="linear, mean"):
        barrier(CURVE, baseline="median")  # pyright: ignore[reportArgumentType]
    with pytest.raises(WeightspaceError, match="loss, accuracy"):
        barrier(CURVE, score="f1")  # pyright: ignore[reportArgumentType]
