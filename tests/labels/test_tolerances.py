"""Differences that are small beside the distances: told apart, or refused where float64 cannot hold them."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from spaces import names

import weightspace as ws
from weightspace.errors import WeightspaceError
from weightspace.labels import geometry
from weightspace.labels.locus import is_mean
from weightspace.labels.rules import euclidean as nearest


def clusters(dimensions: int, away: float, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Return points around ±away, and weights, three quarters of which lie on one cluster alone."""
    rng = np.random.default_rng(dimensions)
    points = np.concatenate([size * rng.normal(size=(30, dimensions)) + sign * away for sign in (1, -1)])
    p = rng.dirichlet(np.full(60, 0.3), size=200)
    p[:150, 30:] = 0
    return points, p / p.sum(1, keepdims=True)


@pytest.mark.parametrize("screened", [False, True])
@pytest.mark.parametrize("dimensions", [1, 3, 40])
@pytest.mark.parametrize(("away", "size"), [(1e5, 1e-3), (1e7, 1e-3), (1.0, 1.0)])
def test_points_in_distant_clusters_are_distinguished(
    away: float, size: float, dimensions: int, screened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearest, "_SMALL", 0 if screened else 1 << 60)
    points, p = clusters(dimensions, away, size)
    mean = (p.astype(np.longdouble) @ points) / p.sum(1, dtype=np.longdouble)[:, None]
    squares = np.square(mean[:, None] - points).sum(-1)
    metric = ws.LabelMetric.from_embeddings(points)
    np.testing.assert_array_equal(metric.predict(p, observed=range(60)), squares.argmin(1))
    costs = squares + (p * squares).sum(1, keepdims=True)
    np.testing.assert_allclose(
        metric.expected_cost(p, observed=range(60)), costs.astype(float), rtol=1e-3 * size / 1e-3
    )
    some = sorted(np.random.default_rng(0).permutation(60)[:20].tolist())
    found = metric.predict(p, observed=range(60), outputs=some)
    np.testing.assert_array_equal(found, np.asarray(some)[squares[:, some].argmin(1)])


def test_traced_heads_distinguish_clusters() -> None:
    points, p = clusters(3, 1e6, 1e-3)
    head = ws.LabelMetric.from_embeddings(points).head(observed=range(60))
    logits = torch.from_numpy(np.log(np.maximum(p, 1e-300)))
    program = torch.export.export(head, (logits[:2],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).module()
    assert torch.equal(program(logits), head(logits))
    assert len(head(logits).unique()) > 9


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.usefixtures("by_structure")
def test_nodes_of_a_tree_in_distant_clusters_are_distinguished(recorded: bool) -> None:
    points, p = clusters(1, 1e6, 1e-3)
    order = np.argsort(points[:, 0])
    line, p = points[order, 0], p[:, order]
    tree = ws.LabelMetric.from_tree(edges=[(i, i + 1, line[i + 1] - line[i]) for i in range(59)], labels=range(60))
    squares = np.square((p.astype(np.longdouble) @ line)[:, None] - line)
    rule = tree.decision(observed=range(60)).rule
    weights = torch.from_numpy(p)
    found = rule.scores(weights).argmin(-1) if recorded else rule.decide(weights)
    np.testing.assert_array_equal(found.numpy(), squares.argmin(1))


@pytest.mark.parametrize("products", [0, 1 << 28])
def test_distances_of_points_keep_their_digits_however_many_there_are(
    products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geometry, "_SUBTRACTED", products)
    points, _ = clusters(3, 1e5, 1e-3)
    exact = np.sqrt(np.square(points.astype(np.longdouble)[:, None] - points).sum(-1)).astype(float)
    metric = ws.LabelMetric.from_embeddings(points)
    np.testing.assert_allclose(metric.distances(range(60)), exact, rtol=1e-7)
    np.testing.assert_allclose(metric.distances(range(60), range(7)), exact[:, :7], rtol=1e-7)


def is_exact_mean(squares: list[tuple[int, int]], label: int, *, unique: bool) -> bool:
    """Return whether some share a of the second class, the rest on the first, makes a label the mean: in fractions."""
    low, high, open_low, open_high = Fraction(0), Fraction(1), False, False
    for other, (first, second) in enumerate(squares):
        if other == label:
            continue
        start, end = squares[label][0] - first, squares[label][1] - second
        if start == end:
            if start > 0 or (unique and start == 0):
                return False
            continue
        crossing = Fraction(-start, end - start)
        if end > start and (crossing < high or (crossing == high and unique)):
            high, open_high = crossing, unique
        if end < start and (crossing > low or (crossing == low and unique)):
            low, open_low = crossing, unique
    return low < high or (low == high and not open_low and not open_high)


@pytest.mark.parametrize("seed", range(60))
def test_loci_of_two_classes_are_those_of_exact_arithmetic(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, 8))
    if seed % 2:
        places = rng.integers(-5, 6, size=(count, 2)) * 10 ** rng.integers(0, 8, size=(count, 1))
        squares = np.square(places[:, None] - places).sum(-1)
    else:
        upper = np.triu(rng.integers(1, 9, size=(count, count)) * 10 ** rng.integers(0, 5), 1)
        squares = np.square(upper + upper.T)
    pair = rng.choice(count, 2, replace=False)
    columns = squares[:, pair]
    exact = [(int(a), int(b)) for a, b in columns]
    for unique in (False, True):
        found = [is_mean(columns.astype(float), label, unique=unique) for label in range(count)]
        assert found == [is_exact_mean(exact, label, unique=unique) for label in range(count)]


