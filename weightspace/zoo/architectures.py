"""The networks of the built-in tasks; every layer is named, so that specs and tables are readable."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn


def mlp(inputs: int, hidden: Sequence[int], classes: int) -> nn.Module:
    """Return a ReLU network on flattened inputs: layers ``hidden1 …`` of the widths given, then ``head``."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for index, width in enumerate(hidden, start=1):
        layers[f"hidden{index}"] = nn.Linear(inputs, width)
        layers[f"relu{index}"] = nn.ReLU()
        inputs = width
    layers["head"] = nn.Linear(inputs, classes)
    return nn.Sequential(layers)


def cnn(channels: int, hidden: Sequence[int], classes: int, *, strides: Sequence[int]) -> nn.Module:
    """Return 3×3 convolutions with BatchNorm and ReLU, a mean over the positions, then ``head``.

    Args:
        channels: input channels.
        hidden: output channels of ``conv1``, ``conv2``, …
        classes: number of logits.
        strides: one per convolution.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index, (width, stride) in enumerate(zip(hidden, strides, strict=True), start=1):
        layers[f"conv{index}"] = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        layers[f"norm{index}"] = nn.BatchNorm2d(width)
        layers[f"relu{index}"] = nn.ReLU()
        channels = width
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(channels, classes)
    return nn.Sequential(layers)
