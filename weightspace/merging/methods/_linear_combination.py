"""Methods that are one linear combination of the whole tensor: their formula, and their merged elements."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from weightspace.arithmetic.coefficients import Coefficients, ratios, shifts, simplest
from weightspace.arithmetic.linear_combination import LinearCombiner, combine
from weightspace.merging.methods._tensor_stack import Chunk, Formula, TensorReader, TensorStack, check_finite


@dataclass(frozen=True)
class LinearFormula:
    r"""The formula :math:`\sum_i c_i x_i`.

    Attributes:
        coefficients: those of the models, followed by the base's if it is part of the sum.
        with_base: whether the base is part of the sum.
    """

    coefficients: Coefficients
    with_base: bool = False

    def __call__(self, chunk: Chunk) -> Tensor:
        """Return the merged elements of a chunk, in its dtype."""
        tensors = [*chunk.tensors, chunk.origin] if self.with_base else chunk.tensors
        return combine(tensors, self.coefficients, chunk.models.dtype)


def computed_formula(factors: Sequence[float], *, base: Literal["none", "term", "origin"] = "none") -> Formula:
    """Return the formula of a linear combination whose coefficients were computed from the tensors.

    Args:
        factors: ``f_i``; if one of them isn't finite, the result is NaN everywhere.
        base: ``none``: the sum is ``Σ f_i x_i`` over the models; ``term``: the last factor is that of the base;
            ``origin``: the result is ``b + Σ f_i (x_i − b)``.
    """
    if not all(map(math.isfinite, factors)):
        return lambda chunk: torch.full_like(chunk.tensors[0], torch.nan)
    exact = tuple(map(simplest, factors))
    return LinearFormula(shifts(exact) if base == "origin" else ratios(exact), with_base=base != "none")


def combined_chunks(
    formula: LinearFormula, stack: TensorStack, dtype: torch.dtype, first: int = 0
) -> Iterator[tuple[int, Tensor]]:
    """Yield the merged tensor in order: the index of the first element, and 1-D elements, in reused memory.

    Args:
        formula: formula of the method.
        stack: the models' tensors.
        dtype: dtype of the output, a real one.
        first: first element, a multiple of the combination's block.

    Raises:
        WeightspaceError: the stack or the result contains NaN or infinity (``stack.finite``).
    """
    base = [] if stack.base is None else [stack.base]
    sources = [*stack.sources, *(base if formula.with_base else [])]
    combiner = LinearCombiner(formula.coefficients, dtype)
    # NaN and infinity show in the sum, except in tensors that aren't part of it.
    silent = [*(set(range(len(sources))) - set(formula.coefficients.used)), *range(len(sources), len(stack.labels) + 1)]
    unseen = silent if stack.finite and True not in stack.passes else []
    out = torch.empty(min(combiner.block, stack.numel), dtype=dtype)
    for start in range(first, stack.numel, combiner.block):
        merged = out[: stack.numel - start]
        # Unnamed, so that their memory is free before the next ones are read.
        whole = combiner.into(merged, [source.read(start, start + len(merged)) for source in sources])
        if stack.finite and (unseen or not whole):
            _check(stack, start, merged, unseen if whole else None)
        yield start, merged


def _check(stack: TensorStack, start: int, merged: Tensor, which: Sequence[int] | None) -> None:
    """Check that a chunk contains no NaN and no infinity: first its inputs (some or all of them), then the result.

    Raises:
        WeightspaceError: it does.
    """
    everything: list[TensorReader] = [*stack.sources, *([] if stack.base is None else [stack.base])]
    for index, (label, source) in enumerate(zip((*stack.labels, "the base"), everything, strict=False)):
        if which is None or index in which:
            check_finite(source.read(start, start + len(merged)), stack.name, label)
    check_finite(merged, stack.name, "the result")
