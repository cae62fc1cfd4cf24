"""Every structure against the naive answer: costs, decisions, ties, restrictions, screens and tiles."""

from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from spaces import SPACES, all_distances, dyadic, naive_costs, names, random_graph, random_tree

import weightspace as ws
from weightspace.labels.rules import chunked as columns
from weightspace.labels.rules import dense, rule
from weightspace.labels.rules import euclidean as nearest
from weightspace.labels.rules import tree as hanging

EXPONENTS = (1, 2, 3, 0.5)

pytestmark = pytest.mark.usefixtures("either_way")


def observed_of(metric: ws.LabelMetric, seed: int, share: float) -> list[str]:
    rng = np.random.default_rng(seed)
    count = max(1, round(share * len(metric)))
    return [metric.labels[i] for i in rng.permutation(len(metric))[:count]]


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("share", [1.0, 0.3, 0.0], ids=["all", "some", "one"])
@pytest.mark.parametrize("space", SPACES)
def test_it_is_the_first_label_of_least_expected_cost(space: str, share: float, exponent: float) -> None:
    metric = SPACES[space]
    observed = observed_of(metric, 1, share)
    p = dyadic(40, len(observed), 2)
    expected = naive_costs(metric, p, observed, exponent)
    np.testing.assert_allclose(
        metric.expected_cost(p, observed=observed, exponent=exponent), expected, rtol=1e-12, atol=1e-11
    )
    found = metric.predict(p, observed=observed, exponent=exponent)
    if exponent in (1, 2, 3):  # all sums are exact, so that ties are ties
        np.testing.assert_array_equal(found, expected.argmin(1))
    np.testing.assert_allclose(expected[np.arange(40), found], expected.min(1), rtol=1e-12)


