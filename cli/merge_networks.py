"""The networks of ``weightspace merge``: alignment, and BatchNorm statistics of the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightspace.cli import networks, options
from weightspace.cli.merge_least_squares import LeastSquares, recorded_weights
from weightspace.cli.merge_scores import Scores

from weightspace import WeightspaceError
from weightspace.matching.registry import MATCHINGS
from weightspace.merging.running_statistics import statistics_advice
from weightspace.suggestions import unknown

if TYPE_CHECKING:
    from weightspace.checkpoints import StateDict
    from weightspace.merging import Alignment, Finish


def advice_on_statistics(out: str, method: str, models: int) -> tuple[str, ...]:
    """Return a warning if a merge averaged BatchNorm's running statistics, which then don't fit the merged network.

    Args:
        out: the merged checkpoint.
        method: the merge method.
        models: number of models, 0 for a recipe.
    """
    from weightspace.checkpoints.read_metadata import read_contents

    if method == "passthrough" or models == 1:
        return ()
    advice = statistics_advice(read_contents(Path(out)).tensors, "--task recomputes them.")
    return () if advice is None else (advice,)


def network_options(
    opts: dict[str, Any], *, run: bool, scored: bool, reproduced: str | None
) -> tuple[Alignment | None, Finish | None, dict[str, Any], Scores | None]:
    """Return the alignment, the final step of the merge, its metadata, and the scores.

    Args:
        opts: the options; those about networks are removed.
        run: whether custom code may run; if not, all results are empty.
        scored: whether to score models and result on the task, if there is one.
        reproduced: a merge whose recorded weights least squares are to use.
    """
    network = (opts.pop("spec_file"), opts.pop("network"), opts.pop("example_inputs"))
    method, task, data, device = opts.pop("align"), opts.pop("task"), opts.pop("data"), opts["device"]
    by_least_squares = opts.pop("least_squares")
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
    align = (
        None
        if method is None
        else Alignment(networks.spec_of(*network, found, method=method), method, opts["seed"], found)
    )
    if found is None:
        return align, None, {}, None
    scores = Scores(found, then_fitted=by_least_squares) if scored else None
    recorded: dict[str, Any] = {"statistics": "reset", "task": task}
    fit = None
    if by_least_squares:
        weights = recorded_weights(reproduced) if reproduced else options.numbers("--weights", opts["weights"])
        fit = LeastSquares(found, weights or (), opts["seed"])
        recorded["least_squares"] = list(fit.weights)
    if align is not None:
        align = replace(align, on_matched=_each(scores, fit))

    def finish(state: StateDict) -> StateDict:
        measured = reset_statistics(found, state if fit is None else fit.merged(state))
        if scores is not None:
            scores.of_result(measured)
        return measured

    return align, finish, recorded, scores


def _each(*listeners: Scores | LeastSquares | None) -> Callable[[str, StateDict, str, StateDict], None]:
    """Return a function that tells listeners about a matched network."""

    def on_matched(target: str, a: StateDict, source: str, b: StateDict) -> None:
        for listener in listeners:
            if listener is not None:
                listener.on_matched(target, a, source, b)

    return on_matched
