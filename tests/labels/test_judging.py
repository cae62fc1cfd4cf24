"""Temperatures, reports, loci, covers and next classes beside brute force."""

from itertools import combinations

import numpy as np
import pytest
import torch
from spaces import SPACES, all_distances, names, random_graph, random_tree

import weightspace as ws
from weightspace.labels import decision_report, fit_temperature
from weightspace.labels.pairs import pair_distances


def path(count: int) -> ws.LabelMetric:
    return ws.LabelMetric.from_tree(edges=[(i, i + 1) for i in range(count - 1)], labels=names(count))


def draws(metric: ws.LabelMetric, seen: list[int], rows: int, scale: float) -> tuple[torch.Tensor, list[str]]:
    """Return logits of a classifier that is sure of the right amount times ``scale``, and what is true."""
    rng = np.random.default_rng(0)
    gaps = all_distances(metric)
    logits = rng.normal(0, 2, (rows, len(seen)))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = [seen[rng.choice(len(seen), p=row)] for row in p]
    del gaps
    return torch.from_numpy(scale * logits), [metric.labels[i] for i in truth]


def test_the_temperature_of_a_classifier_that_is_too_sure_is_found() -> None:
    metric = path(9)
    logits, truth = draws(metric, list(range(9)), 3000, scale=4.0)
    chosen = {"metric": metric, "observed": names(9)}
    by_likelihood = fit_temperature(logits, truth, objective="nll", **chosen)
    assert by_likelihood.temperature == pytest.approx(4, rel=0.05)
    assert by_likelihood.after < by_likelihood.before
    by_distance = fit_temperature(logits, truth, **chosen)
    assert 2 < by_distance.temperature < 8
    assert by_distance.after == min(cost for _, cost in by_distance.tried) <= by_distance.before
    assert not by_distance.keep_argmax
    for unseen, part in ((8, slice(8)), (0, slice(1, 9))):
        with pytest.raises(ws.WeightspaceError, match=f"'{names(9)[unseen]}' was not observed"):
            fit_temperature(logits[:, part], truth, metric=metric, observed=names(9)[part], objective="nll")
    with pytest.raises(ws.WeightspaceError, match="expected equal numbers"):
        fit_temperature(logits, truth[:5], **chosen)


def test_a_report_says_when_to_keep_argmax() -> None:
    metric = path(9)
    logits, truth = draws(metric, list(range(9)), 2000, scale=1.0)
    chosen = {"metric": metric, "observed": names(9)}
    good = decision_report(torch.softmax(logits, -1), truth, **chosen)
    assert good.frechet.squared_distance < good.argmax.squared_distance
    assert good.frechet.squared_distance < good.constant.squared_distance
    assert "nearer to the truth" in good.advice
    assert good.observed_truth == 1
    flat = decision_report(np.full((9, 9), 1 / 9) + np.eye(9) / 9, names(9), **chosen)
    assert flat.keep_argmax
    assert flat.advice.startswith("Keep argmax")
    gaps = all_distances(metric)
    assert flat.argmax.accuracy == 1
    assert flat.constant.squared_distance == (gaps[4] ** 2).mean()
    assert flat.constant_label == "class 4"
    near = decision_report(np.full((9, 9), 1 / 9) * (1 + np.eye(9)[::-1]), names(9), **chosen)
    assert "the constant 'class 4' is as near" in near.advice


@pytest.mark.parametrize("space", SPACES)
def test_distances_of_pairs_are_those_of_the_matrix(space: str) -> None:
    metric = SPACES[space]
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, len(metric), (2, 50))
    np.testing.assert_allclose(
        pair_distances(metric.geometry, first, second), all_distances(metric)[first, second], atol=1e-12
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_locus_of_a_tree_is_that_of_its_matrix(seed: int) -> None:
    tree = ws.LabelMetric.from_tree(edges=random_tree(14, seed, weighted=True), labels=names(14))
    matrix = ws.LabelMetric.from_distance_matrix(all_distances(tree), labels=names(14))
    observed = [names(14)[i] for i in np.random.default_rng(seed).permutation(14)[:4]]
    assert tree.locus(observed) == matrix.locus(observed) == matrix.locus(observed, unique=True)


def test_every_prediction_is_in_the_locus() -> None:
    metric = ws.LabelMetric.from_graph(random_graph(25, 6, 4, weighted=True), labels=names(25))
    observed = names(25)[3:6]
    p = np.random.default_rng(0).dirichlet(np.ones(3), size=3000)
    found = {metric.labels[i] for i in metric.predict(p, observed=observed)}
    assert found <= set(metric.locus(observed))
    assert set(observed) <= set(metric.locus(observed))


def test_greedy_choice_is_the_best_for_every_number_on_a_tree() -> None:
    metric = ws.LabelMetric.from_tree(edges=random_tree(13, 3), labels=names(13))
    observed = names(13)[:2]
    others = names(13)[2:]
    for n in (1, 2, 3):
        best = max(len(metric.locus([*observed, *more])) for more in combinations(others, n))
        assert len(metric.locus([*observed, *metric.next_classes(observed, n)])) == best
    assert metric.next_classes([], 2)
    everything = metric.next_classes(observed, 11)
    assert sorted(everything) == sorted(others)
    with pytest.raises(ws.WeightspaceError, match="expected 0 to 11"):
        metric.next_classes(observed, 12)


def test_covers_beyond_search_say_what_they_are() -> None:
    graph = ws.LabelMetric.from_graph(random_graph(150, 5, 6), labels=names(150))
    with pytest.warns(UserWarning, match="leaves and core"):
        found = graph.minimum_cover()
    cover = graph.cover()
    assert tuple(found) == cover.labels
    assert 0 < cover.lower_bound < len(found)
    assert not cover.exact
    discrete = ws.LabelMetric.discrete(names(5))
    assert discrete.minimum_cover() == names(5)
    assert discrete.locus(names(2)) == names(2)
    assert discrete.is_locus_cover(names(5))
    assert ws.LabelMetric.discrete(range(300)).next_classes([0, 2], 2) == [1, 3]
    small = ws.LabelMetric.from_graph(random_graph(18, 4, 7), labels=names(18))
    assert small.is_locus_cover(small.cover().labels)
    with pytest.raises(ws.WeightspaceError, match="linear program"):
        ws.LabelMetric.from_embeddings(np.random.default_rng(0).normal(size=(3000, 2))).locus([0, 1])


@pytest.mark.parametrize(("dimensions", "method"), [(1, "convex hull"), (2, "convex hull"), (20, "all labels")])
def test_covers_of_many_points_are_the_corners_of_their_hull(dimensions: int, method: str) -> None:
    metric = ws.LabelMetric.from_embeddings(np.random.default_rng(0).normal(size=(120, dimensions)))
    cover = metric.cover()
    assert (cover.method, cover.lower_bound) == (method, 2)
    assert len(cover.labels) == {1: 2, 2: 9, 20: 120}[dimensions]
    assert cover.exact == (dimensions == 1)
    assert metric.is_locus_cover(cover.labels)


def test_points_in_a_plane_and_matrices_are_covered_by_all_labels() -> None:
    flat = np.random.default_rng(0).normal(size=(120, 2)) @ np.ones((2, 3))
    gaps = np.abs(np.subtract.outer(np.arange(120.0), np.arange(120.0)))
    for metric in (ws.LabelMetric.from_embeddings(flat), ws.LabelMetric.from_distance_matrix(gaps)):
        assert metric.cover().method == "all labels"
        with pytest.warns(UserWarning, match="all labels and may not be the smallest; none has fewer than 2"):
            assert len(metric.minimum_cover()) == 120
