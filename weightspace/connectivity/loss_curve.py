"""Loss curves: the scores of the networks on the path between two, with saving and loading.

Losses are in nats, accuracies are fractions; position 0 is the network ``a``, position 1 the network ``b``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from weightspace.arguments import checked
from weightspace.checkpoints import StateDict
from weightspace.connectivity.curve_files import load_result, numbers, numbers_or_none, save_result, table_of
from weightspace.connectivity.linear_path import LinearPath, Statistics, resolved
from weightspace.errors import WeightspaceError
from weightspace.parallel import here_or, run_jobs
from weightspace.progress import Progress
from weightspace.reprs import brief
from weightspace.tasks.building import blank_network
from weightspace.tasks.protocol import Split, Task, threads_of
from weightspace.tasks.scores import scores_of
from weightspace.threads import torch_threads

_LABELS = ("split", "statistics", "task")
_COLUMNS = ("position", "loss", "accuracy", *_LABELS)


@brief
@dataclass(frozen=True)
class Curve:
    """Scores at ``S`` positions on the path from ``a`` to ``b``.

    Attributes:
        positions: positions on the path, dimensionless, of length ``S``.
        loss: in nats, of length ``S``.
        accuracy: fractions, of length ``S``; None if the task has no accuracy.
        split: the scored data: train, validation or test.
        statistics: the correction between the endpoints: ``"none"``, ``"reset"`` (of BatchNorm) or ``"repair"`` (of at
            least one layer).
        task: name of the task.

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
                f"A curve has one score per position; found {len(self.positions)} positions, "
                f"{len(self.loss)} losses and {accuracies} accuracies."
            )

    def save(self, path: str | Path) -> None:
        """Write the curve as ``.csv`` (one row per position) or ``.json``; :meth:`load` restores an equal one.

        Raises:
            CheckpointError: the file cannot be written.
            WeightspaceError: the path has another suffix.
        """
        save_result(path, "curve", asdict(self), self._table)

    @classmethod
    def load(cls, path: str | Path) -> Curve:
        """Read a curve written by :meth:`save`.

        Raises:
            WeightspaceError: the file cannot be read, or isn't a curve.
        """
        return load_result(path, "curve", _COLUMNS, _from_fields, _from_rows)

    def _table(self) -> str:
        """Return one self-contained row per position."""
        accuracy = self.accuracy or (None,) * len(self.positions)
        scores = zip(self.positions, self.loss, accuracy, strict=True)
        return table_of(_COLUMNS, ([*row, self.split, self.statistics, self.task] for row in scores))


def _from_fields(fields: Mapping[str, Any]) -> Curve:
    """Make the curve from a JSON file."""
    return Curve(
        positions=numbers(fields["positions"]),
        loss=numbers(fields["loss"]),
        accuracy=numbers_or_none(fields["accuracy"]),
        **{name: str(fields[name]) for name in _LABELS},
    )


def _from_rows(rows: list[dict[str, str]]) -> Curve:
    """Make the curve from a CSV file."""
    return Curve(
        positions=numbers(row["position"] for row in rows),
        loss=numbers(row["loss"] for row in rows),
        accuracy=numbers_or_none([row["accuracy"] for row in rows]),
        **{name: rows[0][name] for name in _LABELS},
    )


def scored(task: Task, network: nn.Module, split: Split) -> tuple[float, float | None]:
    """Return the loss in nats and the accuracy as a fraction, or None if the task has none.

    Raises:
        WeightspaceError: the task's scores lack a loss, or aren't a mapping of names to numbers.
    """
    scores = scores_of(task, network, split)
    if "loss" not in scores:
        raise WeightspaceError(
            f"The scores of task {task.name!r} are {', '.join(scores) or 'none'}; expected 'loss' among them."
        )
    return scores["loss"], scores.get("accuracy")


