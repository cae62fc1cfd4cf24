"""The demo: an end-to-end alignment of two networks on data bundled with scikit-learn."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from weightspace.connectivity import Curve, barrier, loss_curve
from weightspace.matching import weight_matching
from weightspace.plots import draw_curves
from weightspace.progress import Progress
from weightspace.reprs import brief
from weightspace.symmetry import derive_spec, permute
from weightspace.tasks import train
from weightspace.zoo import load_task

_TASK = "digits-mlp"
_SEEDS = (0, 1)
_POINTS = 25


@brief
@dataclass(frozen=True)
class DemoReport:
    """Measurements of the demo: barriers of the test loss in nats at ``points`` positions, the rest as fractions."""

    naive_barrier: float
    matched_barrier: float
    naive_midpoint_accuracy: float
    matched_midpoint_accuracy: float
    end_accuracies: tuple[float, float]
    l2_reduction: float
    groups: int
    spec_error: float
    seconds: float
    picture: str
    points: int = _POINTS


def demo(picture: str | Path, *, on_progress: Callable[[Progress], None] | None = None) -> DemoReport:
    """Train two digit classifiers from two seeds, match one to the other and plot the loss between them.

    Args:
        picture: ``.png``, ``.svg`` or ``.pdf`` file to write.
        on_progress: called before every ``"stage"``, with its name.

    Raises:
        WeightspaceError: scikit-learn is missing, or the plot can't be written.
    """
    start = time.perf_counter()
    texts = (
        "training from seed 0",
        "training from seed 1",
        "deriving the spec",
        "matching",
        "naive path",
        "matched path",
    )
    stages = (Progress("stage", number, len(texts), name=text) for number, text in enumerate(texts, start=1))

    def begin() -> None:
        stage = next(stages)
        if on_progress is not None:
            on_progress(stage)

    task = load_task(_TASK)
    states = []
    for seed in _SEEDS:
        begin()
        states.append(train(task, seed))
    target, source = states
    begin()
    spec = derive_spec(task.network(), task.example_args)
    begin()
    matching = weight_matching(spec, target, source)
    begin()
    naive = loss_curve(task, target, source, _POINTS)
    begin()
    matched = loss_curve(task, target, permute(spec, matching.permutation, source), _POINTS)
    draw_curves({"naive": naive, "matched": matched}, picture, title=f"{_TASK}: two seeds, one basin")
    return DemoReport(
        naive_barrier=barrier(naive),
        matched_barrier=barrier(matched),
        naive_midpoint_accuracy=_accuracy(naive, _POINTS // 2),
        matched_midpoint_accuracy=_accuracy(matched, _POINTS // 2),
        end_accuracies=(_accuracy(naive, 0), _accuracy(naive, -1)),
        l2_reduction=matching.l2_reduction,
        groups=len(spec.groups),
        spec_error=spec.verification.error if spec.verification else float("nan"),
        seconds=time.perf_counter() - start,
        picture=str(picture),
    )


def _accuracy(curve: Curve, index: int) -> float:
    return curve.accuracy[index] if curve.accuracy else float("nan")
