"""The exact k-th largest of more numbers than fit in memory, in a few passes over chunks.

A bracket around the wanted rank comes from a sample; a pass counts the numbers above it and gathers those inside. If
too many are inside, or the rank is outside, the next bracket comes from the information gathered. Ties are broken by
position, first come first, so that exactly ``k`` are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from weightspace.merging.methods._registry import GATHERED

#: Yields, chunk by chunk, the position of the first element and the statistic of each population, restarting on every
#: call: from the start, or from the chunk that begins at a given position.
StatisticChunks = Callable[[int], Iterator[tuple[int, Sequence[np.ndarray]]]]

#: A position after every element.
_END = 2**63 - 1

#: Half-width of a bracket, in standard deviations of a sample quantile.
_WIDTH = 6.0


@dataclass(frozen=True)
class Cut:
    """A cut of a population: numbers above ``value`` are kept, and those equal to it before ``position``."""

    value: float
    position: int

    def kept(self, statistic: np.ndarray, start: int) -> np.ndarray:
        """Return which elements of a chunk are kept, as bools.

        Args:
            statistic: the chunk's numbers, 1-D.
            start: position of the first one.
        """
        bound = self.position - start
        if bound >= len(statistic):
            return statistic >= self.value
        mask = statistic > self.value
        if bound > 0:
            mask[:bound] |= statistic[:bound] == self.value
        return mask

    def kept_at(self, statistic: Tensor, positions: Tensor) -> Tensor:
        """Return which elements at given positions are kept, as bools; ``statistic`` holds their numbers, 1-D."""
        return (statistic > self.value) | ((statistic == self.value) & (positions < self.position))


#: Cuts that keep everything and nothing.
EVERYTHING = Cut(-math.inf, _END)
NOTHING = Cut(math.inf, 0)


def largest(
    chunks: StatisticChunks, ranks: Sequence[int], sizes: Sequence[int], sample: StatisticChunks | None = None
) -> list[Cut]:
    """Return the cut that keeps the ``k`` largest numbers of every population.

    Args:
        chunks: the populations, read together. Infinity and NaN count as larger than any number; if only they would be
            kept, every infinity is.
        ranks: ``k``, one per population.
        sizes: number of elements of each population.
        sample: a small, evenly spread part of ``chunks``, for the first bracket.
    """
    searches = [_Search(rank, size) for rank, size in zip(ranks, sizes, strict=True)]
    if sample is not None and any(search.open for search in searches):
        parts: list[list[np.ndarray]] = [[] for _ in searches]
        for _, statistics in sample(0):
            for part, statistic in zip(parts, statistics, strict=True):
                part.append(statistic)
        for search, part in zip(searches, parts, strict=True):
            search.narrow(np.concatenate(part) if part else np.empty(0), search.rank, search.size)
    while any(search.open for search in searches):
        for start, statistics in chunks(0):
            for search, statistic in zip(searches, statistics, strict=True):
                if search.open:
                    search.see(start, statistic)
        for search in searches:
            if search.open:
                search.conclude()
    return [search.cut or _settled(search, index, chunks) for index, search in enumerate(searches)]


def _settled(search: _Search, index: int, chunks: StatisticChunks) -> Cut:
    """Return the cut after the last kept one of tied numbers, from the one chunk that contains it."""
    start, statistics = next(chunks(search.place))
    equal = np.flatnonzero(statistics[index] == search.value)
    return Cut(search.value, start + int(equal[search.missing - 1]) + 1)


@dataclass
class _Search:
    """The search in one population.

    Attributes:
        rank: number of elements to keep.
        size: number of elements.
        low, high: the bracket, both bounds exclusive.
        above, inside, within: results of a pass: the count above the bracket, the numbers in it (thinned evenly if
            there are too many), and their count.
        at_high, at_low: number of elements of each chunk that equal a bound.
        value: the wanted value, once it is known.
        place: start of the chunk with the last kept element that equals it.
        missing: number of elements kept among those that equal it in that chunk.
    """

    rank: int
    size: int
    low: float = -math.inf
    high: float = math.inf
    value: float = math.nan
    place: int = 0
    missing: int = 0
    cut: Cut | None = None

    def __post_init__(self) -> None:
        self._forget()
        if self.rank >= self.size:
            self.cut = EVERYTHING
        elif self.rank <= 0:
            self.cut = NOTHING

    @property
    def open(self) -> bool:
        """Whether the value is still unknown."""
        return self.cut is None and math.isnan(self.value)

    def see(self, start: int, statistic: np.ndarray) -> None:
        """Count a chunk, and gather the numbers inside the bracket."""
        mask = statistic < self.high
        below = int(np.count_nonzero(mask))
        if self.high < math.inf:
            self.at_high[start] = int(np.count_nonzero(statistic == self.high))
            below += self.at_high[start]
        self.above += len(statistic) - below  # includes infinity and NaN
        if self.low > -math.inf:
            if self.low < self.high:  # numbers equal to both bounds are counted once
                self.at_low[start] = int(np.count_nonzero(statistic == self.low))
            mask &= statistic > self.low
        found = statistic[np.flatnonzero(mask)]  # few: in bfloat16, most numbers in a bracket equal a bound
        if not len(found):
            return
        self.within += len(found)
        self.inside[start] = found if self.stride == 1 else found[:: self.stride].copy()
        self.held += len(self.inside[start])
        while self.held > GATHERED:
            self.stride *= 2
            self.inside = {0: np.concatenate(list(self.inside.values()))[::2]}
            self.held = len(self.inside[0])

    def conclude(self) -> None:
        """Finish a pass: determine the value, or the next bracket."""
        at_high, at_low = sum(self.at_high.values()), sum(self.at_low.values())
        rank = self.rank - self.above
        if rank <= 0 and self.high == math.inf:
            self.cut = Cut(math.inf, _END)
        elif rank <= 0:
            self.low, self.high = self.high, math.inf
        elif rank <= at_high:
            self._take(self.high, rank, self.at_high)
        elif (inner := rank - at_high) <= self.within:
            self._look_inside(inner)
        elif (last := inner - self.within) <= at_low:
            self._take(self.low, last, self.at_low)
        else:
            self.low, self.high = -math.inf, self.low
        self._forget()

    def _look_inside(self, rank: int) -> None:
        """Take the ``rank``-th largest number inside the bracket, or narrow the bracket if not all were gathered."""
        inside = np.concatenate(list(self.inside.values()))
        if self.stride > 1:
            self.narrow(inside, rank, self.within)
            return
        value = float(np.partition(inside, len(inside) - rank)[len(inside) - rank])
        ties = {start: int(np.count_nonzero(part == value)) for start, part in self.inside.items()}
        self._take(value, rank - int(np.count_nonzero(inside > value)), ties)

    def _forget(self) -> None:
        """Reset the results of a pass."""
        self.inside: dict[int, np.ndarray] = {}
        self.at_high: dict[int, int] = {}
        self.at_low: dict[int, int] = {}
        self.held = self.above = self.within = 0
        self.stride = 1

    def narrow(self, sample: np.ndarray, rank: int, size: int) -> None:
        """Set the bracket around the ``rank``-th largest of ``size`` numbers, given a sample of them."""
        count = len(sample)
        if count < 64:
            return
        ordered = np.sort(sample)
        share = rank / size
        spread = _WIDTH * math.sqrt(max(share * (1 - share), 1 / count) / count) * count + 2
        place = count * (1 - share)
        low, high = int(place - spread), int(place + spread) + 1
        low_value = float(ordered[low]) if low >= 0 else self.low
        high_value = float(ordered[high]) if high < count else self.high
        self.low, self.high = max(self.low, low_value), min(self.high, high_value)

    def _take(self, value: float, missing: int, ties: Mapping[int, int]) -> None:
        """Settle on a value of which the first ``missing`` are kept; ``ties`` is the number in each chunk."""
        self.value = value
        if missing == sum(ties.values()):
            self.cut = Cut(value, _END)
            return
        for start, count in ties.items():
            if missing <= count:
                self.place, self.missing = start, missing
                return
            missing -= count
