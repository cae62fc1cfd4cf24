"""Plots: one file per kind, and a single module that imports matplotlib."""

from weightspace.plots.calibration import draw_calibration
from weightspace.plots.curves import draw_curves
from weightspace.plots.label_spaces import draw_locus, draw_simplex
from weightspace.plots.layers import draw_differences
from weightspace.plots.matrices import draw_matrices
from weightspace.plots.planes import draw_planes
from weightspace.plots.run_windows import draw_windows
from weightspace.plots.searches import draw_search
from weightspace.plots.soups import draw_points, draw_predictions, draw_soups
from weightspace.plots.spectra import draw_alignment, draw_heat_maps, draw_spectra

__all__ = [
    "draw_alignment",
    "draw_calibration",
    "draw_curves",
    "draw_differences",
    "draw_heat_maps",
    "draw_locus",
    "draw_matrices",
    "draw_planes",
    "draw_points",
    "draw_predictions",
    "draw_search",
    "draw_simplex",
    "draw_soups",
    "draw_spectra",
    "draw_windows",
]
