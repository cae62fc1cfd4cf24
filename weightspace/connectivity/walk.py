"""The loss curve of a task: the straight way from ``a`` to ``b``, scored at evenly spaced positions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from weightspace.arguments import checked
from weightspace.checkpoints import StateDict
from weightspace.connectivity.curve import Curve
from weightspace.connectivity.scoring import scored
from weightspace.connectivity.way import Statistics, Way, resolved
from weightspace.errors import WeightspaceError
from weightspace.executors import here_or, run_pieces
from weightspace.tasks.building import blank_network
from weightspace.tasks.protocol import Split, Task, threads_of
from weightspace.threads import torch_threads


@dataclass(frozen=True)
class PointReport:
    """The ``index``-th of ``points`` scored (from 1): loss in nats, accuracy a share or None."""

    index: int
    points: int
    position: float
    loss: float
    accuracy: float | None


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
    on_point: Callable[[PointReport], None] | None = None,
) -> Curve:
    """Score the networks on the straight line from ``a`` to ``b``.

    One network is in memory beside the two state dicts. The ends are the models as they were trained, so that
    their scores are those of the models exactly; statistics are put right between the ends only.

    Args:
        task: builds and scores the networks.
        a: weights at position 0.
        b: weights at position 1.
        points: evenly spaced positions from 0 to 1, two or more; an odd number has the midpoint among them.
        statistics: ``"reset"`` measures BatchNorm's statistics anew over the training data, ``"none"``
            interpolates them, ``"auto"`` resets where the network has such layers, and ``"repair"`` sets mean and
            standard deviation of all hidden units (see ``repair``), with BatchNorm or without.
        split: the data to score on.
        executor: where points are scored: ``processes``, ``ray``, or ``serial``: here.
        workers: how many score points at a time; with one process, all are scored here. The curve is the same.
        ray_address: of a Ray cluster that is running; by default ``$RAY_ADDRESS``, else one of this machine.
        on_point: called after every point, in their order.

    Raises:
        CheckpointError: ``a`` or ``b`` has other names or shapes than the network.
        WeightspaceError: fewer than two points, the task's scores have no loss, or REPAIR cannot set a layer (see
            ``repair``).

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
        raise WeightspaceError(f"A curve needs two points or more, the two ends; found {points}.")
    with torch_threads(threads_of(task)):
        done = resolved(statistics, blank_network(task), task)
    positions = [index / (points - 1) for index in range(points)]
    if (place := here_or(executor, workers)) == "serial":
        found = _points(task, a, b, statistics, split, positions)
    else:  # every worker takes each so manieth position, and sets its way up once
        pieces = [(task, a, b, statistics, split, positions[first::workers]) for first in range(min(workers, points))]
        shares = [iter(share) for share in run_pieces(place, _share, pieces, workers=workers, ray_address=ray_address)]
        found = (next(shares[index % len(shares)]) for index in range(points))
    reports: list[PointReport] = []
    for index, (position, scores) in enumerate(zip(positions, found, strict=True), start=1):
        reports.append(PointReport(index, points, position, *scores))
        if on_point is not None:
            on_point(reports[-1])
    accuracy = tuple(report.accuracy for report in reports if report.accuracy is not None)
    return Curve(
        positions=tuple(report.position for report in reports),
        loss=tuple(report.loss for report in reports),
        accuracy=accuracy if len(accuracy) == points else None,
        split=split,
        statistics=done,
        task=task.name,
    )


def _points(
    task: Task, a: StateDict, b: StateDict, statistics: Statistics, split: Split, positions: Sequence[float]
) -> Iterator[tuple[float, float | None]]:
    """Yield the scores at some positions of a way."""
    with torch_threads(threads_of(task)):
        way = Way(task, a, b, statistics)
        for position in positions:
            yield scored(task, way.at(position), split)


def _share(*way: Any) -> list[tuple[float, float | None]]:
    """Return the scores at some positions: a piece of work that travels."""
    return list(_points(*way))
