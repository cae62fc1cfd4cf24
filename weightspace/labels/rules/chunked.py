"""Rules for any exponent and geometry, by distances from the observed labels, tabulated if possible.

A table of outputs × observed labels is kept up to 256 MiB. Beyond that, each call recomputes the distances for one
block of observed labels after another: slow, but in bounded memory.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from weightspace.errors import WeightspaceError
from weightspace.labels.rules.dense import Dense
from weightspace.labels.rules.powers import check_range
from weightspace.labels.rules.rule import Distances, Rule, powered
from weightspace.tracing import runs_eagerly

#: Largest table of distances in bytes, and number of observed labels whose distances are computed at once.
KEPT, _SOURCES = 256 << 20, 128


def columns(
    distances: Distances, observed: np.ndarray, outputs: np.ndarray, exponent: float, kept: int | None = None
) -> Rule:
    """Return the rule by distances from observed labels to outputs, tabulated if that takes at most ``kept`` bytes."""
    if 8 * len(observed) * len(outputs) > (KEPT if kept is None else kept):
        return StreamedColumns(distances, observed, outputs, exponent)
    return Dense(torch.from_numpy(np.ascontiguousarray(distances(outputs, observed))), exponent)


class StreamedColumns(Rule):
    """Costs summed over blocks of observed labels, whose distances are recomputed in each call."""

    def __init__(self, distances: Distances, observed: np.ndarray, outputs: np.ndarray, exponent: float) -> None:
        super().__init__()
        self.distances, self.observed, self.names, self.exponent = distances, observed, outputs, exponent
        self.outputs = self.width = len(outputs)

    def costs(self, weights: Tensor) -> Tensor:
        """See :class:`Rule`.

        Raises:
            WeightspaceError: the call is traced, batched, or on the meta device; a power leaves float64.
        """
        if not runs_eagerly(weights):
            raise WeightspaceError(
                f"{len(self.observed):,} observed labels × {self.outputs:,} outputs are too many distances to store, "
                "and recomputing them in each call cannot be compiled, traced, exported or batched by vmap. "
                "Use fewer observed labels or outputs."
            )
        total = torch.zeros(len(weights), self.outputs, dtype=torch.float64, device=weights.device)
        for start in range(0, len(self.observed), _SOURCES):
            block = slice(start, start + _SOURCES)
            distances = self.distances(self.observed[block], self.names)
            check_range(distances, self.exponent)
            found = torch.from_numpy(distances).to(weights.device)
            total += weights[:, block].double() @ powered(found, self.exponent)
        return total
