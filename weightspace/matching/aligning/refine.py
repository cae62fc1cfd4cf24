"""Refinement of an alignment by gradient descent on the loss between the two networks.

Streams and heads are turned further by the exponentials of skew matrices. Units are assigned by the scores of all
pairs, and gradients go straight through the assignment. The order of heads is held. Only the source moves: the action
is linear, so moving both networks reaches nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softmax

from weightspace.checkpoints import StateDict
from weightspace.matching.aligning.best_maps import as_matrices
from weightspace.matching.aligning.midpoint import Forward, divergence, logits_of
from weightspace.matching.assignment import assign
from weightspace.progress import Progress
from weightspace.symmetry.kinds.action import Maps, act_on
from weightspace.symmetry.kinds.element import Element
from weightspace.symmetry.kinds.symmetry_spec import SymmetrySpec

_BETAS = (0.9, 0.99)
_WARM_UP = 20
#: Range of the positions λ at which the loss is taken.
_POSITIONS = (0.4, 0.6)


@dataclass(frozen=True)
class Descent:
    """Options of the refinement.

    Attributes:
        steps: of Adam.
        learning_rate: its largest, after 20 steps of warm-up; it then falls linearly to zero.
        by_labels: whether to take the loss of the task; by default the divergence from the parents' mean logits.
        seed: of the positions.
    """

    steps: int = 250
    learning_rate: float = 1e-2
    by_labels: bool = False
    seed: int = 0


def refine(
    spec: SymmetrySpec,
    network: nn.Module,
    target: StateDict,
    source: StateDict,
    batches: Iterable[Any],
    forward: Forward,
    options: Descent,
    *,
    on_progress: Callable[[Progress], None] | None = None,
) -> Element:
    """Return the element that moves an aligned source further.

    Args:
        spec: of the architecture.
        network: any network of the architecture; not modified.
        target: canonical weights.
        source: canonical weights, already moved by the closed form.
        batches: at least one for every step.
        forward: runs a network on a batch, and returns the loss.
        options: of the descent.
        on_progress: called after every ``"step"``, with the loss in nats.
    """
    learned_maps = _LearnedMaps(spec).to(next(network.parameters()).device)
    if not learned_maps.learned:
        return Element.identity(spec)
    optimizer = torch.optim.Adam(learned_maps.parameters(), lr=options.learning_rate, betas=_BETAS)
    generator = torch.Generator().manual_seed(options.seed)
    ends = [_as_in(network, state) for state in (target, source)]
    for step, batch in zip(range(options.steps), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * _schedule(step, options.steps)
        position = _POSITIONS[0] + (_POSITIONS[1] - _POSITIONS[0]) * float(torch.rand((), generator=generator))
        mixed = _mixed(spec, learned_maps.matrices(), ends, position)
        loss = _loss(network, ends, mixed, batch, forward, by_labels=options.by_labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if on_progress is not None:
            on_progress(Progress("step", step + 1, options.steps, float(loss.detach())))
    return Element(spec, learned_maps.maps())


def _mixed(spec: SymmetrySpec, matrices: Maps, ends: Sequence[StateDict], position: float) -> StateDict:
    """Return weights between the target and the moved source; statistics without gradients."""
    mixed: StateDict = {}
    for name, one in ends[0].items():
        if not one.is_floating_point():
            mixed[name] = one
            continue
        mixed[name] = torch.lerp(one, act_on(spec, matrices, name, ends[1][name]), position)
        if name in spec.statistics:
            mixed[name] = mixed[name].detach()
    return mixed


def _schedule(step: int, steps: int) -> float:
    """Return the part of the learning rate at a step."""
    if step < _WARM_UP:
        return (step + 1) / _WARM_UP
    return (steps - step) / max(steps - _WARM_UP, 1)


def _as_in(network: nn.Module, state: StateDict) -> StateDict:
    """Return weights in the precision and on the device of a network."""
    return {name: state[name].to(tensor) for name, tensor in network.state_dict().items()}


def _loss(
    network: nn.Module,
    ends: Iterable[StateDict],
    mixed: StateDict,
    batch: Any,
    forward: Forward,
    *,
    by_labels: bool,
) -> Tensor:
    """Return the loss of mixed weights on a batch."""
    run = _Functional(network, mixed)
    if by_labels:
        return forward(run, batch)
    with torch.no_grad():
        parents = [logits_of(_Functional(network, end), forward, batch) for end in ends]
        targets = softmax(sum(parents) / 2, dim=-1)  # type: ignore[arg-type]
    return divergence(targets, logits_of(run, forward, batch))


class _Functional(nn.Module):
    """A network that runs with other weights."""

    def __init__(self, network: nn.Module, state: StateDict) -> None:
        super().__init__()
        self.network, self.state = [network], state
        self.eval()

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:  # type: ignore[override]
        return self.network[0].parameters(recurse)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self.network[0], self.state, args, kwargs)


class _LearnedMaps(nn.Module):
    """Maps of all groups that start at the identity and can be learned; the order of heads cannot.

    Args:
        spec: of the architecture.
    """

    def __init__(self, spec: SymmetrySpec) -> None:
        super().__init__()
        self.kinds = spec.kinds
        self.still = {group: maps for group, maps in Element.identity(spec).maps.items() if _is_held(spec, group)}
        self.learned = [group for group in spec.groups if group not in self.still]
        self.fixes_ones = spec.fixes_ones
        identity = Element.identity(spec).maps
        starts = (_start(spec.kinds[group], identity[group]).float() for group in self.learned)
        self.values = nn.ParameterList(nn.Parameter(start) for start in starts)

    def matrices(self) -> dict[str, Tensor]:
        """Return the maps as matrices, through which gradients go."""
        return self.still | {group: self._matrix(group, value) for group, value in self._named()}

    def maps(self) -> dict[str, Tensor]:
        """Return the maps in float64."""
        with torch.no_grad():
            return self.still | {group: self._map(group, value.double().cpu()) for group, value in self._named()}

    def _named(self) -> Iterable[tuple[str, Tensor]]:
        return zip(self.learned, self.values, strict=True)

    def _map(self, group: str, value: Tensor) -> Tensor:
        if self.kinds[group] == "phases":
            return value
        if self.kinds[group] in ("permutation", "signed"):
            return assign(value)
        return _exponential(value, fixes_ones=group in self.fixes_ones)

    def _matrix(self, group: str, value: Tensor) -> Tensor:
        maps = self._map(group, value)
        if self.kinds[group] in ("orthogonal", "phases"):
            return as_matrices(self.kinds[group], maps)
        return as_matrices("permutation", maps).to(value) + value - value.detach()


def _is_held(spec: SymmetrySpec, group: str) -> bool:
    """Return whether the order of a group is held: it has groups inside it, or is inside another one."""
    return spec.kinds[group] in ("permutation", "signed") and (group in spec.outer or group in spec.outer.values())


def _start(kind: str, identity: Tensor) -> Tensor:
    """Return the parameters of the identity."""
    if kind in ("permutation", "signed"):
        return torch.eye(identity.shape[-1])
    return torch.zeros_like(identity)


def _exponential(value: Tensor, *, fixes_ones: bool) -> Tensor:
    """Return the rotation of a skew matrix."""
    skew = value - value.mT
    if fixes_ones:
        skew = skew - skew.mean(-1, keepdim=True)
        skew = skew - skew.mean(-2, keepdim=True)
    return torch.linalg.matrix_exp(skew)
