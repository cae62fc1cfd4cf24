"""Alignment of two networks by all symmetries of their architecture: in closed form, then learned if asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from torch import Tensor

from weightspace.arguments import checked
from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.matching.aligning.closed_form import ascend
from weightspace.matching.aligning.inner_products import families
from weightspace.matching.aligning.on_data import align_on_data
from weightspace.matching.aligning.refine import Descent
from weightspace.matching.result import check_matchable, l2_reduction
from weightspace.progress import Progress
from weightspace.reprs import brief
from weightspace.suggestions import unknown
from weightspace.symmetry.kinds.canonical_weights import CanonicalWeights
from weightspace.symmetry.kinds.canonicalise import canonicalise
from weightspace.symmetry.kinds.element import Element
from weightspace.symmetry.kinds.symmetry_spec import SymmetrySpec
from weightspace.symmetry.permutation import check_fits, experts_for
from weightspace.tasks.protocol import Task

#: Closed form with streams turned by activations, closed form by weights alone, or the first one refined by descent.
AlignMethod: TypeAlias = Literal["activations", "weights", "learned"]

#: Maximum number of bytes of canonical weights that are kept per network; the others are recomputed at each use.
_KEPT = 2**31


@brief
@dataclass(frozen=True)
class SymmetryMatching:
    """Maps that bring a source into the basin of a target, and how good they are.

    Attributes:
        element: the maps, to apply to the canonical weights of the source.
        objective: by weights, ``⟨A, g·B⟩`` of the canonical weights, initially and after every sweep; it never
            decreases. On data, the divergence of the midpoint's outputs from the mean logits of the two networks, in
            nats, initially, after the closed form, and after learning; it never increases.
        l2_reduction: 1 − ‖a − g·b‖ / ‖a − b‖ of the canonical weights.
        converged: whether the closed form converged before reaching its step limit.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> spec = ws.derive_spec(network, (torch.randn(3, 4),), symmetry="full")  # orders and signs of the units
        >>> a = network.state_dict()
        >>> b = {name: torch.randn_like(tensor) for name, tensor in a.items()}
        >>> matching = ws.align(spec, a, b)
        >>> target, source = matching.apply(a, b)  # float32, like the given ones
        >>> matching.save("b_to_a.safetensors")
        >>> element = ws.Element.load("b_to_a.safetensors", spec)
        >>> torch.equal(element.signs["layer.0"], matching.element.signs["layer.0"])
        True
    """

    element: Element
    objective: tuple[float, ...]
    l2_reduction: float
    converged: bool

    def save(self, path: str | Path) -> None:
        """Write the element, as ``Element.save``."""
        self.element.save(path)

    def apply(self, target: StateDict, source: StateDict) -> tuple[StateDict, StateDict]:
        """Return the canonical weights of the target, and those of the source moved to it; their functions stay.

        Args:
            target: the network that was the target.
            source: the network that was the source.

        Returns:
            New tensors of the dtypes of the given ones.
        """
        spec = self.element.spec
        layouts = [experts_for(spec, state) for state in (target, source)]
        target, source = (layout.stacked(state) for layout, state in zip(layouts, (target, source), strict=True))
        check_fits(spec, target)
        check_fits(spec, source)
        a, b = (CanonicalWeights(spec, state.__getitem__) for state in (target, source))
        moved = _in_dtypes_of(target, a), _in_dtypes_of(source, self.element.applied(b))
        return layouts[0].separate(moved[0]), layouts[1].separate(moved[1])


@checked
def align(
    spec: SymmetrySpec,
    target: StateDict,
    source: StateDict,
    *,
    task: Task | None = None,
    seed: int = 0,
    method: AlignMethod | None = None,
    max_sweeps: int = 100,
    steps: int = 250,
    learning_rate: float = 1e-2,
    by_labels: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> SymmetryMatching:
    """Bring a source into the basin of a target by all symmetries of their architecture.

    Both networks are made canonical first. By ``"weights"``, each group in turn gets the map that fits the weights
    best, until nothing moves. By ``"activations"``, what layers read from the streams is fitted on some training
    batches, all else to the weights, and heads take the order whose midpoint has outputs nearest to those of the two
    networks. ``"learned"`` refines that by gradient descent towards their mean logits, without labels.

    Args:
        spec: of the architecture, from ``derive_spec(…, symmetry="full")``.
        target: the checkpoint to match; not modified.
        source: the checkpoint to move; not modified.
        task: builds the network and provides training batches; needed by all methods but ``"weights"``.
        seed: determines the order of the batches, and the positions between the networks in learning.
        method: by default ``"activations"`` if there is a task, otherwise ``"weights"``.
        max_sweeps: maximum passes over all groups, by weights, after a first pass outward from the fixed units.
        steps: steps of Adam, when learned.
        learning_rate: its learning rate, when learned.
        by_labels: whether to learn by the loss of the task instead.
        on_progress: called after every ``"sweep"``, ``"heads"`` of a layer and ``"step"``, with the objective.

    Raises:
        CheckpointError: a checkpoint doesn't fit the spec or the task, or has non-finite weights.
        SpecError: the spec has only permutations, or a norm of a checkpoint cannot be folded.
        WeightspaceError: unknown method, or no task for a method that needs one.

    Source:
        Theus et al. 2025, https://arxiv.org/abs/2506.22712, for the symmetries; here in the original architecture.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2))
        >>> spec = ws.derive_spec(network, (torch.randn(3, 4),), symmetry="full")
        >>> a = ws.canonicalise(spec, network.state_dict())
        >>> b = ws.Element.random(spec, seed=0).apply(a)  # the same function with other weights
        >>> ws.align(spec, a, b).l2_reduction > 0.999
        True
    """
    chosen = _method(method, task)
    check_matchable(spec, target, source)
    if task is None or chosen == "weights":
        return _by_weights(spec, target, source, max_sweeps, on_progress)
    a, b = (canonicalise(spec, state) for state in (target, source))
    descent = Descent(steps, learning_rate, by_labels=by_labels, seed=seed) if chosen == "learned" else None
    element, history = align_on_data(spec, a, b, task, seed=seed, descent=descent, on_progress=on_progress)
    return SymmetryMatching(element, tuple(history), l2_reduction(spec, a, b, element.apply(b)), converged=True)


def _by_weights(
    spec: SymmetrySpec,
    target: StateDict,
    source: StateDict,
    max_sweeps: int,
    on_progress: Callable[[Progress], None] | None,
) -> SymmetryMatching:
    """Return the alignment by the inner product of canonical weights."""
    a, b = (CanonicalWeights(spec, state.__getitem__, keep=_KEPT) for state in (target, source))
    ascent = ascend(families(spec, a, b), {}, max_sweeps=max_sweeps, on_progress=on_progress)
    element = Element.of(spec, ascent.maps)
    reduction = l2_reduction(spec, a, b, element.applied(b))
    return SymmetryMatching(element, ascent.objective, reduction, ascent.converged)


def _in_dtypes_of(given: StateDict, weights: Mapping[str, Tensor]) -> StateDict:
    """Return weights in the dtypes and order of a state dict, holding only a few in float64 at a time."""
    converted = {name: tensor.to(given[name].dtype) for name, tensor in weights.items()}
    return {name: converted[name] for name in given}


def _method(method: AlignMethod | None, task: Task | None) -> AlignMethod:
    """Return the method to use.

    Raises:
        WeightspaceError: unknown method, or no task for a method that needs one.
    """
    chosen = method or ("weights" if task is None else "activations")
    if chosen not in get_args(AlignMethod):
        raise unknown("method of alignment", chosen, get_args(AlignMethod))
    if task is None and chosen != "weights":
        raise WeightspaceError(f"SymmetryMatching by {chosen!r} uses data: give it the task of the networks (--task).")
    return chosen
