"""The scores of ``weightspace merge --task``: of the models, of the result, and the barriers between aligned models."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightspace.cli import loss_paths
from weightspace.cli.printing import echo, print_table, warn
from weightspace.cli.progress import progress

from weightspace import WeightspaceError

if TYPE_CHECKING:
    from weightspace.checkpoints import StateDict
    from weightspace.merging.plan.plan import Plan
    from weightspace.tasks import Task

#: Positions at which a barrier is measured, endpoints included.
_POINTS = 5

#: Thresholds of a small barrier: a fraction of accuracy (Frankle et al. 2020, https://arxiv.org/abs/1912.05671), or
#: nats if the task has no accuracy.
_SMALL_FALL, _SMALL_RISE = 0.02, 0.1

#: Fraction of the best model's score by which a merge that is far worse than all models lies below it.
_FAR = 0.05


@dataclass
class Scores:
    """Scores of the networks of a merge on a split of their task.

    Attributes:
        task: the task of the networks.
        split: the data that is scored.
        then_fitted: whether the mean of the networks is only the start of a fit by least squares.
        scores: network -> its scores on the task, for aligned networks the loss in nats and any accuracy; the result is
            ``merged``.
        barriers: source -> the barrier that remains between the matched source and the target, measured at ``points``.
        target: the network that the others were matched to; empty if they were not aligned.
    """

    task: Task
    split: str = "test"
    then_fitted: bool = False
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    barriers: dict[str, dict[str, float | None]] = field(default_factory=dict)
    target: str = ""

    def on_matched(self, target: str, a: StateDict, source: str, b: StateDict) -> None:
        """Score two networks and the line between them; ``b`` is the matched source."""
        from weightspace import barrier, loss_curve

        self.target = target
        curve = loss_curve(self.task, a, b, _POINTS, split=self.split)  # pyright: ignore[reportArgumentType]
        for name, end in ((target, 0), (source, -1)):
            self.scores[name] = {"loss": curve.loss[end]}
            if curve.accuracy is not None:
                self.scores[name]["accuracy"] = curve.accuracy[end]
        fall = None if curve.accuracy is None else barrier(curve, score="accuracy")
        self.barriers[source] = {"loss": barrier(curve), "accuracy": fall, "points": _POINTS}

    def of_models(self, sources: str | Sequence[str], options: Mapping[str, Any]) -> None:
        """Score the models of a merge that aligns none, as they are; none of a recipe of several documents.

        Args:
            sources: a recipe, or checkpoints.
            options: the other arguments of ``source_differences``, which are those of the merge.
        """
        plan = _plan_of(sources, options)
        if plan is None:
            return
        with progress("scoring models") as update:
            for number, (name, state) in enumerate(_states(plan), start=1):
                update(number, len(plan.members), name)
                self._score(name, state)

    def of_result(self, state: StateDict) -> None:
        """Score the merged network."""
        self._score("merged", state)

    def _score(self, name: str, state: StateDict) -> None:
        """Score a network, or warn that the task cannot: that is no reason to lose the merge."""
        from weightspace.tasks import network_with
        from weightspace.tasks.scores import scores_of

        try:
            found = scores_of(self.task, network_with(self.task, state, name), self.split)
        except WeightspaceError as error:
            warn(f"{name} was not scored. {error}")
            return
        of_others = next(iter(self.scores.values())) if self.target else found
        self.scores[name] = {score: found[score] for score in found if score in of_others}

    def show(self) -> None:
        """Print the scores and the barriers."""
        names = list(dict.fromkeys(name for scores in self.scores.values() for name in scores))
        rows = [
            [name, *(f"{scores[one]:.4f}" if one in scores else "–" for one in names)]
            for name, scores in self.scores.items()
        ]
        print_table(("network", *(f"{self.split} {name}" for name in names)), rows)
        for source, left in self.barriers.items():
            when = "barrier before least squares" if self.then_fitted else "remaining barrier"
            echo(f"{when} between {self.target} and {source}: {_said(left)}")

    def warn(self) -> None:
        """Warn of large barriers on stderr."""
        for source, left in self.barriers.items():
            if not _is_small(left) and not self.then_fitted:
                warn(
                    f"The remaining barrier between {self.target} and {source} is large: {_said(left)}. The merged "
                    "network is worse than its parents; try another --align, or wider networks."
                )
        if (line := self._far_worse()) is not None:
            warn(line)

    def _far_worse(self) -> str | None:
        """Return a warning about a merge that is far worse than each of its models, which were not aligned, or None."""
        merged, others = self.scores.get("merged"), [own for name, own in self.scores.items() if name != "merged"]
        if merged is None or len(others) < 2 or self.target:
            return None
        for score, sign, least in (("accuracy", 1, 0.0), ("loss", -1, _SMALL_RISE)):
            if not all(score in own for own in (merged, *others)):
                continue
            values = [sign * own[score] for own in others]
            best = max(values)
            if not best - sign * merged[score] <= max(best - min(values), _FAR * abs(best), least):
                return (
                    f"The merged network is far worse than each of its models: {self.split} {score} "
                    f"{merged[score]:.4f}; the best has {abs(best):.4f}. Are they fine-tunes of one model? Align "
                    "independently trained ones with --align."
                )
        return None


def _plan_of(sources: str | Sequence[str], options: Mapping[str, Any]) -> Plan | None:
    """Return the plan of a merge, which says how its models are read; None for a recipe of several documents."""
    from weightspace.merging.merge_files import plan_merge
    from weightspace.merging.plan.options import OutputOptions
    from weightspace.merging.recipe.parse import read_recipe

    def drop(_: str) -> None:
        """Take a line that the merge itself prints."""

    if isinstance(sources, str) and read_recipe(Path(sources), warn=drop, ignored=drop).documents:
        return None
    given = dict(options)
    reading, lenient = given.pop("reading"), given.pop("lenient")
    output = OutputOptions(allow_nonfinite=given.pop("allow_nonfinite"), hashes=False)
    return plan_merge(sources, given, reading, output, lenient=lenient)


def _states(plan: Plan) -> Iterator[tuple[str, StateDict]]:
    """Yield the source and the tensors of every model of a plan, with its adapter applied."""
    from weightspace.checkpoints.dtypes import DTYPES
    from weightspace.merging.out_of_core.sources import Sources

    sources = Sources(plan)
    for index, member in enumerate(plan.members):
        if member.adapter is None:
            yield member.source, sources.states[index].state()
            continue
        infos = member.contents.tensors.items()
        elements = {name: sources.flat((index, name)).read(0, info.numel) for name, info in infos}
        yield member.source, {name: elements[name].to(DTYPES[info.dtype]).view(info.shape) for name, info in infos}


def _said(left: Mapping[str, float | None]) -> str:
    return loss_paths.in_words(left["loss"], left["accuracy"], _POINTS)  # pyright: ignore[reportArgumentType]


def _is_small(left: Mapping[str, float | None]) -> bool:
    """Return whether two networks are in one basin; never if a score is not finite."""
    rise, fall = left["loss"], left["accuracy"]
    if rise is None or not math.isfinite(rise):
        return False
    return rise < _SMALL_RISE if fall is None else fall < _SMALL_FALL
