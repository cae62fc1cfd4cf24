"""Activation matching: pair the units of two networks that respond alike to the same inputs.

Correlations take the place of weights: for each site where a group appears, the correlation of every target unit with
every source unit is the gain of pairing them, maximised by coordinate ascent.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from weightspace.arguments import checked
from weightspace.checkpoints import StateDict, check_compatible
from weightspace.errors import WeightspaceError
from weightspace.matching.coordinate_ascent import (
    TOLERANCE,
    CoordinateAscent,
    Workers,
    assign,
    match_inside,
    step,
)
from weightspace.matching.correlations import correlated
from weightspace.matching.gains import Family, Indices, Pair, families, pair_blocks
from weightspace.matching.loss_driven import task_of
from weightspace.matching.result import Matching, check_matchable, matched
from weightspace.matching.weight_matching import match_weights, outward_start
from weightspace.progress import Progress
from weightspace.suggestions import unknown
from weightspace.symmetry import Permutation, PermutationSpec
from weightspace.tasks.failures import task_errors
from weightspace.tasks.protocol import Task, threads_of
from weightspace.threads import torch_threads

#: Treatment of groups whose units no module takes in or returns: matched by weights, or an error.
Unseen: TypeAlias = Literal["weights", "error"]

_MAX_SWEEPS = 100
#: Maximum sweeps by weights over what activations leave undecided.
_UNDECIDED_SWEEPS = 100
#: Maximum number of training batches to compare activations on.
_BATCHES = 100


@checked
def activation_matching(
    spec: PermutationSpec,
    target: StateDict,
    source: StateDict,
    *,
    task: Task | None = None,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
) -> Matching:
    """Permute a source towards a target by the correlation of their activations on the training batches of a task.

    ``weightspace.matching.match_activations``, which describes the method, does the same for your own networks and
    batches.

    Args:
        spec: the architecture's spec.
        target: the checkpoint to match; not modified.
        source: the checkpoint to permute; not modified.
        task: required: builds the network, and provides the loss and up to 100 training batches.
        seed: determines the order of the batches, and of the groups in each sweep.
        on_progress: called after every ``"sweep"``, with the objective.

    Returns:
        The permutation of the source. The objective is the sum of the correlations of paired units over all sites,
        initially and after every sweep.

    Raises:
        CheckpointError: a checkpoint doesn't fit the spec or the task, or has non-finite weights.
        WeightspaceError: no task, no batches, activations that aren't finite, or no group appears anywhere.

    Source:
        Li et al. 2016, https://arxiv.org/abs/1511.07543; as a matching for merging Ainsworth et al. 2023,
        https://arxiv.org/abs/2209.04836, section 3.1.

    Example:
        >>> import weightspace as ws
        >>> task = ws.load_task("digits-mlp")
        >>> a, b = (ws.train(task, seed, epochs=1) for seed in (0, 1))
        >>> spec = ws.derive_spec(task.network(), task.example_args)
        >>> matching = ws.activation_matching(spec, a, b, task=task)
        >>> aligned = ws.permute(spec, matching.permutation, b)
    """
    task = task_of("activation_matching", task)
    ends = [_network(task, state, label) for state, label in ((target, "the target"), (source, "the source"))]
    with torch_threads(threads_of(task)):
        batches = islice(task.batches("train", seed), _BATCHES)
        with task_errors(task, "on its training batches"):
            return match_activations(
                spec, ends[0], ends[1], batches, forward=task.loss, seed=seed, on_progress=on_progress
            )


def activation_then_weights(
    spec: PermutationSpec,
    target: StateDict,
    source: StateDict,
    *,
    task: Task | None = None,
    seed: int = 0,
    restarts: int = 0,
    max_sweeps: int = 100,
    on_progress: Callable[[Progress], None] | None = None,
) -> Matching:
    """Return the result of weight matching, whose options these are, started from the result of activation matching."""
    start = activation_matching(spec, target, source, task=task, seed=seed).permutation
    options: dict[str, Any] = {"seed": seed, "restarts": restarts, "max_sweeps": max_sweeps}
    return match_weights(spec, target, source, start=start, on_progress=on_progress, **options)


def match_activations(
    spec: PermutationSpec,
    target_network: nn.Module,
    source_network: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    unseen: Unseen = "weights",
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
) -> Matching:
    """Permute a source network towards a target by the correlation of their activations on some batches.

    The units of a group are compared where a layer reads them, after the preceding nonlinearity: at the inputs of
    modules with a matrix. Groups that nothing reads this way (queries and keys) are compared wherever a module takes in
    or returns them. These sites are found by permuting a copy of the target and observing which activations move.
    Samples are the examples of all batches times the positions of each; correlations at several sites are added. Units
    that never change (dead units) are matched by weights.

    Args:
        spec: the architecture's spec.
        target_network: not modified; runs in evaluation mode.
        source_network: the network to permute; not modified, runs in evaluation mode.
        batches: inputs of the networks.
        forward: runs a network on a batch, as ``task.loss`` does. Default: a mapping is passed as keyword arguments, a
            tuple or list as positional arguments, as many as ``network.forward`` requires (without any labels that
            follow), anything else as the only argument.
        unseen: groups that appear at no module are matched by ``"weights"``, with all others held, or are an
            ``"error"``.
        seed: determines the order of the groups in each sweep; matters only if two groups share an axis.
        on_progress: called after every ``"sweep"``, with the objective.

    Returns:
        The permutation of the source's state dict, with the objective of ``activation_matching``.

    Raises:
        CheckpointError: a network doesn't fit the spec or has non-finite weights.
        WeightspaceError: an endpoint isn't a module, no batches, activations that aren't finite, or no group appears
            anywhere.
    """
    if unseen not in get_args(Unseen):
        raise unknown("choice for unseen groups", unseen, get_args(Unseen))
    target, source = (_state(one, end) for one, end in ((target_network, "target"), (source_network, "source")))
    check_matchable(spec, target, source)
    pairs = correlated(spec, target_network, source_network, forward or feed, batches)
    missing = _missing_groups(spec, pairs, unseen)
    generator = torch.Generator().manual_seed(seed)
    with Workers(torch.get_num_threads()) as workers:
        climb = CoordinateAscent(spec, pairs, workers, max_sweeps=_MAX_SWEEPS, on_progress=on_progress)
        identity = dict(Permutation.identity(spec).indices)
        found = climb.ascend(identity | outward_start(climb.families), generator)
        still = still_units(climb.families, found.indices)
        indices = decide_by_weights(families(spec, pair_blocks(spec, target, source)), found.indices, missing, still)
    history = (climb.objective(identity), *found.history)
    return matched(spec, target, source, Permutation(spec, indices), history, converged=found.converged)


def _network(task: Task, state: StateDict, label: str) -> nn.Module:
    """Return the task's network with these weights."""
    with torch.random.fork_rng(devices=[]):  # its random initial weights are overwritten
        network = task.network()
    check_compatible(network.state_dict(), state, names=(f"the network of {task.name}", label))
    network.load_state_dict(state)
    return network


