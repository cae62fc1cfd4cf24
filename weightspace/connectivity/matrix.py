"""A matrix of barriers, between every two of many models, which saves and loads itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, TypeAlias

from weightspace.connectivity.files import load_result, numbers, numbers_or_none, save_result, table_of
from weightspace.errors import WeightspaceError
from weightspace.reprs import brief

_LABELS = ("baseline", "split", "statistics", "task")
_COLUMNS = ("a", "b", "barrier", "accuracy_barrier", "loss_a", "loss_b", "accuracy_a", "accuracy_b", *_LABELS)

Square: TypeAlias = tuple[tuple[float, ...], ...]


@brief
@dataclass(frozen=True)
class BarrierMatrix:
    """Barriers between ``n`` models, symmetric, with zeros on the diagonal.

    Attributes:
        models: their names.
        barrier: of the loss, in nats, ``n`` rows of ``n``.
        loss: of the models themselves, in nats.
        accuracy_barrier: shares; None where the task has no accuracy.
        accuracy: of the models themselves, shares.
        baseline: what the barriers rise above, ``"linear"`` or ``"mean"``.
        split: the data that were scored: train, validation or test.
        statistics: what was done between the models: ``"none"``, ``"reset"`` or ``"repair"``.
        task: its name.

    Raises:
        WeightspaceError: fewer than two models, names that repeat, or scores of another number.
    """

    models: tuple[str, ...]
    barrier: Square
    loss: tuple[float, ...]
    accuracy_barrier: Square | None = None
    accuracy: tuple[float, ...] | None = None
    baseline: str = "linear"
    split: str = "test"
    statistics: str = "none"
    task: str = ""

    def __post_init__(self) -> None:
        count = len(self.models)
        if count < 2 or len(set(self.models)) != count:
            raise WeightspaceError(
                f"Barriers are between two models or more of different names; found {', '.join(self.models) or 'none'}."
            )
        squares = [square for square in (self.barrier, self.accuracy_barrier) if square is not None]
        scores = [scores for scores in (self.loss, self.accuracy) if scores is not None]
        sizes = {len(part) for square in squares for part in (square, *square)} | {len(part) for part in scores}
        if sizes != {count}:
            raise WeightspaceError(f"{count} models have rows, columns and scores of {count}; found {sorted(sizes)}.")

    def save(self, path: str | Path) -> None:
        """Write the matrix as ``.csv`` (a row a pair) or ``.json``; :meth:`load` gives back an equal one.

        Raises:
            CheckpointError: the file cannot be written.
            WeightspaceError: the path has another suffix.
        """
        save_result(path, "matrix of barriers", asdict(self), self._table)

    @classmethod
    def load(cls, path: str | Path) -> BarrierMatrix:
        """Read a matrix that :meth:`save` wrote.

        Raises:
            WeightspaceError: the file cannot be read, or isn't a matrix of barriers.
        """
        return load_result(path, "matrix of barriers", _COLUMNS, _from_fields, _from_rows)

    def _table(self) -> str:
        rows = []
        for i, j in combinations(range(len(self.models)), 2):
            fall = self.accuracy_barrier[i][j] if self.accuracy_barrier else None
            shares = (self.accuracy[i], self.accuracy[j]) if self.accuracy else (None, None)
            pair = (self.models[i], self.models[j], self.barrier[i][j], fall, self.loss[i], self.loss[j], *shares)
            rows.append([*pair, self.baseline, self.split, self.statistics, self.task])
        return table_of(_COLUMNS, rows)


def square(count: int, values: Mapping[tuple[int, int], float]) -> Square:
    """Return the symmetric matrix with these values above the diagonal, and zeros on it."""
    both = dict(values) | {(j, i): value for (i, j), value in values.items()}
    return tuple(tuple(both.get((i, j), 0.0) for j in range(count)) for i in range(count))


def _from_fields(fields: Mapping[str, Any]) -> BarrierMatrix:
    """Return the matrix of a JSON file."""
    falls = fields["accuracy_barrier"]
    return BarrierMatrix(
        models=tuple(map(str, fields["models"])),
        barrier=tuple(map(numbers, fields["barrier"])),
        loss=numbers(fields["loss"]),
        accuracy_barrier=None if falls is None else tuple(map(numbers, falls)),
        accuracy=numbers_or_none(fields["accuracy"]),
        **{name: str(fields[name]) for name in _LABELS},
    )


def _from_rows(rows: list[dict[str, str]]) -> BarrierMatrix:
    """Return the matrix of a CSV file."""
    models = tuple(dict.fromkeys([rows[0]["a"], *(row["b"] for row in rows)]))
    number = {model: index for index, model in enumerate(models)}
    pairs = {(number[row["a"]], number[row["b"]]): row for row in rows}
    if set(pairs) != set(combinations(range(len(models)), 2)):
        raise ValueError(f"{len(rows)} pairs of {len(models)} models")
    ends = [(rows[0], "a"), *((pairs[0, other], "b") for other in range(1, len(models)))]
    accuracy = numbers_or_none([row[f"accuracy_{end}"] for row, end in ends])

    def values(column: str) -> Square:
        return square(len(models), {pair: float(row[column]) for pair, row in pairs.items()})

    return BarrierMatrix(
        models=models,
        barrier=values("barrier"),
        loss=numbers(row[f"loss_{end}"] for row, end in ends),
        accuracy_barrier=None if accuracy is None else values("accuracy_barrier"),
        accuracy=accuracy,
        **{name: rows[0][name] for name in _LABELS},
    )
