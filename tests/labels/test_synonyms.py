"""Labels at one place, labels with several parents, and what from_tree says to those who meant something else."""

from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

import weightspace as ws


def made(seed: int, *, tree: bool) -> tuple[ws.LabelMetric, np.ndarray]:
    """Return a metric with some edges of length zero, and all distances by networkx."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, 13))
    graph = nx.Graph()
    labels = [f"c{i}" for i in rng.permutation(count)]
    graph.add_nodes_from(labels)
    graph.add_weighted_edges_from(
        (f"c{int(rng.integers(0, i))}", f"c{i}", float(rng.integers(0, 3))) for i in range(1, count)
    )
    if tree:
        metric = ws.LabelMetric.from_tree(edges=list(graph.edges(data="weight")), labels=labels)
    else:
        for _ in range(3):
            a, b = rng.choice(count, 2, replace=False)
            if not graph.has_edge(f"c{a}", f"c{b}"):
                graph.add_edge(f"c{a}", f"c{b}", weight=float(rng.integers(0, 4)))
        metric = ws.LabelMetric.from_graph(graph, labels=labels)
    apart = dict(nx.all_pairs_dijkstra_path_length(graph, weight="weight"))
    return metric, np.array([[apart[a][b] for b in labels] for a in labels])


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("tree", [True, False])
def test_predictions_with_synonyms_are_those_of_all_costs(seed: int, tree: bool) -> None:
    metric, distances = made(seed, tree=tree)
    rng = np.random.default_rng(seed)
    np.testing.assert_array_equal(metric.distances(list(metric.labels)), distances)
    count = len(metric)
    seen = rng.permutation(count)[: int(rng.integers(1, count + 1))]
    listed = rng.permutation(count)[: int(rng.integers(1, count + 1))]
    p = rng.integers(0, 4, size=(7, len(seen))).astype(float)
    p[p.sum(1) == 0] = 1
    observed = [metric.labels[i] for i in seen]
    for outputs, places in (
        ("all", np.arange(count)),
        ("observed", seen),
        ([metric.labels[i] for i in listed], listed),
    ):
        for exponent in (1, 2, 1.5):
            given: dict[str, Any] = {"observed": observed, "outputs": outputs, "exponent": exponent}
            costs = p @ (distances[np.ix_(places, seen)] ** exponent).T
            np.testing.assert_allclose(metric.expected_cost(p, **given), costs, atol=1e-9)
            expected = [min(zip(np.round(row, 9), places, strict=True))[1] for row in costs]
            np.testing.assert_array_equal(metric.predict(p, **given), expected)
            head = metric.head(**given)
            logits = torch.tensor(p + 1e-300).log()
            normal = costs / p.sum(1, keepdims=True)
            np.testing.assert_allclose(head.expected_cost(logits).numpy(), normal, atol=1e-9)
            found = torch.export.export(head, (logits,)).module()(logits).numpy() if seed < 3 else head(logits).numpy()
            of_found = normal[np.arange(7), [list(places).index(i) for i in found]]
            np.testing.assert_allclose(of_found, normal.min(1), atol=1e-9)


def test_synonyms_are_one_place_and_the_first_is_named(tmp_path: Any) -> None:
    edges = [("animal", "cat", 1), ("animal", "dog", 1), ("dog", "hound", 0), ("cat", "kitty", 0)]
    metric = ws.LabelMetric.from_tree(edges=edges)
    assert metric.distances(["dog"], ["hound", "kitty"]).tolist() == [[0, 2]]
    found = metric.predict([0.2, 0.8], observed=["cat", "hound"], exponent=1)
    assert metric.labels[int(found)] == "dog"
    assert set(metric.locus(["cat", "dog"])) == set(metric.labels)
    metric.save(tmp_path / "m.safetensors")
    again = ws.LabelMetric.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(again.distances(["kitty"]), metric.distances(["kitty"]))
    with_parents = ws.LabelMetric.from_tree({"hound": "dog", "dog": "animal"}, weights={"hound": 0.0})
    assert with_parents.root == "animal"
    assert with_parents.distances(["hound"], ["dog"]).tolist() == [[0]]
    matrix = csr_array((np.array([0.0, 2.0]), ([0, 1], [1, 2])), shape=(3, 3))
    assert ws.LabelMetric.from_graph(matrix).distances([0]).tolist() == [[0, 0, 2]]


def test_all_labels_may_be_one_place() -> None:
    metric = ws.LabelMetric.from_tree(edges=[("a", "b", 0), ("b", "c", 0)])
    assert metric.predict([[1.0, 2.0]], observed=["c", "b"]).tolist() == [0]
    assert metric.expected_cost([1.0, 2.0], observed=["c", "b"]).tolist() == [0, 0, 0]


def test_labels_may_have_several_parents() -> None:
    parents = {
        "pet": ["animal", "friend"],
        "cat": "pet",
        "animal": "entity",
        "friend": ["entity"],
        "entity": None,
    }
    metric = ws.LabelMetric.from_tree(parents)
    assert metric.root == "entity"
    graph = nx.Graph([("pet", "animal"), ("pet", "friend"), ("cat", "pet"), ("animal", "entity"), ("friend", "entity")])
    for a in metric.labels:
        expected = [nx.shortest_path_length(graph, a, b) for b in metric.labels]
        assert metric.distances([a]).tolist() == [expected]
    as_sets = ws.LabelMetric.from_tree({**parents, "pet": {"friend", "animal"}})
    assert as_sets.distances(["cat"], ["entity"]).tolist() == [[3]]
    for bad, message in (
        ({"a": ["b"], "b": ["a"]}, "ancestors of each other"),
        ({"a": ["b"], "c": ["d"]}, "2 components"),
    ):
        with pytest.raises(ws.WeightspaceError, match=message):
            ws.LabelMetric.from_tree(bad)
    with pytest.raises(ws.WeightspaceError, match="Weights are given per label, but some labels have several parents"):
        ws.LabelMetric.from_tree(parents, weights={"cat": 2.0})
    with pytest.raises(ws.WeightspaceError, match="A hierarchy needs a rooted tree"):
        ws.labels.mistake_severity(["cat"], ["pet"], metric=metric)  # type: ignore[attr-defined]


def test_a_list_of_one_parent_is_that_parent() -> None:
    metric = ws.LabelMetric.from_tree({"cat": ["animal"], "dog": ["animal"], "animal": []})
    assert metric.geometry.is_tree  # type: ignore[attr-defined]
    assert metric.root == "animal"


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "networkx, directed": ({"parents": nx.DiGraph([(0, 1)])}, r"are a DiGraph. Use LabelMetric.from_graph\(graph\)"),
    "networkx as edges": ({"edges": nx.path_graph(3)}, r"The edges are a Graph. Use LabelMetric.from_graph"),
    "sparse": ({"parents": csr_array(np.eye(3))}, r"sparse matrix \(3, 3\). Use LabelMetric.from_graph"),
    "distances": ({"parents": np.ones((5, 5))}, r"square array \(5, 5\). Use from_distance_matrix"),
    "distances as edges": ({"edges": torch.ones(5, 5)}, "Use from_distance_matrix"),
    "an array of edges": ({"parents": np.array([[0, 1], [1, 2], [2, 3]])}, r"as edges: from_tree\(edges=array\)"),
    "points": ({"parents": np.ones((4, 9))}, "Use from_embeddings for points"),
    "a file": ({"parents": "tree.csv"}, "labels build --edges"),
    "a number": ({"edges": 7}, "The edges are a int; expected"),
    "edges of four": ({"edges": np.ones((2, 4))}, r"array \(2, 4\); expected \(n, 2\)"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_from_tree_says_what_to_use(other: str) -> None:
    given, message = OTHERS[other]
    with pytest.raises(ws.WeightspaceError, match=message):
        ws.LabelMetric.from_tree(**given)


def test_arrays_that_are_trees_are_taken() -> None:
    edges = np.array([[0, 1], [1, 2], [1, 3]])
    assert ws.LabelMetric.from_tree(edges=edges).distances([0]).tolist() == [[0, 1, 2, 2]]
    assert ws.LabelMetric.from_tree(edges=torch.tensor(edges).numpy().astype(float)[:, :2]).distances([0.0]).shape == (
        1,
        4,
    )
    assert ws.LabelMetric.from_tree(np.array([-1, 0, 1, 1])).distances([0]).tolist() == [[0, 1, 2, 2]]


def test_loci_and_covers_of_a_tree_with_synonyms_are_those_of_its_distances() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        graph: nx.Graph[int] = nx.Graph()
        for node in range(1, int(rng.integers(4, 9))):
            length = float(rng.choice([0.0, 1.0, 2.0], p=[0.3, 0.5, 0.2]))
            graph.add_edge(int(rng.integers(0, node)), node, weight=length)
        metric = ws.LabelMetric.from_graph(graph)
        dense = ws.LabelMetric.from_distance_matrix(metric.distances(metric.labels), labels=metric.labels)
        assert len(metric.minimum_cover()) == len(dense.minimum_cover())
        observed = [int(label) for label in rng.choice(metric.labels, 3, replace=False)]
        for unique in (False, True):
            assert metric.locus(observed, unique=unique) == dense.locus(observed, unique=unique)
