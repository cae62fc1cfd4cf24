"""Cost matrices of mistakes, which may be asymmetric: missing a stop sign costs more than a false alarm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from weightspace.errors import WeightspaceError
from weightspace.labels.class_axis import FrechetHeadAlong, from_last, to_last
from weightspace.labels.decision import Decision, positions_of
from weightspace.labels.geometry import Geometry
from weightspace.labels.head import FrechetHead
from weightspace.labels.label_space import Outputs
from weightspace.labels.names import Label, Names
from weightspace.labels.probabilities import as_tensor
from weightspace.labels.ranking import least_costs

if TYPE_CHECKING:
    from weightspace.labels.rules.rule import Rule


class CostMatrix:
    r"""Costs by name, and predictions of least expected cost, :math:`\arg\min_y \sum_i p_i\, C(y, i)`.

    Args:
        costs: (K, K), finite, non-negative: ``costs[y, i]`` is the cost of predicting ``labels[y]`` when ``labels[i]``
            is true. The diagonal is usually zero.
        labels: names of rows and columns; ``0 … K-1`` if not given.

    Attributes:
        matrix: the costs, float64 (K, K).

    Raises:
        WeightspaceError: the matrix is invalid; the message names the entry.

    Source:
        Elkan 2001, The foundations of cost-sensitive learning,
        https://www.ijcai.org/Proceedings/01/IJCAI01-132.pdf, section 1.

    Example:
        >>> costs = CostMatrix([[0, 10], [1, 0]], labels=["well", "ill"])  # calling the ill "well" costs 10
        >>> costs.labels[costs.predict([0.8, 0.2], observed=["well", "ill"])]
        'ill'
    """

    def __init__(self, costs: Any, *, labels: Iterable[Label] | None = None) -> None:
        matrix = as_tensor(costs, "Costs").cpu()
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
            raise WeightspaceError(f"Costs must be (K, K), one row per prediction; found shape {tuple(matrix.shape)}.")
        matrix = matrix.double().contiguous()
        self.names = Names(range(len(matrix)) if labels is None else labels)
        if len(self.names) != len(matrix):
            raise WeightspaceError(f"Found {len(self.names):,} labels for {len(matrix):,} rows; expected one per row.")
        bad = ~(matrix.isfinite() & (matrix >= 0))
        if bool(bad.any()):
            row, column = bad.nonzero()[0].tolist()
            raise WeightspaceError(
                f"Predicting {self.names[row]!r} for {self.names[column]!r} costs {float(matrix[row, column]):g}; "
                "expected finite, non-negative numbers. If there are gains, add a constant to the column."
            )
        self.matrix = matrix
        self.geometry: Geometry = _CostGeometry(matrix)
        self.nodes = np.arange(len(matrix))
        self.root: Label | None = None

    @property
    def labels(self) -> tuple[Any, ...]:
        """The names of the labels."""
        return tuple(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __repr__(self) -> str:
        return f"CostMatrix({len(self):,} labels)"

    def predict(
        self, probabilities: Any, *, observed: Sequence[Label], outputs: Outputs = "all", dim: int = -1
    ) -> np.ndarray:
        """Return positions in ``labels`` of least expected cost; see ``LabelMetric.predict``."""
        return self.decision(observed=observed, outputs=outputs).predict(to_last(probabilities, dim))

    def expected_cost(
        self, probabilities: Any, *, observed: Sequence[Label], outputs: Outputs = "all", dim: int = -1
    ) -> np.ndarray:
        """Return the expected cost of every output; see ``LabelMetric.expected_cost``."""
        found = self.decision(observed=observed, outputs=outputs).expected_cost(to_last(probabilities, dim))
        return from_last(found, dim)

    def topk(
        self, probabilities: Any, k: int, *, observed: Sequence[Label], outputs: Outputs = "all", dim: int = -1
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the ``k`` least expected costs and their positions; see ``LabelMetric.topk``."""
        decision = self.decision(observed=observed, outputs=outputs)
        costs, found = least_costs(decision, to_last(probabilities, dim), k)
        return from_last(costs, dim), from_last(found, dim)

    def head(
        self,
        *,
        observed: Sequence[Label],
        outputs: Outputs = "all",
        exponent: float = 1,
        temperature: float = 1.0,
        dim: int = -1,
    ) -> FrechetHead:
        """Return a module that replaces ``argmax``; see ``LabelMetric.head``. Costs have no exponent."""
        if exponent != 1:
            raise WeightspaceError(
                f"Costs are used as they are; found exponent={exponent!r}. Take powers of the matrix instead."
            )
        decision = self.decision(observed=observed, outputs=outputs)
        return FrechetHead(decision, temperature) if dim == -1 else FrechetHeadAlong(decision, temperature, dim)

    def decision(self, *, observed: Sequence[Label], outputs: Outputs = "all") -> Decision:
        """Return the decision for these classes."""
        return Decision.make(self, *positions_of(self, observed, outputs), 1)


@dataclass(frozen=True)
class _CostGeometry:
    """The geometry of a cost matrix, as used by decisions."""

    matrix: Tensor
    kind: ClassVar[str] = "costs"

    @property
    def nodes(self) -> int:
        """The number of labels."""
        return len(self.matrix)

    def distances(self, sources: np.ndarray, targets: np.ndarray | None = None) -> np.ndarray:
        """Return the costs of the given predictions, float64 (sources, targets)."""
        rows = self.matrix[torch.from_numpy(sources)]
        return (rows if targets is None else rows[:, torch.from_numpy(targets)]).numpy()

    def rule(self, observed: np.ndarray, outputs: np.ndarray, exponent: float) -> Rule:
        """Return the rule that decides among ``outputs`` given weights of ``observed``."""
        from weightspace.labels.rules.dense import Dense

        return Dense(self.matrix[outputs][:, observed].contiguous(), exponent)

    def arrays(self) -> Mapping[str, Any]:
        """Return the matrix."""
        return {"matrix": self.matrix}
