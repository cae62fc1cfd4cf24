"""The result of a verification, which a spec carries and its file records."""

from __future__ import annotations

from dataclasses import dataclass

from weightspace.reprs import brief


@brief
@dataclass(frozen=True)
class Verification:
    """The result of moving every group at random.

    Attributes:
        error: relative change of the outputs, ‖f(g(θ)) − f(θ)‖ / ‖f(θ)‖.
        groups: number of moved groups.
        frozen: as in the spec.
        tolerance: the largest error that passes.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> verification = ws.derive_spec(network, (torch.zeros(1, 4),)).verification
        >>> verification.passed, verification.groups, verification.error < verification.tolerance
        (True, 1, True)
    """

    error: float
    groups: int
    frozen: tuple[str, ...]
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the function stayed the same."""
        return self.error <= self.tolerance
