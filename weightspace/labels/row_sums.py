"""Rows that are said to be probabilities, but do not sum to one."""

from __future__ import annotations

from typing import Any

import numpy as np

from weightspace.labels.probabilities import as_tensor

#: How far a sum of float16 probabilities may be from one.
_CLOSE = 1e-2


def row_sums_note(probabilities: Any) -> str | None:
    """Return what is to be said of rows (n, K) that do not sum to one, None where all do."""
    rows = as_tensor(probabilities, "Probabilities")
    if rows.dim() != 2 or not rows.numel():
        return None
    sums = rows.double().sum(1).cpu().numpy()
    bad = np.flatnonzero(~(np.abs(sums - 1) <= _CLOSE))
    if not len(bad):
        return None
    return (
        f"{len(bad):,} of {len(sums):,} rows do not sum to one (row {int(bad[0]):,}: {sums[bad[0]]:.4g}) and are "
        "divided by their sums. Are these logits? Say --logits."
    )


def probabilities_note(logits: Any) -> str | None:
    """Return what is to be said of logits (n, K) that are probabilities: not negative, and all rows sum to one."""
    rows = as_tensor(logits, "Logits")
    if rows.dim() != 2 or not rows.numel() or bool((rows < 0).any()) or row_sums_note(rows) is not None:
        return None
    return "all rows are probabilities: none is negative, and they sum to one. Leave --logits out?"
