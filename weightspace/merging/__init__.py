"""Merging of several networks of one architecture into one set of weights.

Arithmetic is in float32 or wider and is rounded once, to the dtype of the inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightspace.lazy import resolver

if TYPE_CHECKING:
    from weightspace.merging.adapter_method import ADAPTER_METHODS
    from weightspace.merging.in_memory import merge
    from weightspace.merging.interpolate import interpolate
    from weightspace.merging.least_squares import least_squares
    from weightspace.merging.merge_adapters import AdapterMergeReport, merge_adapters
    from weightspace.merging.merge_files import merge_files
    from weightspace.merging.methods import METHODS, Method
    from weightspace.merging.moe.build import build_moe
    from weightspace.merging.moe.router_calibration import calibrate_routers
    from weightspace.merging.out_of_core.aligning import Alignment
    from weightspace.merging.out_of_core.run import Finish, MergeReport
    from weightspace.merging.plan.options import ExecutionOptions, OutputOptions, ReadingOptions
    from weightspace.merging.regmean_plusplus import regmean_plusplus
    from weightspace.merging.reproduce import Reproduction, reproduce
    from weightspace.merging.source_differences import Differences, SourceDifferences, source_differences
    from weightspace.merging.verification import LoadVerification, verify_loading

#: Public name -> the file that defines it.
_HOMES = {
    "ADAPTER_METHODS": "adapter_method",
    "AdapterMergeReport": "merge_adapters",
    "METHODS": "methods",
    "Alignment": "out_of_core.aligning",
    "Differences": "source_differences",
    "ExecutionOptions": "plan.options",
    "Finish": "out_of_core.run",
    "MergeReport": "out_of_core.run",
    "LoadVerification": "verification",
    "Method": "methods",
    "OutputOptions": "plan.options",
    "ReadingOptions": "plan.options",
    "Reproduction": "reproduce",
    "SourceDifferences": "source_differences",
    "build_moe": "moe.build",
    "calibrate_routers": "moe.router_calibration",
    "interpolate": "interpolate",
    "least_squares": "least_squares",
    "merge": "in_memory",
    "merge_adapters": "merge_adapters",
    "merge_files": "merge_files",
    "regmean_plusplus": "regmean_plusplus",
    "reproduce": "reproduce",
    "source_differences": "source_differences",
    "verify_loading": "verification",
}

__all__ = [
    "ADAPTER_METHODS",
    "METHODS",
    "AdapterMergeReport",
    "Alignment",
    "Differences",
    "ExecutionOptions",
    "Finish",
    "LoadVerification",
    "MergeReport",
    "Method",
    "OutputOptions",
    "ReadingOptions",
    "Reproduction",
    "SourceDifferences",
    "build_moe",
    "calibrate_routers",
    "interpolate",
    "least_squares",
    "merge",
    "merge_adapters",
    "merge_files",
    "regmean_plusplus",
    "reproduce",
    "source_differences",
    "verify_loading",
]

__getattr__ = resolver(__name__, _HOMES)