@pytest.mark.parametrize("exponent", [1, 2])
@pytest.mark.parametrize("seed", range(12))
def test_random_trees_and_pendant_trees_of_a_2_core(seed: int, exponent: int) -> None:
    weighted = bool(seed % 2)
    count = int(np.random.default_rng(seed).integers(2, 40))
    graph = random_graph(count, seed // 4, seed, weighted=weighted)
    metric = ws.LabelMetric.from_graph(graph, labels=names(count))
    observed = observed_of(metric, seed, 0.4 if seed % 3 else 1.0)
    p = dyadic(300, len(observed), seed)
    expected = naive_costs(metric, p, observed, exponent).argmin(1)
    np.testing.assert_array_equal(metric.predict(p, observed=observed, exponent=exponent), expected)
    recorded = metric.decision(observed=observed, exponent=exponent).rule.scores(torch.from_numpy(p)).argmin(1)
    np.testing.assert_array_equal(recorded.numpy(), expected)


@pytest.mark.parametrize("space", SPACES)
def test_outputs_can_be_restricted_in_any_order(space: str) -> None:
    metric = SPACES[space]
    observed, outputs = observed_of(metric, 3, 0.5), observed_of(metric, 4, 0.4)
    p = dyadic(20, len(observed), 5)
    costs = naive_costs(metric, p, observed, 2)
    allowed = sorted(metric.labels.index(name) for name in outputs)
    expected = np.asarray(allowed)[costs[:, allowed].argmin(1)]
    np.testing.assert_array_equal(metric.predict(p, observed=observed, outputs=outputs), expected)
    np.testing.assert_allclose(
        metric.expected_cost(p, observed=observed, outputs=outputs),
        costs[:, [metric.labels.index(name) for name in outputs]],
        rtol=1e-12,
        atol=1e-11,
    )
    seen = sorted(metric.labels.index(name) for name in observed)
    among = np.asarray(seen)[costs[:, seen].argmin(1)]
    np.testing.assert_array_equal(metric.predict(p, observed=observed, outputs="observed"), among)


@pytest.mark.parametrize("space", SPACES)
def test_tiles_do_not_change_anything(space: str, monkeypatch: pytest.MonkeyPatch) -> None:
    metric = SPACES[space]
    observed = list(metric.labels)
    p = dyadic(25, len(observed), 6)
    for exponent in (1, 2):
        whole = metric.predict(p, observed=observed, exponent=exponent)
        monkeypatch.setattr(rule, "TILE", 3 * len(metric))
        np.testing.assert_array_equal(metric.predict(p, observed=observed, exponent=exponent), whole)
        monkeypatch.undo()


@pytest.mark.parametrize("short", [True, False], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("exponent", [1, 2])
def test_a_screen_never_changes_the_answer(exponent: int, short: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "_SMALL", 0)
    monkeypatch.setattr(dense, "_BLOCK", 64)
    monkeypatch.setattr(dense, "fast_bfloat16", lambda device: short)
    rng = np.random.default_rng(7)
    points = rng.normal(size=(300, 6))
    gaps = np.abs(points[:, None] - points[None]).max(-1)
    metric = ws.LabelMetric.from_distance_matrix(gaps)
    p = rng.dirichlet(np.full(300, 0.05), size=64).astype(np.float32)
    p[0], p[1] = 0, 0
    p[0, 17], p[1, :2] = 1, 1e-42  # one certain label, and weights that bfloat16 flushes to zero
    costs = p.astype(float) @ gaps**exponent
    found = metric.predict(p, observed=range(300), exponent=exponent)
    np.testing.assert_allclose(costs[np.arange(64), found], costs.min(1), rtol=1e-12)
    assert (found == costs.argmin(1)).mean() > 0.95  # all but ties up to rounding


def test_the_screen_of_points_never_changes_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "_SMALL", 0)
    monkeypatch.setattr(nearest, "_BLOCK", 64)
    monkeypatch.setattr(nearest, "_CACHED", 64)
    rng = np.random.default_rng(8)
    points = np.concatenate([rng.normal(size=(200, 5)), rng.normal(size=(100, 5)) + 30]).astype(np.float32)
    metric = ws.LabelMetric.from_embeddings(points)
    p = rng.dirichlet(np.full(300, 0.1), size=50)
    gaps = np.square(points[:, None].astype(float) - points[None]).sum(-1)
    costs = p @ gaps
    np.testing.assert_array_equal(metric.predict(p, observed=range(300)), costs.argmin(1))


@pytest.mark.parametrize(("dtype", "scale"), [("f4", 1e-42), ("f4", 1e30), ("f8", 1e-200), ("f8", 1e200)])
def test_the_screen_of_points_takes_weights_of_any_size(
    dtype: str, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearest, "_SMALL", 0)
    rng = np.random.default_rng(3)
    points = rng.normal(size=(200, 5)).astype(np.float32)
    p = (rng.integers(0, 9, size=(50, 200)) * scale).astype(dtype)
    costs = p.astype(float) / scale @ np.square(points[:, None].astype(float) - points[None]).sum(-1)
    found = ws.LabelMetric.from_embeddings(points).predict(p, observed=range(200))
    np.testing.assert_array_equal(found, costs.argmin(1))


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_where_products_may_be_rough_no_screen_counts_on_float32(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearest, "_SMALL", 0)
    monkeypatch.setattr(nearest.Nearest, "_screened", lambda self, weights: pytest.fail("screened"))
    points = np.random.default_rng(3).normal(size=(50, 5)).astype(np.float32)
    metric = ws.LabelMetric.from_embeddings(points)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert not rule.uses_full_float32(torch.device("cpu"))
        np.testing.assert_array_equal(metric.predict(np.eye(50), observed=range(50)), np.arange(50))
    finally:
        torch.set_float32_matmul_precision(before)


def test_weights_in_bfloat16_are_taken_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "_SMALL", 0)
    points = torch.eye(65, 64)
    points[64, 0] = -1
    seen = torch.cat([4 * points[[0] * 4], 4 * points[[64] * 4], 0 * points[:1]])
    weights = torch.cat(
        [torch.rand(2000, 8, generator=torch.Generator().manual_seed(0)) * 0.45 + 0.5, torch.ones(2000, 1)], 1
    )
    screened = nearest.Nearest(points, seen)
    rough = weights.bfloat16()
    assert torch.equal(screened.decide(rough), screened.decide(rough.double()))
    assert torch.equal(screened.decide(rough), screened.costs(rough.double()).argmin(1))


