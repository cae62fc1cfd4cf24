"""A plane through three models: their scores on a grid, for the picture of a landscape.

Coordinates are distances over the parameters, statistics excluded: the first model is at the origin, the second on the
axis of ``x``, the third above it. Rows of a grid go with ``y``, columns with ``x``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

from weightspace.connectivity.files import load_result, numbers, numbers_or_none, save_result, table_of
from weightspace.errors import WeightspaceError
from weightspace.reprs import brief

_LABELS = ("split", "statistics", "task")
_COLUMNS = ("model", "x", "y", "loss", "accuracy", *_LABELS)

Grid: TypeAlias = tuple[tuple[float, ...], ...]


@brief
@dataclass(frozen=True)
class Plane:
    """Scores on a grid of the plane through three models.

    Attributes:
        models: names of the three.
        positions: of the three, as ``(x, y)``.
        model_loss: of the three as they are, in nats.
        x: of the columns, increasing.
        y: of the rows, increasing.
        loss: in nats, a row for every ``y``.
        model_accuracy: of the three, shares; None where the task has none.
        accuracy: like ``loss``, shares.
        split: the data that were scored: train, validation or test.
        statistics: ``"reset"`` if BatchNorm's statistics were reset at every point of the grid, else ``"none"``.
        task: its name.

    Raises:
        WeightspaceError: the scores do not fit the grid, or the models are not three of different names.
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
                f"A plane goes through three models of different names, each with a position and a loss; found "
                f"{', '.join(self.models)} with {len(self.positions)} positions and {len(self.model_loss)} losses."
            )
        for what, grid in (("losses", self.loss), ("accuracies", self.accuracy)):
            if grid is not None and [len(row) for row in grid] != [len(self.x)] * len(self.y):
                raise WeightspaceError(
                    f"A plane of {len(self.x)} columns and {len(self.y)} rows has one score a point; found {what} "
                    f"in rows of {sorted({len(row) for row in grid})}, {len(grid)} of them."
                )

    def save(self, path: str | Path) -> None:
        """Write the plane as ``.csv`` (a row a point, the three models first) or ``.json``.

        Raises:
            CheckpointError: the file cannot be written.
            WeightspaceError: the path has another suffix.
        """
        save_result(path, "plane", asdict(self), self._table)

    @classmethod
    def load(cls, path: str | Path) -> Plane:
        """Read a plane that :meth:`save` wrote; it equals the one that was saved.

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
    """Return the plane of a JSON file."""
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
    """Return the plane of a CSV file."""
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