def test_a_label_far_away_does_not_empty_the_locus() -> None:
    line = ws.LabelMetric.from_embeddings(np.asarray([[0.0], [1.0], [2.0], [1e5]]))
    assert line.locus([0, 2], unique=True) == line.locus([0, 2]) == [0, 1, 2]
    pairs = ws.LabelMetric.from_embeddings(np.asarray([[0.0], [1], [2], [1e9], [1e9 + 1], [1e9 + 2]]))
    assert pairs.locus([3, 5], unique=True) == [3, 4, 5]
    assert pairs.locus([0, 5], unique=True) == [0, 1, 2, 3, 4, 5]
    assert line.is_locus_cover([0, 3], identifying=True)


EQUALS = {
    "points": lambda: ws.LabelMetric.from_embeddings(np.asarray([[0.0, 1], [2, 3], [-0.0, 1]]), labels=names(3)),
    "many points": lambda: ws.LabelMetric.from_embeddings(np.arange(150)[:, None] % 149 * 1.0, labels=names(150)),
    "matrix": lambda: ws.LabelMetric.from_distance_matrix(
        np.asarray([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]]), labels=names(3)
    ),
}


@pytest.mark.parametrize("space", EQUALS)
def test_no_classes_identify_equal_labels(space: str) -> None:
    metric = EQUALS[space]()
    twin = "class 149" if len(metric) > 3 else "class 2"
    with pytest.raises(WeightspaceError, match=f"'class 0' and '{twin}' are at distance 0"):
        metric.cover(identifying=True)
    with pytest.raises(WeightspaceError, match="identifying=False"):
        metric.minimum_cover(identifying=True)
    assert metric.is_locus_cover(metric.cover().labels)
    assert not metric.is_locus_cover(metric.labels, identifying=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("count", [7, 33, 130])
def test_of_equal_rows_of_a_matrix_the_first_is_predicted(count: int, dtype: type) -> None:
    rng = np.random.default_rng(count)
    points = rng.normal(size=(count, 3))
    order = np.concatenate([rng.permutation(count), rng.permutation(count)])
    matrix = np.sqrt(np.square(points[order][:, None] - points[order]).sum(-1))
    rounded = np.triu(1 + rng.integers(-1, 2, size=matrix.shape) * np.finfo(dtype).eps, 1)  # of other sums
    matrix = (matrix * (rounded + rounded.T)).astype(dtype)
    metric = ws.LabelMetric.from_distance_matrix(matrix)
    p = rng.dirichlet(np.full(2 * count, 0.05), size=300)
    found = metric.predict(p, observed=range(2 * count))
    assert (found < count).all()
    costs = metric.expected_cost(p, observed=range(2 * count))
    twins = {place: label for label, place in enumerate(order[count:], start=count)}
    assert all((costs[:, label] == costs[:, twins[place]]).all() for label, place in enumerate(order[:count]))
    np.testing.assert_allclose(metric.distances(range(2 * count)), matrix, rtol=1e-5)


def test_rows_at_distance_zero_that_differ_are_labels_of_their_own() -> None:
    metric = ws.LabelMetric.from_distance_matrix(np.asarray([[0.0, 0, 1], [0, 0, 3], [1, 3, 0]]))
    assert metric.distances([1], [2]).tolist() == [[3.0]]
    assert metric.nodes.tolist() == [0, 1, 2]


@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_squares_beyond_float64_are_errors(scale: float) -> None:
    steps = np.abs(np.subtract.outer(np.arange(3.0), np.arange(3.0)))
    spaces = {
        "tree": ws.LabelMetric.from_tree(edges=[(0, 1, scale), (1, 2, scale)]),
        "matrix": ws.LabelMetric.from_distance_matrix(scale * steps),
        "points": ws.LabelMetric.from_embeddings(scale * np.arange(3.0)[:, None]),
    }
    for metric in spaces.values():
        with pytest.raises(WeightspaceError, match=r"power of 2 leave the range of float64"):
            metric.predict(np.eye(3), observed=range(3))
        with pytest.raises(WeightspaceError, match="Scale the distances"):
            metric.head(observed=range(3))
    for space in ("tree", "matrix"):
        assert spaces[space].predict(np.eye(3), observed=range(3), exponent=1).tolist() == [0, 1, 2]
    for wrong in (
        lambda: spaces["points"].predict(np.eye(3), observed=range(3), exponent=1),
        lambda: spaces["points"].distances([0]),
    ):
        with pytest.raises(WeightspaceError, match=r"power of 2 leave the range of float64"):
            wrong()
    with pytest.raises(WeightspaceError, match="leave the range"):
        spaces["matrix"].locus([0, 2])


def test_powers_beyond_float64_are_errors() -> None:
    path = ws.LabelMetric.from_tree([-1, 0, 1])
    for exponent in (1000, 1001.5):
        with pytest.raises(WeightspaceError, match="from 1 to 2 to the power of 1"):
            path.predict(np.eye(3), observed=range(3), exponent=exponent)
    assert ws.LabelMetric.discrete("abc").predict(np.eye(3), observed=["a", "b", "c"], exponent=1000).tolist() == [
        0,
        1,
        2,
    ]
    near = ws.LabelMetric.from_embeddings(np.asarray([[0.0, 0], [1e-200, 0], [1, 0]]))
    with pytest.raises(WeightspaceError, match="1e-200"):
        near.predict(np.eye(3), observed=range(3))
    apart = ws.LabelMetric.from_embeddings(np.asarray([[0.0, 0], [1e-200, 1], [1, 0]]))
    assert apart.predict(np.eye(3), observed=range(3)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("scale", [1e250, 1e-250, 5e-324])
def test_weights_of_any_size_predict_the_same(scale: float) -> None:
    metric = ws.LabelMetric.from_tree(edges=[(0, 1, 1e60), (1, 2, 1e60)])
    p = np.asarray([[4.0, 1, 0], [0, 0, 1], [1, 0, 1]])
    assert metric.predict(p * scale, observed=range(3)).tolist() == [0, 2, 1]
    if scale == 1e250:
        with pytest.raises(WeightspaceError, match="costs of row 0 leave the range"):
            metric.expected_cost(p * scale, observed=range(3))
    elif scale == 1e-250:
        np.testing.assert_allclose(metric.expected_cost(p * scale, observed=range(3))[0], [1e-130, 4e-130, 17e-130])
