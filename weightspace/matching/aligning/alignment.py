"""Alignment of two networks by all symmetries of their architecture: in closed form, then learned if asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from weightspace.arguments import checked
from weightspace.checkpoints import StateDict
from weightspace.errors import SpecError, WeightspaceError
from weightspace.matching.aligning.closed_form import ascend
from weightspace.matching.aligning.families import families, inner_product
from weightspace.matching.aligning.on_data import by_activations, learned
from weightspace.matching.aligning.refine import Descent
from weightspace.matching.result import check_matchable, l2_reduction
from weightspace.progress import Progress
from weightspace.reprs import brief
from weightspace.suggestions import unknown
from weightspace.symmetry.kinds.canonicalise import canonicalise
from weightspace.symmetry.kinds.element import Element
from weightspace.symmetry.kinds.symmetry_spec import SymmetrySpec
from weightspace.tasks.protocol import Task

#: Closed form with streams turned by activations, closed form by weights alone, or the first one refined by descent.
AlignMethod: TypeAlias = Literal["activations", "weights", "learned"]


@brief
@dataclass(frozen=True)
class SymmetryMatching:
    """Maps that bring a source into the basin of a target, and how good they are.

    Attributes:
        element: the maps, to apply to the canonical weights of the source.
        objective: ``⟨A, g·B⟩`` of the canonical weights, initially, after the closed form, and after learning.
        l2_reduction: 1 − ‖a − g·b‖ / ‖a − b‖ of the canonical weights.
        converged: whether the closed form converged before reaching its step limit.
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
        a, b = (canonicalise(spec, state) for state in (target, source))
        moved = self.element.apply(b)
        return (
            {name: tensor.to(target[name].dtype) for name, tensor in a.items()},
            {name: tensor.to(source[name].dtype) for name, tensor in moved.items()},
        )


@checked
def align(
    spec: SymmetrySpec,
    target: StateDict,
    source: StateDict,
    *,
    task: Task | None = None,
    method: AlignMethod | None = None,
    seed: int = 0,
    max_sweeps: int = 100,
    steps: int = 250,
    learning_rate: float = 1e-2,
    by_labels: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> SymmetryMatching:
    """Bring a source into the basin of a target by all symmetries of their architecture.

    Both networks are made canonical first: norms are folded; queries and keys, values and outputs, and the linear
    branches of gated units are balanced. By ``"weights"``, each group in turn gets the map that fits the weights best,
    until nothing moves. By ``"activations"``, residual streams are turned such that what their layers read fits best on
    some training batches, all else is fitted to the weights, and the order of heads is the one whose midpoint has
    outputs nearest to those of the two networks. ``"learned"`` refines that by gradient descent: the outputs of networks
    between the two are brought nearer to the mean logits of the two. Labels are used only with ``by_labels``.

    Args:
        spec: of the architecture, from ``derive_spec(…, symmetry="full")``.
        target: the checkpoint to match; not modified.
        source: the checkpoint to move; not modified.
        task: builds the network and provides training batches; needed by all methods but ``"weights"``.
        method: by default ``"activations"`` if there is a task, otherwise ``"weights"``.
        seed: determines the order of the batches, and the positions between the networks in learning.
        max_sweeps: maximum passes over all groups, by weights.
        steps: steps of Adam, when learned.
        learning_rate: its learning rate, when learned.
        by_labels: whether to learn by the loss of the task instead.
        on_progress: called after every ``"sweep"`` (with the objective), ``"heads"`` of a layer and ``"step"`` (with
            the divergence or loss in nats).

    Raises:
        CheckpointError: a checkpoint doesn't fit the spec or the task, or has non-finite weights.
        SpecError: the spec has only permutations, or a norm of a checkpoint cannot be folded.
        WeightspaceError: unknown method, or no task for a method that needs one.
    """
    chosen = _method(method, spec, task)
    check_matchable(spec, target, source)
    a, b = (canonicalise(spec, state) for state in (target, source))
    listed = families(spec, a, b)
    pairs = {pair for family in listed for pair in family.pairs}
    values, converged = [inner_product(spec, pairs, Element.identity(spec).maps)], True
    if task is None or chosen == "weights":
        found = ascend(listed, {}, max_sweeps=max_sweeps, on_progress=on_progress)
        element, converged = Element.of(spec, found.maps), found.converged
    else:
        element = by_activations(listed, a, b, task, seed=seed, on_progress=on_progress)
    values.append(inner_product(spec, pairs, element.moves))
    if task is not None and chosen == "learned":
        descent = Descent(steps, learning_rate, by_labels=by_labels, seed=seed)
        element = learned(element, a, b, task, descent, on_progress=on_progress).compose(element)
        values.append(inner_product(spec, pairs, element.moves))
    return SymmetryMatching(element, tuple(values), l2_reduction(spec, a, b, element.apply(b)), converged)


def align_fully(
    spec: SymmetrySpec, target: StateDict, source: StateDict, *, task: Task | None = None, **options: Any
) -> SymmetryMatching:
    """Return the result of ``align``, whose options these are: learned if there is a task, otherwise by weights."""
    method: AlignMethod = "weights" if task is None else "learned"
    return align(spec, target, source, task=task, method=method, **options)


def _method(method: AlignMethod | None, spec: SymmetrySpec, task: Task | None) -> AlignMethod:
    """Return the method to use.

    Raises:
        SpecError: the spec has only permutations.
        WeightspaceError: unknown method, or no task for a method that needs one.
    """
    if not isinstance(spec, SymmetrySpec):
        raise SpecError(
            f"The spec is a {type(spec).__name__}; alignment needs all symmetries: derive_spec(…, symmetry='full')."
        )
    chosen = method or ("weights" if task is None else "activations")
    if chosen not in get_args(AlignMethod):
        raise unknown("method of alignment", chosen, get_args(AlignMethod))
    if task is None and chosen != "weights":
        raise WeightspaceError(f"SymmetryMatching by {chosen!r} uses data: give it the task of the networks (--task).")
    return chosen
