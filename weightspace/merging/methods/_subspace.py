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
        """Return the merge of differences of one shape, in this shape and on their device; computed on the CPU."""
        flats = [InMemory(difference.cpu()) for difference in differences]
        origin = torch.zeros(differences[0].shape, dtype=differences[0].dtype)
        labels = [f"model {number}" for number in range(1, len(differences) + 1)]
        stack = TensorStack("", flats, InMemory(origin), labels, finite=False, dtype=origin.dtype)
        formula = self._formula(stack)
        merged = torch.cat([formula(chunk) for chunk in stack.chunks()] or [origin.view(-1)]).view_as(origin)
        return merged.to(differences[0].device)

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
        if len(stack.shape) == 2:
            merged = decomposed([one.to(stack.device) for one in differences], matrices).cpu()
        else:
            merged = inner.merged(differences)
        return TaskVector(chunk.origin.double(), -merged.double()).add_to_base(lambda_)

    return formula
