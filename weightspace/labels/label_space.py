"""Label spaces: the part of a label metric that modules below ``metric.py`` need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from weightspace.labels.geometry import Geometry
from weightspace.labels.names import Label, Names

#: Which labels may be predicted: all of the metric, the observed ones, or those of a list.
Outputs: TypeAlias = "str | Sequence[Label]"


class LabelSpace(Protocol):
    """Names, and their places in a geometry."""

    names: Names
    geometry: Geometry
    nodes: np.ndarray
    root: Label | None

    @property
    def labels(self) -> tuple[Any, ...]:
        """The names."""
        ...

    def __len__(self) -> int: ...

    def head(
        self, *, observed: Sequence[Label], outputs: Outputs = "all", exponent: float = 2, temperature: float = 1.0
    ) -> Any:
        """Return a module that takes the place of ``argmax``."""
        ...
