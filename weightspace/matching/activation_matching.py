"""Activation matching: pair the units of two networks that respond alike to the same inputs.

The correlations take the place of the weights: for each place where a group appears, the correlation of every unit of
the target with every unit of the source is the gain of pairing them, and an ascent does the rest.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.matching.activation_sites import Forward, Place, Recorder, places_of
from weightspace.matching.coordinate_ascent import (
    TOLERANCE,
    CoordinateAscent,
    Sweep,
    Workers,
    assign,
    match_inside,
    step,
)
from weightspace.matching.gains import Family, Indices, Pair, families, pair_blocks
from weightspace.matching.result import Matching, check_matchable, matched
from weightspace.matching.weight_matching import outward_start
from weightspace.suggestions import unknown
from weightspace.symmetry import Permutation, PermutationSpec
from weightspace.symmetry.pattern import Block, Fixed, Units

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
        climb = CoordinateAscent(spec, pairs, workers, max_sweeps=_MAX_SWEEPS, on_sweep=on_sweep)
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


# --- Match unobserved groups and dead units by weights ---


_UNDECIDED_SWEEPS = 100


def still_units(correlations: list[Family], indices: Indices) -> dict[str, Tensor]:
    """Return the target units of each group that are correlated with none; any pairing of these is as good.

    Args:
        correlations: families of the correlations; those with inner groups are passed over.
        indices: the permutations found from them.

    Returns:
        Group -> int64 numbers of its units, two or more.
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
    """Return permutations in which what is open fits the weights best, and all else is as it was.

    Args:
        weights: families of the weights.
        indices: permutations of all groups.
        missing: groups that are open as a whole.
        still: group -> target units whose partners may be exchanged among them.
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
    """Return what improves if the open groups, or the still units, of one family move."""
    if family.group in missing:
        return step(family, indices)
    if family.group in still:
        return _exchanged(family, still[family.group], indices)
    return match_inside(family, [group for group in family.inner if group in missing], indices)


def _exchanged(family: Family, units: Tensor, indices: Indices) -> Indices | None:
    """Return a permutation in which some units have exchanged their partners for the better, or None."""
    index = indices[family.group]
    gains = family.gains((family.group,), indices)[units][:, index[units]]
    best = assign(gains)
    if float(gains.gather(1, best[:, None]).sum() - gains.trace()) <= TOLERANCE * float(gains.abs().sum()):
        return None
    exchanged = index.clone()
    exchanged[units] = index[units][best]
    return {family.group: exchanged}


# --- The correlations of two networks' units, in the form in which weights are matched ---


def correlated(
    spec: PermutationSpec, target: nn.Module, source: nn.Module, forward: Forward, batches: Iterable[Any]
) -> list[Pair]:
    """Return a pair of blocks for every part of every place where units appear.

    The inner product of a pair under some permutations is the sum of the correlations of the units that they pair.

    Args:
        spec: the architecture's spec.
        target: the network that stays.
        source: the network to permute.
        forward: runs a network on a batch.
        batches: what the networks are fed.

    Raises:
        WeightspaceError: there are no batches, or activations are not finite.
    """
    places: list[Place] | None = None
    parts: dict[tuple[Place, int], _Part] = {}
    for batch in batches:
        if places is None:
            places = places_of(spec, target, forward, batch)
        taps = {place.tap for place in places}
        a, b = (Recorder(network, taps).run(forward, batch) for network in (target, source))
        for place in places:
            for label, tensor in (("target", a[place.tap]), ("source", b[place.tap])):
                if not bool(tensor.isfinite().all()):
                    raise WeightspaceError(f"The {label}'s activations at {place.tap.module!r} are not finite.")
            ends = (place.blocks(spec, tensors[place.tap]) for tensors in (a, b))
            for number, (one, other) in enumerate(zip(*ends, strict=True)):
                if any(isinstance(dim, Units) for dim in one.dims):
                    parts.setdefault((place, number), _Part(one)).add(one.view, other.view)
    if places is None:
        raise WeightspaceError("Found no batches to compare activations on; expected inputs of the networks.")
    return [part.pair() for part in parts.values()]


class _Part:
    """A part of a place in which every dimension is one group, or one of samples."""

    def __init__(self, block: Block) -> None:
        self.places = [place for place, dim in enumerate(block.dims) if isinstance(dim, Units)]
        self.units = tuple(dim for dim in block.dims if isinstance(dim, Units))
        self.sizes = [block.view.shape[place] for place in self.places]
        self.moments = Moments(math.prod(self.sizes), math.prod(self.sizes))

    def add(self, a: Tensor, b: Tensor) -> None:
        """Take in the activations of both networks."""
        self.moments.add(self._rows(a), self._rows(b))

    def _rows(self, view: Tensor) -> Tensor:
        """Return ``(samples, units)``; a fixed part beside the units, as positions are, is one of samples."""
        rest = [dim for dim in range(view.ndim) if dim not in self.places]
        return view.permute(*rest, *self.places).reshape(-1, math.prod(self.sizes))

    def pair(self) -> Pair:
        """Return ones at every unit of the target, beside the correlations of all units of the source with it."""
        count = math.prod(self.sizes)
        source = Block(self.moments.correlation().view(count, *self.sizes), (Fixed(count), *self.units))
        return Pair(torch.eye(count).view(count, *self.sizes), source, (None, *(unit.group for unit in self.units)))


# --- Correlations of the units of two networks, gathered batch by batch ---


#: A unit whose standard deviation is a smaller share of its mean than this says nothing but rounding.
_STILL = 1e-6


class Moments:
    """Means, squares and products of two sets of units over all samples so far, in float64.

    Batches are merged by their centred moments, so that a large mean costs no precision.

    Source:
        Chan, Golub and LeVeque 1983, https://doi.org/10.1080/00031305.1983.10483115.
    """

    def __init__(self, a_units: int, b_units: int) -> None:
        self.count = 0
        self.means = [torch.zeros(units, dtype=torch.float64) for units in (a_units, b_units)]
        self.squares = [torch.zeros(units, dtype=torch.float64) for units in (a_units, b_units)]
        self.products = torch.zeros(a_units, b_units, dtype=torch.float64)

    def add(self, a: Tensor, b: Tensor) -> None:
        """Take in samples.

        Args:
            a: ``(samples, units)`` of the first network.
            b: ``(samples, units)`` of the second, of the same samples.
        """
        new = len(a)
        if not new:
            return
        share = self.count * new / (self.count + new)
        centred, shifts = [], []
        for side, values in enumerate((a.to("cpu", torch.float64), b.to("cpu", torch.float64))):
            mean = values.mean(0)
            centred.append(values - mean)
            shifts.append(mean - self.means[side])
            self.squares[side] += centred[side].square().sum(0) + share * shifts[side].square()
            self.means[side] += shifts[side] * (new / (self.count + new))
        self.products += centred[0].T @ centred[1] + share * torch.outer(*shifts)
        self.count += new

    def correlation(self) -> Tensor:
        """Return the correlation of every unit with every other; 0 for units that never change.

        Returns:
            float32 ``(a units, b units)``, between -1 and 1.
        """
        scales = []
        for mean, square in zip(self.means, self.squares, strict=True):
            alive = square > self.count * (_STILL * mean).square()
            scales.append(torch.where(alive, square.clamp_min(1e-300).rsqrt(), 0.0))
        return (scales[0][:, None] * self.products * scales[1]).float()
