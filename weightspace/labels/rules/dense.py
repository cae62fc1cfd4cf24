"""Distances as a matrix: a product, screened in bfloat16 or float32 and decided in float64.

All terms are non-negative, so that rounding moves a cost by a relative amount: in bfloat16 (inputs and output rounded
to 2⁻⁹) by less than .6 %, and whatever is best lies within 2 % of the best seen. Those candidates alone are summed in
float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weightspace.labels.powers import check_range
from weightspace.labels.rules.rule import TILE, Rule, float32_is_whole, in_tiles, powered

#: Products of a batch below which screening is not worth its while.
_SMALL = 1 << 26
#: Outputs that are multiplied at once.
_BLOCK = 2048
#: Share of all pairs above which candidates are too many to be looked at one by one.
_MANY = 1 / 16
_BF16_MARGIN = 0.02
#: Powers of distances beyond this are near the end of float32's range, and not screened in it.
_HUGE = 1e37
#: Bytes that a kept copy in bfloat16 may take.
_KEPT = 1 << 30


class Dense(Rule):
    """Costs by a matrix of distances, (outputs, observed), in its own dtype; neither copied nor changed."""

    matrix: Tensor

    def __init__(self, matrix: Tensor, exponent: float) -> None:
        super().__init__()
        self.outputs, self.observed = matrix.shape
        self.exponent, self.width = exponent, self.outputs
        self.table("matrix", matrix)
        self._screen: Tensor | None = None
        check_range(
            [end for start in range(0, self.outputs, _BLOCK) for end in _ends(matrix[start : start + _BLOCK])], exponent
        )

    def costs(self, weights: Tensor) -> Tensor:
        """See :class:`Rule`."""
        weights = weights.double()
        blocks = range(0, self.outputs, _BLOCK)
        return torch.cat([weights @ self._powers(start, torch.float64).T for start in blocks], 1)

    def decide_now(self, weights: Tensor) -> Tensor:
        """See :class:`Rule`."""
        if len(weights) * self.outputs * self.observed < _SMALL:
            return super().decide_now(weights)
        return in_tiles(self._screened, weights, self.tile)

    def _powers(self, start: int, dtype: torch.dtype) -> Tensor:
        block = self.matrix[start : start + _BLOCK]
        return powered(block.to(torch.promote_types(dtype, torch.float32)), self.exponent).to(dtype)

    def _screened(self, weights: Tensor) -> Tensor:
        """Decide among the labels that come near to the least approximate cost."""
        exact = weights.double()
        shares = exact / exact.sum(1, keepdim=True)
        dtype = torch.bfloat16 if fast_bfloat16(weights.device) else torch.float32
        screen = self._screening(dtype)
        rough = shares.to(dtype)
        seen = torch.empty(len(weights), self.outputs, dtype=torch.float32, device=weights.device)
        largest = 0.0
        for start in range(0, self.outputs, _BLOCK):
            block = self._powers(start, dtype) if screen is None else screen[start : start + _BLOCK]
            largest = max(largest, float(block.max()))
            seen[:, start : start + _BLOCK] = rough @ block.T
        if largest > _HUGE:
            return self.costs(weights).argmin(-1)
        fine = dtype is torch.float32 and float32_is_whole(weights.device)
        margin = 4 * 2.0**-24 * (self.observed + 4) if fine else _BF16_MARGIN
        flushed = self.observed * 1e-37 * largest  # of weights that are zero in the short dtype
        near = seen <= seen.amin(1, keepdim=True) * (1 + margin) + flushed
        if int(near.sum()) > _MANY * near.numel():
            return self.costs(weights).argmin(-1)
        return self._least(exact, *near.nonzero(as_tuple=True))

    def _screening(self, dtype: torch.dtype) -> Tensor | None:
        """Return the powers in the short dtype, kept from the first call on; None where they are too many to keep."""
        if dtype is not torch.bfloat16 or 2 * self.outputs * self.observed > _KEPT:
            return None
        if self._screen is None or self._screen.device != self.matrix.device:
            self._screen = torch.empty(self.matrix.shape, dtype=dtype, device=self.matrix.device)
            for start in range(0, self.outputs, _BLOCK):
                self._screen[start : start + _BLOCK] = self._powers(start, dtype)
        return self._screen

    def _least(self, weights: Tensor, rows: Tensor, candidates: Tensor) -> Tensor:
        """Return the candidate of least cost in every row, in float64, the lowest of equal ones."""
        costs = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
        step = max(1, TILE // self.observed)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            powers = powered(self.matrix[candidates[part]].double(), self.exponent)
            costs[part] = (weights[rows[part]] * powers).sum(1)
        return least_of(costs, rows, candidates, len(weights))


def _ends(distances: Tensor) -> tuple[float, float]:
    """Return the smallest positive distance, if there is one, and the largest."""
    return float(distances.masked_fill(distances == 0, distances.max()).min()), float(distances.max())


def least_of(costs: Tensor, rows: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Return for each of ``count`` rows the lowest of the candidates that have the least cost, int64."""
    best = torch.full((count,), torch.inf, dtype=torch.float64, device=rows.device)
    best.scatter_reduce_(0, rows, costs, "amin")
    equal = costs == best[rows]
    found = torch.full((count,), torch.iinfo(torch.int64).max, device=rows.device)
    return found.scatter_reduce_(0, rows[equal], candidates[equal], "amin")


def fast_bfloat16(device: torch.device) -> bool:
    """Return whether products in bfloat16 are faster than in float32: with units for them, that is."""
    if device.type == "cpu":
        capability = getattr(torch.cpu, "_is_amx_tile_supported", None)
        return bool(capability and capability())
    return device.type == "cuda" and torch.cuda.is_bf16_supported()
