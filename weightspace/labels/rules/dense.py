"""Rules by a distance matrix: a matrix product, screened in bfloat16 or float32 and decided in float64.

All terms are non-negative, so rounding changes a cost by a relative amount: in bfloat16 (inputs and output rounded to
2⁻⁹) by less than .6 %, and the best output lies within 2 % of the best seen. Only those candidates are summed in
float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weightspace.labels.rules.powers import check_range
from weightspace.labels.rules.rule import TILE, Rule, in_tiles, least_index, powered, uses_full_float32

#: Number of distances up to which a float64 product takes no longer than a screen.
_SMALL = 1 << 10
#: Numbers per tile, so that it stays in the cache, and its minimum and maximum number of rows.
_CACHED, _FEWEST, _MOST = 1 << 18, 256, 1 << 14
#: Numbers of rows and of distances from which bfloat16 is worth its wider margin.
_ROWS, _LARGE = 64, 1 << 16
#: Number of outputs multiplied at once if powers aren't cached.
_BLOCK = 2048
#: Fraction of all pairs above which there are too many candidates to sum individually.
_MANY = 1 / 16
_BF16_MARGIN = 0.02
#: Costs beyond this are too near the end of float32's range to be screened in it.
_HUGE = 1e37
#: Largest size in bytes of cached powers of distances, per dtype.
_KEPT = 256 << 20


class Dense(Rule):
    """Costs by a distance matrix, (outputs, observed), in its own dtype; neither copied nor modified."""

    matrix: Tensor

    def __init__(self, matrix: Tensor, exponent: float) -> None:
        super().__init__()
        self.outputs, self.observed = matrix.shape
        self.exponent, self.width = exponent, self.outputs
        self.table("matrix", matrix)
        ends = [end for start in range(0, self.outputs, _BLOCK) for end in _ends(matrix[_block(start)])]
        check_range(ends, exponent)
        self._largest = max(ends) ** exponent

    @property
    def tile(self) -> int:
        """See :class:`Rule`."""
        rows = _CACHED // max(self.outputs, self.observed)
        return min(max(rows, _FEWEST), _MOST, super().tile)

    def costs(self, weights: Tensor) -> Tensor:
        """See :class:`Rule`."""
        weights = weights.double()
        blocks = range(0, self.outputs, _BLOCK)
        return torch.cat([weights @ self._powers(_block(start), torch.float64).T for start in blocks], 1)

    def decide_now(self, weights: Tensor) -> Tensor:
        """See :class:`Rule`."""
        if self.outputs * self.observed <= _SMALL:
            return in_tiles(self._exact, weights, self.tile)
        large = len(weights) >= _ROWS and self.outputs * self.observed >= _LARGE
        dtype = torch.bfloat16 if large and fast_bfloat16(weights.device) else torch.float32
        return in_tiles(lambda rows: self._screened(rows, dtype), weights, self.tile)

    def _powers(self, outputs: slice | Tensor, dtype: torch.dtype) -> Tensor:
        """Return powers of some outputs' distances in a dtype; exponents other than 1 and 2 are computed in float64."""
        distances = self.matrix[outputs]
        exact = torch.float32 if self.exponent in (1, 2) else torch.float64
        return powered(distances.to(torch.promote_types(dtype, exact)), self.exponent).to(dtype)

    def _products(self, weights: Tensor, dtype: torch.dtype, among: Tensor | None = None) -> Tensor:
        """Return the costs of all or some outputs, computed in a dtype, (B, outputs)."""
        weights = weights.to(dtype)
        if dtype.itemsize * self.outputs * self.observed <= _KEPT:
            powers = self._kept_powers(dtype)
            return weights @ (powers if among is None else powers[among]).T
        if among is not None:
            return weights @ self._powers(among, dtype).T
        blocks = range(0, self.outputs, _BLOCK)
        return torch.cat([weights @ self._powers(_block(start), dtype).T for start in blocks], 1)

    def _kept_powers(self, dtype: torch.dtype) -> Tensor:
        """Return all powers in a dtype, cached from the first call on."""
        if dtype not in self._kept or self._kept[dtype].device != self.matrix.device:
            blocks = range(0, self.outputs, _BLOCK)
            self._kept[dtype] = torch.cat([self._powers(_block(start), dtype) for start in blocks])
        return self._kept[dtype]

    def _exact(self, weights: Tensor, among: Tensor | None = None) -> Tensor:
        """Decide by the costs in float64."""
        return least_index(self._products(weights, torch.float64, among))

    def _screened(self, weights: Tensor, dtype: torch.dtype, among: Tensor | None = None) -> Tensor:
        """Decide among the outputs (or those in ``among``) that are near the least cost in a lower-precision dtype.

        Candidates from bfloat16 are screened again in float32, and those from float32 are decided in float64.
        """
        most = float(weights.max())
        if not most * self._largest * self.observed < _HUGE:
            return self._exact(weights, among)
        seen = self._products(weights, dtype, among).float()
        found = least_index(seen)
        least = seen.gather(1, found[:, None])
        fine = dtype is torch.float32 and uses_full_float32(weights.device)
        margin = 4 * 2.0**-24 * (self.observed + 4) if fine else _BF16_MARGIN
        flushed = self.observed * 1e-37 * (self._largest + most + 1)  # underflow in the low-precision dtype
        bound = least * (1 + margin) + flushed
        rest = seen.scatter_(1, found[:, None], torch.inf)
        several = (rest.amin(1) <= bound[:, 0]).nonzero()[:, 0]
        if not len(several):
            return found
        near = (rest[several] <= bound[several]).scatter_(1, found[several, None], True)
        if dtype is torch.bfloat16:
            left = near.any(0).nonzero()[:, 0]
            found[several] = left[self._screened(weights[several], torch.float32, left)]
        else:
            found[several] = self._summed(weights[several], near, among)
        return found

    def _summed(self, weights: Tensor, near: Tensor, among: Tensor | None) -> Tensor:
        """Decide among each row's candidate outputs by their individual float64 costs."""
        if int(near.sum()) > _MANY * near.numel() + len(near):
            return self._exact(weights, among)
        rows, candidates = near.nonzero(as_tuple=True)
        costs = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
        step = max(1, TILE // self.observed)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            outputs = candidates[part] if among is None else among[candidates[part]]
            costs[part] = (weights[rows[part]].double() * self._powers(outputs, torch.float64)).sum(1)
        return least_of(costs, rows, candidates, len(weights))


def _block(start: int) -> slice:
    return slice(start, start + _BLOCK)


def _ends(distances: Tensor) -> tuple[float, float]:
    """Return the smallest positive distance, if any, and the largest."""
    return float(distances.masked_fill(distances == 0, distances.max()).min()), float(distances.max())


def least_of(costs: Tensor, rows: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Return the candidate of least cost for each of ``count`` rows, int64; ties go to the lowest."""
    best = torch.full((count,), torch.inf, dtype=torch.float64, device=rows.device)
    best.scatter_reduce_(0, rows, costs, "amin")
    equal = costs == best[rows]
    found = torch.full((count,), torch.iinfo(torch.int64).max, device=rows.device)
    return found.scatter_reduce_(0, rows[equal], candidates[equal], "amin")


def fast_bfloat16(device: torch.device) -> bool:
    """Return whether bfloat16 products are faster than float32 ones, i.e. have hardware support."""
    if device.type == "cpu":
        capabilities = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("amx_tile", "avx512_bf16"))
        return any(capability is not None and capability() for capability in capabilities)
    return device.type == "cuda" and torch.cuda.is_bf16_supported()
