"""Label metrics: named labels, a distance between any two, and predictions that respect it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from weightspace.errors import WeightspaceError
from weightspace.labels.geometry import (
    DiscreteGeometry,
    Geometry,
    GraphGeometry,
    GridGeometry,
    MatrixGeometry,
    PointGeometry,
    grid_sizes,
)
from weightspace.labels.label_space import Outputs
from weightspace.labels.names import Label, Names
from weightspace.labels.pairs import distance_table

if TYPE_CHECKING:
    from weightspace.labels.cover import Cover
    from weightspace.labels.decision import Decision
    from weightspace.labels.head import FrechetHead


class LabelMetric:
    """Labels and the distances between them; immutable.

    Make one by :meth:`from_tree`, :meth:`from_graph`, :meth:`from_distance_matrix`, :meth:`from_embeddings`,
    :meth:`from_wordnet`, :meth:`from_open_clip`, :meth:`from_grid` or :meth:`discrete`. Classes are named, never
    numbered: ``observed`` lists the classifier's classes in the order of its columns.

    Attributes:
        labels: the names; predictions are positions in it.
        geometry: the structure that defines the distances.
        root: the root label of a tree that was made from parents, else None.

    Example:
        >>> import weightspace as ws
        >>> metric = ws.LabelMetric.from_tree({"animal": "entity", "cat": "animal", "dog": "animal", "car": "entity"})
        >>> positions = metric.predict([[0.5, 0.4, 0.1], [0.0, 0.1, 0.9]], observed=["cat", "dog", "car"])
        >>> [metric.labels[position] for position in positions]
        ['animal', 'car']
        >>> metric.distances(["cat"], ["dog", "car"])
        array([[2., 3.]])
    """

    def __init__(
        self,
        labels: Iterable[Label],
        geometry: Geometry,
        nodes: np.ndarray | None = None,
        *,
        root: Label | None = None,
    ) -> None:
        """Prefer the class methods; ``nodes`` are the nodes of the labels in the geometry, all if None."""
        self.names = labels if isinstance(labels, Names) else Names(labels)
        self.geometry = geometry
        self.nodes = np.arange(geometry.nodes) if nodes is None else nodes
        if len(self.names) != len(self.nodes):
            raise WeightspaceError(f"Found {len(self.names):,} labels at {len(self.nodes):,} nodes; expected one each.")
        self.root = root
        self._decisions: OrderedDict[Any, Decision] = OrderedDict()

    @property
    def labels(self) -> tuple[Any, ...]:
        """The names of the labels."""
        return self.names.listed

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"LabelMetric({self.kind}, {len(self):,} labels)"

    @property
    def kind(self) -> str:
        """The kind of geometry: ``tree``, ``graph``, ``matrix``, ``points``, ``grid`` or ``discrete``."""
        return "tree" if getattr(self.geometry, "is_tree", False) else self.geometry.kind

    @classmethod
    def from_tree(
        cls,
        parents: Mapping[Any, Any] | Sequence[Any] | None = None,
        *,
        edges: Iterable[Any] | None = None,
        labels: Iterable[Label] | None = None,
        weights: Any = None,
    ) -> LabelMetric:
        """Return the metric of path lengths in a tree.

        Args:
            parents: label -> parent, or the parents in the order of ``labels``; None, -1 or itself for the root. If a
                label has a list of several parents, distances are shortest paths of the resulting graph.
            edges: instead of parents, pairs ``(u, v)`` or triples ``(u, v, weight)``.
            labels: the names of all nodes, in order of position. Endpoints are names; if no label is a number, numeric
                endpoints are positions.
            weights: edge lengths, 1 if not given; with parents also label -> length. Labels joined by edges of length
                0, such as synonyms, share one node.

        Raises:
            WeightspaceError: not a tree, a duplicate or unknown label, a negative length, or input for another method.
        """
        from weightspace.labels.trees import tree_of

        found = tree_of(parents, edges, labels, weights)
        return cls(found.names, GraphGeometry(found.graph), found.nodes, root=found.root)

    @classmethod
    def from_graph(cls, graph: Any, *, labels: Iterable[Label] | None = None, weight: str = "weight") -> LabelMetric:
        """Return the shortest-path metric of a graph; edge directions are ignored.

        Args:
            graph: networkx graph, or a symmetric or triangular ``scipy.sparse`` matrix of lengths.
            labels: names of the nodes, in order of position; of a matrix, names of its rows.
            weight: edge attribute of a networkx graph that holds the length, 1 if missing. Labels joined by edges of
                length 0, such as synonyms, share one node.

        Raises:
            WeightspaceError: a disconnected graph, a duplicate or unknown label, a negative length, or a
                ``weight`` that no edge has.
        """
        from weightspace.labels.parsing import graph_of

        found = graph_of(graph, labels, weight)
        return cls(found.names, GraphGeometry(found.graph), found.nodes)

    @classmethod
    def from_distance_matrix(cls, matrix: Any, *, labels: Iterable[Label] | None = None) -> LabelMetric:
        """Return the metric of a distance matrix.

        Args:
            matrix: distances, not squared, (K, K), symmetric, finite, zero on the diagonal; not copied if floating. Of
                labels with equal rows at distance zero, the first is predicted.
            labels: names of the rows; ``0 … K-1`` if not given.

        Raises:
            WeightspaceError: the matrix isn't a distance matrix; the message names the entry.
        """
        from weightspace.labels.arrays import distance_matrix, first_of_equals

        names = None if labels is None else Names(labels)
        distances = distance_matrix(matrix, names)
        return cls(names or Names(range(len(distances))), MatrixGeometry(distances), first_of_equals(distances))

    @classmethod
    def from_embeddings(
        cls, embeddings: Any, *, labels: Iterable[Label] | None = None, metric: str = "euclidean"
    ) -> LabelMetric:
        """Return the metric between points.

        Args:
            embeddings: (K, d), one row per label; not copied for ``euclidean`` if float32 or float64.
            labels: names of the rows; ``0 … K-1`` if not given.
            metric: ``"euclidean"``, or ``"cosine"``: √(2(1 − cos)), so that exponent 2 costs 2(1 − cos).

        Raises:
            WeightspaceError: a non-finite number, a wrong shape, or a zero row for ``"cosine"``.
        """
        from weightspace.labels.arrays import embeddings as checked

        names = None if labels is None else Names(labels)
        points = checked(embeddings, names, metric)
        return cls(names or Names(range(len(points))), PointGeometry(points))

    @classmethod
    def from_wordnet(
        cls, names: Iterable[str] | None = None, *, ancestors: bool = False, folder: str | Path | None = None
    ) -> LabelMetric:
        """Return the hop distances between some or all noun synsets of WordNet 3.0.

        Args:
            names: ids (``n02084071``), synsets (``dog.n.01``) or words (``dog``: first sense); None for all 82,115.
            ancestors: add all ancestors of the synsets as labels, so that predictions can be more general.
            folder: location of ``data.noun`` and ``index.noun``; else ``$WEIGHTSPACE_WORDNET``, ``/usr/share/wordnet``.

        Raises:
            WeightspaceError: the database is missing, or a synset is unknown.
        """
        from weightspace.labels.wordnet import wordnet_labels

        found, graph, nodes = wordnet_labels(names, ancestors=ancestors, folder=folder)
        return cls(found, GraphGeometry(graph), nodes)

    @classmethod
    def from_open_clip(
        cls, model: Any, tokenizer: Any, names: Sequence[str], *, templates: Sequence[str] = ("a photo of a {}.",)
    ) -> LabelMetric:
        """Return the chordal metric between class embeddings from an open_clip model's text tower.

        Args:
            model: model with ``encode_text``.
            tokenizer: texts -> tokens, from ``open_clip.get_tokenizer``.
            names: class names, which become the labels.
            templates: prompts with ``{}`` for the name; a class embedding is the mean direction of its prompts.

        Raises:
            WeightspaceError: there are no names or templates, or a template has no ``{}``.
        """
        from weightspace.labels.zero_shot import class_embeddings

        return cls.from_embeddings(class_embeddings(model, tokenizer, names, templates), labels=names, metric="cosine")

    @classmethod
    def from_grid(cls, shape: Sequence[int], *, labels: Iterable[Label] | None = None) -> LabelMetric:
        """Return the Manhattan metric of a grid: the sum of the absolute coordinate differences.

        Args:
            shape: sizes of the axes; the last one varies fastest.
            labels: names; the coordinates if not given.

        Raises:
            WeightspaceError: a size below 1, or a wrong number of labels.
        """
        sizes = grid_sizes(shape)
        return cls(Names(np.ndindex(sizes) if labels is None else labels), GridGeometry(sizes))

    @classmethod
    def discrete(cls, labels: Iterable[Label]) -> LabelMetric:
        """Return the metric with distance one between any two labels; predictions equal ``argmax``."""
        names = Names(labels)
        return cls(names, DiscreteGeometry(len(names)))

    def predict(
        self,
        probabilities: Any,
        *,
        observed: Sequence[Label],
        outputs: Outputs = "all",
        exponent: float = 2,
        dim: int = -1,
    ) -> np.ndarray:
        """Return the labels of least expected cost Σ p_i d(y, i)^exponent, the Fréchet mean for exponent 2.

        Args:
            probabilities: (..., K), non-negative, not modified; a warning says if rows are far from summing to one.
            observed: names of the K classes, in the order of the columns.
            outputs: labels that can be predicted: ``"all"``, ``"observed"`` or a list of names.
            exponent: exponent of the distance; 1 and 2 are fast.
            dim: the axis of the K classes: 1 for images (B, K, H, W).

        Returns:
            Positions in ``labels``, int64 (...); ties go to the lowest.

        Raises:
            WeightspaceError: an unknown name, a wrong number of columns, or a row that is non-finite, negative or zero.
        """
        from weightspace.labels.class_axis import to_last

        rows = to_last(probabilities, dim)
        return self.decision(observed=observed, outputs=outputs, exponent=exponent).predict(rows)

    def expected_cost(
        self,
        probabilities: Any,
        *,
        observed: Sequence[Label],
        outputs: Outputs = "all",
        exponent: float = 2,
        dim: int = -1,
    ) -> np.ndarray:
        """Return Σ p_i d(y, i)^exponent of each output, float64 (..., outputs), in the order of ``outputs``.

        Args and errors are those of :meth:`predict`; rows aren't normalised, and the outputs lie along ``dim``.
        """
        from weightspace.labels.class_axis import from_last, to_last

        decision = self.decision(observed=observed, outputs=outputs, exponent=exponent)
        return from_last(decision.expected_cost(to_last(probabilities, dim)), dim)

    def topk(
        self,
        probabilities: Any,
        k: int,
        *,
        observed: Sequence[Label],
        outputs: Outputs = "all",
        exponent: float = 2,
        dim: int = -1,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the ``k`` least expected costs, ascending, float64 (..., k), and their positions, int64 (..., k).

        Args and errors are those of :meth:`predict`; ties are in order of position, and ``k`` lies along ``dim``.

        Example:
            >>> metric = LabelMetric.from_grid((4,), labels=["a", "b", "c", "d"])
            >>> costs, positions = metric.topk([0.75, 0.25], 3, observed=["a", "d"])
            >>> [metric.labels[i] for i in positions], costs.tolist()
            (['b', 'a', 'c'], [1.75, 2.25, 3.25])
        """
        from weightspace.labels.class_axis import from_last, to_last
        from weightspace.labels.ranking import least_costs

        decision = self.decision(observed=observed, outputs=outputs, exponent=exponent)
        costs, found = least_costs(decision, to_last(probabilities, dim), k)
        return from_last(costs, dim), from_last(found, dim)

    def head(
        self,
        *,
        observed: Sequence[Label],
        outputs: Outputs = "all",
        exponent: float = 2,
        temperature: float = 1.0,
        dim: int = -1,
    ) -> FrechetHead:
        """Return a module that replaces ``argmax``: logits (..., K) -> positions in ``labels`` (...).

        Args:
            observed: names of the K classes, in the order of the logits.
            outputs: as for :meth:`predict`.
            exponent: as for :meth:`predict`.
            temperature: divisor of the logits.
            dim: the axis of the K logits: 1 for images (B, K, H, W) -> (B, H, W).
        """
        from weightspace.labels.class_axis import FrechetHeadAlong
        from weightspace.labels.head import FrechetHead

        decision = self.decision(observed=observed, outputs=outputs, exponent=exponent)
        return FrechetHead(decision, temperature) if dim == -1 else FrechetHeadAlong(decision, temperature, dim)

    def decision(self, *, observed: Sequence[Label], outputs: Outputs = "all", exponent: float = 2) -> Decision:
        """Return the decision for these classes, cached for later calls."""
        from weightspace.labels.decision import kept_decision

        return kept_decision(self, self._decisions, observed, outputs, exponent)

    def distances(self, sources: Sequence[Label] | None = None, targets: Sequence[Label] | None = None) -> np.ndarray:
        """Return the distances from sources (all labels if None, up to 1 GiB) to targets (all if None), float64."""
        return distance_table(self, sources, targets)

    def locus(self, observed: Sequence[Label], *, unique: bool = False) -> list[Any]:
        """Return the labels that are a Fréchet mean under some weights of the observed ones, in order of position.

        Args:
            observed: names of the observed classes.
            unique: return only labels that are the unique mean for some weights.

        Raises:
            WeightspaceError: a name is unknown, or there are too many labels and the kind is neither tree nor discrete.
        """
        from weightspace.labels.locus import locus

        return locus(self, observed, unique=unique)

    def is_locus_cover(self, observed: Sequence[Label], *, identifying: bool = False) -> bool:
        """Return whether every label can be predicted from these classes, without ties if ``identifying``."""
        return len(self.locus(observed, unique=identifying)) == len(self)

    def minimum_cover(self, *, identifying: bool = False) -> list[Any]:
        """Return a smallest set of classes to observe from which every label can be predicted; see :meth:`cover`.

        Warns:
            UserWarning: the set may not be the smallest; the warning states a lower bound.
        """
        from weightspace.labels.cover import minimum_cover

        return minimum_cover(self, identifying=identifying)

    def cover(self, *, identifying: bool = False) -> Cover:
        """Return a small cover, the method that found it and a lower bound on its size; see :func:`find_cover`."""
        from weightspace.labels.cover import find_cover

        return find_cover(self, identifying=identifying)

    def next_classes(self, observed: Sequence[Label], n: int = 1) -> list[Any]:
        """Return the ``n`` classes to observe next so that the most labels can be predicted.

        On a tree, the choice is optimal for every n. Otherwise it is greedy: each class is the best one to add next.

        Raises:
            WeightspaceError: a name is unknown, or fewer than ``n`` labels remain.
        """
        from weightspace.labels.active import next_classes

        return next_classes(self, observed, n)

    def save(self, path: str | Path) -> None:
        """Write the metric to a ``.safetensors`` file, to be read by :meth:`load`."""
        from weightspace.labels.files import save_metric

        save_metric(self, path)

    @classmethod
    def load(cls, path: str | Path) -> LabelMetric:
        """Read a metric written by :meth:`save`.

        Raises:
            WeightspaceError: the file cannot be read, or isn't a label metric.
        """
        from weightspace.labels.files import read_metric

        names, geometry, nodes, root = read_metric(path)
        return cls(names, geometry, nodes, root=root)
