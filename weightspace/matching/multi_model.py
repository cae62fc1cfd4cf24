"""The result of matching several networks: one permutation per model, and their mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from weightspace.arithmetic.dtypes import compute_dtype
from weightspace.arithmetic.integers import unaveraged
from weightspace.arithmetic.mean import mean, mean_of_tensors
from weightspace.arithmetic.tied_tensors import by_name
from weightspace.checkpoints import StateDict, check_compatible, check_finite
from weightspace.checkpoints.measure import is_inexact
from weightspace.errors import WeightspaceError
from weightspace.lora.factor_files import check_is_model
from weightspace.matching.gains import pair_blocks
from weightspace.matching.weight_matching import match_weights
from weightspace.progress import Progress
from weightspace.reprs import brief
from weightspace.symmetry import Permutation, PermutationSpec, check_fits, permute


@brief
@dataclass(frozen=True)
class ManyMatching:
    """Permutations that bring several models into one basin, and the mean of the permuted models.

    The shared order of units (the universe) is that of the first model, whose permutation is the identity: permuting
    the units of all models alike changes nothing, so one model can stay fixed.

    Attributes:
        permutations: one per model, in the order of the models, each into the shared order of units.
        merged: the mean of the permuted models; it includes BatchNorm's running statistics, which should be recomputed.
        objective: the quantity that the method maximises, initially and then after every sweep or trial; it never
            decreases. See the method for its definition.
    """

    permutations: tuple[Permutation, ...]
    merged: StateDict
    objective: tuple[float, ...]

    def between(self, target: int, source: int) -> Permutation:
        """Return the permutation from one model to another: into the shared order and out of it again.

        It is independent of the path: ``between(a, b).compose(between(b, c))`` equals ``between(a, c)``, and a cycle
        gives the identity.

        Args:
            target: index of the fixed model, counted from 0.
            source: index of the model to permute.
        """
        return self.permutations[target].inverse().compose(self.permutations[source])


class ModelSet:
    """Models, their current permutations, and the objective.

    Args:
        spec: the architecture's spec.
        states: at least two models; not modified.

    Attributes:
        wide: the original models in main memory, in at least float32.
        permutations: one per model, relative to the original tensors.
        moved: the permuted tensors of ``wide``.
        objective: Σ_{i<j} ⟨π_i θ_i, π_j θ_j⟩ over the parameters permuted by the spec, in float64.

    Raises:
        CheckpointError: a model doesn't fit the spec or the first model, or has non-finite weights.
        WeightspaceError: there are fewer than two models, or their integer tensors differ.
    """

    def __init__(self, spec: PermutationSpec, states: Sequence[StateDict]) -> None:
        _check(spec, states)
        self.spec = spec
        self.states = tuple(states)
        wide = {name: compute_dtype(s[name].dtype for s in states) for name, t in states[0].items() if is_inexact(t)}
        self.wide = [
            by_name([state], lambda name, one: one[0].detach().to("cpu", wide.get(name, one[0].dtype)))
            for state in states
        ]
        self._norms = math.fsum(self._square([state]) for state in self.wide)
        self.place([Permutation.identity(spec)] * len(states))

    def place(self, permutations: Sequence[Permutation]) -> None:
        """Set every model's permutation, relative to the original tensors."""
        self.permutations = list(permutations)
        self.moved = [permute(self.spec, one, state) for one, state in zip(permutations, self.wide, strict=True)]
        self.objective = self._objective()
        self._had_turn: set[int] = set()

    def turn(self, index: int, seed: int) -> bool:
        """Match a model to the mean of the others; return whether it moved, which it does only to raise the objective.

        A model's first turn starts from the better of its current permutation and a fresh start, later ones from the
        current permutation, since the others have hardly moved.
        """
        before = self.permutations[index], self.moved[index], self.objective
        target = mean_of_tensors([state for other, state in enumerate(self.moved) if other != index])
        start = Permutation.identity(self.spec) if index in self._had_turn else None
        self._had_turn.add(index)
        change = match_weights(self.spec, target, self.moved[index], seed=seed, start=start).permutation
        self.permutations[index] = change.compose(self.permutations[index])
        self.moved[index] = permute(self.spec, change, self.moved[index])
        self.objective = self._objective()
        if self.objective > before[2]:
            return True
        self.permutations[index], self.moved[index], self.objective = before
        return False

    def settle(
        self, generator: Generator, max_sweeps: int, on_progress: Callable[[Progress], None] | None
    ) -> list[float]:
        """Let the models take turns in random order until none moves; return the objective after every sweep."""
        history: list[float] = []
        for number in range(1, max_sweeps + 1):
            order = torch.randperm(len(self.states), generator=generator).tolist()
            seeds = torch.randint(2**31, (len(order),), generator=generator).tolist()
            moved = sum([self.turn(index, seed) for index, seed in zip(order, seeds, strict=True)])
            history.append(self.objective)
            if on_progress is not None:
                on_progress(Progress("sweep", number, value=self.objective, details={"moved": moved}))
            if not moved:
                break
        return history

    def result(self, objective: Sequence[float]) -> ManyMatching:
        """Return the permutations relative to the first model, and the mean of the permuted models."""
        back = self.permutations[0].inverse()
        permutations = tuple(back.compose(permutation) for permutation in self.permutations)
        moved = [permute(self.spec, p, state) for p, state in zip(permutations, self.states, strict=True)]
        return ManyMatching(permutations, mean(moved), tuple(objective))

    def _objective(self) -> float:
        return (self._square(self.moved) - self._norms) / 2  # ‖Σ θ_i‖² = Σ ‖θ_i‖² + 2 Σ_{i<j} ⟨θ_i, θ_j⟩

    def _square(self, states: Sequence[StateDict]) -> float:
        """Return ‖Σ θ_i‖² over the parameters permuted by the spec."""
        total = by_name(states, _sum)
        return math.fsum(pair.inner_product({}, self.spec.outer) for pair in pair_blocks(self.spec, total, total))


def _sum(_: str, tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors]).sum(0)


def _check(spec: PermutationSpec, states: Sequence[StateDict]) -> None:
    if len(states) < 2:
        raise WeightspaceError(f"Expected at least two models to bring into one basin; found {len(states)}.")
    for number, state in enumerate(states, start=1):
        check_is_model(state, f"model {number}")
        check_fits(spec, state, f"Model {number}")
        check_compatible(states[0], state, names=("model 1", f"model {number}"))
        weights = {name: state[name] for name in spec.axes if name not in spec.statistics}
        check_finite(weights, f"Model {number}")
    for name, tensor in states[0].items():
        if not is_inexact(tensor):
            unaveraged(name, [state[name] for state in states])