@pytest.mark.parametrize("scale", [1e-22, 1e-15, 1e15, 1e19])
def test_points_beyond_the_range_of_float32_squares_are_decided_in_float64(
    scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearest, "_SMALL", 0)
    rng = np.random.default_rng(3)
    points, p = rng.normal(size=(100, 8)), rng.dirichlet(np.ones(100), size=200)
    costs = p @ np.square(points[:, None] - points[None]).sum(-1)
    found = ws.LabelMetric.from_embeddings(points * scale).predict(p, observed=range(100))
    np.testing.assert_array_equal(found, costs.argmin(1))


def test_equal_points_tie_to_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "_SMALL", 0)
    points = np.tile(np.asarray([[0.0, 1], [2, 3], [4, 0]], dtype=np.float32), (20, 1))
    metric = ws.LabelMetric.from_embeddings(points)
    np.testing.assert_array_equal(metric.predict(np.eye(60), observed=range(60)), np.arange(60) % 3)


def test_only_rows_whose_points_a_screen_cannot_tell_apart_are_decided_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "_SMALL", 0)
    rng = np.random.default_rng(3)
    points = rng.normal(size=(40, 3)).astype(np.float32)
    points[1:20:2] = points[:20:2]  # half of the points are there twice, and the others far apart
    points[20:] += 100 * np.arange(20, dtype=np.float32)[:, None]
    decided: list[int] = []
    nearest_of = nearest.Nearest._nearest_of

    def counted(rule: Any, weights: Any, rows: Any, candidates: Any) -> Any:
        decided.append(len(weights))
        return nearest_of(rule, weights, rows, candidates)

    monkeypatch.setattr(nearest.Nearest, "_nearest_of", counted)
    expected = np.square(points[:, None].astype(float) - points[None]).sum(-1).argmin(1)
    metric = ws.LabelMetric.from_embeddings(points)
    np.testing.assert_array_equal(metric.predict(np.eye(40), observed=range(40)), expected)
    assert decided == [20]


@pytest.mark.parametrize("space", ["graph", "tree", "points", "grid"])
def test_distances_that_are_too_many_to_keep_are_found_again(space: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_SOURCES", 7)
    metric = SPACES[space]
    observed = list(metric.labels)
    p = torch.from_numpy(dyadic(20, len(observed), 9))
    nodes = np.arange(len(metric))
    for exponent in (1, 2, 3):
        kept, streamed = (
            columns.columns(metric.geometry.distances, nodes, nodes, exponent, kept) for kept in (1 << 20, 0)
        )
        assert isinstance(streamed, columns.StreamedColumns)
        torch.testing.assert_close(streamed.costs(p), kept.costs(p), rtol=1e-12, atol=1e-12)
        assert torch.equal(streamed.decide(p), kept.decide(p))


def test_the_discrete_metric_is_argmax_however_small_the_difference() -> None:
    p = np.full((1, 5), 1e-30)
    p[0, 3], p[0, 0] = 2e-30, 1
    metric = ws.LabelMetric.discrete("abcde")
    assert metric.predict(p[:, 1:], observed=["b", "c", "d", "e"])[0] == 3
    rng = np.random.default_rng(10)
    rows = rng.dirichlet(np.ones(5), size=100)
    np.testing.assert_array_equal(
        metric.predict(rows, observed=list("ecbad")), [("abcde").index("ecbad"[i]) for i in rows.argmax(1)]
    )


def test_weighted_and_unweighted_paths_agree_with_floyd_and_warshall() -> None:
    for space in ("graph", "weighted graph", "cycle", "deep path"):
        metric = SPACES[space]
        np.testing.assert_array_equal(metric.distances(metric.labels), all_distances(metric))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.float64])
