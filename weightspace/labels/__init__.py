"""Predictions over a metric on the labels: the Fréchet mean in the place of ``argmax``, exact and without training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightspace.lazy import resolver

if TYPE_CHECKING:
    from weightspace.labels.calibration import TemperatureFit, fit_temperature
    from weightspace.labels.classifier import FrechetClassifier
    from weightspace.labels.covers import Cover
    from weightspace.labels.head import FrechetHead
    from weightspace.labels.metric import LabelMetric
    from weightspace.labels.report import DecisionReport, decision_report
    from weightspace.labels.zero_shot import ZeroShotClassifier, class_embeddings

#: Public name -> the file that defines it.
_HOMES = {
    "TemperatureFit": "calibration",
    "fit_temperature": "calibration",
    "FrechetClassifier": "classifier",
    "Cover": "covers",
    "FrechetHead": "head",
    "LabelMetric": "metric",
    "DecisionReport": "report",
    "decision_report": "report",
    "ZeroShotClassifier": "zero_shot",
    "class_embeddings": "zero_shot",
}

__all__ = [
    "Cover",
    "DecisionReport",
    "FrechetClassifier",
    "FrechetHead",
    "LabelMetric",
    "TemperatureFit",
    "ZeroShotClassifier",
    "class_embeddings",
    "decision_report",
    "fit_temperature",
]

__getattr__ = resolver(__name__, _HOMES)
