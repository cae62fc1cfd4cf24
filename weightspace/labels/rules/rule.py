"""What every rule is: tables of the label space, expected costs, and the least of them.

``costs`` are plain tensor operations without a loop over data, so that it can be traced and differentiated. ``decide``
is free to be faster, but finds what ``costs(...).argmin(-1)`` would, ties to the lowest index.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from weightspace.errors import WeightspaceError

#: Elements of float64 that a table of the rows in work may have, so that memory is bounded: 64 MiB each.
TILE = 8 << 20

#: Distances from some nodes to all, float64 (sources, nodes).
DistancesFrom: TypeAlias = Callable[[np.ndarray], np.ndarray]


class Rule(nn.Module):
    """The expected costs of ``outputs`` labels, under weights of the observed ones.

    Tables are buffers that are not in the ``state_dict``: they belong to the metric, move with the module, and keep
    their dtype when the module is cast.
    """

    #: How many labels can be named, and how many float64 a row of weights takes while it is decided.
    outputs: int
    width: int

    def costs(self, weights: Tensor) -> Tensor:
        """Return Σ w_i d(y, i)^exponent, float64 of shape (B, outputs), from weights of shape (B, observed)."""
        raise NotImplementedError

    def decide(self, weights: Tensor) -> Tensor:
        """Return the index of the least cost, the lowest of equal ones, int64 of shape (B,)."""
        return self.costs(weights).argmin(-1)

    @property
    def tile(self) -> int:
        """Rows that are worked on at once."""
        return max(1, TILE // max(1, self.width))

    def table(self, name: str, values: np.ndarray | Tensor) -> None:
        """Keep a table under a name."""
        tensor = values if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))
        self.register_buffer(name, tensor, persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Rule:
        kept = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, tensor in kept.items():
            moved = self._buffers[name]
            if tensor is not None and moved is not None and moved.dtype != tensor.dtype:
                self._buffers[name] = tensor.to(moved.device)
        return self


def own(rule: Rule) -> Rule:
    """Return a rule of one's own, to move and cast, over the same memory."""
    tensors = (value for module in rule.modules() for value in (*vars(module).values(), *module.buffers(recurse=False)))
    return copy.deepcopy(rule, {id(value): value for value in tensors if isinstance(value, Tensor)})


def powered(distances: Tensor, exponent: float) -> Tensor:
    """Return distances to a power, by a product where it is the square."""
    if exponent == 1:
        return distances
    return distances * distances if exponent == 2 else distances**exponent


def in_tiles(decide: Callable[[Tensor], Tensor], weights: Tensor, rows: int) -> Tensor:
    """Return what ``decide`` says of all rows, so many at a time; under tracing all at once, for any number of them."""
    if torch.compiler.is_compiling():
        return decide(weights)
    parts = [decide(weights[start : start + rows]) for start in range(0, len(weights), max(1, rows))]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=weights.device)


def float32_is_whole() -> bool:
    """Return whether products of float32 are made in float32, and not in TF32 or bfloat16, as torch may be told to.

    Screens in float32 count on its rounding.
    """
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # somebody used the newer settings, of which there are several
        return False


def check_exponent(exponent: float) -> float:
    """Return an exponent that costs can have.

    Raises:
        WeightspaceError: it isn't a positive number.
    """
    if isinstance(exponent, bool) or not isinstance(exponent, int | float) or not 0 < exponent < float("inf"):
        raise WeightspaceError(
            f"An exponent of distances is a positive number, 2 for a Fréchet mean; found {exponent!r}."
        )
    return exponent
