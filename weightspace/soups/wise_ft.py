"""WiSE-FT: the linear path from a pretrained model to a fine-tuned one, scored at several positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from weightspace.arguments import checked
from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.merging.interpolate import interpolate
from weightspace.progress import Progress
from weightspace.reprs import brief
from weightspace.soups.candidates import OnLine
from weightspace.soups.evaluation import Judge, Place, Scores
from weightspace.soups.ingredients import Source, check_ingredients, ingredients_of
from weightspace.soups.scoring import Statistics, settled
from weightspace.tasks.objectives import Mode
from weightspace.tasks.protocol import SPLITS, Task

#: Default positions on the path.
POSITIONS = tuple(step / 10 for step in range(11))


@brief
@dataclass(frozen=True)
class WiseFT:
    """The scores along the linear path, and the best network on it.

    Attributes:
        positions: ``S`` positions, from the pretrained model (0) to the fine-tuned one (1).
        scores: split -> scores at each position; the best one is selected on ``validation``.
        position: the best position; ties go to the first.
        state: the weights there.
    """

    positions: tuple[float, ...]
    scores: Mapping[str, tuple[Mapping[str, float], ...]]
    position: float
    state: StateDict


@checked
def wise_ft(
    pretrained: Source,
    finetuned: Source,
    task: Task,
    positions: Sequence[float] = POSITIONS,
    *,
    splits: Sequence[str] = ("validation", "test"),
    mode: Mode | None = None,
    statistics: Statistics = "auto",
    cache: bool = True,
    executor: str = "processes",
    workers: int = 1,
    gpus: float = 0.0,
    ray_address: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> WiseFT:
    """Score networks between the pretrained and the fine-tuned model, and return the best on validation data.

    Args:
        pretrained: state dict or checkpoint at position 0.
        finetuned: state dict or checkpoint at position 1.
        task: task that scores the networks; its objective on the validation split decides.
        positions: finite, dimensionless numbers.
        splits: data to score on, including ``validation``.
        mode: ``"min"`` or ``"max"`` of the objective; see ``greedy_soup``.
        statistics: as for ``greedy_soup``, like ``cache``, ``executor``, ``workers``, ``gpus`` and ``ray_address``.
        on_progress: called with each ``"position"`` in order, with the objective, negated if lower is better.

    Raises:
        CheckpointError: a checkpoint cannot be read, or the two don't match.
        WeightspaceError: there are no positions, a split is unknown, or integer tensors differ.

    Source:
        Wortsman et al. 2022, https://arxiv.org/abs/2109.01903, section 3.

    Example:
        >>> import weightspace as ws
        >>> task = ws.load_task("digits-mlp")
        >>> a, b = (ws.train(task, seed, epochs=1) for seed in (0, 1))
        >>> ws.wise_ft(a, b, task, positions=[0, 0.5, 1], cache=False).positions
        (0.0, 0.5, 1.0)
    """
    _check(positions, splits)
    place = Place(executor, workers, gpus, ray_address)
    judge = Judge(task, statistics, cache=cache, cache_key=None, place=place, mode=mode)
    a, b = ingredients_of([pretrained, finetuned], judge.measure.shapes)
    points = [OnLine(a, b, float(position)) for position in positions]
    try:
        check_ingredients((a, b), judge.measure.check)
        found = judge.many(points, splits, _reporter(points, judge, on_progress))
    finally:
        judge.measure.forget()
    best = points[max(range(len(found)), key=lambda at: judge.value(found[at]))]
    state = interpolate(a.load(), b.load(), best.position)
    return WiseFT(
        positions=tuple(point.position for point in points),
        scores={split: tuple(scores[split] for scores in found) for split in splits},
        position=best.position,
        state=a.as_stored(settled(task, state, statistics) if best.mixed else state),
    )


def _check(positions: Sequence[float], splits: Sequence[str]) -> None:
    """Check that there are positions, and that the splits are known and include ``validation``."""
    if not len(positions) or "validation" not in splits or not set(splits) <= set(SPLITS):
        raise WeightspaceError(
            f"Expected at least one position and splits of {', '.join(SPLITS)} including validation; found "
            f"{len(positions)} positions and {', '.join(splits) or 'no splits'}."
        )


def _reporter(
    points: Sequence[OnLine], judge: Judge, on_progress: Callable[[Progress], None] | None
) -> Callable[[int, Scores], None]:
    """Return a callback that reports positions in order, although they are scored in any order."""
    pending: dict[int, Scores] = {}
    reported = 0

    def report(at: int, scores: Scores) -> None:
        nonlocal reported
        pending[at] = scores
        while on_progress is not None and reported in pending:
            value, position = judge.value(pending.pop(reported)), points[reported].position
            reported += 1
            on_progress(Progress("position", reported, len(points), value, details={"position": position}))

    return report
