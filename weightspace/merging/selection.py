"""The exact k-th largest of more numbers than may be held, in a few passes over pieces.

A bracket around the wanted rank comes from a sample; a pass counts what lies above it and gathers what lies inside.
Where too much lies inside, or the rank outside, the next bracket comes from what the pass has learned. Equal numbers
are told apart by position, the first one first, so that exactly ``k`` are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

#: Gives, piece by piece and every time anew, the position of a first element and the statistic of each population.
Chunks = Callable[[], Iterator[tuple[int, Sequence[np.ndarray]]]]

#: Numbers gathered inside a bracket at most: 4 MB of float32.
_HELD = 2**20

#: How many standard deviations of a sample's quantile a bracket takes on either side.
_WIDTH = 6.0


@dataclass(frozen=True)
class Cut:
    """Where a population is cut: what is above ``value`` is kept, and what equals it before ``position``."""

    value: float
    position: int

    def kept(self, statistic: np.ndarray, start: int) -> np.ndarray:
        """Return which elements of a piece are kept, as bools.

        Args:
            statistic: the piece's numbers, 1-D.
            start: position of its first one.
        """
        bound = self.position - start
        if bound >= len(statistic):
            return statistic >= self.value
        mask = statistic > self.value
        if bound > 0:
            mask[:bound] |= statistic[:bound] == self.value
        return mask


#: Keeps everything; keeps nothing.
EVERYTHING = Cut(-math.inf, 2**63 - 1)
NOTHING = Cut(math.inf, 0)


def largest(chunks: Chunks, ranks: Sequence[int], sizes: Sequence[int], sample: Chunks | None = None) -> list[Cut]:
    """Return for every population the cut that keeps its ``k`` largest numbers.

    Args:
        chunks: the populations, read together. Infinity and NaN count as larger than any number; where only they
            would be kept, every infinity is.
        ranks: ``k``, one a population.
        sizes: how many numbers each has.
        sample: a small, evenly spread part of ``chunks``, for the first bracket.
    """
    searches = [_Search(rank, size) for rank, size in zip(ranks, sizes, strict=True)]
    if sample is not None and any(search.open for search in searches):
        parts: list[list[np.ndarray]] = [[] for _ in searches]
        for _, statistics in sample():
            for part, statistic in zip(parts, statistics, strict=True):
                part.append(statistic)
        for search, part in zip(searches, parts, strict=True):
            search.narrow(np.concatenate(part) if part else np.empty(0), search.rank, search.size)
    while any(search.open for search in searches):
        for start, statistics in chunks():
            for search, statistic in zip(searches, statistics, strict=True):
                if search.open:
                    search.see(start, statistic)
        for search in searches:
            if search.open:
                search.conclude()
    if any(search.cut is None for search in searches):
        _settle_ties(searches, chunks)
    return [search.cut or EVERYTHING for search in searches]


@dataclass
class _Search:
    """The search in one population.

    Attributes:
        rank: how many are to be kept.
        size: how many there are.
        low, high: the bracket, both bounds outside of it.
        above, at_high, inside, at_low: what a pass found; ``inside`` is thinned evenly where it grows too long.
        value: the wanted value, once it is known.
        missing: how many of those that equal it are kept.
        ties: how many equal it; None: not counted.
    """

    rank: int
    size: int
    low: float = -math.inf
    high: float = math.inf
    value: float | None = None
    missing: int = 0
    ties: int | None = None
    cut: Cut | None = None
    inside: list[np.ndarray] = field(default_factory=list)
    held: int = 0
    stride: int = 1
    above: int = 0
    at_high: int = 0
    within: int = 0
    at_low: int = 0

    def __post_init__(self) -> None:
        if self.rank >= self.size:
            self.cut = EVERYTHING
        elif self.rank <= 0:
            self.cut = NOTHING

    @property
    def open(self) -> bool:
        """Whether the value is still wanted."""
        return self.cut is None and self.value is None

    def see(self, start: int, statistic: np.ndarray) -> None:
        """Count a piece, and gather what lies inside the bracket."""
        mask = statistic < self.high
        below = int(np.count_nonzero(mask))
        if self.high < math.inf:
            at_high = int(np.count_nonzero(statistic == self.high))
            self.at_high += at_high
            below += at_high
        self.above += len(statistic) - below  # with infinity and NaN
        if self.low > -math.inf:
            self.at_low += int(np.count_nonzero(statistic == self.low))
            mask &= statistic > self.low
        found = statistic.take(np.flatnonzero(mask))
        self.within += len(found)
        self.inside.append(found[:: self.stride].copy())
        self.held += len(self.inside[-1])
        while self.held > _HELD:
            self.stride *= 2
            self.inside = [np.concatenate(self.inside)[::2]]
            self.held = len(self.inside[0])

    def conclude(self) -> None:
        """End a pass: take the value, or the next bracket."""
        inside = np.concatenate(self.inside) if self.inside else np.empty(0)
        rank = self.rank - self.above
        if rank <= 0 and self.high == math.inf:
            self.cut = Cut(math.inf, 2**63 - 1)
        elif rank <= 0:
            self.low, self.high = self.high, math.inf
        elif rank <= self.at_high:
            self._take(self.high, rank, self.at_high)
        elif (inner := rank - self.at_high) <= self.within:
            if self.stride == 1:
                value = float(np.partition(inside, len(inside) - inner)[len(inside) - inner])
                more = int(np.count_nonzero(inside > value))
                self._take(value, inner - more, int(np.count_nonzero(inside == value)))
            else:
                self.narrow(inside, inner, self.within)
        elif (last := inner - self.within) <= self.at_low:
            self._take(self.low, last, self.at_low)
        else:
            self.low, self.high = -math.inf, self.low
        self.inside, self.held, self.stride = [], 0, 1
        self.above = self.at_high = self.within = self.at_low = 0

    def narrow(self, sample: np.ndarray, rank: int, size: int) -> None:
        """Set the bracket around the ``rank``-th largest of ``size`` numbers, of which there is a sample."""
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

    def _take(self, value: float, missing: int, ties: int) -> None:
        """Settle on a value; where not all that equal it are kept, their positions are looked up later."""
        self.value, self.missing, self.ties = value, missing, ties
        if missing == ties:
            self.cut = Cut(value, 2**63 - 1)


def _settle_ties(searches: Sequence[_Search], chunks: Chunks) -> None:
    """Find where the last kept one of equal numbers lies."""
    for start, statistics in chunks():
        for search, statistic in zip(searches, statistics, strict=True):
            if search.cut is None and search.value is not None:
                equal = statistic == search.value
                count = int(np.count_nonzero(equal))
                if count >= search.missing:
                    index = int(np.flatnonzero(equal)[search.missing - 1])
                    search.cut = Cut(search.value, start + index + 1)
                search.missing -= count
        if all(search.cut is not None for search in searches):
            return
