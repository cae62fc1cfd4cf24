"""Devices that tensors are computed on, by torch's names: ``cpu``, ``cuda:1``."""

from __future__ import annotations

import torch

from weightspace.errors import WeightspaceError


def check_device(device: str, dtype: torch.dtype = torch.float32) -> None:
    """Check that a device supports tensors of a dtype.

    Raises:
        WeightspaceError: the device isn't available.
    """
    try:
        torch.ones((), device=device, dtype=dtype).item()  # the device meta has no values
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        line = (str(error).splitlines() or [""])[0].rstrip(".")
        raise WeightspaceError(
            f"The device {device!r} cannot be used: {line}. Expected cpu, or a device that torch finds ({_found()})."
        ) from error


def _found() -> str:
    """Return the accelerators found by torch."""
    count = torch.cuda.device_count()
    found = [f"cuda:{number}" for number in range(count)] + (["mps"] if torch.backends.mps.is_available() else [])
    return ", ".join(found) or "none"
