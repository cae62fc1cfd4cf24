"""Decision rules: tables of the label space, expected costs, and their minimum.

``costs`` and ``scores`` are plain tensor operations without a branch on values or on the number of rows, so that they
can be traced, batched and differentiated. ``decide_now`` is free to be faster, but finds what ``costs(...).argmin(-1)``
would, ties to the lowest index.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from weightspace.tracing import runs_eagerly

#: Elements of float64 that a table of the rows in work may have, so that memory is bounded: 64 MiB each.
TILE = 8 << 20

#: Distances from some nodes to all, or to the nodes of a second argument: float64 (sources, targets).
Distances: TypeAlias = Callable[..., np.ndarray]


class Tables(nn.Module):
    """A module with constant tables: they move with it, keep their dtype, and are not in the ``state_dict``.

    The tables stay where they were made as well, so that ``to_empty``, which leaves memory as it finds it, and a detour
    over the meta device do not lose them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[str, Tensor] = {}

    def table(self, name: str, values: np.ndarray | Tensor) -> None:
        """Keep a table under a name."""
        tensor = values if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))
        self._made[name] = tensor
        self.register_buffer(name, tensor, persistent=False)

    def _apply(self, fn: Any, recurse: bool = True) -> Tables:
        super()._apply(fn, recurse)
        for name, tensor in self._made.items():
            moved = self._buffers[name]
            assert moved is not None
            self._buffers[name] = tensor.to(moved.device)
        return self


class Rule(Tables):
    """The expected costs of ``outputs`` labels, under weights of the observed ones."""

    #: How many labels can be named, and how many float64 a row of weights takes while it is decided.
    outputs: int
    width: int

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[torch.dtype, Tensor] = {}  # worked out in a call, for the next one: neither copied nor saved

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": {}}

    def costs(self, weights: Tensor) -> Tensor:
        """Return Σ w_i d(y, i)^exponent, float64 of shape (B, outputs), from weights of shape (B, observed)."""
        raise NotImplementedError

    def scores(self, weights: Tensor) -> Tensor:
        """Return what is least where the cost is, (B, outputs): the costs, or what is found with less work."""
        return self.costs(weights)

    def decide(self, weights: Tensor) -> Tensor:
        """Return the index of the least cost, the lowest of equal ones, int64 of shape (B,)."""
        return self.decide_now(weights.detach()) if runs_eagerly(weights) else self.scores(weights).argmin(-1)

    def decide_now(self, weights: Tensor) -> Tensor:
        """Return the same for weights whose values may be looked at; see :func:`runs_eagerly`."""
        return in_tiles(lambda rows: least_index(self.scores(rows)), weights, self.tile)

    @property
    def tile(self) -> int:
        """Rows that are worked on at once."""
        return max(1, TILE // max(1, self.width))


def own(rule: Rule) -> Rule:
    """Return a rule of one's own, to move and cast, over the same memory."""
    values = (value for module in rule.modules() for value in (*vars(module).values(), *module.buffers(recurse=False)))
    # Tensors of one's own: torch.jit.trace refuses modules that share one, as two heads of a metric would.
    return copy.deepcopy(rule, {id(value): value.detach() for value in values if isinstance(value, Tensor)})


def powered(distances: Tensor, exponent: float) -> Tensor:
    """Return distances to a power, by a product where it is the square."""
    if exponent == 1:
        return distances
    return distances * distances if exponent == 2 else distances**exponent


def least_index(values: Tensor) -> Tensor:
    """Return the index of the least value of every row, the lowest of equal ones; outside of tracing."""
    if values.device.type == "cpu":
        return torch.from_numpy(values.numpy().argmin(-1))  # several times as fast as torch's
    return values.argmin(-1)


def in_tiles(decide: Callable[[Tensor], Tensor], weights: Tensor, rows: int) -> Tensor:
    """Return what ``decide`` says of all rows, so many at a time."""
    parts = [decide(weights[start : start + rows]) for start in range(0, len(weights), max(1, rows))]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=weights.device)


def float32_is_whole(device: torch.device) -> bool:
    """Return whether products of float32 are made in float32, and not in a shorter dtype, as torch may be told to.

    Screens in float32 count on its rounding.
    """
    if torch.is_autocast_enabled(device.type):
        return False
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # somebody used the newer settings, of which there are several
        return False
