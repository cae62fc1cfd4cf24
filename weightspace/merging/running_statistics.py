"""Advice on BatchNorm's running statistics, which are averaged like weights although the merged network has others."""

from __future__ import annotations

from collections.abc import Collection


def statistics_advice(names: Collection[str], remedy: str) -> str | None:
    """Return a line on the running statistics among the names of a merge of several models; None without any.

    Args:
        names: of the merged tensors.
        remedy: how to recompute the statistics.
    """
    layers = [name for name in names if name.endswith("running_var") and f"{name[:-3]}mean" in names]
    if not layers:
        return None
    count = "1 BatchNorm layer are" if len(layers) == 1 else f"{len(layers):,} BatchNorm layers are"
    return (
        f"The running statistics of {count} averaged over the models and do not describe the merged network's "
        f"activations. {remedy}"
    )
