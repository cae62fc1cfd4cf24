"""Inputs of metrics, and every mistake in them: one line that names the fault and its place."""

import warnings
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from spaces import SPACES, names

import weightspace as ws
from weightspace.labels.wordnet import read_wordnet

TREE = ws.LabelMetric.from_tree
GRAPH = ws.LabelMetric.from_graph
MATRIX = ws.LabelMetric.from_distance_matrix
POINTS = ws.LabelMetric.from_embeddings


def test_a_tree_is_the_same_from_edges_parents_graphs_and_matrices() -> None:
    labels = ["root", "a", "b", "a1", "a2"]
    lengths = {"a": 2.0, "b": 1.0, "a1": 3.0, "a2": 0.5}
    above = {"root": None, "a": "root", "b": "root", "a1": "a", "a2": "a"}
    edges = [(above[name], name, length) for name, length in lengths.items()]
    graph = nx.DiGraph()
    graph.add_weighted_edges_from(edges)
    rows, columns = ([labels.index(str(edge[side])) for edge in edges] for side in (0, 1))
    matrix = sp.coo_array((list(lengths.values()), (rows, columns)), shape=(5, 5))
    metrics = [
        TREE(edges=edges, labels=labels),
        TREE(edges=[(labels.index(str(u)), labels.index(v), w) for u, v, w in edges], labels=labels),
        TREE(edges=[edge[:2] for edge in edges], labels=labels, weights=list(lengths.values())),
        TREE(above, labels=labels, weights=lengths),
        TREE(above, weights=lengths),
        TREE([-1, 0, 0, 1, 1], labels=labels, weights=[0, *lengths.values()]),
        TREE([None, "root", "root", "a", "a"], labels=labels, weights=list(lengths.values())),
        TREE([0, 0, 0, 1, 1], labels=labels, weights=list(lengths.values())),
        GRAPH(graph, labels=labels),
        GRAPH(nx.relabel_nodes(graph, {name: i for i, name in enumerate(labels)}), labels=labels),
        GRAPH(matrix, labels=labels),
        GRAPH(matrix + matrix.T, labels=labels),
    ]
    for metric in metrics:
        assert metric.labels == tuple(labels)
        assert metric.distances(["a1", "b"], ["a2", "root"]).tolist() == [[3.5, 5.0], [3.5, 1.0]]


def test_embeddings_and_matrices_are_used_as_they_are() -> None:
    points = np.asarray([[0.0, 0], [3, 4], [0, 1]])
    before = points.copy()
    euclidean, cosine = POINTS(points), POINTS(points[1:] * 7, labels=["a", "b"], metric="cosine")
    np.testing.assert_array_equal(points, before)
    assert euclidean.distances([0], [1])[0, 0] == 5
    costs = cosine.expected_cost(np.asarray([[1.0, 0]]), observed=["a", "b"])
    np.testing.assert_allclose(costs, [[0, 2 * (1 - 0.8)]], atol=1e-12)
    gaps = torch.tensor([[0.0, 2], [2, 0]])
    assert MATRIX(gaps).geometry.matrix.data_ptr() == gaps.data_ptr()  # type: ignore[attr-defined]
    half = MATRIX(gaps.half())
    assert half.predict([[0.4, 0.6]], observed=[0, 1]).tolist() == [1]


def test_squared_distances_are_warned_about() -> None:
    steps = np.arange(5.0)
    gaps = np.abs(steps[:, None] - steps)
    with pytest.warns(UserWarning, match="squared distances"):
        MATRIX(gaps**2)
    with pytest.warns(UserWarning, match="isn't a metric"):
        MATRIX(gaps**4)
    MATRIX(gaps)


