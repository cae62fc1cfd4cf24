"""Decision rules: tables of the label space, expected costs, and their minimum.

``costs`` and ``scores`` are plain tensor operations that don't branch on values or on the number of rows, so that they
can be traced, batched and differentiated. ``decide_now`` may be faster, but must return ``costs(...).argmin(-1)``, with
ties going to the lowest index.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from weightspace.tracing import runs_eagerly

#: Largest number of float64 elements in a table for the current rows, which bounds memory to 64 MiB each.
TILE = 8 << 20

#: Function from sources, and optionally targets, to distances, float64 (sources, targets).
Distances: TypeAlias = Callable[..., np.ndarray]


class Tables(nn.Module):
    """A module with constant tables, which move with it, keep their dtype, and aren't in the ``state_dict``.

    The original tables are kept as well, so that neither ``to_empty``, which leaves memory uninitialised, nor a detour
    via the meta device loses them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[str, Tensor] = {}

    def table(self, name: str, values: np.ndarray | Tensor) -> None:
        """Register a table under a name."""
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
    """The expected costs of ``outputs`` labels under weights of the observed ones."""

    #: Number of labels that can be predicted, and of float64 numbers that deciding a row takes.
    outputs: int
    width: int

    def __init__(self) -> None:
        super().__init__()
        self._kept: dict[torch.dtype, Tensor] = {}  # cache between calls: neither copied nor saved

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_kept": {}}

    def costs(self, weights: Tensor) -> Tensor:
        """Return Σ w_i d(y, i)^exponent, float64 of shape (B, outputs), from weights of shape (B, observed)."""
        raise NotImplementedError

    def scores(self, weights: Tensor) -> Tensor:
        """Return values with the same argmin as the costs, (B, outputs): the costs, or something cheaper."""
        return self.costs(weights)

    def decide(self, weights: Tensor) -> Tensor:
        """Return the index of the least cost, int64 of shape (B,); ties go to the lowest."""
        return self.decide_now(weights.detach()) if runs_eagerly(weights) else self.scores(weights).argmin(-1)

    def decide_now(self, weights: Tensor) -> Tensor:
        """Return the same for weights with accessible values; see :func:`runs_eagerly`."""
        return in_tiles(lambda rows: least_index(self.scores(rows)), weights, self.tile)

    @property
    def tile(self) -> int:
        """The number of rows processed at once."""
        return max(1, TILE // max(1, self.width))


def unshared_copy(rule: Rule) -> Rule:
    """Return a copy of a rule that can be moved and cast independently but shares its memory."""
    values = (value for module in rule.modules() for value in (*vars(module).values(), *module.buffers(recurse=False)))
    # New tensor objects: torch.jit.trace rejects modules that share one, as two heads of a metric would.
    return copy.deepcopy(rule, {id(value): value.detach() for value in values if isinstance(value, Tensor)})


def powered(distances: Tensor, exponent: float) -> Tensor:
    """Return powers of distances; squares by multiplication."""
    if exponent == 1:
        return distances
    return distances * distances if exponent == 2 else distances**exponent


def least_index(values: Tensor) -> Tensor:
    """Return the index of the least value of each row, ties going to the lowest; not for traced calls."""
    if values.device.type == "cpu":
        return torch.from_numpy(values.numpy().argmin(-1))  # several times as fast as torch's
    return values.argmin(-1)


def in_tiles(decide: Callable[[Tensor], Tensor], weights: Tensor, rows: int) -> Tensor:
    """Apply ``decide`` to all weights, ``rows`` at a time."""
    parts = [decide(weights[start : start + rows]) for start in range(0, len(weights), max(1, rows))]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=weights.device)


def uses_full_float32(device: torch.device) -> bool:
    """Return whether float32 matrix products use full float32 precision, which screens in float32 rely on.

    PyTorch can be configured to use a lower-precision dtype.
    """
    if torch.is_autocast_enabled(device.type):
        return False
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # the newer per-backend settings are in use
        return False
