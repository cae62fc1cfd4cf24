"""``weightspace merge --least-squares``: layers fitted by least squares to those of the aligned networks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from weightspace.cli.merge_methods import is_recipe, parameters_of

from weightspace import WeightspaceError

if TYPE_CHECKING:
    from weightspace.checkpoints import StateDict
    from weightspace.tasks import Task

least_squares_option = click.option(
    "--least-squares",
    is_flag=True,
    help="After --align, fit every linear layer and convolution to the mean of the aligned networks' on the training "
    "data of --task (PLeaS).",
)


@dataclass
class LeastSquares:
    """The last step of a merge: aligned networks, collected as they are matched, are merged by least squares.

    Attributes:
        task: the task of the networks.
        weights: one per network, in the order of the sources; empty for equal ones.
        seed: seed of the task's batches.
        states: the target and the matched networks.
    """

    task: Task
    weights: Sequence[float]
    seed: int
    states: list[StateDict] = field(default_factory=list)

    def on_matched(self, _: str, target: StateDict, __: str, matched: StateDict) -> None:
        """Keep a matched network."""
        self.states = [*(self.states or [target]), matched]

    def merged(self, state: StateDict) -> StateDict:
        """Return the mean of the networks with its layers fitted."""
        from weightspace.merging.least_squares import fit_layers

        return fit_layers(self.task, self.states, state, self.weights or None, seed=self.seed)


def check_least_squares(sources: Sequence[str], reproduce: str | None, opts: Mapping[str, Any]) -> None:
    """Check the other options beside ``--least-squares``.

    Raises:
        WeightspaceError: no alignment or task, another method, a recipe, or a merge to reproduce that was made
            differently.
    """
    if reproduce is not None and opts["least_squares"] != (recorded_weights(reproduce) is not None):
        made = "without" if opts["least_squares"] else "with"
        raise WeightspaceError(f"{reproduce} was made {made} --least-squares: do the same.")
    if not opts["least_squares"]:
        return
    for option, purpose in (("align", "aligned networks"), ("task", "the data of a task")):
        if opts[option] is None:
            raise WeightspaceError(f"--least-squares needs {purpose}; add --{option} {option.upper()}.")
    if reproduce is not None:
        return
    if is_recipe(sources):
        raise WeightspaceError("--least-squares merges CHECKPOINTs, not a recipe. List the models instead.")
    if opts["method"] not in (None, "linear"):
        raise WeightspaceError(
            f"--least-squares fits layers to the weighted mean of the models; found the method {opts['method']!r}. "
            "Leave one of the two out."
        )
    if "normalize" in parameters_of(opts):
        raise WeightspaceError(
            "--normalize has no effect with --least-squares, whose weights are divided by their sum. Leave it out."
        )


def recorded_weights(out: str) -> list[float] | None:
    """Return the weights with which a checkpoint was merged by least squares; None if it was not."""
    from weightspace.checkpoints.stored_metadata import load_metadata

    try:
        return json.loads(load_metadata(Path(out))["parameters"])["least_squares"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