def test_any_numbers_are_taken_and_never_changed(dtype: Any) -> None:
    metric = SPACES["tree"]
    p = (dyadic(6, 40, 11) * 16).astype(dtype)
    before = p.copy()
    found = metric.predict(p, observed=names(40))
    np.testing.assert_array_equal(p, before)
    np.testing.assert_array_equal(found, naive_costs(metric, p, names(40), 2).argmin(1))
    np.testing.assert_array_equal(metric.predict(torch.from_numpy(p), observed=names(40)), found)
    np.testing.assert_array_equal(metric.predict(p.reshape(2, 3, 40), observed=names(40)), found.reshape(2, 3))
    assert metric.predict(p[0], observed=names(40)) == found[0]
    p.flags.writeable = False
    np.testing.assert_array_equal(metric.predict(p[::-1], observed=names(40)), found[::-1])
    assert metric.predict(p[:0], observed=names(40)).shape == (0,)


def test_a_large_shallow_tree_agrees_with_all_its_costs() -> None:
    metric = ws.LabelMetric.from_tree(edges=random_tree(3000, 12, weighted=True), labels=names(3000))
    rng = np.random.default_rng(13)
    p = torch.from_numpy(rng.dirichlet(np.full(3000, 0.01), size=64))
    for exponent in (1, 2):
        rule = metric.decision(observed=names(3000), exponent=exponent).rule
        assert isinstance(rule, hanging.PendantTrees)
        assert rule.shallow
        assert torch.equal(rule.decide(p), rule.costs(p).argmin(1))


@pytest.mark.parametrize("away", [0.0, 1e6, 1e9])
def test_points_far_from_the_origin_are_distinguished(away: float) -> None:
    rng = np.random.default_rng(0)
    points = away + rng.normal(size=(50, 3))
    metric = ws.LabelMetric.from_embeddings(points, labels=names(50))
    p = rng.dirichlet(np.full(50, 0.05), size=200)
    centred = points - points.mean(0)
    exact = ((p @ centred)[:, None, :] - centred).__pow__(2).sum(2)
    found = metric.predict(p, observed=names(50))
    assert (exact[np.arange(200), found] <= exact.min(1) * (1 + 1e-6)).all()
    spread = p @ (centred**2).sum(1) - ((p @ centred) ** 2).sum(1)
    costs = metric.expected_cost(p, observed=names(50))
    np.testing.assert_allclose(costs, exact + spread[:, None], rtol=1e-4)


def test_distances_beyond_the_squares_of_float32_are_decided_in_float64() -> None:
    rng = np.random.default_rng(0)
    places = rng.normal(size=600) * 1e25
    far = ws.LabelMetric.from_distance_matrix(np.abs(places[:, None] - places), labels=names(600))
    p = rng.dirichlet(np.full(600, 0.01), size=256)
    exact = ((p @ places)[:, None] - places) ** 2
    found = far.predict(p, observed=names(600))
    assert (exact[np.arange(256), found] <= exact.min(1) * (1 + 1e-6)).all()
    graph = nx.cycle_graph(12)
    graph.add_edges_from((i, 12 + i) for i in range(12))
    weights = rng.dirichlet(np.full(24, 0.2), size=50)
    unit = ws.LabelMetric.from_graph(graph, labels=range(24)).predict(weights, observed=range(24))
    for _, _, edge in graph.edges(data=True):
        edge["weight"] = 1e20
    large = ws.LabelMetric.from_graph(graph, labels=range(24)).predict(weights, observed=range(24))
    np.testing.assert_array_equal(large, unit)
