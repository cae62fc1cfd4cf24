"""Heads: modules that replace ``argmax`` at the end of a classifier.

Eager calls use the fastest algorithm. Traced, batched and shape-only calls (``torch.compile``, ``torch.export``,
``torch.jit.trace``, both ONNX exporters, ``torch.fx``, ``torch.func``) compute all costs by plain tensor operations, so
that an exported program doesn't depend on this library. Both find the same labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.jit._trace import is_tracing

from weightspace.errors import WeightspaceError
from weightspace.labels.rules.rule import Tables, unshared_copy
from weightspace.tracing import runs_eagerly

if TYPE_CHECKING:
    from weightspace.labels.decision import Decision


class FrechetHead(Tables):
    """Logits (..., K) -> positions (...), int64, of least expected cost under softmax(logits / temperature).

    The ``state_dict`` holds only the temperature. Tables of the metric move with the module and keep their dtype. In
    traced and batched calls, a row takes memory for a few float64 numbers per label, and a row whose softmax is
    undefined can't raise an error and gets position -1, which ``names`` rejects. ``torch.jit.script`` isn't supported.

    Attributes:
        labels: the names that positions refer to.
        temperature: zero-dimensional float64 buffer.
    """

    temperature: Tensor
    answers: Tensor
    order: Tensor

    def __init__(self, decision: Decision, temperature: float = 1.0) -> None:
        super().__init__()
        if not isinstance(temperature, int | float) or not 0 < temperature < float("inf"):
            raise WeightspaceError(f"A temperature must be a positive number; found {temperature!r}.")
        self.labels = decision.metric.labels
        self.classes = len(decision.observed)
        self.rule = unshared_copy(decision.rule)
        self.register_buffer("temperature", torch.tensor(float(temperature), dtype=torch.float64))
        self.table("answers", decision.answers)
        self.table("order", decision.order)

    def forward(self, logits: Tensor) -> Tensor:
        """Return the positions in ``labels`` of least expected cost; ties go to the lowest.

        Raises:
            WeightspaceError: a wrong number of logits, or a row whose softmax is undefined (see the class for traced
                calls).
        """
        weights = self._weights(logits)
        found = self.answers[self.rule.decide(weights)]
        if not runs_eagerly(logits):
            found = torch.where(weights.isnan().any(-1), -1, found)
        # By another tensor's shape, so that a traced program takes logits of any number of dimensions.
        return found.view_as(logits.select(-1, 0))

    def expected_cost(self, logits: Tensor) -> Tensor:
        """Return the expected costs in the order of the outputs, float64 (..., outputs); differentiable."""
        costs = self.rule.costs(self._weights(logits)).index_select(1, self.order)
        return costs.reshape(*logits.shape[:-1], len(self.order))

    def topk(self, logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the ``k`` least expected costs, ascending, float64 (..., k), and their positions, int64 (..., k)."""
        if not 1 <= k <= len(self.answers):
            raise WeightspaceError(f"Found k={k}; expected 1 to {len(self.answers):,}, the number of outputs.")
        costs, found = self.rule.costs(self._weights(logits)).sort(dim=-1, stable=True)
        shape = (*logits.shape[:-1], k)
        return costs[:, :k].reshape(shape), self.answers[found[:, :k]].reshape(shape)

    def names(self, positions: Any) -> Any:
        """Return the names at positions: one name, or nested lists of the tensor's shape.

        Raises:
            WeightspaceError: they aren't valid positions.
        """
        found = torch.as_tensor(positions)
        whole = not (found.dtype.is_floating_point or found.dtype.is_complex or found.dtype is torch.bool)
        if not whole or bool(((found < 0) | (found >= len(self.labels))).any()):
            raise WeightspaceError(
                f"Positions must be integers from 0 to {len(self.labels) - 1:,} as returned by head(logits); "
                f"found {'others' if whole else found.dtype}."
            )
        return _named(found.tolist(), self.labels)

    def extra_repr(self) -> str:
        """Return the sizes for ``print``."""
        return f"observed={self.classes}, outputs={len(self.answers)}, labels={len(self.labels)}"

    def _weights(self, logits: Tensor) -> Tensor:
        symbolic = is_tracing() or isinstance(logits, torch.fx.Proxy)  # shapes are symbolic
        if not symbolic and (logits.dim() < 1 or logits.shape[-1] != self.classes):
            raise WeightspaceError(
                f"Logits have shape {tuple(logits.shape)}, but {self.classes:,} classes were observed; expected "
                f"(..., {self.classes}), in the order of `observed`."
            )
        weights = torch.softmax(logits.reshape(-1, self.classes).double() / self.temperature, -1)
        if runs_eagerly(weights) and bool(weights.isnan().any()):
            row = int(weights.isnan().any(1).nonzero()[0])
            raise WeightspaceError(f"Row {row:,} of the logits has no softmax: it holds NaN or +inf, or only -inf.")
        return weights

    def __prepare_scriptable__(self) -> Any:
        """Reject ``torch.jit.script``, which calls this hook.

        Raises:
            WeightspaceError: always.
        """
        raise WeightspaceError(
            "torch.jit.script cannot compile a FrechetHead. Use torch.export or torch.compile, or torch.jit.trace: "
            "its traces hold for logits of any size and number of dimensions."
        )

    def _apply(self, fn: Any, recurse: bool = True) -> FrechetHead:
        kept = self.temperature
        super()._apply(fn, recurse)
        if self.temperature.dtype != kept.dtype:
            self.temperature = kept.to(self.temperature.device)
        return self


def _named(positions: Any, labels: tuple[Any, ...]) -> Any:
    return [_named(one, labels) for one in positions] if isinstance(positions, list) else labels[positions]
