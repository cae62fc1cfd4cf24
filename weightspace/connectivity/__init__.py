"""Linear mode connectivity: the loss along paths between networks, barriers, and planes through three networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightspace.lazy import resolver

if TYPE_CHECKING:
    from weightspace.connectivity.barrier import Baseline, Score, barrier
    from weightspace.connectivity.barrier_matrix import BarrierMatrix, barrier_matrix
    from weightspace.connectivity.batchnorm import has_batchnorm_statistics, reset_batchnorm, reset_statistics
    from weightspace.connectivity.interpolated_network import interpolated
    from weightspace.connectivity.linear_path import LinearPath, Statistics
    from weightspace.connectivity.loss_curve import Curve, loss_curve
    from weightspace.connectivity.loss_plane import Plane, loss_plane
    from weightspace.connectivity.repair import repair
    from weightspace.connectivity.taylor import taylor_barrier
    from weightspace.connectivity.temperature import Temperature, Tempered, fit_temperature, midpoint_temperature

#: Public name -> the file that defines it.
_HOMES = {
    "Baseline": "barrier",
    "Score": "barrier",
    "barrier": "barrier",
    "Curve": "loss_curve",
    "loss_plane": "loss_plane",
    "BarrierMatrix": "barrier_matrix",
    "barrier_matrix": "barrier_matrix",
    "interpolated": "interpolated_network",
    "Plane": "loss_plane",
    "repair": "repair",
    "has_batchnorm_statistics": "batchnorm",
    "reset_batchnorm": "batchnorm",
    "reset_statistics": "batchnorm",
    "taylor_barrier": "taylor",
    "Temperature": "temperature",
    "Tempered": "temperature",
    "fit_temperature": "temperature",
    "midpoint_temperature": "temperature",
    "loss_curve": "loss_curve",
    "Statistics": "linear_path",
    "LinearPath": "linear_path",
}

__all__ = [
    "BarrierMatrix",
    "Baseline",
    "Curve",
    "LinearPath",
    "Plane",
    "Score",
    "Statistics",
    "Temperature",
    "Tempered",
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
