"""Predictions over a metric on the labels: the Fréchet mean in the place of ``argmax``, exact and without training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightspace.lazy import resolver

if TYPE_CHECKING:
    from weightspace.labels.metric import LabelMetric

#: Public name -> the file that defines it.
_HOMES = {"LabelMetric": "metric"}

__all__ = ["LabelMetric"]

__getattr__ = resolver(__name__, _HOMES)
