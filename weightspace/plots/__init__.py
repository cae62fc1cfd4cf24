"""Pictures: one file a kind, one door to matplotlib."""

from weightspace.plots.curves import draw_curves
from weightspace.plots.matrices import draw_matrices
from weightspace.plots.planes import draw_planes

__all__ = ["draw_curves", "draw_matrices", "draw_planes"]
