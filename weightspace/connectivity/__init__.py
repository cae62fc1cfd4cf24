"""Linear mode connectivity: the loss on the way between networks, the barriers on it, the plane through three."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightspace.lazy import resolver

if TYPE_CHECKING:
    from weightspace.connectivity.barriers import Baseline, Score, barrier
    from weightspace.connectivity.curve import Curve
    from weightspace.connectivity.landscape import GridReport, loss_plane
    from weightspace.connectivity.matrix import BarrierMatrix
    from weightspace.connectivity.pairs import PairReport, barrier_matrix
    from weightspace.connectivity.path import interpolated
    from weightspace.connectivity.plane import Plane
    from weightspace.connectivity.repairing import repair
    from weightspace.connectivity.statistics import has_batchnorm_statistics, reset_batchnorm, reset_statistics
    from weightspace.connectivity.taylor import taylor_barrier
    from weightspace.connectivity.temperature import Temperature, Tempered, fit_temperature, midpoint_temperature
    from weightspace.connectivity.walk import PointReport, loss_curve
    from weightspace.connectivity.way import Statistics, Way

#: Public name -> the file that defines it.
_HOMES = {
    "Baseline": "barriers",
    "Score": "barriers",
    "barrier": "barriers",
    "Curve": "curve",
    "GridReport": "landscape",
    "loss_plane": "landscape",
    "BarrierMatrix": "matrix",
    "PairReport": "pairs",
    "barrier_matrix": "pairs",
    "interpolated": "path",
    "Plane": "plane",
    "repair": "repairing",
    "has_batchnorm_statistics": "statistics",
    "reset_batchnorm": "statistics",
    "reset_statistics": "statistics",
    "taylor_barrier": "taylor",
    "Temperature": "temperature",
    "Tempered": "temperature",
    "fit_temperature": "temperature",
    "midpoint_temperature": "temperature",
    "PointReport": "walk",
    "loss_curve": "walk",
    "Statistics": "way",
    "Way": "way",
}

__all__ = [
    "BarrierMatrix",
    "Baseline",
    "Curve",
    "GridReport",
    "PairReport",
    "Plane",
    "PointReport",
    "Score",
    "Statistics",
    "Temperature",
    "Tempered",
    "Way",
    "barrier",
    "barrier_matrix",
    "fit_temperature",
    "has_batchnorm_statistics",
    "interpolated",
    "loss_curve",
    "loss_plane",
    "midpoint_temperature",
    "repair",
    "reset_batchnorm",
    "reset_statistics",
    "taylor_barrier",
]

__getattr__ = resolver(__name__, _HOMES)
