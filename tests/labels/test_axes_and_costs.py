"""The k best labels, classes on any axis, and costs that differ by direction, against all costs written out."""

from typing import Any

import numpy as np
import pytest
import torch
from spaces import SPACES, all_distances

import weightspace as ws
from weightspace.labels import CostMatrix

every_space = pytest.mark.parametrize("space", SPACES)


def chosen(metric: ws.LabelMetric, seed: int = 0) -> tuple[list[Any], list[Any], np.ndarray]:
    rng = np.random.default_rng(seed)
    observed = [metric.labels[i] for i in rng.permutation(len(metric))[: max(1, len(metric) // 2)]]
    outputs = [metric.labels[i] for i in rng.permutation(len(metric))[: max(1, len(metric) // 3)]]
    return observed, outputs, rng.random((6, len(observed)))


@every_space
@pytest.mark.parametrize("exponent", [1, 2])
def test_the_k_best_are_those_of_all_costs(space: str, exponent: int) -> None:
    metric = SPACES[space]
    observed, listed, p = chosen(metric)
    distances = all_distances(metric)
    seen = [metric.labels.index(label) for label in observed]
    for outputs in ("all", listed):
        places = sorted(range(len(metric)) if outputs == "all" else [metric.labels.index(label) for label in listed])
        costs = p @ (distances[np.ix_(places, seen)] ** exponent).T
        for k in (1, len(places)):
            order = np.argsort(np.round(costs, 9), axis=1, kind="stable")[:, :k]
            least, found = metric.topk(p, k, observed=observed, outputs=outputs, exponent=exponent)
            np.testing.assert_allclose(least, np.take_along_axis(costs, order, 1), atol=1e-9)
            assert (np.diff(least, axis=1) >= 0).all()
            costs_of_found = np.take_along_axis(costs, np.searchsorted(places, found), 1)
            np.testing.assert_allclose(costs_of_found, least, atol=1e-9)
            assert (found[:, 0] == metric.predict(p, observed=observed, outputs=outputs, exponent=exponent)).all()


def test_equal_costs_come_in_the_order_of_labels() -> None:
    metric = ws.LabelMetric.discrete(["a", "b", "c"])
    costs, found = metric.topk(np.ones(2), 3, observed=["c", "a"], outputs=["c", "b", "a"])
    assert found.tolist() == [0, 2, 1]
    assert costs.tolist() == [1, 1, 2]
    for k in (0, 4, 1.5):
        with pytest.raises(ws.WeightspaceError, match="expected 1 to 3"):
            metric.topk(np.ones(2), k, observed=["c", "a"])  # type: ignore[arg-type]


@pytest.mark.parametrize("dim", [1, 0, 3, -3])
def test_classes_may_be_on_any_axis(dim: int) -> None:
    metric = SPACES["tree"]
    observed, _, _ = chosen(metric)
    rng = np.random.default_rng(1)
    last = rng.random((2, 3, 4, len(observed)))
    moved = np.moveaxis(last, -1, dim)
    given = {"observed": observed}
    expected = metric.predict(last, **given)
    for values in (moved, torch.tensor(moved)):
        np.testing.assert_array_equal(metric.predict(values, **given, dim=dim), expected)
        costs = metric.expected_cost(values, **given, dim=dim)
        np.testing.assert_allclose(np.moveaxis(costs, dim, -1), metric.expected_cost(last, **given))
        best, places = metric.topk(values, 2, **given, dim=dim)
        assert best.shape == places.shape == np.moveaxis(last[..., :2], -1, dim).shape
        np.testing.assert_array_equal(np.moveaxis(places, dim, -1)[..., 0], expected)
    for axis in (4, -5):
        with pytest.raises(ws.WeightspaceError, match="there are 4 axes; expected -4 to 3"):
            metric.predict(moved, **given, dim=axis)


@pytest.mark.parametrize("dim", [1, -3])
def test_heads_take_images_of_logits(dim: int) -> None:
    metric = SPACES["tree"]
    observed, _, _ = chosen(metric)
    logits = torch.randn(2, len(observed), 3, 4, generator=torch.Generator().manual_seed(0))
    head, plain = metric.head(observed=observed, dim=dim), metric.head(observed=observed)
    moved = logits.movedim(1, -1).contiguous()
    assert head(logits).shape == (2, 3, 4)
    assert torch.equal(head(logits), plain(moved))
    assert torch.equal(head.expected_cost(logits), plain.expected_cost(moved).movedim(-1, 1))
    costs, places = head.topk(logits, 3)
    assert costs.shape == places.shape == (2, 3, 3, 4)
    assert torch.equal(places[:, 0], head(logits))
    assert "dim=" in repr(head)
    wanted = logits.clone().requires_grad_()
    head.expected_cost(wanted).sum().backward()
    assert wanted.grad is not None
    exported = torch.export.export(head, (logits,)).module()
    assert torch.equal(exported(logits), head(logits))
    with pytest.raises(ws.WeightspaceError, match="there are 1 axes"):
        metric.head(observed=observed, dim=1)(torch.zeros(len(observed)))


def costs(seed: int, count: int = 7) -> tuple[CostMatrix, np.ndarray]:
    matrix = np.random.default_rng(seed).random((count, count)) * (1 - np.eye(count))
    return CostMatrix(matrix, labels=[f"c{i}" for i in range(count)]), matrix


@pytest.mark.parametrize("seed", range(5))
def test_rows_are_predictions_and_columns_truths(seed: int) -> None:
    space, matrix = costs(seed)
    rng = np.random.default_rng(seed)
    seen, named = rng.permutation(7)[:4], rng.permutation(7)[:5]
    p = rng.random((9, 4))
    given = {"observed": [f"c{i}" for i in seen], "outputs": [f"c{i}" for i in named]}
    naive = np.array([[sum(row[j] * matrix[y, i] for j, i in enumerate(seen)) for y in named] for row in p])
    np.testing.assert_allclose(space.expected_cost(p, **given), naive)
    np.testing.assert_array_equal(space.predict(p, **given), named[naive.argmin(1)])
    least, found = space.topk(p, 5, **given)
    np.testing.assert_array_equal(found, named[np.argsort(naive, axis=1)])
    np.testing.assert_allclose(least, np.sort(naive, axis=1))
    head = space.head(**given)
    np.testing.assert_array_equal(head(torch.tensor(p).log()).numpy(), space.predict(p, **given))
    image = torch.tensor(p).log().reshape(3, 3, 4).movedim(-1, 0)
    np.testing.assert_array_equal(space.head(**given, dim=0)(image).numpy().ravel(), space.predict(p, **given))
    assert space.predict(p.T, **given, dim=0).shape == (9,)
    assert space.expected_cost(p.T, **given, dim=0).shape == (5, 9)


def test_direction_matters() -> None:
    space = CostMatrix([[0, 10], [1, 0]], labels=["well", "ill"])
    given = {"observed": ["well", "ill"]}
    assert space.labels[space.predict([0.8, 0.2], **given)] == "ill"
    turned = CostMatrix([[0, 1], [10, 0]], labels=["well", "ill"])
    assert turned.labels[turned.predict([0.8, 0.2], **given)] == "well"
    symmetric = ws.LabelMetric.from_distance_matrix([[0.0, 1.0], [1.0, 0.0]], labels=["well", "ill"])
    assert symmetric.labels[symmetric.predict([0.8, 0.2], **given)] == "well"


def test_invalid_costs_are_refused() -> None:
    for call, message in (
        (lambda: CostMatrix([[0, 1]]), r"\(K, K\).*shape \(1, 2\)"),
        (lambda: CostMatrix([[0, -1], [1, 0]], labels="ab"), "Predicting 'a' for 'b' costs -1"),
        (lambda: CostMatrix([[0, np.nan], [1, 0]]), "costs nan"),
        (lambda: CostMatrix([[0.0]], labels=["a", "b"]), "2 labels for 1 rows"),
        (lambda: CostMatrix([[0.0]]).predict([1.0], observed=[0], outputs="some"), "'all', 'observed' or a list"),
        (lambda: CostMatrix([[0.0]]).head(observed=[0], exponent=2), "exponent=2. Take powers"),
        (lambda: CostMatrix([[0.0]]).predict([1.0], observed=[3]), "Unknown label 3"),
    ):
        with pytest.raises(ws.WeightspaceError, match=message):
            call()
