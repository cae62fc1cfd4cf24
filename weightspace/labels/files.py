"""Label metrics as ``.safetensors`` files: the arrays of the geometry, with the labels in the metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from weightspace.checkpoints import load_checkpoint, load_metadata, save_checkpoint
from weightspace.checkpoints.json_file import parse_json
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.labels.geometry import (
    DiscreteGeometry,
    Geometry,
    GraphGeometry,
    GridGeometry,
    MatrixGeometry,
    PointGeometry,
)
from weightspace.labels.label_space import LabelSpace
from weightspace.labels.names import Label, Names
from weightspace.labels.parsing import adjacency_of

#: Suffixes of files that metrics are built from.
_TABLES = (".csv", ".tsv", ".txt", ".json", ".npy", ".npz")

_KIND, _LABELS, _ROOT = "weightspace.labels.kind", "weightspace.labels.names", "weightspace.labels.root"


def save_metric(metric: LabelSpace, path: str | Path) -> None:
    """Write a metric to a file.

    Raises:
        WeightspaceError: the suffix isn't ``.safetensors``, or a label isn't a string, a number or a tuple of them.
    """
    if Path(path).suffix != ".safetensors":
        raise WeightspaceError(f"A label metric is a .safetensors file; found {Path(path).name!r}.")
    for label in metric.labels:
        if not _fits(label):
            raise WeightspaceError(f"The label {label!r} is a {type(label).__name__}; expected a string or a number.")
    arrays = {name: torch.as_tensor(values) for name, values in metric.geometry.arrays().items()}
    if len(metric.nodes) != metric.geometry.nodes or (metric.nodes != np.arange(len(metric))).any():
        arrays |= {"nodes_of_labels": torch.from_numpy(metric.nodes), "nodes": torch.tensor([metric.geometry.nodes])}
    metadata = {_KIND: metric.geometry.kind, _LABELS: json.dumps(metric.labels, ensure_ascii=False)}
    if metric.root is not None:
        metadata[_ROOT] = json.dumps(metric.root, ensure_ascii=False)
    save_checkpoint(arrays, path, metadata=metadata)


def read_metric(path: str | Path) -> tuple[Names, Geometry, np.ndarray | None, Label | None]:
    """Read names, geometry, the names' places in it (None: all) and the root from a file of :func:`save_metric`.

    Raises:
        WeightspaceError: the file cannot be read, or isn't a label metric.
    """
    try:
        metadata = load_metadata(path)
    except CheckpointError:
        if Path(path).suffix.lower() not in _TABLES or not Path(path).is_file():
            raise
        metadata = {}
    if _KIND not in metadata:
        raise WeightspaceError(
            f"{path} isn't a label metric; expected a file written by LabelMetric.save or `labels build` (of a tree: "
            "weightspace labels build --edges FILE -o metric.safetensors)."
        )
    state = load_checkpoint(path)
    try:
        names = Names(_plain(label) for label in parse_json(metadata[_LABELS], f"{path}: the labels"))
        arrays = {name: tensor.clone() for name, tensor in state.items()}
        nodes = arrays.get("nodes_of_labels")
        geometry = _geometry(metadata[_KIND], arrays, len(names))
        root = _plain(parse_json(metadata[_ROOT], f"{path}: the root")) if _ROOT in metadata else None
        if root is not None:
            names.positions_of([root], "roots")
        return names, geometry, None if nodes is None else nodes.numpy(), root
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise WeightspaceError(f"{path} is a damaged label metric ({error}); rebuild it.") from error


def is_metric(path: str | Path) -> bool:
    """Return whether a file was written by :func:`save_metric`; False if it cannot be read."""
    try:
        return _KIND in load_metadata(path)
    except WeightspaceError:
        return False


def _geometry(kind: str, arrays: dict[str, Any], labels: int) -> Geometry:
    if kind == "graph":
        nodes = int(arrays["nodes"][0]) if "nodes" in arrays else labels
        u, v = arrays["ends"].numpy()
        return GraphGeometry(adjacency_of(nodes, u, v, arrays["lengths"].numpy()))
    if kind == "matrix":
        return MatrixGeometry(arrays["matrix"])
    if kind == "points":
        return PointGeometry(arrays["points"])
    if kind == "grid":
        return GridGeometry(tuple(arrays["shape"].tolist()))
    if kind == "discrete":
        return DiscreteGeometry(int(arrays["nodes"][0]))
    raise ValueError(f"unknown kind {kind!r}")


def _fits(label: Any) -> bool:
    return isinstance(label, str | int | float) or (isinstance(label, tuple) and all(map(_fits, label)))


def _plain(label: Any) -> Any:
    return tuple(map(_plain, label)) if isinstance(label, list) else label
