"""Any exponent on any structure: distances from the observed labels only, kept where they are few, else found again.

A table of outputs × observed labels is kept up to 256 MiB. Beyond, distances are sought for a block of observed labels
after the other in every call: slow, but in bounded memory.
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

#: Bytes that a table of distances may take, and observed labels whose distances are sought at once.
KEPT, _SOURCES = 256 << 20, 128


def columns(
    distances: Distances, observed: np.ndarray, outputs: np.ndarray, exponent: float, kept: int | None = None
) -> Rule:
    """Return the rule by distances from the observed labels to the outputs, in a table of at most ``kept`` bytes."""
    if 8 * len(observed) * len(outputs) > (KEPT if kept is None else kept):
        return StreamedColumns(distances, observed, outputs, exponent)
    return Dense(torch.from_numpy(np.ascontiguousarray(distances(outputs, observed))), exponent)


class StreamedColumns(Rule):
    """Costs that are summed up over blocks of observed labels, whose distances are found again in every call."""

    def __init__(self, distances: Distances, observed: np.ndarray, outputs: np.ndarray, exponent: float) -> None:
        super().__init__()
        self.distances, self.observed, self.names, self.exponent = distances, observed, outputs, exponent
        self.outputs = self.width = len(outputs)

    def costs(self, weights: Tensor) -> Tensor:
        """See :class:`Rule`.

        Raises:
            WeightspaceError: the call is recorded, batched, or on the meta device; a power leaves float64.
        """
        if not runs_eagerly(weights):
            raise WeightspaceError(
                f"{len(self.observed):,} observed labels × {self.outputs:,} outputs are too many distances to keep, "
                "and what is found again in every call cannot be compiled, traced, exported or batched by vmap. "
                "Observe or name fewer."
            )
        total = torch.zeros(len(weights), self.outputs, dtype=torch.float64, device=weights.device)
        for start in range(0, len(self.observed), _SOURCES):
            block = slice(start, start + _SOURCES)
            distances = self.distances(self.observed[block], self.names)
            check_range(distances, self.exponent)
            found = torch.from_numpy(distances).to(weights.device)
            total += weights[:, block].double() @ powered(found, self.exponent)
        return total
