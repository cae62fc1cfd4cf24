"""A curve: the scores of the networks on a way between two, which saves and loads itself.

Losses are in nats, accuracies shares of 1; position 0 is the network ``a``, position 1 the network ``b``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weightspace.connectivity.files import load_result, numbers, numbers_or_none, save_result, table_of
from weightspace.errors import WeightspaceError
from weightspace.reprs import brief

_LABELS = ("split", "statistics", "task")
_COLUMNS = ("position", "loss", "accuracy", *_LABELS)


@brief
@dataclass(frozen=True)
class Curve:
    """Scores at ``S`` positions on the way from ``a`` to ``b``.

    Attributes:
        positions: without unit, of length ``S``.
        loss: in nats, of length ``S``.
        accuracy: shares, of length ``S``; None where the task has none.
        split: the data that were scored: train, validation or test.
        statistics: what was done between the ends: ``"none"``, ``"reset"`` (of BatchNorm's) or ``"repair"``, of one
            layer at least.
        task: its name.

    Raises:
        WeightspaceError: the lengths differ.

    Example:
        >>> import weightspace as ws
        >>> curve = ws.Curve(positions=(0, 0.5, 1), loss=(0.25, 1.25, 0.75), accuracy=(0.9, 0.5, 0.8))
        >>> ws.barrier(curve), round(ws.barrier(curve, score="accuracy"), 2)
        (0.75, 0.35)
        >>> curve.save("curve.json")
        >>> ws.Curve.load("curve.json") == curve
        True
    """

    positions: tuple[float, ...]
    loss: tuple[float, ...]
    accuracy: tuple[float, ...] | None = None
    split: str = "test"
    statistics: str = "none"
    task: str = ""

    def __post_init__(self) -> None:
        accuracies = len(self.positions) if self.accuracy is None else len(self.accuracy)
        if not len(self.positions) == len(self.loss) == accuracies:
            raise WeightspaceError(
                f"A curve has one score a position; found {len(self.positions)} positions, "
                f"{len(self.loss)} losses and {accuracies} accuracies."
            )

    def save(self, path: str | Path) -> None:
        """Write the curve as ``.csv`` (a row a position) or ``.json``; :meth:`load` gives back an equal one.

        Raises:
            CheckpointError: the file cannot be written.
            WeightspaceError: the path has another suffix.
        """
        save_result(path, "curve", asdict(self), self._table)

    @classmethod
    def load(cls, path: str | Path) -> Curve:
        """Read a curve that :meth:`save` wrote.

        Raises:
            WeightspaceError: the file cannot be read, or isn't a curve.
        """
        return load_result(path, "curve", _COLUMNS, _from_fields, _from_rows)

    def _table(self) -> str:
        """Return a row a position, every row complete in itself."""
        accuracy = self.accuracy or (None,) * len(self.positions)
        scores = zip(self.positions, self.loss, accuracy, strict=True)
        return table_of(_COLUMNS, ([*row, self.split, self.statistics, self.task] for row in scores))


def _from_fields(fields: Mapping[str, Any]) -> Curve:
    """Return the curve of a JSON file."""
    return Curve(
        positions=numbers(fields["positions"]),
        loss=numbers(fields["loss"]),
        accuracy=numbers_or_none(fields["accuracy"]),
        **{name: str(fields[name]) for name in _LABELS},
    )


def _from_rows(rows: list[dict[str, str]]) -> Curve:
    """Return the curve of a CSV file."""
    return Curve(
        positions=numbers(row["position"] for row in rows),
        loss=numbers(row["loss"] for row in rows),
        accuracy=numbers_or_none([row["accuracy"] for row in rows]),
        **{name: rows[0][name] for name in _LABELS},
    )
