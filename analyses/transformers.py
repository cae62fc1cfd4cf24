"""Transformers trained apart: the barrier between them after each kind of alignment, all methods side by side.

Every pair of three networks is aligned by every method, a row of ``METHODS``: permutations by weights or by
activations; all symmetries by weights, by activations, or learned in 250 steps; and least squares after them. The
barrier is that of the test loss; the accuracy is that of the midpoint. Results of tasks that are not run are kept.

    python analyses/transformers.py                                              # all tasks, three seeds each
    python analyses/transformers.py --tasks vit-fashion --methods none   # a quick look
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from alignments import Method, aligned, alignment_script, permuted, remembered, then_least_squares, unaligned
from transformer_tasks import TASKS

from weightspace.connectivity import Curve
from weightspace.plots import draw_curves

ACTIVATION_MATCHING = remembered(permuted("activation-matching"))
FULL_ACTIVATIONS = remembered(aligned())
#: Name in tables -> method.
METHODS: Mapping[str, Method] = {
    "none": unaligned,
    "weight matching": permuted("weight-matching"),
    "activation matching": ACTIVATION_MATCHING,
    "none, least squares": then_least_squares(unaligned),
    "activation matching, least squares": then_least_squares(ACTIVATION_MATCHING),
    "full, weights": aligned(method="weights"),
    "full, activations": FULL_ACTIVATIONS,
    "full, activations, least squares": then_least_squares(FULL_ACTIVATIONS),
    "full, learned": aligned(method="learned"),
    "full, learned with labels": aligned(method="learned", by_labels=True),
}


def draw_pair(task: str, label: str, curves: Mapping[str, Curve], folder: Path) -> None:
    """Draw the loss along the paths between two networks."""
    draw_curves(curves, folder / f"transformers_{task}.png", title=f"{task}, seeds {label}")


if __name__ == "__main__":
    alignment_script("transformers", __doc__, methods=METHODS, tasks=TASKS, draw_pair=draw_pair)()
