"""Metrics of predictions against naive ones that walk up a tree label by label."""

import math
import pickle
from typing import Any

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import weightspace as ws
from weightspace.errors import WeightspaceError
from weightspace.labels import (
    Hierarchy,
    common_ancestor_height,
    distance_scorer,
    hierarchical_distance_at_k,
    hierarchical_distance_scorer,
    hierarchical_f,
    hierarchical_f_scorer,
    hierarchical_precision,
    hierarchical_precision_scorer,
    hierarchical_recall,
    hierarchical_recall_scorer,
    hierarchical_scores,
    mean_distance,
    mean_squared_distance,
    mistake_severity,
    mistake_severity_scorer,
)

ANIMALS = {"animal": "entity", "cat": "animal", "dog": "animal", "siamese": "cat", "car": "entity"}
TREE = ws.LabelMetric.from_tree(ANIMALS)


def parents_of(count: int, seed: int) -> dict[str, str | None]:
    rng = np.random.default_rng(seed)
    called = [f"n{i}" for i in rng.permutation(count)]
    return {name: None if i == 0 else called[int(rng.integers(0, i))] for i, name in enumerate(called)}


def ancestors(parents: Any, label: Any) -> list[Any]:
    """Return a label and those above it, the root last."""
    found = [label]
    while parents.get(found[-1]) is not None:
        found.append(parents[found[-1]])
    return found


def height(parents: Any, label: Any) -> int:
    below = [child for child, parent in parents.items() if parent == label]
    return 1 + max(height(parents, child) for child in below) if below else 0


def lca(parents: Any, a: Any, b: Any) -> Any:
    above = ancestors(parents, b)
    return next(node for node in ancestors(parents, a) if node in above)


trees = st.tuples(st.integers(1, 14), st.integers(0, 30))


@settings(deadline=None, max_examples=60)
@given(tree=trees, seed=st.integers(0, 99), beta=st.sampled_from([0.5, 1.0, 2.0]))
def test_all_metrics_are_those_of_the_papers(tree: Any, seed: int, beta: float) -> None:
    parents = parents_of(*tree)
    metric = ws.LabelMetric.from_tree(parents)
    rng = np.random.default_rng(seed)
    truth, found = ([str(label) for label in rng.choice(list(parents), 9)] for _ in range(2))
    heights = [height(parents, lca(parents, a, b)) for a, b in zip(found, truth, strict=True)]
    assert common_ancestor_height(truth, found, metric=metric).tolist() == heights
    wrong = [h for h, a, b in zip(heights, found, truth, strict=True) if a != b]
    severity = mistake_severity(truth, found, metric=metric)
    assert severity == pytest.approx(np.mean(wrong)) if wrong else math.isnan(severity)
    sets = [[set(ancestors(parents, label)[:-1]) for label in side] for side in (found, truth)]
    common = sum(len(a & b) for a, b in zip(*sets, strict=True))
    predicted, true = (sum(map(len, side)) for side in sets)
    precision, recall = common / predicted if predicted else math.nan, common / true if true else math.nan
    scores = hierarchical_scores(truth, found, metric=metric, beta=beta)
    assert scores.precision == pytest.approx(precision, nan_ok=True)
    assert scores.recall == pytest.approx(recall, nan_ok=True)
    whole = beta**2 * true + predicted
    f = (beta**2 + 1) * common / whole if whole else math.nan
    assert scores.f == pytest.approx(f, nan_ok=True)
    graph = nx.Graph((child, parent) for child, parent in parents.items() if parent is not None)
    graph.add_nodes_from(parents)
    apart = [nx.shortest_path_length(graph, a, b) for a, b in zip(found, truth, strict=True)]
    assert mean_distance(truth, found, metric=metric) == pytest.approx(np.mean(apart))
    assert mean_squared_distance(truth, found, metric=metric) == pytest.approx(np.mean(np.square(apart)))


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_hierarchical_distance_at_k_is_the_mean_over_rows_and_ranks(k: int) -> None:
    parents = parents_of(12, 3)
    metric = ws.LabelMetric.from_tree(parents)
    rng = np.random.default_rng(0)
    truth = list(rng.choice(list(parents), 6))
    ranked = [list(rng.permutation(list(parents))[:4]) for _ in truth]
    pairs = [(a, b) for row, b in zip(ranked, truth, strict=True) for a in row[:k]]
    expected = np.mean([height(parents, lca(parents, *pair)) for pair in pairs])
    assert hierarchical_distance_at_k(truth, ranked, metric=metric, k=k) == pytest.approx(expected)
    if k == 1:
        best = [row[0] for row in ranked]
        mean = common_ancestor_height(truth, best, metric=metric).mean()
        assert hierarchical_distance_at_k(truth, ranked, metric=metric, k=1) == mean
    else:
        assert hierarchical_distance_at_k(truth, [row[:k] for row in ranked], metric=metric) == pytest.approx(expected)


