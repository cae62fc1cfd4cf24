"""The loss curve of a task: the straight way from ``a`` to ``b``, scored at evenly spaced positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import nn

from weightspace.checkpoints import StateDict, check_compatible
from weightspace.connectivity.curve import Curve
from weightspace.connectivity.path import interpolated
from weightspace.connectivity.statistics import SEED, has_batchnorm_statistics, reset_batchnorm
from weightspace.errors import WeightspaceError
from weightspace.suggestions import unknown
from weightspace.tasks.protocol import Split, Task, threads_of
from weightspace.threads import torch_threads

Statistics: TypeAlias = Literal["auto", "none", "reset"]


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
    their scores are those of the models exactly; BatchNorm's statistics are reset between the ends only.

    Args:
        task: builds and scores the networks.
        a: weights at position 0.
        b: weights at position 1.
        points: evenly spaced positions from 0 to 1, two or more; an odd number has the midpoint among them.
        statistics: ``"reset"`` measures BatchNorm's statistics anew over the training data, ``"none"``
            interpolates them, ``"auto"`` resets where the network has such layers.
        split: the data to score on.
        on_point: called after every point.

    Raises:
        CheckpointError: ``a`` or ``b`` has other names or shapes than the network.
        WeightspaceError: fewer than two points, or the task's scores have no loss.

    Source:
        Frankle et al. 2020, https://arxiv.org/abs/1912.05671, section 2; for ``"reset"`` Jordan et al. 2023,
        https://arxiv.org/abs/2211.08403.
    """
    if points < 2:
        raise WeightspaceError(f"A curve needs two points or more, the two ends; found {points}.")
    reports: list[PointReport] = []
    with torch_threads(threads_of(task)):
        network, reset = _prepared(task, a, b, statistics)
        for index in range(points):
            position = index / (points - 1)
            interpolated(network, a, b, position)
            if reset and 0 < position < 1:
                reset_batchnorm(network, task.batches("train", SEED), task.loss)
            reports.append(PointReport(index + 1, points, position, *_scored(task, network, split)))
            if on_point is not None:
                on_point(reports[-1])
    accuracy = tuple(report.accuracy for report in reports if report.accuracy is not None)
    return Curve(
        positions=tuple(report.position for report in reports),
        loss=tuple(report.loss for report in reports),
        accuracy=accuracy if len(accuracy) == points else None,
        split=split,
        statistics="reset" if reset else "none",
        name=task.name,
    )


def _prepared(task: Task, a: StateDict, b: StateDict, statistics: Statistics) -> tuple[nn.Module, bool]:
    """Return a network that both state dicts fit, and whether its statistics are to be reset."""
    if statistics not in get_args(Statistics):
        raise unknown("choice of statistics", statistics, get_args(Statistics))
    with torch.random.fork_rng(devices=[]):  # the weights that it draws are overwritten
        network = task.network().eval()
    expected = network.state_dict()
    for state, name in ((a, "a"), (b, "b")):
        check_compatible(expected, state, names=(f"the network of {task.name}", name))
    return network, statistics != "none" and has_batchnorm_statistics(network)


def _scored(task: Task, network: nn.Module, split: Split) -> tuple[float, float | None]:
    """Return the loss and the accuracy, if there is one."""
    scores = task.score(network, split)
    if "loss" not in scores:
        raise WeightspaceError(
            f"The scores of task {task.name!r} are {', '.join(scores) or 'none'}; expected 'loss' among them."
        )
    accuracy = scores.get("accuracy")
    return float(scores["loss"]), None if accuracy is None else float(accuracy)
