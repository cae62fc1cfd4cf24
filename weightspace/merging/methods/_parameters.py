"""Parameters that several merge methods share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeAlias

from weightspace.merging.methods._registry import Parameter

Lambda: TypeAlias = Annotated[float, Parameter(help="scaling factor of the merged difference from the base")]
Normalize: TypeAlias = Annotated[bool, Parameter(help="divide by the sum of the weights")]
Density: TypeAlias = Annotated[Sequence[float], Parameter(help="fraction of the differences to keep", low=0, high=1)]
Seed: TypeAlias = Annotated[int, Parameter(help="seed of the random masks", low=0, high=2**63 - 1)]
RescaleL1: TypeAlias = Annotated[bool, Parameter(help="restore the L1 norm of the difference after trimming")]
Rescale: TypeAlias = Annotated[
    str,
    Parameter(
        help="scaling of the kept differences: l1 restores the L1 norm (true), density divides by it, none (false)",
        choices=("l1", "density", "none", "true", "false"),
    ),
]
NormalizeElected: TypeAlias = Annotated[bool, Parameter(help="divide by the weights of the models that agree in sign")]
Inner: TypeAlias = Annotated[
    str, Parameter(help="elementwise merge in the shared space", choices=("ties", "task_arithmetic"))
]
