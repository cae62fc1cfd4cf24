"""Squared Euclidean distances: the expected cost is least at the point nearest to the weighted mean.

Σ w_i |y − x_i|² = P|y|² − 2 y·Σ w_i x_i + Σ w_i |x_i|²: O(K d) a row, and no distances. A screen in float32, mean and
all, leaves the points that rounding cannot tell from the nearest; where there are several, float64 decides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weightspace.labels.rules.dense import least_of
from weightspace.labels.rules.rule import TILE, Rule, float32_is_whole, in_tiles

#: Points that are converted and multiplied at once.
_BLOCK = 4096
#: Points that the mean is summed up from in float32, before float64 takes over.
_ROUGH = 1024
#: Half a unit in the last place of float32.
_UNIT = 2.0**-24
#: Weights of rows whose largest is below this, or above its inverse, are scaled first.
_LEAST = 2.0**-60
#: Squares of lengths whose float32 has room on both sides.
_TINY, _HUGE = 1e-30, 1e30
#: Points whose centre is so many times farther from the origin than they are from it are taken from there.
_FAR = 8.0
_SMALL = 1 << 24
_MANY = 1 / 16


class Nearest(Rule):
    """Squared distances between points of shape (outputs, d) and (observed, d), float32 or float64."""

    points: Tensor
    observed: Tensor
    squares: Tensor
    seen: Tensor

    def __init__(self, outputs: Tensor, observed: Tensor) -> None:
        super().__init__()
        outputs, observed = _centred(outputs, observed)
        self.outputs, self.width = len(outputs), -(-len(outputs) // 4)
        self.table("points", outputs)
        self.table("observed", observed)
        squares = [outputs[at : at + _BLOCK].double().square().sum(1) for at in range(0, len(outputs), _BLOCK)]
        self.table("squares", torch.cat(squares))
        self.table("seen", observed.double().square().sum(1) if observed is not outputs else self.squares)
        largest = [float(squares.max()) for squares in (self.squares, self.seen)]
        self._fits = _TINY < largest[0] < _HUGE and largest[1] < _HUGE

    def costs(self, weights: Tensor) -> Tensor:
        """See :class:`Rule`."""
        mean, total = self._sums(weights)
        products = [mean @ self.points[at : at + _BLOCK].double().T for at in range(0, self.outputs, _BLOCK)]
        spread = (weights.double() @ self.seen).unsqueeze(1)
        return (total * self.squares - 2 * torch.cat(products, 1) + spread).clamp_min(0)

    def decide(self, weights: Tensor) -> Tensor:
        """See :class:`Rule`."""
        small = torch.compiler.is_compiling() or len(weights) * self.points.numel() < _SMALL
        if small or not (float32_is_whole() and self._fits):
            return in_tiles(self._exact, weights, self.tile)
        return in_tiles(self._screened, weights, self.tile)

    def _sums(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return Σ w_i x_i, (B, d), and Σ w_i, (B, 1), float64."""
        sums = [
            weights[:, at : at + _BLOCK].double() @ self.observed[at : at + _BLOCK].double()
            for at in range(0, len(self.observed), _BLOCK)
        ]
        return torch.stack(sums).sum(0), weights.sum(1, keepdim=True, dtype=torch.float64)

    def _exact(self, weights: Tensor) -> Tensor:
        mean, total = self._sums(weights)
        products = [mean @ self.points[at : at + _BLOCK].double().T for at in range(0, self.outputs, _BLOCK)]
        return (total * self.squares - 2 * torch.cat(products, 1)).argmin(-1)

    def _screened(self, weights: Tensor) -> Tensor:
        mean, error = self._rough_mean(weights)
        centre, squares = mean.float(), self.squares.float()
        seen = torch.empty(len(weights), self.outputs, dtype=torch.float32, device=weights.device)
        for at in range(0, self.outputs, _BLOCK):
            block = slice(at, at + _BLOCK)
            torch.addmm(squares[block], centre, self.points[block].float().T, alpha=-2, out=seen[:, block])
        norm, largest = centre.norm(dim=1, keepdim=True), squares.max().sqrt()
        slack = 8 * _UNIT * largest * ((self.points.shape[1] + 4) * norm + largest) + 4 * largest * error.float()
        near = seen <= seen.amin(1, keepdim=True) + slack
        if int(near.count_nonzero()) > _MANY * near.numel():
            return self._exact(weights)
        rows, candidates = near.nonzero(as_tuple=True)
        counts = torch.bincount(rows, minlength=len(weights))
        found = candidates[counts.cumsum(0) - counts]
        several = counts > 1  # points that rounding cannot tell apart
        if bool(several.any()):
            of_these = several[rows]
            row = (several.cumsum(0) - 1)[rows[of_these]]
            found[several] = self._nearest_of(weights[several], row, candidates[of_these])
        return found

    def _rough_mean(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return Σ w_i x_i / Σ w_i, float64 (B, d), from sums in float32, and a bound of its error's norm, (B, 1)."""
        weights = weights if weights.dtype == torch.float64 else weights.float()
        most = weights.amax(1, keepdim=True)
        if weights.dtype == torch.float64 or not bool(((most > _LEAST) & (most < 1 / _LEAST)).all()):
            weights = weights / most
        mean = torch.zeros(len(weights), self.observed.shape[1], dtype=torch.float64, device=weights.device)
        total, lengths = mean.new_zeros(len(weights), 1), mean.new_zeros(len(weights), 1)
        length = self.seen.sqrt().float().unsqueeze(1)
        for at in range(0, len(self.observed), _ROUGH):
            block = slice(at, at + _ROUGH)
            part = weights[:, block].float()
            mean += part @ self.observed[block].float()
            lengths += part @ length[block]
            total += part.sum(1, keepdim=True)
        return mean / total, 3 * (_ROUGH + 4) * _UNIT * lengths / total

    def _nearest_of(self, weights: Tensor, rows: Tensor, candidates: Tensor) -> Tensor:
        """Return the nearest of some points of every row, in float64: ``candidates`` of ``rows``, which ascend."""
        mean, total = self._sums(weights)
        costs = torch.empty(len(rows), dtype=torch.float64, device=weights.device)
        step = max(1, TILE // self.points.shape[1])
        for start in range(0, len(rows), step):
            row, candidate = rows[start : start + step], candidates[start : start + step]
            product = (self.points[candidate].double() * mean[row]).sum(1)
            costs[start : start + step] = total[row, 0] * self.squares[candidate] - 2 * product
        return least_of(costs, rows, candidates, len(weights))


def _centred(outputs: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """Return the points from their centre, float64, if they lie far from the origin, where squares would cancel."""
    blocks = range(0, len(outputs), _BLOCK)
    centre = torch.stack([outputs[at : at + _BLOCK].double().sum(0) for at in blocks]).sum(0) / len(outputs)
    spread = max(float((outputs[at : at + _BLOCK].double() - centre).square().sum(1).max()) for at in blocks)
    if float(centre.square().sum()) <= _FAR**2 * spread:
        return outputs, observed
    near = outputs.double() - centre
    return near, near if observed is outputs else observed.double() - centre
