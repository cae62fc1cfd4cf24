"""Work that grows with what is asked for: four times the size takes at most six times the work, counted."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from spaces import SPACES, all_distances

import weightspace as ws
from weightspace.labels import pairs, path_lengths
from weightspace.labels.names import Names
from weightspace.labels.results import Predictions
from weightspace.labels.rules import shortest_paths as hops


class Counting:
    """numpy, but it counts the elements of all arrays that its functions return."""

    def __init__(self) -> None:
        self.elements = 0

    def __getattr__(self, name: str) -> Any:
        found = getattr(np, name)
        if not callable(found) or isinstance(found, type | np.ufunc):
            return found

        def counted(*args: Any, **kwargs: Any) -> Any:
            result = found(*args, **kwargs)
            for part in result if isinstance(result, tuple) else (result,):
                self.elements += getattr(part, "size", 0)
            return result

        return counted


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> Iterator[list[int]]:
    """Count array elements, names and Python calls within; the work stands in the list at the end."""
    counter, calls, work = Counting(), 0, [0]

    def called(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    def each(listed: Names) -> Iterator[Any]:
        counter.elements += len(listed)
        return iter([listed[i] for i in range(len(listed))])

    monkeypatch.setattr(Names, "__iter__", each)
    for module in modules:
        monkeypatch.setattr(module, "np", counter)
    sys.setprofile(called)
    try:
        yield work
    finally:
        sys.setprofile(None)
        monkeypatch.undo()
        work[0] = counter.elements + calls


def chain(nodes: int) -> ws.LabelMetric:
    return ws.LabelMetric.from_tree([-1, *range(nodes - 1)])


def star(nodes: int) -> ws.LabelMetric:
    return ws.LabelMetric.from_tree([-1, *[0] * (nodes - 1)])


def ring(nodes: int) -> ws.LabelMetric:
    """Return a cycle, every node of which carries a leaf."""
    import networkx as nx

    graph = nx.cycle_graph(nodes // 2)
    graph.add_edges_from((i, nodes // 2 + i) for i in range(nodes // 2))
    return ws.LabelMetric.from_graph(graph)


WORK: dict[str, tuple[Callable[[int], ws.LabelMetric], Callable[[ws.LabelMetric], Any]]] = {
    "distances along a chain": (chain, lambda metric: metric.distances([0, 5])),
    "distances in a star": (star, lambda metric: metric.distances([0, 5])),
    "distances around a ring": (ring, lambda metric: metric.distances([0, 5])),
    "a cover of a star": (star, lambda metric: metric.minimum_cover()),
    "a locus": (star, lambda metric: metric.locus(list(metric.labels))),
    "next classes": (star, lambda metric: metric.next_classes([0], len(metric) // 2)),
    "pairs along a chain": (
        chain,
        lambda metric: pairs.pair_distances(metric.geometry, np.arange(len(metric)), np.arange(len(metric))[::-1]),
    ),
    "pairs around a ring": (
        ring,
        lambda metric: pairs.pair_distances(metric.geometry, np.arange(len(metric)), np.zeros(len(metric), int)),
    ),
    "names of predictions": (
        star,
        lambda metric: Predictions.of(metric, np.ones((len(metric), 2)), observed=[1, 2]),
    ),
}


@pytest.mark.parametrize("what", WORK)
def test_four_times_the_size_takes_at_most_six_times_the_work(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build, call = WORK[what]
    call(build(40))  # imports
    counts = []
    for nodes in (600, 2400):
        metric = build(nodes)
        with counted(monkeypatch, hops, pairs, path_lengths) as work:
            call(metric)
        counts.append(work[0])
    assert counts[1] <= 6 * counts[0], counts


def test_labels_are_not_copied_at_every_access() -> None:
    for metric in SPACES.values():
        assert metric.labels is metric.labels


@pytest.mark.parametrize("space", SPACES)
def test_distances_are_those_of_floyd_and_warshall_from_few_and_many_sources(space: str) -> None:
    metric = SPACES[space]
    expected = all_distances(metric)
    rng = np.random.default_rng(0)
    for count in (1, 3, 70):
        sources = [metric.labels[i] for i in rng.integers(0, len(metric), count)]
        where = [metric.labels.index(name) for name in sources]
        np.testing.assert_array_equal(metric.distances(sources), expected[where])
        targets = sources[:2]
        np.testing.assert_array_equal(metric.distances(sources, targets), expected[where][:, where[:2]])


def test_short_lengths_far_from_the_root_keep_their_digits() -> None:
    """Heights of 1e9 and lengths of 1e-3: their difference in float64 alone has six digits left."""
    lengths = {"far": 1e9, **{f"{i}": 1e-3 * (1 + i / 7) for i in range(20)}}
    parents = {"far": "root", "near": "root", **{f"{i}": f"{i - 1}" if i else "far" for i in range(20)}}
    tree = ws.LabelMetric.from_tree(parents, weights=lengths)
    way = np.cumsum([lengths[f"{i}"] for i in range(4, 20)])
    np.testing.assert_allclose(tree.distances(["3"], [f"{i}" for i in range(4, 20)])[0], way, rtol=1e-14)
    first = np.full(16, tree.labels.index("3"))
    second = np.asarray([tree.labels.index(f"{i}") for i in range(4, 20)])
    np.testing.assert_allclose(pairs.pair_distances(tree.geometry, first, second), way, rtol=1e-14)


@pytest.mark.parametrize("seed", range(6))
def test_lowest_common_ancestors_are_found_on_deep_and_shallow_trees(seed: int) -> None:
    rng = np.random.default_rng(seed)
    reach = (1, 2, 5, 30, 300, 10**6)[seed]
    tree = ws.LabelMetric.from_tree([-1, *(int(rng.integers(max(0, i - reach), i)) for i in range(1, 700))])
    first, second = rng.integers(0, 700, (2, 400))
    expected = tree.distances(first.tolist())[np.arange(400), second]
    np.testing.assert_array_equal(pairs.pair_distances(tree.geometry, first, second), expected)
