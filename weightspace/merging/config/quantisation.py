"""The description of quantised weights in a configuration, which the output of a merge doesn't keep."""

from __future__ import annotations

from typing import Any

from weightspace.checkpoints.quantisation import quantised_parts


def remove_quantisation(config: dict[str, Any]) -> None:
    """Remove the descriptions of quantised weights from a configuration and its parts, in place."""
    for part, key in list(quantised_parts(config)):
        del part[key]
