"""Label spaces: the interface of a label metric for modules that ``metric.py`` imports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from weightspace.labels.geometry import Geometry
from weightspace.labels.names import Label, Names

#: Labels that can be predicted: ``"all"`` of the metric, the ``"observed"`` ones, or a list of names.
Outputs: TypeAlias = "str | Sequence[Label]"


class LabelSpace(Protocol):
    """Named labels at nodes of a geometry."""

    names: Names
    geometry: Geometry
    nodes: np.ndarray
    root: Label | None

    @property
    def labels(self) -> tuple[Any, ...]:
        """The names of the labels."""
        ...

    def __len__(self) -> int: ...

    def head(
        self, *, observed: Sequence[Label], outputs: Outputs = "all", exponent: float = 2, temperature: float = 1.0
    ) -> Any:
        """Return a module that replaces ``argmax``."""
        ...
