"""The result of matching two networks: a permutation of the source, and its objective."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from weightspace.checkpoints import StateDict, check_compatible, check_finite
from weightspace.errors import SpecError
from weightspace.reprs import brief
from weightspace.symmetry import Permutation, PermutationSpec, SymmetrySpec, check_fits, check_named_tensors, permute


@brief
@dataclass(frozen=True)
class Matching:
    """A permutation of the source, and how good it is.

    Attributes:
        permutation: the permutation to apply to the source: ``permute(spec, matching.permutation, source)``.
        objective: the quantity that the method optimises, initially and then after every sweep or trial; see the method
            for its definition. For weight matching, Σ⟨target, π(source)⟩ over the parameters permuted by the spec,
            after every sweep; it never decreases.
        l2_reduction: 1 − ‖a − π(b)‖ / ‖a − b‖ over all parameters, excluding statistics; 0 for equal networks.
        converged: whether the method converged before reaching its step limit.

    Example:
        >>> import weightspace as ws
        >>> task = ws.load_task("digits-mlp")
        >>> a, b = (ws.train(task, seed, epochs=1) for seed in (0, 1))
        >>> spec = ws.derive_spec(task.network(), task.example_args)
        >>> matching = ws.weight_matching(spec, a, b, seed=0)
        >>> matching.converged, matching.objective[-1] > matching.objective[0], matching.l2_reduction > 0
        (True, True, True)
    """

    permutation: Permutation
    objective: tuple[float, ...]
    l2_reduction: float
    converged: bool

    def apply(self, target: StateDict, source: StateDict) -> tuple[StateDict, StateDict]:
        """Return the target as it is, and the permuted source."""
        return target, permute(self.permutation.spec, self.permutation, source)

    def save(self, path: str | Path) -> None:
        """Write the permutation, as ``Permutation.save``."""
        self.permutation.save(path)


def l2_reduction(
    spec: PermutationSpec | SymmetrySpec,
    target: Mapping[str, Tensor],
    source: Mapping[str, Tensor],
    permuted: Mapping[str, Tensor],
) -> float:
    """Return 1 − ‖a − π(b)‖ / ‖a − b‖ over the parameters; 0 if the networks were equal initially.

    Args:
        spec: of the architecture.
        target: ``a``.
        source: ``b``.
        permuted: ``π(b)``.
    """
    squares: list[tuple[float, float]] = []
    for name in target:  # values may be computed on access
        if name in spec.axes and name not in spec.statistics and target[name].is_floating_point():
            a = target[name].cpu().double()
            squares.append((_squared(a, source[name]), _squared(a, permuted[name])))
    before, after = (math.sqrt(math.fsum(listed)) for listed in zip(*squares, strict=True)) if squares else (0, 0)
    return 1 - after / before if before else 0.0


def _squared(a: Tensor, b: Tensor) -> float:
    """Return the squared distance of two tensors."""
    return float((a - b.cpu().double()).square_().sum())


def matched(
    spec: PermutationSpec,
    target: StateDict,
    source: StateDict,
    permutation: Permutation,
    objective: tuple[float, ...],
    *,
    converged: bool,
) -> Matching:
    """Return a matching, including its reduction of the distance."""
    reduction = l2_reduction(spec, target, source, permute(spec, permutation, source))
    return Matching(permutation, objective, reduction, converged)


def check_matchable(
    spec: PermutationSpec | SymmetrySpec, target: StateDict, source: StateDict, start: Permutation | None = None
) -> None:
    """Check the requirements of all matching methods.

    Raises:
        CheckpointError: an input isn't a checkpoint, doesn't fit the spec or has non-finite weights.
        SpecError: the start belongs to another spec.
    """
    for label, state in (("The target", target), ("The source", source)):
        check_named_tensors(state, label)
    check_compatible(target, source, names=("the target", "the source"))
    for label, state in (("The target", target), ("The source", source)):
        check_fits(spec, state, label)
    for label, state in (("The target", target), ("The source", source)):
        check_finite({name: state[name] for name in spec.axes if name not in spec.statistics}, label)
    if start is not None and start.spec.digest != spec.digest:
        raise SpecError("The permutation to start from belongs to another spec.")
