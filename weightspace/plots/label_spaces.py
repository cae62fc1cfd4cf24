"""Label spaces: the labels that can be predicted, and the predictions for all probabilities of three classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.sparse.csgraph import breadth_first_order

from weightspace.errors import WeightspaceError
from weightspace.labels import LabelMetric
from weightspace.plots.picture import COLOURS, Axes, Figure, withStroke, write_picture

#: Maximum number of labels to draw, and maximum number to draw with names.
_LARGEST, _NAMED = 400, 60
#: Number of probability steps along a side of the simplex.
_STEPS = 240
_OUTSIDE = "#D8D8D8"


def draw_locus(metric: LabelMetric, observed: Sequence[Any], path: str | Path, *, title: str | None = None) -> Figure:
    """Plot a tree or graph of labels: the observed ones, those that can be predicted from them, and the others.

    Args:
        metric: metric of a tree or graph whose nodes are all labels, at most 400.
        observed: names of the observed classes.
        path: ``.png``, ``.svg`` or ``.pdf``.
        title: title of the figure.

    Raises:
        CheckpointError: the file can't be written.
        WeightspaceError: a name is unknown, the metric isn't a small tree or graph, or the path has another suffix.
    """
    graph = getattr(metric.geometry, "graph", None)
    if graph is None or len(metric) != metric.geometry.nodes or len(metric) > _LARGEST:
        raise WeightspaceError(
            f"A plot of the locus needs a tree or graph of at most {_LARGEST} labels; found {metric!r}."
        )
    seen = metric.names.positions(observed, "observed classes")
    inside = metric.names.positions(metric.locus(observed), "locus")
    return write_picture(path, lambda: _locus_figure(metric, seen, inside, title))


def _locus_figure(metric: LabelMetric, seen: np.ndarray, inside: np.ndarray, title: str | None) -> Figure:
    geometry: Any = metric.geometry
    places = _tree_places(metric) if geometry.is_tree else _graph_places(geometry)
    width = float(np.clip(0.2 * len(metric), 4.5, 14))
    figure = Figure(figsize=(width, 4.2), layout="constrained")
    axes = figure.subplots()
    entries = geometry.graph.tocoo()
    u, v = entries.coords
    predicted = np.zeros(len(metric), dtype=bool)
    predicted[inside] = True
    for a, b in zip(u[u < v], v[u < v], strict=True):
        both = bool(predicted[a] and predicted[b])
        axes.plot(*places[[a, b]].T, color=COLOURS[1] if both else _OUTSIDE, linewidth=1.6 if both else 1, zorder=1)
    others = ~predicted
    predicted[seen] = False
    kinds = (
        ("observed", seen, COLOURS[0], 52),
        ("others that can be predicted", np.flatnonzero(predicted), COLOURS[1], 36),
        ("cannot", np.flatnonzero(others), _OUTSIDE, 26),
    )
    for label, members, colour, size in kinds:
        axes.scatter(*places[members].T, s=size, color=colour, label=f"{label}: {len(members)}", zorder=2)
    if len(metric) <= _NAMED:
        _write_names(axes, metric, places)
    axes.set_axis_off()
    axes.margins(0.08, 0.12)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _write_names(axes: Axes, metric: LabelMetric, places: np.ndarray) -> None:
    for name, (x, y) in zip(metric.labels, places, strict=True):
        axes.annotate(
            str(name),
            (x, y),
            xytext=(0, -6),
            textcoords="offset points",
            fontsize=6.5,
            ha="right",
            va="top",
            rotation=50,
            path_effects=[withStroke(linewidth=2, foreground="white")],  # stays readable across edges
            zorder=3,
        )


def _tree_places(metric: LabelMetric) -> np.ndarray:
    """Return a position for every node: leaves side by side, parents centred above their children, the root on top.

    A tree of edges has no root; a central node is drawn on top.
    """
    geometry: Any = metric.geometry
    top = int(geometry.peeled.order[0])
    if metric.root is not None:
        top = int(metric.nodes[metric.names.positions([metric.root], "root")[0]])
    order, parents = breadth_first_order(geometry.graph, top, directed=False)
    children: list[list[int]] = [[] for _ in parents]
    depth = np.zeros(len(parents))
    for node in order[1:]:
        children[parents[node]].append(int(node))
        depth[node] = depth[parents[node]] + 1
    across, stack, preorder = np.zeros(len(parents)), [top], []
    while stack:
        preorder.append(stack.pop())
        stack.extend(reversed(children[preorder[-1]]))
    leaves = [node for node in preorder if not children[node]]
    across[leaves] = np.arange(len(leaves))
    for node in reversed(preorder):
        if children[node]:
            across[node] = (across[children[node][0]] + across[children[node][-1]]) / 2
    return np.stack([across, -depth], axis=1)


def _graph_places(geometry: Any) -> np.ndarray:
    """Return planar positions whose distances approximate those of the nodes; deterministic for equal graphs."""
    import networkx

    gaps = geometry.distances(np.arange(geometry.nodes))
    listed = {i: dict(enumerate(row)) for i, row in enumerate(gaps.tolist())}
    places = networkx.kamada_kawai_layout(networkx.from_scipy_sparse_array(geometry.graph), dist=listed)
    return np.asarray([places[i] for i in range(geometry.nodes)])


def draw_simplex(metric: LabelMetric, observed: Sequence[Any], path: str | Path, *, title: str | None = None) -> Figure:
    """Plot the simplex of three observed classes, coloured by predicted label.

    Args:
        metric: metric on the labels.
        observed: three names.
        path: ``.png``, ``.svg`` or ``.pdf``.
        title: title of the figure.

    Raises:
        CheckpointError: the file can't be written.
        WeightspaceError: there aren't three classes, a name is unknown, or the path has another suffix.
    """
    if len(observed) != 3:
        raise WeightspaceError(f"A simplex has three classes as its corners; found {len(observed)}.")
    metric.names.positions(observed, "observed classes")
    return write_picture(path, lambda: _simplex_figure(metric, observed, title))


def _simplex_figure(metric: LabelMetric, observed: Sequence[Any], title: str | None) -> Figure:
    steps = np.arange(_STEPS + 1)
    a, b = (side.ravel() for side in np.meshgrid(steps, steps, indexing="ij"))
    a, b = a[a + b <= _STEPS], b[a + b <= _STEPS]
    p = np.stack([a, b, _STEPS - a - b], axis=1) / _STEPS
    corners = np.asarray([[0, 0], [1, 0], [0.5, np.sqrt(3) / 2]])
    found = metric.predict(p, observed=observed)
    places = p @ corners
    figure = Figure(figsize=(5.2, 4.2), layout="constrained")
    axes = figure.subplots()
    labels, counts = np.unique(found, return_counts=True)
    ranked = labels[np.argsort(-counts, kind="stable")]
    for rank, label in enumerate(ranked):
        here = found == label
        colour = COLOURS[rank % len(COLOURS)]
        strength = 0.85 * 0.55 ** (rank // len(COLOURS))
        known = " (observed)" if metric.labels[label] in list(observed) else ""
        axes.scatter(
            *places[here].T,
            s=3.2,
            marker="s",
            linewidths=0,
            color=colour,
            alpha=strength,
            label=f"{metric.labels[label]}{known}: {here.mean():.0%}" if rank < 12 else None,
            rasterized=True,
        )
    for name, (x, y), where in zip(observed, corners, ("top", "top", "bottom"), strict=True):
        axes.annotate(
            str(name),
            (x, y),
            xytext=(0, -6 if where == "top" else 6),
            textcoords="offset points",
            ha="center",
            va=where,
        )
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.margins(0.12)
    figure.legend(loc="outside right center", frameon=False, markerscale=3)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure
