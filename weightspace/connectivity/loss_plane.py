"""Loss planes: scores on a grid of the plane through three models.

Coordinates are distances in parameter space, excluding statistics: the first model is at the origin, the second on the
``x`` axis, the third above it. Grid rows correspond to ``y``, columns to ``x``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from torch import nn

from weightspace.arguments import checked
from weightspace.arithmetic.parametrizations import Coordinates
from weightspace.checkpoints import StateDict
from weightspace.connectivity.batchnorm import SEED, reset_batchnorm
from weightspace.connectivity.curve_files import load_result, numbers, numbers_or_none, save_result, table_of
from weightspace.connectivity.interpolated_network import combined, interpolated
from weightspace.connectivity.linear_path import Statistics, resolved
from weightspace.connectivity.loss_curve import scored
from weightspace.errors import WeightspaceError
from weightspace.lora.factor_files import check_is_model
from weightspace.progress import Progress
from weightspace.reprs import brief
from weightspace.tasks.building import blank_network, fitted
from weightspace.tasks.protocol import Split, Task, threads_of
from weightspace.threads import torch_threads

_LABELS = ("split", "statistics", "task")
_COLUMNS = ("model", "x", "y", "loss", "accuracy", *_LABELS)

Grid: TypeAlias = tuple[tuple[float, ...], ...]


@brief
@dataclass(frozen=True)
class Plane:
    """Scores on a grid of the plane through three models.

    Attributes:
        models: names of the three models.
        positions: ``(x, y)`` of the three models.
        model_loss: losses of the three models themselves, in nats.
        x: coordinates of the columns, increasing.
        y: coordinates of the rows, increasing.
        loss: in nats, one row for each ``y``.
        model_accuracy: accuracies of the three models, as fractions; None if the task has no accuracy.
        accuracy: like ``loss``, as fractions.
        split: the scored data: train, validation or test.
        statistics: ``"reset"`` if BatchNorm's statistics were reset at every grid point, otherwise ``"none"``.
        task: name of the task.

    Raises:
        WeightspaceError: the scores don't fit the grid, or the models aren't three with distinct names.
    """

    models: tuple[str, ...]
    positions: tuple[tuple[float, float], ...]
    model_loss: tuple[float, ...]
    x: tuple[float, ...]
    y: tuple[float, ...]
    loss: Grid
    model_accuracy: tuple[float, ...] | None = None
    accuracy: Grid | None = None
    split: str = "test"
    statistics: str = "none"
    task: str = ""

    def __post_init__(self) -> None:
        if not len(set(self.models)) == len(self.models) == len(self.positions) == len(self.model_loss) == 3:
            raise WeightspaceError(
                f"A plane needs three models with distinct names, each with a position and a loss; found "
                f"{', '.join(self.models)} with {len(self.positions)} positions and {len(self.model_loss)} losses."
            )
        for what, grid in (("losses", self.loss), ("accuracies", self.accuracy)):
            if grid is not None and [len(row) for row in grid] != [len(self.x)] * len(self.y):
                raise WeightspaceError(
                    f"A plane of {len(self.x)} columns and {len(self.y)} rows has one score per point; found {what} "
                    f"in rows of {sorted({len(row) for row in grid})}, {len(grid)} of them."
                )

    def save(self, path: str | Path) -> None:
        """Write the plane as ``.csv`` (one row per point, the three models first) or ``.json``.

        Raises:
            CheckpointError: the file cannot be written.
            WeightspaceError: the path has another suffix.
        """
        save_result(path, "plane", asdict(self), self._table)

    @classmethod
    def load(cls, path: str | Path) -> Plane:
        """Read a plane written by :meth:`save`, equal to the saved one.

        Raises:
            WeightspaceError: the file cannot be read, or isn't a plane.
        """
        return load_result(path, "plane", _COLUMNS, _from_fields, _from_rows)

    def _table(self) -> str:
        labels = (self.split, self.statistics, self.task)
        accuracies = self.model_accuracy or (None,) * 3
        models = zip(self.models, self.positions, self.model_loss, accuracies, strict=True)
        rows: list[Sequence[Any]] = [(model, *at, loss, share, *labels) for model, at, loss, share in models]
        for number, y in enumerate(self.y):
            shares = self.accuracy[number] if self.accuracy else (None,) * len(self.x)
            points = zip(self.x, self.loss[number], shares, strict=True)
            rows += [("", x, y, loss, share, *labels) for x, loss, share in points]
        return table_of(_COLUMNS, rows)


def _from_fields(fields: Mapping[str, Any]) -> Plane:
    """Make the plane from a JSON file."""
    accuracy = fields["accuracy"]
    return Plane(
        models=tuple(map(str, fields["models"])),
        positions=tuple((float(x), float(y)) for x, y in fields["positions"]),
        model_loss=numbers(fields["model_loss"]),
        x=numbers(fields["x"]),
        y=numbers(fields["y"]),
        loss=tuple(map(numbers, fields["loss"])),
        model_accuracy=numbers_or_none(fields["model_accuracy"]),
        accuracy=None if accuracy is None else tuple(map(numbers, accuracy)),
        **{name: str(fields[name]) for name in _LABELS},
    )


def _from_rows(rows: list[dict[str, str]]) -> Plane:
    """Make the plane from a CSV file."""
    models, points = ([row for row in rows if bool(row["model"]) == named] for named in (True, False))
    lines = [list(line) for _, line in groupby(points, key=lambda row: row["y"])]
    accuracies = [numbers_or_none([row["accuracy"] for row in line]) for line in lines]
    return Plane(
        models=tuple(row["model"] for row in models),
        positions=tuple((float(row["x"]), float(row["y"])) for row in models),
        model_loss=numbers(row["loss"] for row in models),
        x=numbers(row["x"] for row in lines[0]) if lines else (),
        y=numbers(line[0]["y"] for line in lines),
        loss=tuple(numbers(row["loss"] for row in line) for line in lines),
        model_accuracy=numbers_or_none([row["accuracy"] for row in models]),
        accuracy=None if None in accuracies else tuple(row for row in accuracies if row is not None),
        **{name: rows[0][name] for name in _LABELS},
    )


#: Three models are collinear if their triangle is flatter than this fraction of its longest side.
_FLAT = 1e-6

Score = tuple[float, "float | None"]


@checked
def loss_plane(
    task: Task,
    a: StateDict,
    b: StateDict,
    c: StateDict,
    *,
    names: Sequence[str] = ("a", "b", "c"),
    resolution: int = 25,
    margin: float = 0.2,
    statistics: Statistics = "auto",
    split: Split = "test",
    on_progress: Callable[[Progress], None] | None = None,
) -> Plane:
    """Score the networks on a grid of the plane through three models.

    With ``u = b − a`` and ``v = (c − a) − ⟨c − a, u⟩/‖u‖² u``, the point ``(x, y)`` is the network
    ``a + x u/‖u‖ + y v/‖v‖``. Under weight norm, the effective weights are used, not magnitude and direction.

    Args:
        task: builds and scores the networks.
        a: the model at the origin.
        b: the model on the ``x`` axis.
        c: the third model, above the axis.
        names: names of the three models in tables and plots.
        resolution: points along each axis, at least two; its square plus three networks are scored.
        margin: space around the three models, as a fraction of the larger side of their bounding box.
        statistics: ``"reset"`` recomputes BatchNorm's statistics at every grid point, ``"none"`` combines them,
            ``"auto"`` resets if there are any. The three models themselves are scored as they are.
        split: the data to score on.
        on_progress: called after every ``"point"`` of the grid, with its loss in nats and coordinates ``x``, ``y``.

    Raises:
        CheckpointError: a model's names or shapes differ from the network's.
        WeightspaceError: the models are collinear, the settings are invalid, or the task's scores have no loss.

    Source:
        Garipov et al. 2018, https://arxiv.org/abs/1802.10026, figure 1.

    Example:
        >>> import weightspace as ws
        >>> task = ws.load_task("digits-mlp")
        >>> a, b, c = (ws.train(task, seed, epochs=1) for seed in (0, 1, 2))
        >>> plane = ws.loss_plane(task, a, b, c, resolution=2)
    """
    _check_settings(names, resolution, margin, statistics)
    with torch_threads(threads_of(task)):
        network = blank_network(task)
        states = _fitted(task, network, (a, b, c), names)
        positions = _coordinates([name for name, _ in network.named_parameters()], *states)
        axes = _axes(positions, resolution, margin)
        done = "reset" if resolved(statistics, network, task) == "reset" else "none"
        corners = [scored(task, interpolated(network, state, state, 0), split) for state in states]

        def score(right: float, up: float) -> Score:
            combined(network, states, _coefficients(right, up, positions))
            return _scored(task, network, split, done == "reset")

        rows = _grid(*axes, score, on_progress)
    scores = _scores_of(corners, rows)
    return Plane(tuple(names), positions, x=axes[0], y=axes[1], split=split, statistics=done, task=task.name, **scores)


def _fitted(
    task: Task, network: nn.Module, states: tuple[StateDict, StateDict, StateDict], names: Sequence[str]
) -> tuple[StateDict, StateDict, StateDict]:
    """Return the models with the names and shapes of the network."""
    for state, name in zip(states, names, strict=True):
        check_is_model(state, name)
    a, b, c = (fitted(task, network, state, name) for state, name in zip(states, names, strict=True))
    return a, b, c


def _grid(
    x: Sequence[float],
    y: Sequence[float],
    score: Callable[[float, float], Score],
    on_progress: Callable[[Progress], None] | None,
) -> list[list[Score]]:
    """Score every point of a grid, one row for each ``y``."""
    rows: list[list[Score]] = []
    for up in y:
        rows.append([])
        for right in x:
            rows[-1].append(score(right, up))
            if on_progress is not None:
                index, loss = (len(rows) - 1) * len(x) + len(rows[-1]), rows[-1][-1][0]
                on_progress(Progress("point", index, len(x) * len(y), loss, details={"x": right, "y": up}))
    return rows


def _scores_of(corners: list[Score], rows: list[list[Score]]) -> dict[str, Any]:
    """Return the scores of a plane by name, without accuracies if any is missing."""
    scores: dict[str, Any] = {"model_loss": _losses(corners), "loss": tuple(map(_losses, rows))}
    if all(share is not None for row in [corners, *rows] for _, share in row):
        scores |= {"model_accuracy": _accuracies(corners), "accuracy": tuple(map(_accuracies, rows))}
    return scores


def _check_settings(names: Sequence[str], resolution: int, margin: float, statistics: str) -> None:
    """Check that the settings define a grid."""
    if len(names) != 3 or len(set(names)) != 3:
        raise WeightspaceError(f"A plane needs three models with distinct names; found {', '.join(names)}.")
    if resolution < 2:
        raise WeightspaceError(f"A grid needs at least two points per axis; found resolution={resolution}.")
    if not 0 <= margin < math.inf:
        raise WeightspaceError(f"A margin is a number of at least 0; found {margin}.")
    if statistics == "repair":
        raise WeightspaceError(
            "REPAIR is defined between two networks, not on a plane through three. "
            "Use statistics='auto', 'reset' or 'none'."
        )


def _coordinates(names: Iterable[str], a: StateDict, b: StateDict, c: StateDict) -> tuple[tuple[float, float], ...]:
    """Return the positions of the three models in an orthonormal basis of their plane.

    Args:
        names: distinct names of the parameters.
        a: the origin.
        b: determines the first axis.
        c: determines the second axis.

    Raises:
        WeightspaceError: the models are collinear, or hold values that aren't finite.
    """
    inner, coordinates = np.zeros((2, 2)), Coordinates((a, b, c))
    for name in names:
        if name in coordinates.functions:
            continue
        origin, *others = (coordinates.of(state, name).detach().double() for state in (a, b, c))
        directions = [(other - origin).flatten() for other in others]
        inner += [[float(first @ second) for second in directions] for first in directions]
    width = math.sqrt(inner[0, 0])
    along = float(inner[0, 1]) / width if width else 0.0
    height = math.sqrt(max(inner[1, 1] - along**2, 0.0))
    if not height > _FLAT * max(width, math.sqrt(inner[1, 1])) or not width:
        raise WeightspaceError(
            f"Three models that are collinear or not finite don't span a plane: b is {width:g} away from a, and c "
            f"{height:g} away from the line through both. Is one of them given twice?"
        )
    return (0.0, 0.0), (width, 0.0), (along, height)


def _axes(
    positions: Sequence[tuple[float, float]], resolution: int, margin: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the ``x`` of the columns and the ``y`` of the rows."""
    spans = [(min(side), max(side)) for side in zip(*positions, strict=True)]
    around = margin * max(high - low for low, high in spans)
    x, y = (tuple(np.linspace(low - around, high + around, resolution).tolist()) for low, high in spans)
    return x, y


def _coefficients(x: float, y: float, positions: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """Return the coefficients of the three models at a point; they sum to 1."""
    _, (width, _), (along, height) = positions
    third = y / height
    second = (x - third * along) / width
    return 1 - second - third, second, third


def _scored(task: Task, network: nn.Module, split: Split, reset: bool) -> Score:
    """Return loss and accuracy of a grid point."""
    if reset:
        reset_batchnorm(network, task.batches("train", SEED), task.loss)
    return scored(task, network, split)


def _losses(scores: Iterable[Score]) -> tuple[float, ...]:
    return tuple(loss for loss, _ in scores)


def _accuracies(scores: Iterable[Score]) -> tuple[float, ...]:
    return tuple(share for _, share in scores if share is not None)
