import numpy as np
import pytest

from weightspace.merging.methods._random_masks import random_mask

COUNT = 200_000


def draw(keep: float | np.ndarray, count: int = COUNT) -> np.ndarray:
    return np.unpackbits(random_mask(0, "w", "model", 0, count, keep), count=count)


@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_certain_elements_are_certain(keep: float) -> None:
    assert (draw(keep) == keep).all()
    assert (draw(np.full(COUNT, keep)) == keep).all()


@pytest.mark.parametrize("keep", [1 / 512, 1 / 256, 0.3, 0.5, 0.625, 0.7001, 511 / 512])
def test_as_many_stay_as_the_probability_says(keep: float) -> None:
    """Also where the first 8 bits alone would round the probability."""
    deviation = (keep * (1 - keep) / COUNT) ** 0.5
    assert abs(draw(keep).mean() - keep) < 5 * deviation
    assert abs(draw(np.full(COUNT, keep)).mean() - keep) < 5 * deviation


def test_every_element_has_its_own_probability() -> None:
    keep = np.linspace(0, 1, COUNT)
    tenths = draw(keep).reshape(10, -1).mean(axis=1)
    assert np.abs(tenths - keep.reshape(10, -1).mean(axis=1)).max() < 5 * 0.5 / (COUNT / 10) ** 0.5


@pytest.mark.parametrize("count", [1, 7, 63, 65, 1001])
@pytest.mark.parametrize("keep", [0.5, 0.3])
def test_a_mask_of_any_length_has_one_bit_per_element(count: int, keep: float) -> None:
    assert len(random_mask(0, "w", "model", 0, count, keep)) == (count + 7) // 8
    assert len(random_mask(0, "w", "model", 0, count, np.full(count, keep))) == (count + 7) // 8


def test_neighbours_are_independent() -> None:
    """All that 8 neighbours can be is as frequent as chance makes it: no bit is drawn twice."""
    counts = np.bincount(random_mask(0, "w", "model", 0, 64 * COUNT, 0.5), minlength=256)
    expected = 8 * COUNT / 256
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 5 * (2 * 255) ** 0.5
