"""Parsing and validation of trees and graphs into one symmetric sparse adjacency matrix.

Endpoints are labels. If no label is a number, numeric endpoints are positions in ``labels``. Labels joined by edges of
length zero, such as synonyms, share one node.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array, issparse
from scipy.sparse.csgraph import connected_components

from weightspace.errors import WeightspaceError
from weightspace.labels.names import Label, Names, plain
from weightspace.labels.rules.shortest_paths import Graph, components

_SHOWN = 4

#: Positions of both endpoints of edges, and lengths.
Edges = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Joined:
    """Labels and the graph that connects them.

    Attributes:
        names: the label names.
        graph: adjacency matrix of edge lengths between nodes.
        nodes: node of each label, int64; None if each label has its own, in the order of the labels.
        root: the label without a parent, if the tree was given by parents.
    """

    names: Names
    graph: Graph
    nodes: np.ndarray | None = None
    root: Label | None = None


def tree_of_edges(edges: Iterable[Any], labels: Iterable[Label] | None, weights: Any) -> Joined:
    """Return the labels and the graph of a tree from its edges, ``(u, v)`` or ``(u, v, weight)``.

    Raises:
        WeightspaceError: the edges aren't a tree over the labels, or a weight isn't a valid length.
    """
    listed = [tuple(edge) for edge in edges]
    if bad := next((edge for edge in listed if len(edge) not in (2, 3)), None):
        raise WeightspaceError(f"An edge must be (u, v) or (u, v, weight); found {bad!r}.")
    ends = [(plain(edge[0]), plain(edge[1])) for edge in listed]
    if labels is None:
        labels = _labels_of(ends)
    names = Names(labels)
    u, v = _positions(names, [end for end, _ in ends]), _positions(names, [end for _, end in ends])
    lengths = _lengths(names, u, v, weights if weights is not None else [e[2] if len(e) == 3 else 1.0 for e in listed])
    _check_no_cycle(names, u, v)
    return _joined(names, u, v, lengths)


def tree_of_parents(parents: Mapping[Any, Any] | Sequence[Any], labels: Iterable[Label] | None, weights: Any) -> Joined:
    """Return the labels and the graph of a tree from the parent of each label.

    Args:
        parents: label -> parent, or parents in the order of ``labels``; the root's is None, -1 or itself. A label with
            a list of parents makes the graph a general one.
        labels: names of all nodes.
        weights: lengths of the edges to the parents: label -> length, or in the order of ``labels``.

    Raises:
        WeightspaceError: the parents aren't a tree over the labels, or a weight isn't a valid length.
    """
    if several := _several_parents(parents):
        return _of_several_parents(several, labels, weights)
    if isinstance(parents, Mapping):
        given = {plain(child): plain(parent) for child, parent in parents.items()}
        listed = list(given) if labels is None else list(labels)
        above = [p for p in given.values() if p is not None and p not in given and not _is_root_mark(p)]
        names = Names([*listed, *dict.fromkeys(above)] if labels is None else listed)
        names.positions(given, "children")
        of = [given.get(name) for name in names]
    else:
        of = [plain(parent) for parent in parents]
        names = Names(range(len(of)) if labels is None else labels)
        if len(of) != len(names):
            raise WeightspaceError(f"Found {len(of):,} parents for {len(names):,} labels; expected one per label.")
    children = [i for i, p in enumerate(of) if p is not None and not _is_root(p, names[i], names)]
    if len(names) - len(children) > 1:  # without any root there is a cycle, reported below
        below = set(children)
        roots = [repr(name) for i, name in enumerate(names) if i not in below]
        raise WeightspaceError(
            f"Found {len(roots):,} roots ({', '.join(roots[:_SHOWN])}); expected one label without a parent."
        )
    v = np.asarray(children, dtype=np.int64)
    u = _positions(names, [of[i] for i in children])
    if isinstance(weights, Mapping):
        weights = {plain(label): weight for label, weight in weights.items()}
        names.positions(weights, "labels with a weight")
        weights = [weights.get(names[i], 1.0) for i in children]
    elif weights is not None:
        weights = np.asarray(weights, dtype=float)
        weights = weights[v] if len(weights) == len(names) else weights
    lengths = _lengths(names, u, v, np.ones(len(v)) if weights is None else weights)
    _check_no_cycle(names, u, v)
    below = set(children)
    return _joined(names, u, v, lengths, root=next(name for i, name in enumerate(names) if i not in below))


def _several_parents(parents: Mapping[Any, Any] | Sequence[Any]) -> dict[Any, list[Any]] | None:
    """Return label -> parents if any label has a list of them, or None if all have at most one."""
    if not isinstance(parents, Mapping) or not any(isinstance(above, list | set) for above in parents.values()):
        return None
    found: dict[Any, list[Any]] = {}
    for child, above in parents.items():
        listed = sorted(above, key=repr) if isinstance(above, set) else above
        listed = listed if isinstance(listed, list) else [listed]
        found[plain(child)] = [plain(one) for one in listed if one is not None and plain(one) != plain(child)]
    return found


def _of_several_parents(parents: Mapping[Any, Sequence[Any]], labels: Iterable[Label] | None, weights: Any) -> Joined:
    """Return the labels and the graph of a taxonomy whose labels may have several parents."""
    if weights is not None:
        raise WeightspaceError(
            "Weights are given per label, but some labels have several parents. Pass a networkx graph with edge "
            "lengths to from_graph instead."
        )
    pairs = [(child, above) for child, listed in parents.items() for above in listed if not _is_root_mark(above)]
    names = Names([*dict.fromkeys([*parents, *(above for _, above in pairs)])] if labels is None else labels)
    names.positions(parents, "children")
    v, u = (_positions(names, [pair[side] for pair in pairs]) for side in (0, 1))
    above = csr_array((np.ones(len(u)), (v, u)), shape=(len(names), len(names)))
    count, component = connected_components(above, directed=True, connection="strong")
    if count < len(names):
        circle = np.flatnonzero(component == np.argmax(np.bincount(component)))
        shown = ", ".join(repr(names[int(i)]) for i in circle[:_SHOWN])
        raise WeightspaceError(f"The labels {shown} are ancestors of each other; expected parents without a cycle.")
    tops = np.flatnonzero(~np.isin(np.arange(len(names)), v))
    return _joined(names, u, v, np.ones(len(u)), root=names[int(tops[0])] if len(tops) == 1 else None)


def graph_of(graph: Any, labels: Iterable[Label] | None, weight: str) -> Joined:
    """Return labels and graph from a networkx graph or a sparse matrix; edge directions are ignored.

    Raises:
        WeightspaceError: it is neither, isn't connected, or has an invalid length.
    """
    if issparse(graph):
        names, (u, v, lengths) = _of_matrix(graph, labels)
    elif hasattr(graph, "nodes") and hasattr(graph, "edges"):
        nodes = [plain(node) for node in graph.nodes]
        names = Names(nodes if labels is None else labels)
        ends = _edges_of(graph, weight)
        if names and set(nodes) != set(names):
            known = _positions(names, nodes)
            if len(known) != len(names):
                raise WeightspaceError(f"The graph has {len(nodes):,} nodes, but there are {len(names):,} labels.")
        u, v = (_positions(names, [plain(end[side]) for end in ends]) for side in (0, 1))
        lengths = _lengths(names, u, v, [end[2] for end in ends])
    else:
        raise WeightspaceError(
            f"A graph must be a networkx graph or a scipy.sparse matrix; found {type(graph).__name__}."
        )
    return _joined(names, u, v, lengths)


def _edges_of(graph: Any, weight: str) -> list[tuple[Any, Any, Any]]:
    """Return the edges of a networkx graph with their lengths, 1 if missing.

    Raises:
        WeightspaceError: no edge has the attribute, which isn't networkx's default.
    """
    ends = list(graph.edges(data=weight, default=None))
    if ends and weight != "weight" and all(end[2] is None for end in ends):
        known = sorted({str(key) for *_, attributes in graph.edges(data=True) for key in attributes})
        raise WeightspaceError(
            f"No edge of the graph has the attribute {weight!r}; found {', '.join(map(repr, known)) or 'none'}. Leave "
            "weight out for edges of length 1."
        )
    return [(u, v, 1 if length is None else length) for u, v, length in ends]


def _joined(names: Names, u: np.ndarray, v: np.ndarray, lengths: np.ndarray, *, root: Label | None = None) -> Joined:
    """Return labels and their graph, in which labels at distance zero share one node.

    Raises:
        WeightspaceError: the graph is not connected.
    """
    near = lengths == 0
    if not near.any():
        graph = adjacency_of(len(names), u, v, lengths)
        check_connected(names, graph)
        return Joined(names, graph, root=root)
    same = csr_array((np.ones(int(near.sum())), (u[near], v[near])), shape=(len(names), len(names)))
    _, group = connected_components(same, directed=False)
    _, first = np.unique(group, return_index=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))  # nodes in order of their first labels
    nodes = rank[group]
    graph = adjacency_of(len(first), nodes[u], nodes[v], lengths)
    check_connected(Names([names[int(i)] for i in np.sort(first)]), graph)
    return Joined(names, graph, nodes, root)


def adjacency_of(nodes: int, u: np.ndarray, v: np.ndarray, lengths: np.ndarray) -> Graph:
    """Return the symmetric adjacency matrix, with the shortest of parallel edges and without loops."""
    keep = u != v
    ends = np.concatenate([u[keep] * nodes + v[keep], v[keep] * nodes + u[keep]])
    both = np.concatenate([lengths[keep], lengths[keep]])
    order = np.lexsort((both, ends))
    ends, both = ends[order], both[order]
    single = np.ones(len(ends), dtype=bool)
    single[1:] = ends[1:] != ends[:-1]
    rows, columns = np.divmod(ends[single], nodes)
    indptr = np.searchsorted(rows, np.arange(nodes + 1))
    return csr_array((both[single], columns, indptr), shape=(nodes, nodes))


def check_connected(names: Names, adjacency: Graph) -> None:
    """Check that there is a path between any two labels.

    Raises:
        WeightspaceError: the graph is disconnected; the message lists the components.
    """
    count, component = components(adjacency)
    if count == 1:
        return
    sizes = np.bincount(component)
    largest = np.argsort(-sizes, kind="stable")[:_SHOWN]
    parts = []
    for one in largest:
        members = np.flatnonzero(component == one)
        first = ", ".join(repr(names[i]) for i in members[:_SHOWN])
        parts.append(f"{sizes[one]:,} labels ({first}{', …' if len(members) > _SHOWN else ''})")
    raise WeightspaceError(
        f"The labels fall into {count:,} components with no path between them: {'; '.join(parts)}"
        f"{'; …' if count > _SHOWN else ''}. Expected a connected graph: add edges, or keep only one component."
    )


def _check_no_cycle(names: Names, u: np.ndarray, v: np.ndarray) -> None:
    """Raise if the edges contain a cycle."""
    if cycle := _cycle(len(names), u.tolist(), v.tolist()):
        shown = " – ".join(repr(names[i]) for i in cycle[: 2 * _SHOWN])
        raise WeightspaceError(
            f"The edges of the tree form a cycle: {shown}{' – …' if len(cycle) > 2 * _SHOWN else ''}. "
            "Use from_graph (labels build --graph) for other graphs."
        )


def _cycle(nodes: int, u: list[int], v: list[int]) -> list[int]:
    """Return a closed cycle, or an empty list."""
    leader = list(range(nodes))

    def find(node: int) -> int:
        while leader[node] != node:
            leader[node] = leader[leader[node]]
            node = leader[node]
        return node

    for index, (a, b) in enumerate(zip(u, v, strict=True)):
        first, second = find(a), find(b)
        if first == second:
            return [*_path(nodes, u[:index], v[:index], a, b), a]
        leader[first] = second
    return []


def _path(nodes: int, u: list[int], v: list[int], start: int, goal: int) -> list[int]:
    neighbours: list[list[int]] = [[] for _ in range(nodes)]
    for a, b in zip(u, v, strict=True):
        neighbours[a].append(b)
        neighbours[b].append(a)
    before = {start: start}
    queue = [start]
    for node in queue:
        for other in neighbours[node]:
            if other not in before:
                before[other] = node
                queue.append(other)
    path = [goal]
    while path[-1] != start:
        path.append(before[path[-1]])
    return path[::-1]


def _labels_of(ends: list[tuple[Label, Label]]) -> list[Any]:
    """Return the endpoints, sorted if they are numbers, otherwise in order of first appearance."""
    found: list[Any] = list(dict.fromkeys(end for edge in ends for end in edge))
    return sorted(found) if all(isinstance(end, numbers.Real) for end in found) else found


def _positions(names: Names, ends: list[Any]) -> np.ndarray:
    """Return the positions of endpoints, looked up by name or given as positions."""
    try:
        return np.fromiter((names.position(end) for end in ends), np.int64, len(ends))
    except KeyError as error:
        unnamed = error.args[0]
    if isinstance(unnamed, int) and not any(isinstance(name, numbers.Real) for name in names):
        if bad := next((end for end in ends if not isinstance(end, numbers.Real)), None):
            raise WeightspaceError(
                f"The endpoints {unnamed!r} and {bad!r} differ in kind; expected all names or all positions."
            )
        found = np.asarray(ends, dtype=np.int64)
        if (found < 0).any() or (found >= len(names)).any():
            raise WeightspaceError(
                f"An endpoint is at position {int(found.min() if (found < 0).any() else found.max()):,}, but there "
                f"are {len(names):,} labels."
            )
        return found
    names.positions([unnamed], "endpoints")
    raise AssertionError("unreachable: the name above is unknown")


def _lengths(names: Names, u: np.ndarray, v: np.ndarray, weights: Any) -> np.ndarray:
    """Return the edge lengths, float64."""
    try:
        lengths = np.asarray(weights, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        raise WeightspaceError("Edge weights must be numbers, one per edge; found something else.") from None
    if len(lengths) != len(u):
        raise WeightspaceError(f"Found {len(lengths):,} weights for {len(u):,} edges; expected one per edge.")
    bad = ~(np.isfinite(lengths) & (lengths >= 0))
    if bad.any():
        at = int(bad.argmax())
        raise WeightspaceError(
            f"The edge between {names[int(u[at])]!r} and {names[int(v[at])]!r} has length {lengths[at]:g}; "
            "expected a positive number, or 0 for equivalent labels."
        )
    return lengths


def _of_matrix(graph: Any, labels: Iterable[Label] | None) -> tuple[Names, Edges]:
    entries: Any = csr_array(graph).tocoo()
    rows, columns = entries.shape
    names = Names(range(rows) if labels is None else labels)
    if rows != columns or rows != len(names):
        raise WeightspaceError(
            f"The graph is a {rows:,} × {columns:,} matrix; expected a row and column for each of the "
            f"{len(names):,} labels."
        )
    u, v = entries.coords[0].astype(np.int64), entries.coords[1].astype(np.int64)
    lengths = _lengths(names, u, v, entries.data)
    shared = csr_array((lengths, (u, v)), shape=entries.shape)
    difference = (shared - shared.T).multiply(shared.T.astype(bool)).multiply(shared.astype(bool)).tocoo()
    if difference.nnz and np.abs(difference.data).max() > 1e-9 * lengths.max():
        at = int(np.abs(difference.data).argmax())
        a, b = (int(side[at]) for side in difference.coords)
        raise WeightspaceError(
            f"The edge between {names[a]!r} and {names[b]!r} has two lengths, {shared[a, b]:g} and {shared[b, a]:g}; "
            "expected a symmetric matrix, or one triangle."
        )
    return names, (u, v, lengths)


def _is_root(parent: Any, child: Label, names: Names) -> bool:
    if parent == child:
        return True
    if isinstance(parent, int) and parent not in names:
        return parent == -1 or (0 <= parent < len(names) and names[int(parent)] == child)
    return False


def _is_root_mark(parent: Any) -> bool:
    return isinstance(parent, numbers.Integral) and parent == -1
