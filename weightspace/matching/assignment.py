"""Assignment problems, solved exactly: by all gains, or by a few candidates per row that prices prove sufficient.

Give every column a price. An assignment that gives each row a column of its largest net gain, after prices, is optimal
(complementary slackness). So a large problem in which many rows compete for the same columns is solved among the best
columns of each row, and prices are derived from that solution. Columns that some row would still prefer become
candidates as well, until there are none. This is faster than a dense solver if every row can have one of its best
columns; else some rows need far worse ones, whose prices make almost all columns candidates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching, min_weight_full_bipartite_matching
from torch import Tensor

#: Number of rows from which candidates are faster than all gains, where at most _DISTINCT of the rows' best columns
#: differ: the fewer rows compete, the less the dense solver has to do.
_LARGE, _DISTINCT = 1024, 2 / 3
#: Initial number of candidates per row, and the largest mean: beyond it (many equal gains) all gains are used.
_CANDIDATES, _MOST = 24, 128
#: Differences below this fraction of the largest number are rounding.
_ROUNDING = 2.0**-44


def assign(gains: Tensor) -> Tensor:
    """Return the assignment of columns to rows with the largest total gain.

    Args:
        gains: ``(n, n)``, finite, any floating dtype; solved in float64.

    Returns:
        int64 ``(n,)``: row ``i`` is assigned column ``result[i]``.

    Source:
        Crouse 2016, https://doi.org/10.1109/TAES.2016.140952 (scipy's shortest augmenting paths); Jonker and Volgenant
        1987, https://doi.org/10.1007/BF02278710 (scipy's sparse solver).
    """
    gains = gains.detach().cpu().to(torch.promote_types(gains.dtype, torch.float32))
    table = gains.numpy()  # numpy's argmax is ten times as fast as torch's
    best = table.argmax(1)
    distinct = len(np.unique(best))
    if distinct == len(best):  # every row can have its maximum: nothing to solve
        return torch.from_numpy(best)
    found = None
    if len(best) >= _LARGE and distinct <= _DISTINCT * len(best):
        candidates = largest_of_rows(table, _CANDIDATES)
        found = assign_by_candidates(table, candidates) if _has_assignment(candidates) else None
    return torch.from_numpy(_by_all(table, best) if found is None else found)


def _by_all(table: np.ndarray, best: np.ndarray) -> np.ndarray:
    costs = np.subtract(np.take_along_axis(table, best[:, None], 1), table, dtype=np.float64)
    costs -= costs.min(0)  # reduced costs have the same solution and are solved faster
    return linear_sum_assignment(costs)[1]


def largest_of_rows(table: np.ndarray, count: int) -> np.ndarray:
    """Return which entries, bool ``(n, n)``, are among the largest ``count`` of their row; equal ones all are."""
    last = len(table) - min(count, len(table))
    return table >= np.partition(table, last, axis=1)[:, last, None]


def _has_assignment(candidates: np.ndarray) -> bool:
    """Return whether every row can have a candidate of its own, by Hopcroft and Karp's algorithm."""
    return bool((maximum_bipartite_matching(csr_array(candidates), perm_type="column") >= 0).all())


def assign_by_candidates(table: np.ndarray, candidates: np.ndarray) -> np.ndarray | None:
    """Return the assignment with the largest total gain, int64 ``(n,)``, or None if that takes too many candidates.

    Args:
        table: the gains, ``(n, n)``, float32 or float64.
        candidates: initial candidates, bool ``(n, n)``, among which there is an assignment.
    """
    size, chosen = len(table), candidates.copy()
    prices = np.zeros(size)
    while np.count_nonzero(chosen) <= _MOST * size:
        edges = _Edges(table, chosen)
        columns = edges.solve(prices)
        found = edges.prices(columns, prices)
        if found is None:
            return None
        preferred = _preferred(table, columns, found)
        if not len(preferred):
            return columns
        chosen.flat[preferred], prices = True, found
    return None


class _Edges:
    """The gains of the candidates, row by row; every row and every column has one."""

    def __init__(self, table: np.ndarray, candidates: np.ndarray) -> None:
        self.size = len(table)
        counts = np.count_nonzero(candidates, axis=1)
        self.starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        self.rows = np.repeat(np.arange(self.size), counts)
        places = np.flatnonzero(candidates)
        self.columns = (places - self.rows * self.size).astype(np.int32)
        self.gains = table.ravel()[places].astype(np.float64)

    def solve(self, prices: np.ndarray) -> np.ndarray:
        """Return the best column of each row, one for each, int64 ``(n,)``; good prices make it faster."""
        net = self.gains - prices[self.columns]
        most, least = net.max(), net.min()
        costs = most - net + ((most - least) or 1.0)  # positive: the solver takes zeros for missing edges
        return min_weight_full_bipartite_matching(self._graph(costs))[1].astype(np.int64)

    def prices(self, chosen: np.ndarray, start: np.ndarray) -> np.ndarray | None:
        """Return prices, at least those of the start, at which each row's column has its largest net gain, or None.

        If a row prefers another column to its own by some amount, that column is too cheap by as much. Raising prices
        until no row does so is Bellman and Ford's algorithm.
        """
        own = np.empty(self.size)
        mine = chosen[self.rows] == self.columns
        own[self.rows[mine]] = self.gains[mine]
        by_column = self._graph(np.arange(len(self.rows))).tocsc()
        order, firsts = by_column.data, by_column.indptr[:-1]
        rows = self.rows[order]
        difference, owned = self.gains[order] - own[rows], chosen[rows]
        rounding = _ROUNDING * float(np.abs(self.gains).max())
        prices = start.copy()
        for _ in range(self.size):
            needed = np.maximum.reduceat(prices[owned] + difference, firsts)
            if (needed <= prices + rounding).all():
                return prices
            np.maximum(prices, needed, out=prices)
        return None

    def _graph(self, values: np.ndarray) -> Any:
        """Return a ``csr_array``, whose type stubs are incomplete."""
        return csr_array((values, self.columns, self.starts), shape=(self.size, self.size))


def _preferred(table: np.ndarray, chosen: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """Return the flat indices of gains that are larger, after prices, than that of the row's chosen column."""
    size = len(table)
    own = table[np.arange(size), chosen].astype(np.float64) - prices[chosen]
    scale = float(np.abs(own).max() + 2 * np.abs(prices).max())
    # Screened in the table's dtype, if it has the range, with a margin above its rounding, then decided in float64.
    dtype = table.dtype if 1e-30 < scale < 1e30 else np.dtype(np.float64)
    margin = 8 * float(np.finfo(dtype).eps) * scale
    near = np.flatnonzero(table - prices.astype(dtype) > (own - margin).astype(dtype)[:, None])
    rows, columns = np.divmod(near, size)
    excess = table.ravel()[near].astype(np.float64) - prices[columns] - own[rows]
    return near[excess > 4 * _ROUNDING * scale]
