"""A matrix of the barriers between all pairs of models, with saving and loading."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, TypeAlias

from weightspace.arguments import checked
from weightspace.checkpoints import StateDict
from weightspace.connectivity.barrier import Baseline, barrier
from weightspace.connectivity.curve_files import load_result, numbers, numbers_or_none, save_result, table_of
from weightspace.connectivity.linear_path import Statistics
from weightspace.connectivity.loss_curve import Curve, loss_curve
from weightspace.errors import WeightspaceError
from weightspace.parallel import here_or, run_jobs
from weightspace.progress import Progress
from weightspace.reprs import brief
from weightspace.tasks.protocol import Split, Task

_LABELS = ("baseline", "split", "statistics", "task")
_COLUMNS = ("a", "b", "barrier", "accuracy_barrier", "loss_a", "loss_b", "accuracy_a", "accuracy_b", *_LABELS, "points")

Square: TypeAlias = tuple[tuple[float, ...], ...]


@brief
@dataclass(frozen=True)
class BarrierMatrix:
    """Barriers between ``n`` models: symmetric, with zeros on the diagonal.

    Attributes:
        models: names of the models.
        barrier: loss barriers in nats, ``n`` rows of ``n``.
        loss: losses of the models themselves, in nats.
        accuracy_barrier: accuracy barriers, as fractions; None if the task has no accuracy.
        accuracy: accuracies of the models themselves, as fractions.
        baseline: the baseline of the barriers, ``"linear"`` or ``"mean"``.
        split: the scored data: train, validation or test.
        statistics: the correction of interpolated models: ``"none"``, ``"reset"`` or ``"repair"``.
        task: name of the task.
        points: positions on each line, endpoints included; None in files of older versions.

    Raises:
        WeightspaceError: fewer than two models, duplicate names, or a wrong number of scores.
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
    points: int | None = None

    def __post_init__(self) -> None:
        count = len(self.models)
        if count < 2 or len(set(self.models)) != count:
            raise WeightspaceError(
                f"Barriers need at least two models with distinct names; found {', '.join(self.models) or 'none'}."
            )
        squares = [square for square in (self.barrier, self.accuracy_barrier) if square is not None]
        scores = [scores for scores in (self.loss, self.accuracy) if scores is not None]
        sizes = {len(part) for square in squares for part in (square, *square)} | {len(part) for part in scores}
        if sizes != {count}:
            raise WeightspaceError(f"{count} models need {count} rows, columns and scores; found {sorted(sizes)}.")

    def save(self, path: str | Path) -> None:
        """Write the matrix as ``.csv`` (one row per pair) or ``.json``; :meth:`load` restores an equal one.

        Raises:
            CheckpointError: the file cannot be written.
            WeightspaceError: the path has another suffix.
        """
        save_result(path, "matrix of barriers", asdict(self), self._table)

    @classmethod
    def load(cls, path: str | Path) -> BarrierMatrix:
        """Read a matrix written by :meth:`save`.

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
            rows.append([*pair, self.baseline, self.split, self.statistics, self.task, self.points])
        return table_of(_COLUMNS, rows)


def square(count: int, values: Mapping[tuple[int, int], float]) -> Square:
    """Return the symmetric matrix with the given values above the diagonal, and zeros on it."""
    both = dict(values) | {(j, i): value for (i, j), value in values.items()}
    return tuple(tuple(both.get((i, j), 0.0) for j in range(count)) for i in range(count))


def _from_fields(fields: Mapping[str, Any]) -> BarrierMatrix:
    """Make the matrix from a JSON file."""
    falls = fields["accuracy_barrier"]
    return BarrierMatrix(
        models=tuple(map(str, fields["models"])),
        barrier=tuple(map(numbers, fields["barrier"])),
        loss=numbers(fields["loss"]),
        accuracy_barrier=None if falls is None else tuple(map(numbers, falls)),
        accuracy=numbers_or_none(fields["accuracy"]),
        points=_whole_or_none(fields.get("points")),
        **{name: str(fields[name]) for name in _LABELS},
    )


def _from_rows(rows: list[dict[str, str]]) -> BarrierMatrix:
    """Make the matrix from a CSV file."""
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
        points=_whole_or_none(rows[0].get("points")),
        **{name: rows[0][name] for name in _LABELS},
    )


def _whole_or_none(value: Any) -> int | None:
    """Read a number of points, which may be missing."""
    return None if value in (None, "") else int(value)


@checked
def barrier_matrix(
    task: Task,
    states: Sequence[StateDict],
    *,
    names: Sequence[str] | None = None,
    points: int = 25,
    statistics: Statistics = "auto",
    baseline: Baseline = "linear",
    split: Split = "test",
    executor: str = "processes",
    workers: int = 1,
    ray_address: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> BarrierMatrix:
    """Measure the barrier between every pair of models.

    Args:
        task: builds and scores the networks; must be picklable for more than one worker.
        states: the models, at least two.
        names: distinct names of the models; by default their indices.
        points: as for ``loss_curve``, at least three; ``statistics`` and ``split`` likewise.
        baseline: as for ``barrier``.
        executor: where pairs are scored: ``processes``, ``ray``, or ``serial`` for this process.
        workers: pairs to score at a time; one worker means this process. The result doesn't depend on it.
        ray_address: address of a running Ray cluster; by default ``$RAY_ADDRESS``, or a local one.
        on_progress: called after every ``"pair"``, with its barrier in nats.

    Raises:
        CheckpointError: a model's names or shapes differ from the network's.
        WeightspaceError: fewer than two models, duplicate names or a wrong number of them, fewer than three points.

    Source:
        Frankle et al. 2020, https://arxiv.org/abs/1912.05671, section 2.

    Example:
        >>> import weightspace as ws
        >>> task = ws.load_task("digits-mlp")
        >>> a, b = (ws.train(task, seed, epochs=1) for seed in (0, 1))
        >>> matrix = ws.barrier_matrix(task, [a, b], names=["a", "b"], points=3)
        >>> matrix.models
        ('a', 'b')
        >>> matrix.barrier[0][1] == matrix.barrier[1][0]
        True
    """
    models = tuple(map(str, range(len(states)) if names is None else names))
    _check(models, len(states), points, workers)
    options = {"points": points, "statistics": statistics, "split": split}
    pairs = list(combinations(range(len(states)), 2))
    pieces = [(task, states[i], states[j], options) for i, j in pairs]
    place = {"workers": workers, "ray_address": ray_address}
    curves: dict[tuple[int, int], Curve] = {}
    walked = run_jobs(here_or(executor, workers), _walk, pieces, **place)
    for (i, j), curve in zip(pairs, walked, strict=True):
        curves[i, j] = curve
        if on_progress is not None:
            height, name = barrier(curve, baseline=baseline), f"{models[i]} – {models[j]}"
            on_progress(Progress("pair", len(curves), len(pairs), height, name))
    return _matrix(models, curves, baseline)


def _check(models: tuple[str, ...], states: int, points: int, workers: int) -> None:
    """Check names and numbers.

    Raises:
        WeightspaceError: as for ``barrier_matrix``.
    """
    if len(models) != states:
        raise WeightspaceError(f"Found {len(models)} names for {states} models; expected one per model.")
    if len(models) < 2 or len(set(models)) != len(models) or points < 3 or workers < 1:
        raise WeightspaceError(
            f"Barriers need at least two models with distinct names, three points and one worker; found "
            f"{', '.join(models) or 'no models'}, points={points}, workers={workers}."
        )


def _walk(task: Task, a: StateDict, b: StateDict, options: Mapping[str, Any]) -> Curve:
    """Return the curve between two models; runs in a worker."""
    return loss_curve(task, a, b, **options)


def _matrix(models: tuple[str, ...], curves: Mapping[tuple[int, int], Curve], baseline: Baseline) -> BarrierMatrix:
    """Build the matrix from the curves of all pairs."""
    first = curves[0, 1]
    # Every model except the first is the end of a curve that starts at the first.
    ends = [(first, 0), *((curves[0, other], -1) for other in range(1, len(models)))]
    accuracies = [curve.accuracy[end] for curve, end in ends if curve.accuracy is not None]
    measured = {pair: barrier(curve, baseline=baseline) for pair, curve in curves.items()}
    falls = None
    if len(accuracies) == len(models):
        falls = {pair: barrier(curve, baseline=baseline, score="accuracy") for pair, curve in curves.items()}
    return BarrierMatrix(
        models=models,
        barrier=square(len(models), measured),
        loss=tuple(curve.loss[end] for curve, end in ends),
        accuracy_barrier=None if falls is None else square(len(models), falls),
        accuracy=None if falls is None else tuple(accuracies),
        baseline=baseline,
        split=first.split,
        statistics=first.statistics,
        task=first.task,
        points=len(first.positions),
    )
