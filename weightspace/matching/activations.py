"""Activation matching: pair the units of two networks that respond alike to the same inputs.

The correlations take the place of the weights: for each place where a group appears, the correlation of every unit of
the target with every unit of the source is the gain of pairing them, and an ascent does the rest.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import nn

from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.matching.ascent import Climb, Sweep, Workers
from weightspace.matching.correlations import correlated
from weightspace.matching.families import Pair, families, pair_blocks
from weightspace.matching.matching import Matching, check_matchable, matched
from weightspace.matching.outward import outward_start
from weightspace.matching.undecided import decide_by_weights, still_units
from weightspace.suggestions import unknown
from weightspace.symmetry import Permutation, PermutationSpec

#: What becomes of groups whose units no module takes or gives: matched by weights, or an error.
Unseen: TypeAlias = Literal["weights", "error"]

_MAX_SWEEPS = 100


def activation_matching(
    spec: PermutationSpec,
    target_network: nn.Module,
    source_network: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    unseen: Unseen = "weights",
    seed: int = 0,
    on_sweep: Callable[[Sweep], None] | None = None,
) -> Matching:
    """Permute a source towards a target by the correlation of their activations.

    A group is looked at where a layer reads its units, after the nonlinearity before it: at the inputs of modules with
    a matrix. Groups that nothing reads so (queries and keys) are looked at wherever a module takes or gives them. The
    places are found by permuting a copy of the target and seeing what moves. Samples are the examples of all batches
    times the positions of each; correlations at several places are added. Among units that never change (dead ones)
    the weights decide.

    Args:
        spec: the architecture's spec.
        target_network: stays as it is; runs in evaluation mode.
        source_network: the network to permute; not changed, runs in evaluation mode.
        batches: what the networks are fed.
        forward: runs a network on a batch, as ``task.loss`` does. Default: a mapping is given by keywords, a tuple or
            list in its order, as many of it as ``network.forward`` requires (the labels that may follow are left
            out), anything else as the only argument.
        unseen: groups that appear at no module's input or output are matched by ``"weights"``, all others held, or
            are an ``"error"``.
        seed: order of the groups in each sweep; matters only where two groups share an axis.
        on_sweep: told of every sweep over the correlations.

    Returns:
        The permutation of the source's state dict. The objective is the sum of the correlations of paired units over
        all places, as the source came and after every sweep.

    Raises:
        CheckpointError: a network does not fit the spec or holds non-finite weights.
        WeightspaceError: an end is no module, there are no batches, activations are not finite, or no group appears
            anywhere.

    Source:
        Li et al. 2016, https://arxiv.org/abs/1511.07543; as a matching for merging Ainsworth et al. 2023,
        https://arxiv.org/abs/2209.04836, section 3.1.

    Example:
        >>> import weightspace as ws
        >>> task = ws.load_task("digits-mlp")
        >>> a, b = (ws.train(task, seed, epochs=1) for seed in (0, 1))
        >>> spec = ws.derive_spec(task.network(), task.example_args)
        >>> networks = [task.network(), task.network()]
        >>> for network, state in zip(networks, (a, b), strict=True):
        ...     _ = network.load_state_dict(state)
        >>> matching = ws.activation_matching(spec, *networks, task.batches("train", 0))
        >>> aligned = ws.permute(spec, matching.permutation, b)
    """
    if unseen not in get_args(Unseen):
        raise unknown("choice for unseen groups", unseen, get_args(Unseen))
    target, source = (_state(one, end) for one, end in ((target_network, "target"), (source_network, "source")))
    check_matchable(spec, target, source)
    pairs = correlated(spec, target_network, source_network, forward or feed, batches)
    missing = _missing_groups(spec, pairs, unseen)
    generator = torch.Generator().manual_seed(seed)
    with Workers(torch.get_num_threads()) as workers:
        climb = Climb(spec, pairs, workers, max_sweeps=_MAX_SWEEPS, on_sweep=on_sweep)
        identity = dict(Permutation.identity(spec).indices)
        found = climb.ascend(identity | outward_start(climb.families), generator)
        still = still_units(climb.families, found.indices)
        indices = decide_by_weights(families(spec, pair_blocks(spec, target, source)), found.indices, missing, still)
    history = (climb.objective(identity), *found.history)
    return matched(spec, target, source, Permutation(spec, indices), history, converged=found.converged)


def feed(network: nn.Module, batch: Any) -> Any:
    """Run a network on a batch; of a tuple or list it gets as many as its ``forward`` requires, at least one."""
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
            f"The {end} is a {type(network).__name__}; expected a network, whose activations are looked at: a module "
            "that the weights were loaded into."
        )
    return {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}


def _missing_groups(spec: PermutationSpec, pairs: Sequence[Pair], unseen: Unseen) -> list[str]:
    """Return the groups that appear in no pair.

    Raises:
        WeightspaceError: they are an error, or all of them are missing.
    """
    seen = {group for pair in pairs for group in pair.groups if group}
    missing = [group for group in spec.groups if group not in seen]
    if missing and (unseen == "error" or len(missing) == len(spec.groups)):
        raise WeightspaceError(
            f"{len(missing)} of {len(spec.groups)} groups appear at no module's input or output, the first is "
            f"{missing[0]!r}. Match them by weights (unseen='weights', or weight_matching for all)."
        )
    return missing
