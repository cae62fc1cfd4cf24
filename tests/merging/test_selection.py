import math
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightspace.merging.methods import _topk as selection
from weightspace.merging.methods._topk import Cut, StatisticChunks, largest

#: Few different values, so that most are ties: zeros of both signs and the smallest subnormal among them.
VALUES = st.sampled_from([0.0, -0.0, 1e-45, 3e-45, 1e-39, 0.5, 1.0, 1.0000001, 2.0, 3e38])
ARRAYS = st.lists(VALUES, min_size=1, max_size=60).map(lambda values: np.array(values, np.float32))


def in_chunks(arrays: Sequence[np.ndarray], size: int) -> StatisticChunks:
    def chunks(first: int) -> Iterator[tuple[int, list[np.ndarray]]]:
        for start in range(first, len(arrays[0]), size):
            yield start, [array[start : start + size] for array in arrays]

    return chunks


def kept(cut: Cut, array: np.ndarray, size: int) -> list[int]:
    """Return the positions that a cut keeps, asked chunk by chunk."""
    masks = [cut.kept(array[start : start + size], start) for start in range(0, len(array), size)]
    return np.flatnonzero(np.concatenate(masks)).tolist()


def by_sorting(array: np.ndarray, rank: int) -> list[int]:
    return sorted(np.argsort(-array, kind="stable")[: max(0, rank)].tolist())


@given(array=ARRAYS, rank=st.integers(-1, 70), size=st.integers(1, 70))
@settings(max_examples=300, deadline=None)
def test_the_kept_ones_are_the_first_of_a_stable_sort(array: np.ndarray, rank: int, size: int) -> None:
    (cut,) = largest(in_chunks([array], size), [rank], [len(array)])
    assert kept(cut, array, size) == by_sorting(array, rank)


@given(
    arrays=st.integers(1, 60).flatmap(
        lambda count: st.lists(st.lists(VALUES, min_size=count, max_size=count), min_size=2, max_size=4)
    ),
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_several_populations_are_cut_each_for_itself(arrays: list[list[float]], data: st.DataObject) -> None:
    populations = [np.array(values, np.float32) for values in arrays]
    count = len(populations[0])
    ranks = data.draw(st.lists(st.integers(0, count), min_size=len(arrays), max_size=len(arrays)))
    cuts = largest(in_chunks(populations, 7), ranks, [count] * len(arrays))
    for cut, array, rank in zip(cuts, populations, ranks, strict=True):
        assert kept(cut, array, 7) == by_sorting(array, rank)


@pytest.mark.parametrize("held", [200, 1000, 2**20])
@pytest.mark.parametrize("decimals", [0, 2, 9])
@pytest.mark.parametrize("sampled", ["none", "even", "misleading"])
def test_no_sample_and_no_shortage_of_memory_changes_what_is_kept(
    held: int, decimals: int, sampled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brackets that miss, that hold too much, or that hold thousands of equal numbers."""
    monkeypatch.setattr(selection, "GATHERED", held)
    generator = np.random.default_rng(0)
    array = np.abs(generator.normal(size=5000)).round(decimals)
    part = {"even": array[::20], "misleading": array[:200] * 0 + 5.0}.get(sampled)
    sample = None if part is None else in_chunks([part], 50)
    for rank in (1, 2, 63, 2500, 4937, 4999):
        (cut,) = largest(in_chunks([array], 512), [rank], [5000], sample)
        assert kept(cut, array, 512) == by_sorting(array, rank)


def test_one_pass_is_enough_for_a_small_population_without_ties() -> None:
    array, passes = np.arange(1000.0), []

    def chunks(first: int) -> Iterator[tuple[int, list[np.ndarray]]]:
        passes.append(1)
        yield 0, [array]

    largest(chunks, [300], [1000])
    assert len(passes) == 1


def test_the_last_kept_of_equal_values_is_searched_in_its_own_chunk_only() -> None:
    array, begun = np.repeat([1.0, 2.0, 3.0], 100), []
    inner = in_chunks([array], 10)

    def chunks(first: int) -> Iterator[tuple[int, Sequence[np.ndarray]]]:
        begun.append(first)
        return inner(first)

    (cut,) = largest(chunks, [145], [300])
    assert kept(cut, array, 10) == by_sorting(array, 145)
    assert begun == [0, 140]


@pytest.mark.parametrize("rank", [1, 100, 101, 150, 200, 201, 299])
def test_a_sample_of_one_repeated_number_does_not_mislead(rank: int) -> None:
    array = np.concatenate([np.full(100, 2.0), np.linspace(0.0, 1.0, 200)])
    (cut,) = largest(in_chunks([array], 7), [rank], [300], in_chunks([np.full(100, 2.0)], 100))
    assert kept(cut, array, 7) == by_sorting(array, rank)


def test_a_selection_that_keeps_all_or_nothing_reads_nothing() -> None:
    def chunks(first: int) -> Iterator[tuple[int, list[np.ndarray]]]:
        raise AssertionError("read")

    everything, nothing = largest(chunks, [10, 0], [10, 10])
    assert everything.kept(np.zeros(10), 0).all()
    assert not nothing.kept(np.ones(10), 0).any()


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("rank", [1, 3, 5, 9])
@pytest.mark.parametrize("sampled", [False, True])
def test_numbers_that_are_not_finite_do_not_keep_the_search_from_ending(bad: float, rank: int, sampled: bool) -> None:
    array = np.array([1.0, bad, 2.0, bad, bad, 3.0, bad, 4.0, 5.0, 6.0])
    sample = in_chunks([np.tile(array, 20)], 50) if sampled else None
    (cut,) = largest(in_chunks([array], 4), [rank], [10], sample)
    finite = [index for index in kept(cut, array, 4) if math.isfinite(array[index])]
    assert finite == [
        index for index in by_sorting(np.nan_to_num(array, nan=math.inf), rank) if math.isfinite(array[index])
    ]


def test_everything_not_finite_ends_too() -> None:
    for bad in (math.inf, math.nan):
        largest(in_chunks([np.full(10, bad)], 3), [4], [10])
