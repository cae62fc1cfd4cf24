"""Formulas that are computed fast, and by double words where that cannot tell to which side a result rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from weightspace.elementwise.formats import significand_bits
from weightspace.elementwise.nonfinite import is_finite
from weightspace.merging.exact import MaskedSum
from weightspace.merging.rounding import doubtful, loses, rounded
from weightspace.merging.stack import Piece, Stack, check_finite

#: Makes the merged elements of a piece fast. Handed a list, it appends where the vote is all but even.
Quick: TypeAlias = Callable[[Piece, "list[np.ndarray] | None"], Tensor]

#: Pieces that are judged together, and how many elements are computed by double words at a time.
_PIECES, _TOGETHER = 16, 2**14

#: Elements of these pieces that are looked at, about.
_SAMPLE = 2**11


@dataclass(frozen=True)
class RefinedFormula:
    """Such a formula.

    Attributes:
        quick: the fast way.
        exact: the same by double words.
    """

    quick: Quick
    exact: MaskedSum

    def __call__(self, piece: Piece) -> Tensor:
        """Return the merged elements of a piece, in its dtype."""
        return self.quick(piece, None)


def refined_pieces(formula: RefinedFormula, stack: Stack, dtype: torch.dtype) -> Iterator[tuple[int, Tensor]]:
    """Yield the merged tensor piece by piece.

    Args:
        formula: of the method.
        stack: the models and their base.
        dtype: of the output.

    Raises:
        WeightspaceError: the stack or the result holds NaN or infinity (``stack.finite``).
    """
    parts: list[tuple[int, Tensor]] = []
    places: list[np.ndarray] = []
    for piece in stack.working_pieces():
        result, unsure = _quickly(formula, piece, dtype, cancelling=False)
        parts.append((piece.start, result))
        places.append(unsure)
        stop = piece.start + len(result)
        if len(parts) == _PIECES or stop == stack.numel:
            stored = stack.stored(parts[0][0], stop)
            if _loses(formula, stack, parts, stored):
                places = [_once_more(formula, stack, start, result) for start, result in parts]
            _refine(formula.exact, stored, parts, np.concatenate(places))
            for start, result in parts:
                if not is_finite(result):
                    _settle(formula, stack, start, result)
                yield start, result
            parts, places = [], []


def _quickly(
    formula: RefinedFormula, piece: Piece, dtype: torch.dtype, *, cancelling: bool
) -> tuple[Tensor, np.ndarray]:
    """Return the result of a piece by the fast way, and the positions in the tensor of what is doubtful."""
    close: list[np.ndarray] | None = [] if formula.exact.deviating else None
    values = formula.quick(piece, close)
    # A piece's memory is used again for the next one.
    result = rounded(values, dtype) if values.dtype != dtype else values.clone()
    if close is None and not cancelling:
        return result, np.empty(0, np.int64)
    unsure = doubtful(values, piece.origin if cancelling else None, dtype)
    for votes in close or ():
        unsure |= votes
    return result, np.flatnonzero(unsure) + piece.start


def _loses(
    formula: RefinedFormula, stack: Stack, parts: Sequence[tuple[int, Tensor]], stored: Sequence[Tensor]
) -> bool:
    """Return whether the fast way is too coarse for some pieces, judged by elements from all over them."""
    start, count = parts[0][0], len(stored[0])
    step = count // _SAMPLE + 1
    models, base = _elements(stored, slice(None, None, step))
    results = torch.cat([result[(start - begin) % step :: step] for begin, result in parts])
    computed = stack.work or stack.dtype
    return loses(results, models, base, computed, deviating=formula.exact.deviating)


def _elements(stored: Sequence[Tensor], places: Tensor | slice) -> tuple[Tensor, Tensor]:
    """Return some elements of the models, ``(N, n)``, and of the base behind them, ``(n,)``, in float64."""
    rows = torch.stack([tensor[places].to(torch.float64) for tensor in stored])
    return rows[:-1], rows[-1]


def _once_more(formula: RefinedFormula, stack: Stack, start: int, result: Tensor) -> np.ndarray:
    """Return where a result is doubtful when its error is taken to be as large as it may be, next to its base."""
    piece = stack.read(start, start + len(result), stack.work)
    return _quickly(formula, piece, result.dtype, cancelling=True)[1]


def _refine(
    exact: MaskedSum, stored: Sequence[Tensor], parts: Sequence[tuple[int, Tensor]], positions: np.ndarray
) -> None:
    """Compute what is doubtful by double words, in place."""
    bits = max(significand_bits(tensor.dtype) for tensor in stored)
    first, stop = parts[0][0], parts[0][0] + len(stored[0])
    for some in torch.from_numpy(positions).split(_TOGETHER):
        models, base = _elements(stored, some - first)
        exact_results = exact(models, base, some, parts[0][1].dtype, bits)
        bounds = torch.searchsorted(some, torch.tensor([start for start, _ in parts] + [stop])).tolist()
        for (start, result), low, high in zip(parts, bounds, bounds[1:], strict=False):
            at = some[low:high] - start
            # What isn't finite is settled later.
            result[at] = torch.where(result[at].isfinite(), exact_results[low:high], result[at])


def _settle(formula: RefinedFormula, stack: Stack, start: int, result: Tensor) -> None:
    """Compute a result that isn't finite once more in float64, in place.

    Raises:
        WeightspaceError: an input, or the result, holds NaN or infinity (``stack.finite``).
    """
    piece = stack.read(start, start + len(result), torch.float64)
    result.copy_(rounded(formula(piece), result.dtype))
    if stack.finite:
        check_finite(result, stack.name, "the result")
