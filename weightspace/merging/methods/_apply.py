"""Application of a method to one stack: global statistics first, then the merged elements chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weightspace.arithmetic.blocks import block_size
from weightspace.arithmetic.nonfinite import is_finite
from weightspace.arithmetic.running_variances import not_negative
from weightspace.checkpoints.buffers import is_variance
from weightspace.merging.methods import Method
from weightspace.merging.methods._linear_combination import LinearFormula, combined_chunks
from weightspace.merging.methods._loading import load_function
from weightspace.merging.methods._rounding import (
    RefinedFormula,
    needs_float64,
    refined_chunks,
    refined_span,
    rounded,
)
from weightspace.merging.methods._tensor_stack import Formula, TensorStack, check_finite


def merged_chunks(
    method: Method, stack: TensorStack, weights: Sequence[float], arguments: Mapping[str, Any], dtype: torch.dtype
) -> Iterator[tuple[int, Tensor]]:
    """Yield the merged tensor in order: the index of the first element, and 1-D elements, rounded once.

    Args:
        method: a row of the table.
        stack: the models' tensors, read in chunks of the method's granularity.
        weights: one finite number per model.
        arguments: the result of ``method.arguments``, plus additions of its global_pass.
        dtype: dtype of the output.

    Yields:
        Elements in a buffer that is reused for the next ones.

    Raises:
        WeightspaceError: the stack or the result contains NaN or infinity (``stack.finite``), or as raised by the
            method.
    """
    if stack.numel:
        yield from MergedTensor(method, stack, weights, arguments, dtype).chunks()


class MergedTensor:
    """A merged tensor after its first passes, whose elements can be read from several positions.

    Attributes:
        span: number of elements computed together; reading starts at a multiple of it.
    """

    def __init__(
        self,
        method: Method,
        stack: TensorStack,
        weights: Sequence[float],
        arguments: Mapping[str, Any],
        dtype: torch.dtype,
    ) -> None:
        """Make the first passes; see ``merged_chunks``."""
        self._stack = replace(stack, work=_work_dtype(method, stack, dtype))
        self._dtype = dtype
        with np.errstate(all="ignore"):  # numbers that aren't finite are found, or allowed
            self._formula: Formula = load_function(method)(self._stack, weights, **arguments)
        self.span = self._span()

    def chunks(self, first: int = 0) -> Iterator[tuple[int, Tensor]]:
        """Yield the elements in order from a multiple of ``span`` on, as ``merged_chunks`` does."""
        stack = self._stack
        with np.errstate(all="ignore"):
            for start, merged in self._formula_chunks(first):
                if not stack.finite:
                    places, held = stack.shared_nonfinite(start, start + len(merged))
                    merged[places] = held.to(self._dtype)
                yield start, merged

    def _is_refined(self) -> bool:
        formula = self._formula
        return isinstance(formula, RefinedFormula) and formula.exact.finite and self._dtype != torch.float64

    def _span(self) -> int:
        if isinstance(self._formula, LinearFormula):
            return block_size(len(self._formula.coefficients.used))
        return refined_span(self._stack) if self._is_refined() else self._stack.span

    def _formula_chunks(self, first: int) -> Iterator[tuple[int, Tensor]]:
        """Yield the merged tensor chunk by chunk, as its formula is made."""
        formula, stack, dtype = self._formula, self._stack, self._dtype
        if isinstance(formula, LinearFormula):
            return combined_chunks(formula, stack, dtype, first)
        if isinstance(formula, RefinedFormula) and self._is_refined():
            return refined_chunks(formula, stack, dtype, first)
        return _computed_chunks(formula, stack, dtype, first)


def _work_dtype(method: Method, stack: TensorStack, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to compute in: twice the output's precision, except for singular vectors and user methods."""
    doubles = dtype == torch.float32 and method.doubles and stack.granularity != "whole"
    return torch.float64 if doubles else stack.dtype


def _computed_chunks(
    formula: Formula, stack: TensorStack, dtype: torch.dtype, first: int
) -> Iterator[tuple[int, Tensor]]:
    """Yield the merged tensor chunk by chunk, each computed as a whole."""
    for chunk in stack.working_chunks(first):
        values = formula(chunk)
        result = rounded(values, dtype)
        if needs_float64(values, chunk.base, dtype) or not is_finite(result):
            exact = stack.read(chunk.start, chunk.start + values.numel(), torch.float64)
            result = rounded(formula(exact), dtype)
            if stack.finite:
                check_finite(result, stack.name, "the result")
        yield chunk.start, result.reshape(-1)


def sound_chunks(stack: TensorStack, chunks: Iterable[tuple[int, Tensor]]) -> Iterator[tuple[int, Tensor]]:
    """Yield the chunks of a merged stack; negative elements of running variances become the models' mean."""
    if not is_variance(stack.name):
        yield from chunks
        return
    for start, values in chunks:
        models = partial(_models, stack, start, start + len(values))
        yield start, not_negative(stack.name, values, models)


def _models(stack: TensorStack, start: int, stop: int) -> list[Tensor]:
    return [source.read(start, stop) for source in stack.sources]