def feed(network: nn.Module, batch: Any) -> Any:
    """Run a network on a batch; a tuple or list provides as many arguments as ``forward`` requires, at least one."""
    if isinstance(batch, Mapping):
        return network(**batch)
    if not isinstance(batch, tuple | list):
        return network(batch)
    listed = inspect.signature(network.forward).parameters.values()
    if any(one.kind is one.VAR_POSITIONAL for one in listed):
        return network(*batch)
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = sum(one.kind in positional and one.default is one.empty for one in listed)
    return network(*batch[: max(required, 1)])


def _state(network: nn.Module, end: str) -> StateDict:
    if not isinstance(network, nn.Module):
        raise WeightspaceError(
            f"The {end} is a {type(network).__name__}; expected a network with activations to compare: a module "
            "with the weights loaded."
        )
    return {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}


def _missing_groups(spec: PermutationSpec, pairs: Sequence[Pair], unseen: Unseen) -> list[str]:
    """Return the groups that appear in no pair.

    Raises:
        WeightspaceError: missing groups are an error, or all groups are missing.
    """
    seen = {group for pair in pairs for group in pair.groups if group}
    missing = [group for group in spec.groups if group not in seen]
    if missing and (unseen == "error" or len(missing) == len(spec.groups)):
        raise WeightspaceError(
            f"{len(missing)} of {len(spec.groups)} groups appear at no module's input or output, for example "
            f"{missing[0]!r}. Match them by weights (unseen='weights', or weight_matching for all groups)."
        )
    return missing


def still_units(correlations: list[Family], indices: Indices) -> dict[str, Tensor]:
    """Return the target units of each group that correlate with no source unit; any pairing of these is equally good.

    Args:
        correlations: families of the correlations; those with inner groups are skipped.
        indices: the permutations found from them.

    Returns:
        Group -> int64 indices of its units, at least two.
    """
    result = {}
    for family in correlations:
        if family.pairs and not family.inner:
            still = (family.gains((family.group,), indices).abs().amax(1) == 0).nonzero().flatten()
            if len(still) > 1:
                result[family.group] = still
    return result


def decide_by_weights(
    weights: list[Family], indices: Indices, missing: Sequence[str], still: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return permutations in which undecided parts fit the weights best, and everything else is unchanged.

    Args:
        weights: families of the weights.
        indices: permutations of all groups.
        missing: groups that are entirely undecided.
        still: group -> target units whose partners may be exchanged among each other.
    """
    known = {group: index for group, index in indices.items() if group not in missing}
    result = {**indices, **outward_start(weights, known)} if missing else dict(indices)
    for _ in range(_UNDECIDED_SWEEPS):
        moved = False
        for family in weights:
            change = _decided(family, result, missing, still)
            result, moved = {**result, **(change or {})}, moved or bool(change)
        if not moved:
            break
    return result


def _decided(family: Family, indices: Indices, missing: Sequence[str], still: Mapping[str, Tensor]) -> Indices | None:
    """Return an improvement by moving the undecided groups, or the still units, of one family."""
    if family.group in missing:
        return step(family, indices)
    if family.group in still:
        return _exchanged(family, still[family.group], indices)
    return match_inside(family, [group for group in family.inner if group in missing], indices)


def _exchanged(family: Family, units: Tensor, indices: Indices) -> Indices | None:
    """Return a permutation in which some units have exchanged partners for an improvement, or None."""
    index = indices[family.group]
    gains = family.gains((family.group,), indices)[units][:, index[units]]
    best = assign(gains)
    if float(gains.gather(1, best[:, None]).sum() - gains.trace()) <= TOLERANCE * float(gains.abs().sum()):
        return None
    exchanged = index.clone()
    exchanged[units] = index[units][best]
    return {family.group: exchanged}