def test_lengths_of_edges_count_in_distances_and_not_in_heights() -> None:
    metric = ws.LabelMetric.from_tree(ANIMALS, weights={"cat": 5.0, "siamese": 0.0})
    assert mean_distance(["cat"], ["dog"], metric=metric) == 6
    assert common_ancestor_height(["cat", "siamese"], ["dog", "cat"], metric=metric).tolist() == [1, 0]
    assert math.isnan(mistake_severity(["siamese"], ["cat"], metric=metric))  # synonyms are no mistake


def test_the_root_is_derived_from_the_parents_or_given(tmp_path: Any) -> None:
    TREE.save(tmp_path / "tree.safetensors")
    assert ws.LabelMetric.load(tmp_path / "tree.safetensors").root == TREE.root == "entity"
    edges = ws.LabelMetric.from_tree(edges=[(child, parent) for child, parent in ANIMALS.items()])
    assert edges.root is None
    with pytest.raises(ws.WeightspaceError, match="Which label is the root"):
        mistake_severity(["cat"], ["dog"], metric=edges)
    given = {"metric": edges, "root": "entity"}
    assert hierarchical_scores(["siamese"], ["dog"], **given) == hierarchical_scores(["siamese"], ["dog"], metric=TREE)
    turned = common_ancestor_height(["car"], ["entity"], metric=edges, root="siamese")
    assert turned.tolist() == [1]
    grid = ws.LabelMetric.from_grid((3,))
    with pytest.raises(ws.WeightspaceError, match=r"metric of kind grid\. Expected LabelMetric.from_tree"):
        mistake_severity([(0,)], [(1,)], metric=grid)
    assert mean_distance([(0,)], [(2,)], metric=grid) == 2


def test_parents_in_the_order_of_labels_have_a_root_too() -> None:
    assert ws.LabelMetric.from_tree([-1, 0, 0]).root == 0
    assert ws.LabelMetric.from_tree(np.array([1, -1, 1]), labels=["a", "b", "c"]).root == "b"
    assert ws.LabelMetric.from_tree({"b": "a"}).root == "a"


def test_a_node_without_a_label_has_a_name_of_none() -> None:
    assert Hierarchy.of(TREE).name(-5) is None
    assert Hierarchy.of(TREE).name(int(TREE.nodes[TREE.names.position("cat")])) == "cat"


def test_mismatched_inputs_are_refused() -> None:
    for call, message in (
        (lambda: mean_distance(["cat"], ["cat", "dog"], metric=TREE), "1 true labels and 2 predictions"),
        (lambda: mean_distance([], [], metric=TREE), "positive numbers"),
        (lambda: mean_distance(["cat"], ["cow"], metric=TREE), "Predicted labels: Unknown label 'cow'"),
        (lambda: mean_distance(["cat"], ["cat"], metric=TREE, exponent=0), "positive number"),
        (lambda: hierarchical_distance_at_k(["cat"], [["cat"]], metric=TREE, k=2), "Found k=2, and 1 ranked"),
        (lambda: hierarchical_distance_at_k(["cat"], [], metric=TREE), "expected 1 to 0"),
        (lambda: hierarchical_scores(["cat"], ["cat"], metric=TREE, beta=-1), "beta=-1"),
        (lambda: mistake_severity(["cat"], ["dog"], metric=TREE, root="cow"), "Roots: Unknown label 'cow'"),
    ):
        with pytest.raises(ws.WeightspaceError, match=message):
            call()


def data(count: int = 80) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    labels = np.array(["siamese", "dog", "car"])
    y = labels[rng.integers(0, 3, count)]
    centres = {"siamese": (0.0, 0.0), "dog": (1.0, 0.0), "car": (3.0, 3.0)}
    return np.array([centres[label] for label in y]) + rng.normal(size=(count, 2)), y


def models() -> tuple[Any, Any]:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(), ws.FrechetClassifier(LogisticRegression(), TREE)


