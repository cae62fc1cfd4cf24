"""Pictures: one file a kind, one door to matplotlib."""

from weightspace.plots.curves import draw_curves

__all__ = ["draw_curves"]
