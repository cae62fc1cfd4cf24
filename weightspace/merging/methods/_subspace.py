"""Elementwise merging of differences in coordinates shared by all tasks, instead of those of the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightspace.merging.methods._svd import Matrices, decomposed
from weightspace.merging.methods._task_vectors import TaskVector
from weightspace.merging.methods._tensor_stack import Chunk, Formula, InMemory, TensorStack
from weightspace.merging.methods.task_arithmetic import task_arithmetic
from weightspace.merging.methods.ties import ties


@dataclass(frozen=True)
class ElementwiseMerge:
    """The elementwise method.

    Attributes:
        name: ``ties`` or ``task_arithmetic``.
        weights: one per model; any finite numbers.
        density: fraction of the coordinates to keep, for ties, one per model.
        normalize: divide by the sum of the weights (for ties, of those that agree).
    """

    name: str
    weights: Sequence[float]
    density: Sequence[float]
    normalize: bool

    def merged(self, differences: Sequence[Tensor]) -> Tensor:
        """Return the merge of differences of one shape, in this shape."""
        origin = torch.zeros_like(differences[0])
        labels = [f"model {number}" for number in range(1, len(differences) + 1)]
        flats = [InMemory(difference) for difference in differences]
        stack = TensorStack("", flats, InMemory(origin), labels, finite=False, dtype=origin.dtype)
        formula = self._formula(stack)
        return torch.cat([formula(chunk) for chunk in stack.chunks()] or [origin.view(-1)]).view_as(origin)

    def _formula(self, stack: TensorStack) -> Formula:
        if self.name == "task_arithmetic":
            return task_arithmetic(stack, self.weights, lambda_=1.0, normalize=self.normalize)
        return ties(
            stack,
            self.weights,
            density=self.density,
            lambda_=1.0,
            normalize=self.normalize,
            rescale=False,
            scope="tensor",
        )


def in_subspace(stack: TensorStack, inner: ElementwiseMerge, lambda_: float, matrices: Matrices) -> Formula:
    """Return the formula ``b + λ·merged``: ``matrices`` merges matrices, ``inner`` all other tensors.

    Args:
        stack: the models and their base, with granularity ``whole``.
        inner: the elementwise method.
        lambda_: scaling factor of the merged difference.
        matrices: maps the differences ``x_i − b``, 2-D and of one shape, to the merged one.
    """

    def formula(chunk: Chunk) -> Tensor:
        differences = chunk.deltas()
        merged = decomposed(differences, matrices) if len(stack.shape) == 2 else inner.merged(differences)
        return TaskVector(chunk.origin.double(), -merged.double()).add_to_base(lambda_)

    return formula
