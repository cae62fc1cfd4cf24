"""The table of merging methods: a plain function and a row each, a file a family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from weightspace.merging.methods.linear import linear


class Method(Protocol):
    """A merging method: the tensors that all models have under one name become one tensor.

    ``tensors`` and ``base`` are of one shape and one dtype, float32 at least, and are not modified; ``weights``
    are finite, one a tensor; parameters are keyword-only, with defaults. Mistakes raise WeightspaceError.
    """

    def __call__(
        self, tensors: Sequence[Tensor], weights: Sequence[float], base: Tensor | None, **parameters: Any
    ) -> Tensor:
        """Return the merged tensor."""
        ...


#: Name on the command line -> method. tests/merging/test_every_method.py checks every row.
METHODS: Mapping[str, Method] = {"linear": linear}

__all__ = ["METHODS", "Method"]
