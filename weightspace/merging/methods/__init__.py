"""The table of merging methods: a plain function and a row each, a file a family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from torch import Tensor

from weightspace.merging.methods.linear import linear

#: ``method(tensors, weights, base, **parameters) -> tensor``: all models' tensors of one name become one.
#: They and ``base`` (or None) are of one shape and one dtype, float32 at least, and are not modified; weights
#: are finite, one a tensor; parameters are keyword-only, with defaults. Mistakes raise WeightspaceError.
Method: TypeAlias = Callable[..., Tensor]

#: Name on the command line -> method. tests/merging/test_every_method.py checks every row.
METHODS: Mapping[str, Method] = {"linear": linear}

__all__ = ["METHODS", "Method"]
