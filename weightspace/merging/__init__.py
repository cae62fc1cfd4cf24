"""Merging: several networks of one architecture become one set of weights.

Arithmetic is float32 at least and is rounded once, to the dtype of the inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightspace.lazy import resolver

if TYPE_CHECKING:
    from weightspace.merging.adapters import ADAPTER_METHODS, AdapterMergeReport, merge_adapters
    from weightspace.merging.engine.aligning import Alignment
    from weightspace.merging.engine.run import Finish, MergeReport
    from weightspace.merging.from_files import merge_files
    from weightspace.merging.in_memory import merge
    from weightspace.merging.interpolation import interpolate
    from weightspace.merging.methods import METHODS, Method
    from weightspace.merging.reproducing import Reproduction, reproduce

#: Public name -> the file that defines it.
_HOMES = {
    "ADAPTER_METHODS": "adapters",
    "AdapterMergeReport": "adapters",
    "METHODS": "methods",
    "Alignment": "engine.aligning",
    "Finish": "engine.run",
    "MergeReport": "engine.run",
    "Method": "methods",
    "Reproduction": "reproducing",
    "interpolate": "interpolation",
    "merge": "in_memory",
    "merge_adapters": "adapters",
    "merge_files": "from_files",
    "reproduce": "reproducing",
}

__all__ = [
    "ADAPTER_METHODS",
    "METHODS",
    "AdapterMergeReport",
    "Alignment",
    "Finish",
    "MergeReport",
    "Method",
    "Reproduction",
    "interpolate",
    "merge",
    "merge_adapters",
    "merge_files",
    "reproduce",
]

__getattr__ = resolver(__name__, _HOMES)