def test_scorers_are_the_metrics_of_predictions_with_errors_negated() -> None:
    x, y = data()
    for model in models():
        fitted = model.fit(x, y)
        found = list(fitted.predict(x))
        given = {"metric": TREE}
        assert distance_scorer(TREE)(fitted, x, y) == -mean_squared_distance(list(y), found, **given)
        assert distance_scorer(TREE, exponent=1)(fitted, x, y) == -mean_distance(list(y), found, **given)
        assert mistake_severity_scorer(TREE)(fitted, x, y) == -mistake_severity(list(y), found, **given)
        assert hierarchical_precision_scorer(TREE)(fitted, x, y) == hierarchical_precision(list(y), found, **given)
        assert hierarchical_recall_scorer(TREE)(fitted, x, y) == hierarchical_recall(list(y), found, **given)
        assert hierarchical_f_scorer(TREE, beta=2)(fitted, x, y) == hierarchical_f(list(y), found, beta=2, **given)
        best = hierarchical_distance_scorer(TREE, 1)(fitted, x, y)
        assert best == -common_ancestor_height(list(y), found, **given).mean()
        assert hierarchical_distance_scorer(TREE, 2)(fitted, x, y) < 0
    assert mistake_severity_scorer(TREE)(fitted, x[:0].tolist() or x, fitted.predict(x)) == 0
    assert pickle.loads(pickle.dumps(distance_scorer(TREE)))(fitted, x, y) == distance_scorer(TREE)(fitted, x, y)
    assert repr(distance_scorer(TREE)) == "-mean_distance"
    with pytest.raises(ws.WeightspaceError, match="Found k=4; expected 1 to 3"):
        hierarchical_distance_scorer(TREE, 4)(models()[0].fit(x, y), x, y)


def test_ranked_labels_are_those_of_least_cost() -> None:
    x, y = data()
    fitted = models()[1].fit(x, y)
    ranked = fitted.topk(x, 3)
    assert (ranked[:, 0] == fitted.predict(x)).all()
    costs = fitted.expected_cost(x)
    order = np.argsort(costs, axis=1, kind="stable")[:, :3]
    assert (ranked == np.array(fitted.outputs_)[order]).all()


def test_a_search_works_with_the_method() -> None:
    """Accuracy would choose the outputs that ``argmax`` has; the distance chooses those that lie in the middle."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, cross_val_score

    rng = np.random.default_rng(0)
    x = np.zeros((90, 1))  # nothing is known: the best label is the one in the middle
    y = np.repeat(np.array(["low", "high", "left"]), 30)
    star = ws.LabelMetric.from_tree({"low": "middle", "high": "middle", "left": "middle"})
    model = ws.FrechetClassifier(LogisticRegression(), star)
    order = rng.permutation(90)
    for scoring, best in ((None, "all"), (distance_scorer(star), "all"), ("accuracy", "observed")):
        search = GridSearchCV(model, {"outputs": ["observed", "all"]}, scoring=scoring, cv=3).fit(x[order], y[order])
        assert search.best_params_ == {"outputs": best}
    scores = cross_val_score(model, x[order], y[order], cv=3)
    assert scores == pytest.approx([-1.0] * 3)


def test_the_score_of_a_classifier_is_minus_its_mean_cost() -> None:
    x, y = data()
    for exponent in (1, 2):
        fitted = ws.FrechetClassifier(models()[0], TREE, exponent=exponent).fit(x, y)
        apart = TREE.distances(list(fitted.predict(x)), list(y)).diagonal() ** exponent
        assert fitted.score(x, y) == pytest.approx(-apart.mean())
        weights = np.arange(len(y))
        assert fitted.score(x, y, sample_weight=weights) == pytest.approx(-(apart * weights).sum() / weights.sum())
    with pytest.raises(ws.WeightspaceError, match="Labels in y: Unknown label 'cow'"):
        fitted.score(x[:1], ["cow"])


@pytest.mark.parametrize("beta", ["x", 0, -1, float("nan"), float("inf"), True, None])
def test_the_weight_of_recall_is_a_positive_number(beta: Any) -> None:
    metric = ws.LabelMetric.from_tree({"cat": "animal", "dog": "animal"})
    with pytest.raises(WeightspaceError, match="positive number; found beta="):
        hierarchical_f_scorer(metric, beta=beta)
    with pytest.raises(WeightspaceError, match="positive number; found beta="):
        hierarchical_f(["cat"], ["dog"], metric=metric, beta=beta)


def test_scorers_are_shown_by_their_public_names() -> None:
    metric = ws.LabelMetric.from_tree({"cat": "animal", "dog": "animal"})
    assert repr(mistake_severity_scorer(metric)) == "-mistake_severity"


def test_a_tree_is_called_a_tree() -> None:
    assert repr(ws.LabelMetric.from_tree({"cat": "animal", "dog": "animal"})) == "LabelMetric(tree, 3 labels)"
    cycle = ws.LabelMetric.from_graph(nx.cycle_graph(3))
    assert repr(cycle) == "LabelMetric(graph, 3 labels)"
