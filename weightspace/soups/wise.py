"""WiSE-FT: the line from the pretrained model to a fine-tuned one, scored at several positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.merging.interpolation import interpolate
from weightspace.soups.ingredients import Source, ingredients_of
from weightspace.soups.scoring import Scorer, Statistics, settled
from weightspace.tasks.protocol import SPLITS, Split, Task, objective_value

#: Positions on the line, if nothing else is said.
POSITIONS = tuple(step / 10 for step in range(11))


@dataclass(frozen=True)
class WiseFT:
    """The line, and the best network on it.

    Attributes:
        positions: from the pretrained model (0) to the fine-tuned one (1), of length ``S``.
        scores: split -> what the task found at every position; ``validation`` chose.
        position: the best one; of equal ones the first.
        state: the weights there.
    """

    positions: tuple[float, ...]
    scores: Mapping[Split, tuple[Mapping[str, float], ...]]
    position: float
    state: StateDict


def wise_ft(
    pretrained: Source,
    finetuned: Source,
    task: Task,
    positions: Sequence[float] = POSITIONS,
    *,
    splits: Sequence[Split] = ("validation", "test"),
    statistics: Statistics = "auto",
    on_position: Callable[[int, float], None] | None = None,
) -> WiseFT:
    """Score the networks from the pretrained model to the fine-tuned one, and return the best on validation data.

    Args:
        pretrained: position 0, a state dict or a checkpoint.
        finetuned: position 1.
        task: scores; its objective on the validation split chooses.
        positions: finite numbers, without unit.
        splits: data to score on, ``validation`` among them.
        statistics: BatchNorm's between the two; see ``greedy_soup``.
        on_position: called after each, with how many are done and the validation objective there.

    Raises:
        CheckpointError: a checkpoint cannot be read, or the two do not fit together.
        WeightspaceError: there are no positions, no such split, or integer tensors differ.

    Source:
        Wortsman et al. 2022, https://arxiv.org/abs/2109.01903, section 3.
    """
    if not len(positions) or "validation" not in splits or not set(splits) <= set(SPLITS):
        raise WeightspaceError(
            f"Expected one position at least and splits of {', '.join(SPLITS)} with validation among them; found "
            f"{len(positions)} positions and {', '.join(splits) or 'no splits'}."
        )
    a, b = ingredients_of([pretrained, finetuned])
    start, end = a.load(), b.load()
    scorer = Scorer(task, statistics)
    scorer.check(start, a.name)
    scorer.check(end, b.name)
    found: dict[Split, list[Mapping[str, float]]] = {split: [] for split in splits}
    for done, position in enumerate(positions, start=1):
        scorer.put(interpolate(start, end, position).items(), mixed=position not in (0, 1))
        for split in splits:
            found[split].append(scorer.scores(split))
        if on_position is not None:
            on_position(done, objective_value(task, found["validation"][-1]))
    values = [objective_value(task, scores) for scores in found["validation"]]
    best = float(positions[max(range(len(values)), key=values.__getitem__)])
    state = interpolate(start, end, best)
    return WiseFT(
        positions=tuple(map(float, positions)),
        scores={split: tuple(scores) for split, scores in found.items()},
        position=best,
        state=state if best in (0, 1) else settled(task, state, statistics),
    )
