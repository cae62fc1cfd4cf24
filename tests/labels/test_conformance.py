"""Against expected answers in exact arithmetic; conformance/labels/README.md says how they were made."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spaces import names

import weightspace as ws

MANIFEST = json.loads((Path(__file__).parents[1] / "data" / "conformance" / "labels" / "manifest.json").read_text())
CASES = {case["name"]: case for case in MANIFEST["cases"]}

pytestmark = pytest.mark.usefixtures("either_way")


def cases(*kinds: str) -> list[str]:
    return [name for name, case in CASES.items() if case["kind"] in kinds and "expect" not in case]


def read(folder: Path, name: str) -> dict[str, np.ndarray]:
    with np.load(folder / "labels" / CASES[name]["file"]) as file:
        return dict(file)


def metric_of(name: str, data: dict[str, np.ndarray]) -> ws.LabelMetric:
    labels = names(int(data["N"]))
    if CASES[name]["kind"] == "euclidean":
        return ws.LabelMetric.from_embeddings(data["points"], labels=labels)
    edges = [(labels[u], labels[v], float(w)) for u, v, w in data["edges"]]
    if CASES[name]["kind"] == "tree":
        return ws.LabelMetric.from_tree(edges=edges, labels=labels)
    import networkx as nx

    graph = nx.Graph()
    graph.add_weighted_edges_from(edges)
    return ws.LabelMetric.from_graph(graph, labels=labels)


def arguments(name: str, data: dict[str, np.ndarray]) -> dict[str, Any]:
    labels = names(int(data["N"]))
    return {
        "observed": [labels[i] for i in data["obs"]],
        "outputs": [labels[i] for i in data["allowed"]],
        "exponent": CASES[name]["exponent"],
    }


@pytest.mark.parametrize("name", cases("tree", "graph", "euclidean"))
def test_predictions_are_the_expected_ones_with_the_lowest_index_of_ties(name: str, conformance: Path) -> None:
    data = read(conformance, name)
    metric, options = metric_of(name, data), arguments(name, data)
    found = metric.predict(data["P"], **options)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, data["expected"])
    if len(data["allowed"]) == len(metric):
        np.testing.assert_array_equal(metric.predict(data["P"], **options | {"outputs": "all"}), data["expected"])
    ties = np.unpackbits(data["tie_mask"], axis=1)[:, : len(data["allowed"])].astype(bool)
    assert all(ties[row, np.flatnonzero(data["allowed"] == label)[0]] for row, label in enumerate(found))


@pytest.mark.parametrize("name", cases("tree", "graph", "euclidean"))
def test_expected_costs_are_the_exact_ones(name: str, conformance: Path) -> None:
    data = read(conformance, name)
    found = metric_of(name, data).expected_cost(data["P"], **arguments(name, data))
    np.testing.assert_allclose(found.min(1), data["Fmin"], rtol=1e-12, atol=1e-12)
    if "F" in data:
        costs = data["F"] if data["F"].shape == found.shape else data["F"][:, data["allowed"]]
        np.testing.assert_allclose(found, costs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in cases("tree", "graph")
        if "D" in np.load(Path(__file__).parents[1] / "data" / "conformance" / "labels" / CASES[name]["file"]).files
    ],
)
def test_the_matrix_of_its_distances_predicts_the_same(name: str, conformance: Path) -> None:
    data = read(conformance, name)
    metric = ws.LabelMetric.from_distance_matrix(data["D"], labels=names(int(data["N"])))
    np.testing.assert_array_equal(metric.predict(data["P"], **arguments(name, data)), data["expected"])


def test_a_graph_in_parts_is_an_error_that_names_them(conformance: Path) -> None:
    data = read(conformance, "25_disconnected")
    with pytest.raises(ws.WeightspaceError, match=r"2 components.*'class \d'"):
        metric_of("25_disconnected", data)


def test_rows_that_are_no_weights_are_errors_that_name_them(conformance: Path) -> None:
    data = read(conformance, "26_bad_rows")
    metric = metric_of("26_bad_rows", data)
    observed = [metric.labels[i] for i in data["obs"]]
    for row, what in enumerate(("is NaN", "sums to 0", "is negative")):
        rows = np.concatenate([data["P"][3:], data["P"][row : row + 1]])
        with pytest.raises(ws.WeightspaceError, match=f"Row 1.*{what}"):
            metric.predict(rows, observed=observed)
    assert metric.predict(data["P"][3:], observed=observed) == data["expected"][3]


def test_a_matrix_that_is_no_metric_is_an_error_that_names_the_entry(conformance: Path) -> None:
    data = read(conformance, "27_not_a_metric")
    with pytest.raises(ws.WeightspaceError, match=r"between 0 and \d is .* in reverse"):
        ws.LabelMetric.from_distance_matrix(data["D"])


@pytest.mark.parametrize("name", cases("locus"))
def test_loci_are_the_expected_ones(name: str, conformance: Path) -> None:
    data = read(conformance, name)
    labels = names(len(data["D"]))
    metric = ws.LabelMetric.from_distance_matrix(data["D"], labels=labels)
    for index in range(CASES[name]["n_lambda"]):
        observed, locus, unique = ([labels[i] for i in data[f"{which}{index}"]] for which in ("lam", "locus", "unique"))
        assert metric.locus(observed) == locus
        assert metric.locus(observed, unique=True) == unique
        assert metric.is_locus_cover(observed) == (len(locus) == len(labels))


@pytest.mark.parametrize("name", cases("locus"))
def test_minimum_covers_are_among_the_expected_ones(name: str, conformance: Path) -> None:
    data = read(conformance, name)
    labels = names(len(data["D"]))
    metric = ws.LabelMetric.from_distance_matrix(data["D"], labels=labels)
    for identifying, expected in ((False, "min_covers"), (True, "min_identifying_covers")):
        found = metric.minimum_cover(identifying=identifying)
        assert found in [[labels[i] for i in cover] for cover in data[expected]]


@pytest.mark.parametrize("tree", [0, 1, 2])
def test_chosen_classes_reach_the_optimal_locus(tree: int, conformance: Path) -> None:
    data = read(conformance, "40_active_tree")
    labels = names(int(data[f"n{tree}"]))
    metric = ws.LabelMetric.from_tree(edges=[(labels[u], labels[v]) for u, v in data[f"edges{tree}"]], labels=labels)
    observed = [labels[i] for i in data[f"init{tree}"]]
    for more, size in enumerate(data[f"optimal_locus_size_by_m{tree}"]):
        chosen = metric.next_classes(observed, more)
        assert len(chosen) == more
        assert len(metric.locus([*observed, *chosen])) == size
