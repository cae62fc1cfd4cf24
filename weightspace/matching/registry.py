"""The table of matching methods, one row each. Reading it doesn't import torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from weightspace.errors import WeightspaceError
from weightspace.matching.attention import warn_of_attention
from weightspace.progress import Progress
from weightspace.suggestions import unknown

if TYPE_CHECKING:
    from weightspace.checkpoints import StateDict
    from weightspace.checkpoints.name_maps.expert_layout import ExpertLayout
    from weightspace.matching import ManySymmetryMatching, SymmetryMatching
    from weightspace.matching.multi_model import ManyMatching
    from weightspace.matching.result import Matching
    from weightspace.symmetry import PermutationSpec, SymmetrySpec
    from weightspace.tasks.protocol import Task

_GIT_REBASIN = "Ainsworth et al. 2023, https://arxiv.org/abs/2209.04836"
_THEUS = "symmetries as in Theus et al. 2025, https://arxiv.org/abs/2506.22712, in the original architecture"
_PENA = "Peña et al. 2023, https://arxiv.org/abs/2212.12042"


@dataclass(frozen=True)
class MatchingMethod:
    """A row of the table.

    Attributes:
        name: name on the command line.
        summary: one-line description.
        source: the paper, with a link.
        objective: meaning of ``Matching.objective``.
        needs_task: whether the method needs a task, that is, data and a network to run on it.
        function: ``file:function`` in this package, ``function(spec, target, source, *, task, seed, on_progress, …)``;
            for several networks ``function(spec, states, *, task, seed, on_progress, …)``.
        preset: keywords of the function that select this method.
        options: keywords of the function that users may set.
        symmetry: what ``derive_spec`` has to look for.
    """

    name: str
    summary: str
    source: str
    objective: str
    needs_task: bool
    function: str
    preset: Mapping[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ("steps", "learning_rate", "start")
    symmetry: Literal["permutations", "full"] = "permutations"


_ROWS = (
    MatchingMethod(
        "weight-matching",
        "maximise the inner product of the weights, group by group",
        f"{_GIT_REBASIN}, section 3.2",
        "inner product of the weights",
        needs_task=False,
        function="weight_matching:weight_matching",
        options=("restarts", "max_sweeps", "device"),
    ),
    MatchingMethod(
        "activation-matching",
        "pair units whose activations are correlated",
        f"Li et al. 2016, https://arxiv.org/abs/1511.07543; {_GIT_REBASIN}, section 3.1",
        "sum of the correlations",
        needs_task=True,
        function="activation_matching:activation_matching",
        options=(),
    ),
    MatchingMethod(
        "activation-then-weights",
        "weight matching that starts from the result of activation matching",
        f"{_GIT_REBASIN}, sections 3.1 and 3.2",
        "inner product of the weights",
        needs_task=True,
        function="activation_matching:activation_then_weights",
        options=("restarts", "max_sweeps"),
    ),
    MatchingMethod(
        "straight-through",
        "learn weights such that the source matched to them has the lowest loss at the midpoint",
        f"{_GIT_REBASIN}, section 3.3",
        "validation loss at the midpoint, in nats",
        needs_task=True,
        function="straight_through:straight_through",
        preset={"projection": "weight-matching"},
        options=("steps", "learning_rate"),
    ),
    MatchingMethod(
        "straight-through-sinkhorn",
        "learn scores of all pairs of units; the forward pass uses their best assignment",
        _PENA,
        "validation loss at the midpoint, in nats",
        needs_task=True,
        function="straight_through:straight_through",
        preset={"projection": "sinkhorn"},
    ),
    MatchingMethod(
        "sinkhorn-midpoint",
        "learn soft permutations by the loss at the midpoint",
        _PENA,
        "validation loss at the midpoint, in nats",
        needs_task=True,
        function="sinkhorn_rebasin:sinkhorn_rebasin",
        preset={"loss": "midpoint"},
    ),
    MatchingMethod(
        "sinkhorn-random",
        "learn soft permutations by the loss at random positions",
        _PENA,
        "validation loss at the midpoint, in nats",
        needs_task=True,
        function="sinkhorn_rebasin:sinkhorn_rebasin",
        preset={"loss": "random"},
    ),
    MatchingMethod(
        "sinkhorn-l2",
        "learn soft permutations by the distance of the weights",
        _PENA,
        "squared distance of the weights",
        needs_task=False,
        function="sinkhorn_rebasin:sinkhorn_rebasin",
        preset={"loss": "l2"},
    ),
    MatchingMethod(
        "full",
        "turn streams and heads and permute units, in closed form and then learned by the outputs between the networks",
        _THEUS,
        "divergence of the midpoint's outputs, in nats",
        needs_task=True,
        function="aligning.alignment:align",
        preset={"method": "learned"},
        options=("steps", "learning_rate"),
        symmetry="full",
    ),
    MatchingMethod(
        "full-activations",
        "turn streams by activations, heads by weights and outputs, and permute units, in closed form",
        _THEUS,
        "divergence of the midpoint's outputs, in nats",
        needs_task=True,
        function="aligning.alignment:align",
        preset={"method": "activations"},
        options=(),
        symmetry="full",
    ),
    MatchingMethod(
        "full-weights",
        "turn streams and heads and permute units, in closed form by weights alone",
        _THEUS,
        "inner product of the canonical weights",
        needs_task=False,
        function="aligning.alignment:align",
        preset={"method": "weights"},
        options=("max_sweeps",),
        symmetry="full",
    ),
)

_MANY_ROWS = (
    MatchingMethod(
        "merge-many",
        "match each network in turn to the mean of the others, by weight matching",
        f"{_GIT_REBASIN}, algorithm 3",
        "inner product of the weights, summed over pairs",
        needs_task=False,
        function="merge_many:merge_many",
        options=("max_sweeps",),
    ),
    MatchingMethod(
        "cycle-consistent",
        "Frank–Wolfe over soft permutations of all networks into a shared universe",
        "Crisostomi et al. 2024, https://arxiv.org/abs/2405.17897",
        "inner product of the weights, summed over pairs",
        needs_task=False,
        function="cycle_consistent:cycle_consistent",
        options=("max_sweeps",),
    ),
    MatchingMethod(
        "full-many",
        "turn streams and heads and permute units of each network in turn towards the mean of the others",
        _THEUS,
        "inner product of the canonical weights, or with a task minus the divergence of the mean's outputs in nats",
        needs_task=False,
        function="aligning.several:align_many",
        options=("max_sweeps",),
        symmetry="full",
    ),
    MatchingMethod(
        "straight-through-many",
        "straight-through estimation by the loss of random mixtures",
        "Ito et al. 2025, https://proceedings.mlr.press/v267/ito25a.html",
        "minus the validation loss of the mean, in nats",
        needs_task=True,
        function="straight_through_many:straight_through_many",
        options=("steps", "learning_rate"),
    ),
)

#: Name on the command line -> method for two networks. tests/matching/test_every_method.py checks every row.
MATCHINGS: Mapping[str, MatchingMethod] = {row.name: row for row in _ROWS}
#: Name on the command line -> method for two or more networks.
MANY_MATCHINGS: Mapping[str, MatchingMethod] = {row.name: row for row in _MANY_ROWS}


def match(
    spec: PermutationSpec | SymmetrySpec,
    target: StateDict,
    source: StateDict,
    method: str = "weight-matching",
    *,
    task: Task | None = None,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> Matching | SymmetryMatching:
    """Bring a source into the basin of a target by any method.

    Permutations suffice for MLPs and convolutional networks. Transformers trained apart need all symmetries of their
    architecture: use ``"full"``, ``"full-activations"`` (faster), or without data ``"full-weights"``, with a spec from
    ``derive_spec(…, symmetry="full")``.

    Args:
        spec: the architecture's spec; a ``SymmetrySpec`` for the methods whose row says so (``symmetry``).
        target: the checkpoint to match; not modified. Experts may be separate, as in files of transformers, where the
            spec has them stacked.
        source: the checkpoint to move; not modified.
        method: a name in ``weightspace.matching.MATCHINGS``, as on the command line.
        task: the task of both networks; required by some methods (``needs_task``).
        seed: seed of the method's randomness.
        on_progress: called after every ``"sweep"``, ``"step"`` or ``"trial"``.
        options: options of the method (``options`` in its row); None means the default.

    Returns:
        A permutation of the source, or for ``"full"`` and its variants an alignment. Both have ``apply``.

    Raises:
        CheckpointError: a checkpoint doesn't fit the spec or the task, or has non-finite weights.
        SpecError: the spec has other symmetries than the method needs.
        WeightspaceError: unknown method or option, or no task for a method that needs one.

    Warns:
        WeightspaceWarning: the network has attention, and the method matches permutations by weights alone.

    Example:
        >>> import weightspace as ws
        >>> task = ws.load_task("digits-mlp")
        >>> a, b = (ws.train(task, seed, epochs=1) for seed in (0, 1))
        >>> spec = ws.derive_spec(task.network(), task.example_args)
        >>> matching = ws.match(spec, a, b, "activation-matching", task=task)
        >>> target, aligned = matching.apply(a, b)
    """
    if method not in MATCHINGS:
        raise unknown("matching method", method, MATCHINGS)
    if MATCHINGS[method].symmetry == "permutations":
        _warn_of_attention(MATCHINGS[method], spec)
    function, keywords = _prepared(MATCHINGS[method], task, options)
    target, source = (_experts_for(spec, state).stacked(state) for state in (target, source))
    return function(spec, target, source, task=task, seed=seed, on_progress=on_progress, **keywords)


def match_many(
    spec: PermutationSpec | SymmetrySpec,
    states: Sequence[StateDict],
    method: str = "merge-many",
    *,
    task: Task | None = None,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> ManyMatching | ManySymmetryMatching:
    """Bring two or more networks into one basin by any method for several networks.

    Args:
        spec: the architecture's spec; a ``SymmetrySpec`` for the methods whose row says so (``symmetry``).
        states: the networks; not modified. Experts may be separate, as for ``match``.
        method: a name in ``weightspace.matching.MANY_MATCHINGS``, as on the command line.
        task: the task of all networks; required by some methods (``needs_task``).
        seed: seed of the method's randomness.
        on_progress: called after every ``"sweep"``, ``"step"`` or ``"trial"``.
        options: options of the method (``options`` in its row); None means the default.

    Raises:
        CheckpointError: a network doesn't fit the spec or the task, or has non-finite weights.
        WeightspaceError: unknown method or option, no task for a method that needs one, or too few networks.

    Warns:
        WeightspaceWarning: the networks have attention, and the method matches permutations by weights alone.

    Example:
        >>> import weightspace as ws
        >>> from weightspace.matching import match_many
        >>> task = ws.load_task("digits-mlp")
        >>> states = [ws.train(task, seed, epochs=1) for seed in range(3)]
        >>> spec = ws.derive_spec(task.network(), task.example_args)
        >>> merged = match_many(spec, states, "merge-many", seed=0).merged
    """
    if method not in MANY_MATCHINGS:
        raise unknown("matching method for several networks", method, MANY_MATCHINGS)
    row = MANY_MATCHINGS[method]
    if row.symmetry == "permutations":
        _warn_of_attention(row, spec)
    function, keywords = _prepared(row, task, options)
    layouts = [_experts_for(spec, state) for state in states]
    stacked = [layout.stacked(state) for layout, state in zip(layouts, states, strict=True)]
    found = function(spec, stacked, task=task, seed=seed, on_progress=on_progress, **keywords)
    return replace(found, merged=layouts[0].separate(found.merged))


def check_task(row: MatchingMethod, task: Task | None) -> None:
    """Check that a method that needs a task has one.

    Raises:
        WeightspaceError: it has none.
    """
    if row.needs_task and task is None:
        raise WeightspaceError(f"The method {row.name!r} uses data: give it the task of the networks (--task).")


def _experts_for(spec: PermutationSpec | SymmetrySpec, state: StateDict) -> ExpertLayout:
    """Return how a checkpoint names the experts of a spec's network."""
    from weightspace.symmetry.permutation import experts_for

    return experts_for(spec, state)


def _warn_of_attention(row: MatchingMethod, spec: PermutationSpec | SymmetrySpec) -> None:
    """Warn of attention if a method uses only weights; ``weight_matching`` warns by itself."""
    if not row.needs_task and row.name != "weight-matching":
        warn_of_attention(row.name, spec.axes)


def _prepared(
    row: MatchingMethod, task: Task | None, options: Mapping[str, Any]
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return the function of a row and its keywords.

    Raises:
        WeightspaceError: unknown option, or a missing task.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if odd := [name for name in given if name not in row.options]:
        has = f"its options are {', '.join(row.options)}" if row.options else "it has none"
        raise WeightspaceError(f"The method {row.name!r} has no option {odd[0]!r}; {has}.")
    check_task(row, task)
    file, _, function = row.function.partition(":")
    call = getattr(importlib.import_module(f"weightspace.matching.{file}"), function)
    return call, {**row.preset, **given}
