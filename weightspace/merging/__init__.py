"""Merging: several networks of one architecture become one set of weights.

Arithmetic is float32 at least and is rounded once, to the dtype of the inputs.
"""

from weightspace.merging.interpolation import interpolate
from weightspace.merging.merge import merge
from weightspace.merging.methods import METHODS, Method

__all__ = ["METHODS", "Method", "interpolate", "merge"]
