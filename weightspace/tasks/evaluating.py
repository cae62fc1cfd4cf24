"""Evaluation of a network in place: its mode and its device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Set a module and its parts to evaluation mode inside the block, and restore the mode of each afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training


def on_device_of(module: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return a batch on the device of a module, or on the CPU if it has no parameters."""
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    return inputs.to(device), labels.to(device)
