"""The loss curve of a task: the straight way from ``a`` to ``b``, scored at evenly spaced positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from weightspace.checkpoints import StateDict
from weightspace.connectivity.curve import Curve
from weightspace.connectivity.scoring import scored
from weightspace.connectivity.way import Statistics, Way
from weightspace.errors import WeightspaceError
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


def loss_curve(
    task: Task,
    a: StateDict,
    b: StateDict,
    points: int = 25,
    *,
    statistics: Statistics = "auto",
    split: Split = "test",
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
        on_point: called after every point.

    Raises:
        CheckpointError: ``a`` or ``b`` has other names or shapes than the network.
        WeightspaceError: fewer than two points, or the task's scores have no loss.

    Source:
        Frankle et al. 2020, https://arxiv.org/abs/1912.05671, section 2; for ``"reset"`` and ``"repair"``
        Jordan et al. 2023, https://arxiv.org/abs/2211.08403.
    """
    if points < 2:
        raise WeightspaceError(f"A curve needs two points or more, the two ends; found {points}.")
    reports: list[PointReport] = []
    with torch_threads(threads_of(task)):
        way = Way(task, a, b, statistics)
        for index in range(points):
            position = index / (points - 1)
            reports.append(PointReport(index + 1, points, position, *scored(task, way.at(position), split)))
            if on_point is not None:
                on_point(reports[-1])
    accuracy = tuple(report.accuracy for report in reports if report.accuracy is not None)
    return Curve(
        positions=tuple(report.position for report in reports),
        loss=tuple(report.loss for report in reports),
        accuracy=accuracy if len(accuracy) == points else None,
        split=split,
        statistics=way.statistics,
        name=task.name,
    )
