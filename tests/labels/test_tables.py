"""A few labels of a large structure: a table of their distances is made once, and decides as the structure would."""

from pathlib import Path

import numpy as np
import pytest
import torch
from spaces import naive_costs, names, random_graph, random_tree

import weightspace as ws
from weightspace.labels import calibration, fit_temperature, geometry
from weightspace.labels.rules import chunked as columns
from weightspace.labels.rules import dense
from weightspace.labels.rules import tree as hanging
from weightspace.labels.rules.dense import Dense


def large(kind: str) -> ws.LabelMetric:
    """Return a tree, or a graph with a core, of 3,000 labels."""
    if kind == "tree":
        return ws.LabelMetric.from_tree(edges=random_tree(3000, 0, weighted=True), labels=names(3000))
    return ws.LabelMetric.from_graph(random_graph(3000, 40, 0, weighted=True), labels=names(3000))


def some(count: int, seed: int) -> list[str]:
    return [f"class {i}" for i in np.random.default_rng(seed).permutation(3000)[:count]]


def rows(count: int, columns_: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(columns_, 0.1), size=count).astype(np.float32)


@pytest.mark.parametrize("kind", ["tree", "graph"])
@pytest.mark.parametrize("exponent", [1, 2])
def test_few_labels_of_a_large_structure_decide_by_their_table(
    kind: str, exponent: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    metric, observed, outputs = large(kind), some(80, 1), some(120, 2)
    chosen = {"observed": observed, "outputs": outputs, "exponent": exponent}
    rule = metric.decision(**chosen).rule
    assert isinstance(rule, Dense)
    assert rule.matrix.shape == (120, 80)
    asked: list[int] = []
    distances = geometry.GraphGeometry.distances
    monkeypatch.setattr(
        geometry.GraphGeometry, "distances", lambda self, *nodes: asked.append(1) or distances(self, *nodes)
    )
    p = rows(100, 80)
    found = metric.predict(p, **chosen)
    assert not asked  # the table is kept
    costs = p.astype(float) @ metric.distances(observed, outputs) ** exponent
    best = np.asarray([metric.labels.index(name) for name in outputs])[costs.argmin(1)]
    assert (found == best).mean() > 0.95
    at = {metric.labels.index(name): column for column, name in enumerate(outputs)}
    chosen_costs = costs[np.arange(100), [at[label] for label in found]]
    np.testing.assert_allclose(chosen_costs, costs.min(1), rtol=1e-12)


def test_whole_trees_descend_unless_they_are_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(large("tree").decision(observed=names(3000)).rule, hanging.PendantTrees)
    tiny = ws.LabelMetric.from_tree([-1, 0, 0, 1, 1])
    assert isinstance(tiny.decision(observed=range(5)).rule, Dense)
    monkeypatch.setattr(columns, "KEPT", 8 * 79 * 120)
    rule = large("tree").decision(observed=some(80, 1), outputs=some(120, 2)).rule
    assert isinstance(rule, hanging.PendantTrees)  # the table would be too large


@pytest.mark.parametrize("kept", [0, 1 << 20])
@pytest.mark.parametrize("short", [True, False], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("flat", [0.01, 1.0, 1000.0])
def test_screens_find_what_float64_does(
    flat: float, dtype: type, short: bool, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flat rows have many near candidates, peaked ones few."""
    monkeypatch.setattr(dense, "fast_bfloat16", lambda device: short)
    monkeypatch.setattr(dense, "_KEPT", kept)
    monkeypatch.setattr(dense, "_BLOCK", 100)
    rng = np.random.default_rng(0)
    places = rng.integers(0, 40, size=(300, 2))
    metric = ws.LabelMetric.from_distance_matrix(np.abs(places[:, None] - places).sum(-1))
    p = rng.dirichlet(np.full(300, flat), size=300).astype(dtype)
    p[p.sum(1) == 0, 0] = 1
    expected = naive_costs(metric, p, list(metric.labels), 2)
    found = metric.predict(p, observed=range(300))
    np.testing.assert_allclose(expected[np.arange(300), found], expected.min(1), rtol=1e-12)
    exact = (64 * p.astype(float)).round() / 64  # sums without rounding: ties are ties
    exact[exact.sum(1) == 0, 0] = 1
    np.testing.assert_array_equal(
        metric.predict(exact.astype(dtype), observed=range(300)),
        naive_costs(metric, exact, list(metric.labels), 2).argmin(1),
    )


@pytest.mark.parametrize("scale", [1, 1e-3])
@pytest.mark.parametrize("exponent", [0.5, 7.5, 60])
def test_screens_of_other_exponents_find_what_float64_does(exponent: float, scale: float) -> None:
    rng = np.random.default_rng(0)
    points = scale * (1 + rng.random((40, 3)))
    metric = ws.LabelMetric.from_distance_matrix(np.abs(points[:, None] - points).sum(-1) + scale * (1 - np.eye(40)))
    p = rng.dirichlet(np.full(40, 5.0), size=2000)
    expected = naive_costs(metric, p, list(metric.labels), exponent)
    found = metric.predict(p, observed=range(40), exponent=exponent)
    np.testing.assert_allclose(expected[np.arange(2000), found], expected.min(1), rtol=1e-11)


def test_the_tables_of_a_rule_are_neither_copied_nor_saved(tmp_path: Path) -> None:
    metric = ws.LabelMetric.from_distance_matrix(1.0 - np.eye(60))
    rule = metric.decision(observed=range(60)).rule
    rule.decide(torch.eye(60))
    assert rule._kept
    head = metric.head(observed=range(60))
    assert not head.rule._kept
    head(torch.eye(60))
    torch.save(head, tmp_path / "head.pt")
    assert (tmp_path / "head.pt").stat().st_size < 60 * 60 * 8 + 20_000


@pytest.mark.parametrize("kind", ["tree", "graph"])
def test_a_temperature_is_the_best_of_all_predictions(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    metric, observed = large(kind), some(40, 3)
    rng = np.random.default_rng(1)
    logits = torch.from_numpy(3 * rng.normal(size=(50, 40)))
    truth = [observed[i] for i in rng.integers(0, 40, 50)]
    monkeypatch.setattr(calibration, "_ROWS", 20)
    for kept in (1 << 20, 0):
        monkeypatch.setattr(calibration, "KEPT", kept)
        found = fit_temperature(logits, truth, metric=metric, observed=observed, outputs=observed)
        for temperature, cost in [*found.tried[::8], (1.0, found.before)]:
            p = torch.softmax(logits / temperature, -1)
            labels = [metric.labels[i] for i in metric.predict(p, observed=observed, outputs=observed)]
            apart = [metric.distances([a], [b])[0, 0] ** 2 for a, b in zip(labels, truth, strict=True)]
            assert cost == pytest.approx(np.mean(apart), rel=1e-12)
        assert found.after == min(cost for _, cost in found.tried)


def test_a_fit_asks_for_distances_once(monkeypatch: pytest.MonkeyPatch) -> None:
    metric, observed = large("graph"), some(40, 3)
    asked: list[int] = []
    distances = geometry.GraphGeometry.distances

    def counted(self: geometry.GraphGeometry, sources: np.ndarray, *targets: np.ndarray) -> np.ndarray:
        asked.append(len(sources))
        return distances(self, sources, *targets)

    monkeypatch.setattr(geometry.GraphGeometry, "distances", counted)
    for count in (50, 200):
        asked.clear()
        truth = [observed[i % 40] for i in range(count)]
        fit_temperature(torch.zeros(count, 40), truth, metric=metric, observed=observed)
        assert len(asked) <= 8, asked  # not once for each of 41 temperatures


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e305, -float("inf")])
def test_a_fit_refuses_logits_without_a_softmax(value: float) -> None:
    metric = ws.LabelMetric.from_tree([-1, 0, 0])
    logits = torch.zeros(5, 3, dtype=torch.float64)
    logits[3] = value
    for objective in ("distance", "nll"):
        with pytest.raises(ws.WeightspaceError, match="Row 3 of the logits has no softmax"):
            fit_temperature(logits, [0] * 5, metric=metric, observed=range(3), objective=objective)


@pytest.mark.parametrize("row", ["zero", "negative", "nan", "infinite", "negative zero", "subnormal"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_one_bad_row_in_many_is_found(dtype: type, row: str) -> None:
    metric = ws.LabelMetric.from_tree([-1, 0, 0])
    p = np.full((200_000, 3), 0.25, dtype=dtype)
    values = {"zero": 0, "negative": -1, "nan": np.nan, "infinite": np.inf, "negative zero": -0.0, "subnormal": 0}
    p[150_001] = values[row]
    if row in ("negative zero", "subnormal"):
        p[150_001, 1] = np.finfo(dtype).smallest_subnormal
        assert metric.predict(p, observed=range(3))[150_001] == 1
        return
    with pytest.raises(ws.WeightspaceError, match="Row 150,001"):
        metric.predict(p, observed=range(3))
