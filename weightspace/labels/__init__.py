"""Predictions over a metric on the labels: an exact, training-free Fréchet mean in place of ``argmax``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightspace.lazy import resolver

if TYPE_CHECKING:
    from weightspace.labels.calibration import TemperatureFit, fit_temperature
    from weightspace.labels.classifier import FrechetClassifier
    from weightspace.labels.costs import CostMatrix
    from weightspace.labels.cover import Cover
    from weightspace.labels.head import FrechetHead
    from weightspace.labels.hierarchy import Hierarchy
    from weightspace.labels.metric import LabelMetric
    from weightspace.labels.metrics import (
        HierarchicalScores,
        common_ancestor_height,
        hierarchical_distance_at_k,
        hierarchical_f,
        hierarchical_precision,
        hierarchical_recall,
        hierarchical_scores,
        mean_distance,
        mean_squared_distance,
        mistake_severity,
    )
    from weightspace.labels.prediction_sets import LabelSets, NodeSets, conformal_labels, conformal_nodes
    from weightspace.labels.prior_shift import EstimatedPriors, estimate_priors, shift_priors
    from weightspace.labels.report import DecisionReport, decision_report
    from weightspace.labels.scorers import (
        LabelScorer,
        distance_scorer,
        hierarchical_distance_scorer,
        hierarchical_f_scorer,
        hierarchical_precision_scorer,
        hierarchical_recall_scorer,
        mistake_severity_scorer,
    )
    from weightspace.labels.zero_shot import ZeroShotClassifier, class_embeddings

#: Public name -> the module that defines it.
_HOMES = {
    "TemperatureFit": "calibration",
    "fit_temperature": "calibration",
    "FrechetClassifier": "classifier",
    "Cover": "cover",
    "FrechetHead": "head",
    "LabelMetric": "metric",
    "DecisionReport": "report",
    "decision_report": "report",
    "ZeroShotClassifier": "zero_shot",
    "class_embeddings": "zero_shot",
    "HierarchicalScores": "metrics",
    "common_ancestor_height": "metrics",
    "hierarchical_distance_at_k": "metrics",
    "hierarchical_f": "metrics",
    "hierarchical_precision": "metrics",
    "hierarchical_recall": "metrics",
    "hierarchical_scores": "metrics",
    "mean_distance": "metrics",
    "mean_squared_distance": "metrics",
    "mistake_severity": "metrics",
    "LabelScorer": "scorers",
    "distance_scorer": "scorers",
    "hierarchical_distance_scorer": "scorers",
    "hierarchical_f_scorer": "scorers",
    "hierarchical_precision_scorer": "scorers",
    "hierarchical_recall_scorer": "scorers",
    "mistake_severity_scorer": "scorers",
    "EstimatedPriors": "prior_shift",
    "estimate_priors": "prior_shift",
    "shift_priors": "prior_shift",
    "LabelSets": "prediction_sets",
    "NodeSets": "prediction_sets",
    "conformal_labels": "prediction_sets",
    "conformal_nodes": "prediction_sets",
    "CostMatrix": "costs",
    "Hierarchy": "hierarchy",
}

__all__ = [
    "CostMatrix",
    "Cover",
    "DecisionReport",
    "EstimatedPriors",
    "FrechetClassifier",
    "FrechetHead",
    "HierarchicalScores",
    "Hierarchy",
    "LabelMetric",
    "LabelScorer",
    "LabelSets",
    "NodeSets",
    "TemperatureFit",
    "ZeroShotClassifier",
    "class_embeddings",
    "common_ancestor_height",
    "conformal_labels",
    "conformal_nodes",
    "decision_report",
    "distance_scorer",
    "estimate_priors",
    "fit_temperature",
    "hierarchical_distance_at_k",
    "hierarchical_distance_scorer",
    "hierarchical_f",
    "hierarchical_f_scorer",
    "hierarchical_precision",
    "hierarchical_precision_scorer",
    "hierarchical_recall",
    "hierarchical_recall_scorer",
    "hierarchical_scores",
    "mean_distance",
    "mean_squared_distance",
    "mistake_severity",
    "mistake_severity_scorer",
    "shift_priors",
]

__getattr__ = resolver(__name__, _HOMES)
