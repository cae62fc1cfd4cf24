"""Predictions as a file: id, name and expected cost of each row."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from weightspace.checkpoints.atomic_write import replacing_file
from weightspace.errors import WeightspaceError
from weightspace.labels.calibration import checked_logits
from weightspace.labels.names import Label
from weightspace.labels.probabilities import checked_rows
from weightspace.reprs import brief

if TYPE_CHECKING:
    from weightspace.labels.label_space import Outputs
    from weightspace.labels.metric import LabelMetric


#: Number of probabilities whose costs are computed at once.
_ENTRIES = 4 << 20


@brief
@dataclass(frozen=True)
class Predictions:
    """Predicted labels of rows of probabilities.

    Attributes:
        ids: positions in the metric's labels.
        names: the labels.
        expected_cost: expected cost of each predicted label, for probabilities normalised to sum to one.
    """

    ids: tuple[int, ...]
    names: tuple[Any, ...]
    expected_cost: tuple[float, ...]

    @classmethod
    def of(
        cls,
        metric: LabelMetric,
        probabilities: Any,
        *,
        observed: Sequence[Label],
        outputs: Outputs = "all",
        exponent: float = 2,
    ) -> Predictions:
        """Predict rows of probabilities, (n, K); see ``LabelMetric.predict``."""
        rows = checked_rows(probabilities, len(observed)).double()
        rows = rows / rows.sum(1, keepdim=True)
        found = metric.predict(rows, observed=observed, outputs=outputs, exponent=exponent)
        costs = np.empty(len(found))
        order = np.argsort(found, kind="stable")
        step = max(1, _ENTRIES // len(observed))
        for here in np.split(order, range(step, len(order), step)):
            labels, which = np.unique(found[here], return_inverse=True)
            apart = metric.distances([metric.labels[label] for label in labels], observed) ** exponent
            costs[here] = np.einsum("ik,ik->i", rows[torch.from_numpy(here)].cpu().numpy(), apart[which])
        return cls(tuple(found.tolist()), tuple(metric.labels[i] for i in found), tuple(costs.tolist()))

    def save(self, path: str | Path) -> None:
        """Write the predictions as ``.csv`` or ``.json``, or only the ids as ``.npy``.

        Raises:
            CheckpointError: the file cannot be written.
            WeightspaceError: the path has another suffix.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix not in (".csv", ".json", ".npy"):
            raise WeightspaceError(f"Predictions must be a .csv, .json or .npy file; found {path.name!r}.")
        if suffix == ".npy":
            buffer = io.BytesIO()
            np.save(buffer, np.asarray(self.ids, dtype=np.int64))
            content = buffer.getvalue()
        elif suffix == ".json":
            content = (json.dumps(asdict(self), ensure_ascii=False) + "\n").encode()
        else:
            lines = io.StringIO()
            writer = csv.writer(lines, lineterminator="\n")
            writer.writerow(("row", "id", "label", "expected_cost"))
            writer.writerows(zip(range(len(self.ids)), self.ids, self.names, self.expected_cost, strict=True))
            content = lines.getvalue().encode()
        with replacing_file(path) as file:
            file.write(content)


def probabilities_of(logits: Any, columns: int, temperature: float | None = None) -> Tensor:
    """Return softmax(logits / temperature), float64 (n, columns).

    Raises:
        WeightspaceError: a wrong shape, a row whose softmax is undefined, or a temperature that isn't positive.
    """
    if temperature is not None and not 0 < temperature < float("inf"):
        raise WeightspaceError(f"A temperature must be a positive number; found {temperature!r}.")
    return torch.softmax(checked_logits(logits, columns) / (temperature or 1.0), -1)