@checked
def loss_curve(
    task: Task,
    a: StateDict,
    b: StateDict,
    points: int = 25,
    *,
    statistics: Statistics = "auto",
    split: Split = "test",
    executor: str = "processes",
    workers: int = 1,
    ray_address: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Curve:
    """Score the networks on the straight line from ``a`` to ``b``.

    Only one network is in memory besides the two state dicts. The endpoints are scored as trained; statistics are
    corrected only between them.

    Args:
        task: builds and scores the networks.
        a: weights at position 0.
        b: weights at position 1.
        points: number of evenly spaced positions from 0 to 1, at least two; an odd number includes the midpoint.
        statistics: ``"reset"`` recomputes BatchNorm's statistics over the training data, ``"none"`` interpolates them,
            ``"auto"`` resets if there are any; for ``"repair"`` see ``repair``.
        split: the data to score on.
        executor: where points are scored: ``processes``, ``ray``, or ``serial`` for this process.
        workers: points to score at a time; one worker means this process. The curve doesn't depend on it.
        ray_address: address of a running Ray cluster; by default ``$RAY_ADDRESS``, or a local one.
        on_progress: called after every ``"point"`` in order, with its loss in nats, ``position`` and any ``accuracy``.

    Raises:
        CheckpointError: the names or shapes of ``a`` or ``b`` differ from the network's.
        WeightspaceError: fewer than two points, scores without a loss, or a layer that ``repair`` can't set.

    Source:
        Frankle et al. 2020, https://arxiv.org/abs/1912.05671, section 2; for ``"reset"`` and ``"repair"``
        Jordan et al. 2023, https://arxiv.org/abs/2211.08403.

    Example:
        >>> import weightspace as ws
        >>> task = ws.load_task("digits-mlp")
        >>> a, b = (ws.train(task, seed, epochs=1) for seed in (0, 1))
        >>> curve = ws.loss_curve(task, a, b, points=3)
        >>> curve.positions, curve.loss[1] > curve.loss[0]
        ((0.0, 0.5, 1.0), True)
    """
    if points < 2:
        raise WeightspaceError(f"A curve needs at least two points, the endpoints; found {points}.")
    with torch_threads(threads_of(task)):
        done = resolved(statistics, blank_network(task), task)
    positions = [index / (points - 1) for index in range(points)]
    if (place := here_or(executor, workers)) == "serial":
        found = _points(task, a, b, statistics, split, positions)
    else:  # each worker scores every n-th position, and sets up its path once
        pieces = [(task, a, b, statistics, split, positions[first::workers]) for first in range(min(workers, points))]
        shares = [iter(share) for share in run_jobs(place, _share, pieces, workers=workers, ray_address=ray_address)]
        found = (next(shares[index % len(shares)]) for index in range(points))
    losses, accuracies = _told(positions, found, on_progress)
    return Curve(tuple(positions), losses, accuracies, split=split, statistics=done, task=task.name)


def _told(
    positions: Sequence[float],
    found: Iterable[tuple[float, float | None]],
    on_progress: Callable[[Progress], None] | None,
) -> tuple[tuple[float, ...], tuple[float, ...] | None]:
    """Return losses and accuracies (None if any is missing), reporting progress on the way."""
    losses, accuracies = list[float](), list[float]()
    for index, (position, (loss, accuracy)) in enumerate(zip(positions, found, strict=True), start=1):
        losses.append(loss)
        accuracies += [] if accuracy is None else [accuracy]
        if on_progress is not None:
            shares = {} if accuracy is None else {"accuracy": accuracy}
            on_progress(Progress("point", index, len(positions), loss, details={"position": position, **shares}))
    return tuple(losses), tuple(accuracies) if len(accuracies) == len(positions) else None


def _points(
    task: Task, a: StateDict, b: StateDict, statistics: Statistics, split: Split, positions: Sequence[float]
) -> Iterator[tuple[float, float | None]]:
    """Yield the scores at given positions of a path."""
    with torch_threads(threads_of(task)):
        path = LinearPath(task, a, b, statistics)
        for position in positions:
            yield scored(task, path.at(position), split)


def _share(*path: Any) -> list[tuple[float, float | None]]:
    """Return the scores at given positions; runs in a worker."""
    return list(_points(*path))
