"""The networks of ``weightspace merge``: alignment, BatchNorm statistics of the result, and scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightspace.cli import networks
from weightspace.cli.printing import echo, print_table, warn

from weightspace import WeightspaceError
from weightspace.matching.registry import MATCHINGS
from weightspace.merging.running_statistics import statistics_advice
from weightspace.suggestions import unknown

if TYPE_CHECKING:
    from weightspace.checkpoints import StateDict
    from weightspace.merging import Alignment, Finish
    from weightspace.tasks import Task

#: Positions at which a barrier is measured, endpoints included.
_POINTS = 5

#: Thresholds of a small barrier: a fraction of accuracy (Frankle et al. 2020, https://arxiv.org/abs/1912.05671), or
#: nats if the task has no accuracy.
_SMALL_FALL, _SMALL_RISE = 0.02, 0.1


@dataclass
class Scores:
    """Scores of the networks of an aligned merge on a split of their task.

    Attributes:
        task: the task of the networks.
        split: the data that is scored.
        scores: network -> loss in nats, and accuracy if defined; the result is ``merged``.
        barriers: source -> the barrier that remains between the matched source and the target.
        target: the network that the others were matched to.
    """

    task: Task
    split: str = "test"
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
        self.barriers[source] = {"loss": barrier(curve), "accuracy": fall}

    def of_result(self, state: StateDict) -> None:
        """Score the merged network."""
        from weightspace.connectivity.loss_curve import scored
        from weightspace.tasks import network_with

        loss, accuracy = scored(self.task, network_with(self.task, state), self.split)  # pyright: ignore[reportArgumentType]
        self.scores["merged"] = {"loss": loss} | ({} if accuracy is None else {"accuracy": accuracy})

    def show(self) -> None:
        """Print the scores and the barriers."""
        names = list(dict.fromkeys(name for scores in self.scores.values() for name in scores))
        rows = [[name, *(f"{scores[one]:.4f}" for one in names)] for name, scores in self.scores.items()]
        print_table(("network", *(f"{self.split} {name}" for name in names)), rows)
        for source, left in self.barriers.items():
            echo(f"remaining barrier between {self.target} and {source}: {_said(left)}")

    def warn(self) -> None:
        """Warn of large barriers on stderr."""
        for source, left in self.barriers.items():
            if not _is_small(left):
                warn(
                    f"The remaining barrier between {self.target} and {source} is large: {_said(left)}. The merged "
                    "network is worse than its parents; try another --align, or wider networks."
                )


def _said(left: Mapping[str, float | None]) -> str:
    fall = left["accuracy"]
    return f"{left['loss']:.4f} nats" + ("" if fall is None else f", {fall:.2%} of accuracy")


def _is_small(left: Mapping[str, float | None]) -> bool:
    """Return whether two networks are in one basin; never if a score is not finite."""
    rise, fall = left["loss"], left["accuracy"]
    if rise is None or not math.isfinite(rise):
        return False
    return rise < _SMALL_RISE if fall is None else fall < _SMALL_FALL


def advice_on_statistics(out: str, method: str, models: int) -> tuple[str, ...]:
    """Return a warning if a merge averaged BatchNorm's running statistics, which then don't fit the merged network.

    Args:
        out: the merged checkpoint.
        method: the merge method.
        models: number of models, 0 for a recipe.
    """
    from weightspace.checkpoints.metadata import read_contents

    if method == "passthrough" or models == 1:
        return ()
    advice = statistics_advice(read_contents(Path(out)).tensors, "--task recomputes them.")
    return () if advice is None else (advice,)


def network_options(
    said: dict[str, Any], *, run: bool, scored: bool
) -> tuple[Alignment | None, Finish | None, dict[str, Any], Scores | None]:
    """Return the alignment, the final step of the merge, its metadata, and the scores.

    Args:
        said: the options; those about networks are removed.
        run: whether custom code may run; if not, all results are empty.
        scored: whether to score parents and result if they are aligned on a task.
    """
    network = (said.pop("spec_file"), said.pop("network"), said.pop("example_inputs"))
    method, task, data, device = said.pop("align"), said.pop("task"), said.pop("data"), said.pop("device")
    if method is None and any(network):
        raise WeightspaceError("--spec, --network and --input are for --align, which was not given.")
    if method is not None and method not in MATCHINGS:
        raise unknown("alignment", method, MATCHINGS)
    if not run or (method is None and task is None):
        return None, None, {}, None
    from weightspace.connectivity import reset_statistics
    from weightspace.merging import Alignment

    _, source, inputs = network
    found = networks.load_any_task(task, data, device=device, source=source, inputs=inputs)
    align = None if method is None else Alignment(networks.spec_of(*network, found), method, said["seed"], found)
    if found is None:
        return align, None, {}, None
    scores = None
    if align is not None and scored:
        scores = Scores(found)
        align = replace(align, on_matched=scores.on_matched)

    def finish(state: StateDict) -> StateDict:
        measured = reset_statistics(found, state)
        if scores is not None:
            scores.of_result(measured)
        return measured

    return align, finish, {"statistics": "reset", "task": task}, scores
