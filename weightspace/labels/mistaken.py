"""Errors for arguments of ``from_tree`` that belong to another constructor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from scipy.sparse import issparse

from weightspace.errors import WeightspaceError


def check_parents(given: Any, *, are_edges: bool) -> None:
    """Check that parents or edges can be some.

    Raises:
        WeightspaceError: they are a graph or an array of another kind, or nothing that can be iterated.
    """
    what = "edges" if are_edges else "parents"
    if not are_edges and isinstance(given, Mapping) and not hasattr(given, "edges"):
        return
    if hasattr(given, "nodes") and hasattr(given, "edges"):
        raise WeightspaceError(
            f"The {what} are a {type(given).__name__}. Use LabelMetric.from_graph(graph), or "
            "from_tree(edges=list(graph.edges)) to have it checked that it is a tree."
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
