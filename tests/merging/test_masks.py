import numpy as np
import pytest

from weightspace.merging.masks import random_mask

COUNT = 200_000


def draw(keep: float | np.ndarray, count: int = COUNT) -> np.ndarray:
    return random_mask(0, "w", "model", 0, count, keep)


@pytest.mark.parametrize("keep", [0.0, 1.0])
def test_certain_elements_are_certain(keep: float) -> None:
    assert (draw(keep) == bool(keep)).all()
    assert (draw(np.full(COUNT, keep)) == bool(keep)).all()


@pytest.mark.parametrize("keep", [1 / 512, 0.3, 0.5, 0.7001, 511 / 512])
def test_as_many_stay_as_the_probability_says(keep: float) -> None:
    """Also where the first 8 bits alone would round the probability."""
    deviation = (keep * (1 - keep) / COUNT) ** 0.5
    assert abs(draw(keep).mean() - keep) < 5 * deviation
    assert np.array_equal(draw(keep), draw(np.full(COUNT, keep)))


def test_every_element_has_its_own_probability() -> None:
    keep = np.linspace(0, 1, COUNT)
    tenths = draw(keep).reshape(10, -1).mean(axis=1)
    assert np.abs(tenths - keep.reshape(10, -1).mean(axis=1)).max() < 5 * 0.5 / (COUNT / 10) ** 0.5