def test_files_give_back_the_same(tmp_path: Path) -> None:
    for name, metric in SPACES.items():
        metric.save(tmp_path / "m.safetensors")
        again = ws.LabelMetric.load(tmp_path / "m.safetensors")
        assert again.labels == metric.labels, name
        np.testing.assert_array_equal(again.distances(metric.labels), metric.distances(metric.labels))
    with pytest.raises(ws.WeightspaceError, match="frozenset"):
        ws.LabelMetric.discrete([frozenset("a")]).save(tmp_path / "m.safetensors")


def sparse(entries: list[list[float]]) -> Any:
    return sp.csr_array(np.asarray(entries))


MISTAKES: dict[str, tuple[Any, str]] = {
    "neither parents nor edges": (lambda: TREE(), "exactly one of them"),
    "a cycle": (lambda: TREE(edges=[(0, 1), (1, 2), (2, 0)], labels="abc"), "cycle: 'c' – 'b' – 'a' – 'c'"),
    "a weight of nothing": (lambda: TREE({"a": None, "b": "a"}, weights={"bb": 2}), "Unknown label 'bb'"),
    "parents in a cycle": (lambda: TREE({"a": "b", "b": "c", "c": "a"}), "cycle: 'a' – 'b' – 'c' – 'a'"),
    "two roots": (lambda: TREE([-1, -1, 0], labels="abc"), "2 roots"),
    "a forest": (lambda: TREE(edges=[("a", "b")], labels="abc"), r"2 components.*'c'"),
    "a label twice": (lambda: TREE(edges=[("a", "b")], labels="aba"), "'a' appears twice, at positions 0 and 2"),
    "an unknown endpoint": (lambda: TREE(edges=[("a", "x")], labels="ab"), "Unknown label 'x'"),
    "an endpoint too far": (lambda: TREE(edges=[(0, 2)], labels="ab"), "position 2"),
    "an edge of one": (lambda: TREE(edges=[("a",)], labels="ab"), r"found \('a',\)"),
    "a negative length": (lambda: TREE(edges=[("a", "b", -1)], labels="ab"), "between 'a' and 'b' has length -1"),
    "a length of NaN": (lambda: TREE(edges=[("a", "b", np.nan)], labels="ab"), "length nan"),
    "too few lengths": (lambda: TREE(edges=[("a", "b")], labels="ab", weights=[1, 2]), "2 weights for 1 edges"),
    "no labels": (lambda: ws.LabelMetric.discrete([]), "no labels"),
    "an unhashable label": (lambda: ws.LabelMetric.discrete([["a"]]), "found a list"),
    "a negative edge": (lambda: GRAPH(sparse([[0, -1], [-1, 0]])), "length -1"),
    "two lengths": (lambda: GRAPH(sparse([[0, 1], [2, 0]])), "two lengths, 1 and 2"),
    "an edge list as graph": (lambda: GRAPH([(0, 1)]), "found list"),
    "too many labels": (lambda: GRAPH(nx.path_graph(2), labels="abc"), "2 nodes, but there are 3 labels"),
    "a matrix that is not square": (lambda: MATRIX(np.zeros((2, 3))), "square"),
    "asymmetric": (lambda: MATRIX([[0, 1.0], [2, 0]], labels="ab"), "between 'a' and 'b' is 1, but 2 in reverse"),
    "negative": (lambda: MATRIX([[0, -1.0], [-1, 0]]), r"negative, -1 \(row 0, column 1\)"),
    "not finite": (lambda: MATRIX([[0, np.inf], [np.inf, 0]]), "is inf"),
    "a diagonal": (lambda: MATRIX([[0, 1.0], [1, 3]]), "is 3, from a label to itself"),
    "another number of rows": (lambda: MATRIX(np.zeros((2, 2)), labels="abc"), "2 rows, but there are 3 labels"),
    "no numbers": (lambda: MATRIX([["a"]]), "array or a tensor"),
    "an embedding of NaN": (lambda: POINTS([[0.0], [np.nan]], labels="ab"), "embedding of 'b' isn't finite"),
    "a direction of nothing": (lambda: POINTS([[0.0], [1]], labels="ab", metric="cosine"), "'a' is zero"),
    "another metric": (lambda: POINTS([[0.0]], metric="l1"), "'l1'"),
    "a flat embedding": (lambda: POINTS([0.0, 1]), r"\(labels, d\)"),
    "a grid of nothing": (lambda: ws.LabelMetric.from_grid([3, 0]), "at least 1"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_invalid_metrics_are_an_error(mistake: str) -> None:
    make, message = MISTAKES[mistake]
    with pytest.raises(ws.WeightspaceError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


P = np.full((2, 3), 1 / 3)
PREDICTIONS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "an unknown class": (P, {"observed": ["class 0", "class 1", "clas 2"]}, "Did you mean 'class 2'"),
    "a class twice": (P, {"observed": ["class 0", "class 1", "class 0"]}, "'class 0' appears twice"),
    "a string of classes": (P, {"observed": "class 0"}, "a list of names"),
    "no classes": (P[:, :0], {"observed": []}, "no observed classes"),
    "too few columns": (P[:, :2], {}, r"shape \(2, 2\), but 3 classes"),
    "outputs of another name": (P, {"outputs": "some"}, "'some'"),
    "no outputs": (P, {"outputs": []}, "no outputs"),
    "an unknown output": (P, {"outputs": ["x"]}, "Outputs: Unknown label 'x'"),
    "a negative exponent": (P, {"exponent": -1}, "positive number"),
    "an infinite row": (np.asarray([[1.0, np.inf, 0]]), {}, "column 1 .* is infinite"),
    "words": ([["a", "b", "c"]], {}, "numbers"),
}


def test_outputs_may_be_an_array_of_names() -> None:
    metric = ws.LabelMetric.from_grid((4,), labels=list("abcd"))
    options: dict[str, Any] = {"observed": ["a", "d"], "outputs": np.array(["a", "d"])}
    assert metric.predict([0.25, 0.75], **options) == 3


@pytest.mark.parametrize("mistake", PREDICTIONS)
def test_invalid_probabilities_are_an_error(mistake: str) -> None:
    p, options, message = PREDICTIONS[mistake]
    with pytest.raises(ws.WeightspaceError, match=message):
        SPACES["tree"].predict(p, **{"observed": names(3), **options})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rows_are_judged_by_their_values_in_every_dtype(dtype: torch.dtype) -> None:
    good = torch.tensor([[0.25, 0.0, 0.75], [-0.0, 1e-7, 0.0], [2.0, 60000.0, -0.0]], dtype=dtype)
    assert SPACES["tree"].predict(good, observed=names(3)).shape == (3,)
    bad = {"NaN": [torch.nan, -torch.nan], "infinite": [torch.inf, -torch.inf], "negative": [-1.0, -1e-7]}
    for value, what in ((value, what) for what, values in bad.items() for value in values):
        rows = good.clone()
        rows[2, 1] = value
        with pytest.raises(ws.WeightspaceError, match=f"Row 2, column 1 of the probabilities is {what}"):
            SPACES["tree"].predict(rows, observed=names(3))
    good[1] = 0
    with pytest.raises(ws.WeightspaceError, match=r"Row 1 .* sums to 0"):
        SPACES["tree"].predict(good.T.contiguous().T, observed=names(3))


def test_wordnet_keeps_several_parents_and_takes_ids_synsets_and_words(tmp_path: Path) -> None:
    lines = (
        "00000001 03 n 01 entity 0 000 | what is\n"
        "00000010 03 n 02 animal 0 beast 0 001 @ 00000001 n 0000 | moves\n"
        "00000020 03 n 01 pet 0 001 @ 00000001 n 0000 | is loved\n"
        "00000030 03 n 01 dog 0 002 @ 00000010 n 0000 @ 00000020 n 0000 | barks\n"
        "00000040 03 n 01 Rex 0 001 @i 00000030 n 0000 | is king\n"
    )
    index = "".join(f"{word} n 1 0 1 0 {at}  \n" for word, at in (("entity", "00000001"), ("animal", "00000010"),
            ("beast", "00000010"), ("pet", "00000020"), ("dog", "00000030"), ("rex", "00000040")))  # fmt: skip
    (tmp_path / "data.noun").write_text("  licence\n" + lines)
    (tmp_path / "index.noun").write_text("  licence\n" + index)
    whole = ws.LabelMetric.from_wordnet(folder=tmp_path)
    assert whole.labels == ("entity.n.01", "animal.n.01", "pet.n.01", "dog.n.01", "rex.n.01")
    assert whole.distances(["pet.n.01"], ["animal.n.01"]) == 2
    some = ws.LabelMetric.from_wordnet(["beast", "n00000020"], folder=tmp_path)
    assert some.labels == ("beast", "n00000020")
    assert some.distances(["beast"]).tolist() == [[0, 2]]
    more = ws.LabelMetric.from_wordnet(["Rex"], ancestors=True, folder=tmp_path)
    assert more.labels == ("Rex", "entity.n.01", "animal.n.01", "pet.n.01", "dog.n.01")
    more.save(tmp_path / "m.safetensors")
    assert ws.LabelMetric.load(tmp_path / "m.safetensors").distances(["Rex"]).tolist() == [[0, 3, 2, 2, 1]]
    with pytest.raises(ws.WeightspaceError, match="the same synset"):
        ws.LabelMetric.from_wordnet(["beast", "animal"], folder=tmp_path)
    with pytest.raises(ws.WeightspaceError, match="Unknown synset 'dogg'"):
        ws.LabelMetric.from_wordnet(["dogg"], folder=tmp_path)
    (tmp_path / "data.noun").write_text("what is this\n")
    read_wordnet.cache_clear()
    with pytest.raises(ws.WeightspaceError, match="isn't WordNet"):
        ws.LabelMetric.from_wordnet(folder=tmp_path)


@pytest.mark.parametrize("metric", SPACES.values(), ids=SPACES)
def test_distances_without_names_are_those_of_all_labels(metric: ws.LabelMetric) -> None:
    assert np.array_equal(metric.distances(), metric.distances(metric.labels))
    few = metric.labels[:2]
    assert np.array_equal(metric.distances(targets=few), metric.distances(metric.labels, few))


def test_a_table_of_all_labels_that_is_too_large_is_refused() -> None:
    metric = ws.LabelMetric.discrete(range(20_000))
    message = r"from all 20,000 labels take 3\.20 GB; expected at most 1\.07 GB\. Name the sources"
    with pytest.raises(ws.WeightspaceError, match=message):
        metric.distances()
    assert metric.distances(targets=[3]).shape == (20_000, 1)
    assert metric.distances([3]).shape == (1, 20_000)


def test_a_length_that_no_edge_has_is_refused() -> None:
    graph = nx.Graph()
    graph.add_edge("a", "b", length=3)
    graph.add_edge("b", "c")
    np.testing.assert_array_equal(GRAPH(graph, weight="length").distances(["a"]), [[0, 3, 4]])
    with pytest.raises(ws.WeightspaceError, match="No edge of the graph has the attribute 'lenght'; found 'length'"):
        GRAPH(graph, weight="lenght")


def test_positive_logits_given_as_probabilities_are_warned_of() -> None:
    """As CLIP's are, which would all be nearly equal weights: the least common ancestor, whatever the largest one."""
    metric = ws.LabelMetric.from_tree({"animal": "entity", "cat": "animal", "dog": "animal", "car": "entity"})
    with pytest.warns(ws.WeightspaceWarning, match="do not sum to one: row 0 sums to 67"):
        metric.predict([[27.0, 21.0, 19.0]], observed=["cat", "dog", "car"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric.predict(torch.tensor([[0.7, 0.2, 0.1]], dtype=torch.float16), observed=["cat", "dog", "car"])
