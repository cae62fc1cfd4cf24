"""Linear mode connectivity: the loss on the straight way between two networks, and the barrier on it."""

from weightspace.connectivity.barriers import Baseline, Score, barrier
from weightspace.connectivity.curve import Curve
from weightspace.connectivity.path import interpolated
from weightspace.connectivity.statistics import has_batchnorm_statistics, reset_batchnorm, reset_statistics
from weightspace.connectivity.walk import PointReport, Statistics, loss_curve

__all__ = [
    "Baseline",
    "Curve",
    "PointReport",
    "Score",
    "Statistics",
    "barrier",
    "has_batchnorm_statistics",
    "interpolated",
    "loss_curve",
    "reset_batchnorm",
    "reset_statistics",
]
