"""Squared Euclidean distances: the expected cost is least at the point nearest to the weighted mean.

With P = Σ w_i and the mean m, Σ w_i |y − x_i|² = P|y − m|² + Σ w_i |x_i − m|²: O(K d) per row, without distances
between labels. A screen by |y|² − 2 y·m, entirely in float32 or in float64, keeps the points that are indistinguishable
from the nearest up to rounding; if there are several, |y − m|², which has no cancellation, decides.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from weightspace.labels.rules.dense import least_of
from weightspace.labels.rules.rule import TILE, Rule, in_tiles, least_index, uses_full_float32
from weightspace.labels.rules.slices import Slicing

#: Number of points converted and multiplied at once.
_BLOCK = 4096
#: Number of points summed in float32 before the sum is added in float64.
_ROUGH = 1024
#: Number of coordinates whose float64 copy stays in the cache.
_CACHED = 1 << 17
#: Unit roundoff.
_UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
#: Rows whose largest weight is below this, or above its inverse, are scaled first.
_LEAST = 2.0**-60
#: Range of squared lengths that float32 represents with room on both sides.
_TINY, _HUGE = 1e-30, 1e30
#: Points are centred if their centre is this many times farther from the origin than they are from the centre.
_FAR = 8.0
_SMALL = 1 << 24
_MANY = 1 / 16


class Nearest(Rule):
    """Squared distances between points of shape (outputs, d) and (observed, d), float32 or float64."""

    points: Tensor
    squares: Tensor

    def __init__(self, outputs: Tensor, observed: Tensor) -> None:
        super().__init__()
        outputs, observed = _centred(outputs, observed)
        self.outputs, self.width = len(outputs), -(-len(outputs) // 4)
        self.same = observed is outputs
        self.table("points", outputs)
        self.table("squares", _squares(outputs))
        if not self.same:
            self.table("seen", observed)
            self.table("squares_of_seen", _squares(observed))
        largest = [float(self.squares.max()), float(self.observed[1].max())]
        self._fits = _TINY < largest[0] < _HUGE and largest[1] < _HUGE
        self._slicing = Slicing.of(math.sqrt(max(largest)), outputs.shape[1])

    @property
    def observed(self) -> tuple[Tensor, Tensor]:
        """The observed points, (observed, d), and their squared lengths, float64."""
        if self.same:
            return self.points, self.squares
        return self.get_buffer("seen"), self.get_buffer("squares_of_seen")

    def costs(self, weights: Tensor) -> Tensor:
        """See :class:`Rule`."""
        mean, total = self._mean(weights)
        away = self._squared_distances(mean, self.points)
        spread = weights.double() * (away if self.same else self._squared_distances(mean, self.observed[0]))
        return total * away + spread.sum(1, keepdim=True)

    def scores(self, weights: Tensor) -> Tensor:
        """See :class:`Rule`; |y − m|²."""
        return self._squared_distances(self._mean(weights)[0], self.points)

    def decide_now(self, weights: Tensor) -> Tensor:
        """See :class:`Rule`."""
        small = len(weights) * self.points.numel() < _SMALL
        if small or not (uses_full_float32(weights.device) and self._fits):
            return in_tiles(self._exact, weights, self.tile)
        return in_tiles(self._screened, weights, self.tile)

    def _mean(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return Σ w_i x_i / Σ w_i, (B, d), and Σ w_i, (B, 1), float64."""
        points = self.observed[0]
        sums = [
            weights[:, at : at + _BLOCK].double() @ points[at : at + _BLOCK].double()
            for at in range(0, points.shape[0], _BLOCK)
        ]
        total = weights.sum(1, keepdim=True, dtype=torch.float64)
        return torch.stack(sums).sum(0) / total, total

    def _squared_distances(self, mean: Tensor, points: Tensor) -> Tensor:
        blocks = [points[at : at + _BLOCK] for at in range(0, points.shape[0], _BLOCK)]
        return torch.cat([self._slicing.squared_distances(mean, block) for block in blocks], 1)

    def _exact(self, weights: Tensor) -> Tensor:
        """Decide by a screen in float64."""
        return self._decide(weights, self._mean(weights)[0], None)

    def _screened(self, weights: Tensor) -> Tensor:
        """Decide by a screen in float32."""
        mean, error = self._rough_mean(weights)
        return self._decide(weights, mean.float(), error.float())

    def _decide(self, weights: Tensor, mean: Tensor, error: Tensor | None) -> Tensor:
        """Decide by a screen in the dtype of the mean; ``error`` bounds the norm of a rough mean's error."""
        dtype, squares = mean.dtype, self.squares.to(mean.dtype)
        seen = torch.empty(len(weights), self.outputs, dtype=dtype, device=weights.device)
        for at in range(0, self.outputs, _BLOCK):
            block = slice(at, at + _BLOCK)
            torch.addmm(squares[block], mean, self.points[block].to(dtype).T, alpha=-2, out=seen[:, block])
        norm, largest = mean.norm(dim=1, keepdim=True), squares.max().sqrt()
        slack = 8 * _UNIT[dtype] * largest * (self.points.shape[1] + 4) * (norm + largest)
        if error is not None:
            slack = slack + 4 * largest * error
        found = least_index(seen)
        bound = seen.gather(1, found[:, None]) + slack
        rest = seen.scatter_(1, found[:, None], torch.inf)
        several = (rest.amin(1) <= bound[:, 0]).nonzero()[:, 0]  # points that are indistinguishable up to rounding
        if not len(several):
            return found
        near = (rest[several] <= bound[several]).scatter_(1, found[several, None], True)
        if int(near.count_nonzero()) > _MANY * near.numel() + len(near):
            exact = self._exact if error is not None else lambda rows: self.scores(rows).argmin(-1)
            found[several] = exact(weights[several])
        else:
            found[several] = self._nearest_of(weights[several], *near.nonzero(as_tuple=True))
        return found

    def _rough_mean(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return Σ w_i x_i / Σ w_i, float64 (B, d), from float32 sums, and a bound on the norm of its error, (B, 1)."""
        weights = weights if weights.dtype == torch.float64 else weights.float()
        most = weights.amax(1, keepdim=True)
        if weights.dtype == torch.float64 or not bool(((most > _LEAST) & (most < 1 / _LEAST)).all()):
            weights = weights / most
        points, squares = self.observed
        mean = torch.zeros(len(weights), points.shape[1], dtype=torch.float64, device=weights.device)
        total, lengths = mean.new_zeros(len(weights), 1), mean.new_zeros(len(weights), 1)
        length = squares.sqrt().float().unsqueeze(1)
        for at in range(0, len(points), _ROUGH):
            block = slice(at, at + _ROUGH)
            part = weights[:, block].float()
            mean += part @ points[block].float()
            lengths += part @ length[block]
            total += part.sum(1, keepdim=True)
        return mean / total, 3 * (_ROUGH + 4) * _UNIT[torch.float32] * lengths / total

    def _mean_of_few(self, weights: Tensor) -> Tensor:
        """Return Σ w_i x_i / Σ w_i, float64 (B, d), of few rows: most of the time goes into converting the points."""
        points = self.observed[0]
        step = max(1, _CACHED // points.shape[1])
        mean = torch.zeros(len(weights), points.shape[1], dtype=torch.float64, device=weights.device)
        for at in range(0, len(points), step):
            mean.addmm_(weights[:, at : at + step].double(), points[at : at + step].double())
        return mean / weights.sum(1, keepdim=True, dtype=torch.float64)

    def _nearest_of(self, weights: Tensor, rows: Tensor, candidates: Tensor) -> Tensor:
        """Return each row's nearest candidate point in float64; ``rows``, the row of each candidate, is sorted."""
        mean = self._mean_of_few(weights)
        costs = torch.empty(len(rows), dtype=torch.float64, device=weights.device)
        step = max(1, TILE // self.points.shape[1])
        for start in range(0, len(rows), step):
            row, candidate = rows[start : start + step], candidates[start : start + step]
            costs[start : start + step] = (self.points[candidate].double() - mean[row]).square().sum(1)
        return least_of(costs, rows, candidates, len(weights))


def _squares(points: Tensor) -> Tensor:
    """Return squared lengths, float64."""
    return torch.cat([points[at : at + _BLOCK].double().square().sum(1) for at in range(0, len(points), _BLOCK)])


def _centred(outputs: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """Centre the points, in float64, if they lie far from the origin, where squared lengths would cancel."""
    blocks = range(0, len(outputs), _BLOCK)
    centre = torch.stack([outputs[at : at + _BLOCK].double().sum(0) for at in blocks]).sum(0) / len(outputs)
    spread = max(float((outputs[at : at + _BLOCK].double() - centre).square().sum(1).max()) for at in blocks)
    if float(centre.square().sum()) <= _FAR**2 * spread:
        return outputs, observed
    near = outputs.double() - centre
    return near, near if observed is outputs else observed.double() - centre
