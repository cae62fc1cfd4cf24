"""Construction of label trees from parents or edges, with errors for input that belongs to another constructor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from scipy.sparse import issparse

from weightspace.errors import WeightspaceError
from weightspace.labels.names import Label
from weightspace.labels.parsing import Joined, tree_of_edges, tree_of_parents


def tree_of(
    parents: Mapping[Any, Any] | Sequence[Any] | None,
    edges: Iterable[Any] | None,
    labels: Iterable[Label] | None,
    weights: Any,
) -> Joined:
    """Return the labels and the graph of a tree, from parents or from edges.

    Raises:
        WeightspaceError: as for ``LabelMetric.from_tree``.
    """
    if (parents is None) == (edges is None):
        raise WeightspaceError(
            "A tree is given by parents or by edges=[(u, v, weight), …]; expected exactly one of them."
        )
    if labels is None and isinstance(parents, list | tuple):
        _check_positions(parents)
    check_parents(parents if edges is None else edges, are_edges=edges is not None)
    if edges is not None:
        return tree_of_edges(edges, labels, weights)
    return tree_of_parents({} if parents is None else parents, labels, weights)


def _check_positions(parents: Sequence[Any]) -> None:
    """Check that parents without labels can be positions.

    Raises:
        WeightspaceError: they are pairs or names.
    """
    if parents and all(isinstance(parent, tuple) and len(parent) in (2, 3) for parent in parents):
        raise WeightspaceError("The parents are pairs. Give pairs as edges=[(u, v), …], or a mapping label -> parent.")
    if any(isinstance(parent, str) for parent in parents):
        raise WeightspaceError(
            "The parents are names, and their labels are missing. Give labels=[…], or a mapping label -> parent."
        )


def check_parents(given: Any, *, are_edges: bool) -> None:
    """Check the type and shape of parents or edges.

    Raises:
        WeightspaceError: they are a graph, an array for another constructor, or not iterable.
    """
    what = "edges" if are_edges else "parents"
    if not are_edges and isinstance(given, Mapping) and not hasattr(given, "edges"):
        return
    if hasattr(given, "nodes") and hasattr(given, "edges"):
        raise WeightspaceError(
            f"The {what} are a {type(given).__name__}. Use LabelMetric.from_graph(graph), or "
            "from_tree(edges=list(graph.edges)) to check that it is a tree."
        )
    if issparse(given):
        raise WeightspaceError(
            f"The {what} are a sparse matrix {getattr(given, 'shape', '')}. Use LabelMetric.from_graph(matrix)."
        )
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise WeightspaceError(
            f"The {what} are a {type(given).__name__}; expected label -> parent, or edges=[(u, v, length), …]. A file "
            "of edges is read by `weightspace labels build --edges FILE`."
        )
    shape: tuple[int, ...] | None = getattr(given, "shape", None)
    if shape is None or (len(shape) == 1 and not are_edges):
        return
    if len(shape) == 2 and shape[1] in (2, 3) and shape[0] != shape[1]:
        if are_edges:
            return
        raise WeightspaceError(f"The parents are an array {tuple(shape)}. Give it as edges: from_tree(edges=array).")
    if len(shape) == 2 and shape[0] == shape[1] and not (are_edges and shape[1] in (2, 3)):
        raise WeightspaceError(
            f"The {what} are a square array {tuple(shape)}. Use from_distance_matrix for distances between all labels, "
            "or from_graph(scipy.sparse.csr_array(array)) for the lengths of edges."
        )
    if not are_edges:
        raise WeightspaceError(
            f"The parents are an array {tuple(shape)}; expected (K,), the position of every label's parent, or "
            "edges=(n, 2). Use from_embeddings for points."
        )
    if len(shape) != 2 or shape[1] not in (2, 3):
        raise WeightspaceError(f"The edges are an array {tuple(shape)}; expected (n, 2), or (n, 3) with lengths.")
