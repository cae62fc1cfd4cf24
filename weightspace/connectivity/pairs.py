"""The ways between every two of many models, each an independent piece of work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from weightspace.arguments import checked
from weightspace.checkpoints import StateDict
from weightspace.connectivity.barriers import Baseline, barrier
from weightspace.connectivity.curve import Curve
from weightspace.connectivity.matrix import BarrierMatrix, square
from weightspace.connectivity.walk import loss_curve
from weightspace.connectivity.way import Statistics
from weightspace.errors import WeightspaceError
from weightspace.executors import here_or, run_pieces
from weightspace.tasks.protocol import Split, Task


@dataclass(frozen=True)
class PairReport:
    """The ``index``-th of ``pairs`` to be finished (from 1): two models, and the barrier between them in nats."""

    index: int
    pairs: int
    a: str
    b: str
    barrier: float


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
    on_pair: Callable[[PairReport], None] | None = None,
) -> BarrierMatrix:
    """Measure the barrier between every two of many models.

    Args:
        task: builds and scores the networks; with more workers than one it travels, and so must be picklable.
        states: the models, two or more.
        names: of the models, all different; their numbers from 0 if not given.
        points: as for ``loss_curve``, three or more, and so are ``statistics`` and ``split``.
        baseline: as for ``barrier``.
        executor: where the pairs are walked: ``processes``, ``ray``, or ``serial``: here.
        workers: pairs at a time; with one process, all are walked here. The result does not depend on it.
        ray_address: of a Ray cluster that is running; by default ``$RAY_ADDRESS``, else one of this machine.
        on_pair: called after every pair.

    Raises:
        CheckpointError: a model has other names or shapes than the network.
        WeightspaceError: fewer than two models, names that repeat or are of another number, fewer than three points.

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
    if len(models) != len(states):
        raise WeightspaceError(f"Found {len(models)} names for {len(states)} models; expected one each.")
    if len(models) < 2 or len(set(models)) != len(models) or points < 3 or workers < 1:
        raise WeightspaceError(
            f"Barriers need two models or more of different names, three points and one worker at least; found "
            f"{', '.join(models) or 'no models'}, points={points}, workers={workers}."
        )
    options = {"points": points, "statistics": statistics, "split": split}
    pairs = list(combinations(range(len(states)), 2))
    pieces = [(task, states[i], states[j], options) for i, j in pairs]
    place = {"workers": workers, "ray_address": ray_address}
    curves: dict[tuple[int, int], Curve] = {}
    walked = run_pieces(here_or(executor, workers), _walk, pieces, **place)
    for (i, j), curve in zip(pairs, walked, strict=True):
        curves[i, j] = curve
        if on_pair is not None:
            on_pair(PairReport(len(curves), len(pairs), models[i], models[j], barrier(curve, baseline=baseline)))
    return _matrix(models, curves, baseline)


def _walk(task: Task, a: StateDict, b: StateDict, options: Mapping[str, Any]) -> Curve:
    """Return the curve between two models: a piece of work that travels to where it is walked."""
    return loss_curve(task, a, b, **options)


def _matrix(models: tuple[str, ...], curves: Mapping[tuple[int, int], Curve], baseline: Baseline) -> BarrierMatrix:
    """Return the matrix out of the curves of all pairs."""
    first = curves[0, 1]
    # Every model is the end of a curve that starts at the first, but for the first itself.
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
    )
