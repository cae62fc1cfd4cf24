"""Label spaces of every structure, and the naive answer: all distances, all costs, the first of the least."""

from collections.abc import Mapping

import networkx as nx
import numpy as np

import weightspace as ws


def names(count: int) -> list[str]:
    return [f"class {i}" for i in range(count)]


def random_tree(count: int, seed: int, *, weighted: bool = False) -> list[tuple[str, str, float]]:
    rng = np.random.default_rng(seed)
    called = [names(count)[i] for i in rng.permutation(count)]
    lengths = rng.integers(1, 5, count) if weighted else np.ones(count)
    return [(called[int(rng.integers(0, i))], called[i], float(lengths[i])) for i in range(1, count)]


def random_graph(count: int, extra: int, seed: int, *, weighted: bool = False) -> nx.Graph:
    rng = np.random.default_rng(seed)
    graph = nx.Graph()
    graph.add_nodes_from(names(count))
    graph.add_weighted_edges_from(random_tree(count, seed, weighted=weighted))
    for _ in range(extra):
        u, v = rng.choice(count, 2, replace=False)
        graph.add_edge(f"class {u}", f"class {v}", weight=float(rng.integers(1, 5)) if weighted else 1.0)
    return graph


def spaces() -> Mapping[str, ws.LabelMetric]:
    """Return one metric of every kind, small enough for all distances."""
    rng = np.random.default_rng(5)
    points = rng.integers(-4, 5, size=(30, 3)).astype(float)
    gaps = np.abs(points[:, None] - points[None]).sum(-1)
    star = [("class 0", f"class {i}") for i in range(1, 20)]
    return {
        "tree": ws.LabelMetric.from_tree(edges=random_tree(40, 0), labels=names(40)),
        "weighted tree": ws.LabelMetric.from_tree(edges=random_tree(40, 1, weighted=True), labels=names(40)),
        "star": ws.LabelMetric.from_tree(edges=star, labels=names(20)),
        "path": ws.LabelMetric.from_tree(edges=[(i, i + 1) for i in range(24)], labels=names(25)),
        "deep path": ws.LabelMetric.from_tree(edges=[(i, i + 1) for i in range(599)], labels=names(600)),
        "one": ws.LabelMetric.from_tree(edges=[], labels=["class 0"]),
        "two": ws.LabelMetric.from_tree(edges=[(0, 1)], labels=names(2)),
        "graph": ws.LabelMetric.from_graph(random_graph(50, 8, 2), labels=names(50)),
        "weighted graph": ws.LabelMetric.from_graph(random_graph(50, 8, 3, weighted=True), labels=names(50)),
        "cycle": ws.LabelMetric.from_graph(nx.cycle_graph(9), labels=names(9)),
        "complete": ws.LabelMetric.from_graph(nx.complete_graph(8), labels=names(8)),
        "matrix": ws.LabelMetric.from_distance_matrix(gaps, labels=names(30)),
        "points": ws.LabelMetric.from_embeddings(points, labels=names(30)),
        "discrete": ws.LabelMetric.discrete(names(12)),
        "grid": ws.LabelMetric.from_grid((4, 6), labels=names(24)),
        "grid of three axes": ws.LabelMetric.from_grid((3, 2, 4), labels=names(24)),
    }


SPACES = spaces()


def all_distances(metric: ws.LabelMetric) -> np.ndarray:
    """Return all distances, by Floyd and Warshall where they are path lengths."""
    if metric.geometry.kind == "graph":
        steps = metric.geometry.graph.toarray()  # type: ignore[attr-defined]
        found = np.where(steps > 0, steps, np.inf)
        np.fill_diagonal(found, 0)
        for k in range(len(found)):
            found = np.minimum(found, found[:, k : k + 1] + found[k : k + 1])
        return found
    return metric.distances(metric.labels)


def naive_costs(metric: ws.LabelMetric, p: np.ndarray, observed: list[str], exponent: float) -> np.ndarray:
    seen = [metric.labels.index(name) for name in observed]
    return p.astype(float) @ all_distances(metric)[seen] ** exponent


def dyadic(rows: int, columns: int, seed: int) -> np.ndarray:
    """Return weights whose sums and products with small integers are exact, some of them zero and some equal."""
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 9, size=(rows, columns)) * (rng.random((rows, columns)) < 0.5) / 16
    found[found.sum(1) == 0, 0] = 1
    return found
