"""The networks that matching is timed on, without torchvision, so that every environment builds the same ones.

Each comes with a permutation spec that was written by hand in the style of Git Re-Basin, for the naive algorithm:
tensor -> the group of each axis, None where it is fixed. Statistics of BatchNorm are left out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

INPUTS, OUTPUTS, HIDDEN = 784, 10, 4
#: Stage of ResNet-50 -> its blocks, and the width inside them; outside they are four times as wide.
STAGES = {"layer1": (3, 64), "layer2": (4, 128), "layer3": (6, 256), "layer4": (3, 512)}

Groups = Mapping[str, tuple[str | None, ...]]


@dataclass(frozen=True)
class Case:
    """A network, an input for it, its groups, and how many times faster than the peer we mean to be."""

    build: Callable[[], nn.Module]
    example: tuple[int, ...]
    groups: Callable[[], Groups]
    gate: float | None = None


def mlp(width: int) -> nn.Module:
    """Return 784-w-w-w-w-10 with ReLU."""
    sizes = [INPUTS, *[width] * HIDDEN, OUTPUTS]
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def mlp_groups() -> Groups:
    """Return the groups of ``mlp``: one per hidden layer."""
    names = [None, *(str(2 * layer) for layer in range(HIDDEN)), None]
    result: dict[str, tuple[str | None, ...]] = {}
    for layer, (below, above) in enumerate(pairwise(names)):
        result |= {f"{2 * layer}.weight": (above, below), f"{2 * layer}.bias": (above,)}
    return result


class Bottleneck(nn.Module):
    """1×1, 3×3 (which strides), 1×1 and the shortcut; tensors are named as torchvision's."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)) + (x if self.downsample is None else self.downsample(x)))


class ResNet50(nn.Module):
    """ResNet-50 v1.5 with 1,000 classes and torchvision's initialisation (He, fan out; BatchNorm one and zero)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, padding=1)
        inputs = 64
        for stage, (blocks, width) in STAGES.items():
            stride = 1 if stage == "layer1" else 2
            first = Bottleneck(inputs, width, stride)
            inputs = 4 * width
            self.add_module(stage, nn.Sequential(first, *(Bottleneck(inputs, width, 1) for _ in range(blocks - 1))))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(inputs, 1000)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for stage in STAGES:
            x = self.get_submodule(stage)(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))


def resnet50_groups() -> Groups:
    """Return the 37 groups of ResNet-50: the stem, one stream per stage, two inside each block."""
    result: dict[str, tuple[str | None, ...]] = {}

    def layer(conv: str, norm: str, above: str, below: str | None) -> None:
        result[f"{conv}.weight"] = (above, below, None, None)
        result.update({f"{norm}.{name}": (above,) for name in ("weight", "bias")})

    layer("conv1", "bn1", "stem", None)
    before = "stem"
    for stage, (blocks, _) in STAGES.items():
        for block in (f"{stage}.{number}" for number in range(blocks)):
            layer(f"{block}.conv1", f"{block}.bn1", f"{block}.1", before)
            layer(f"{block}.conv2", f"{block}.bn2", f"{block}.2", f"{block}.1")
            layer(f"{block}.conv3", f"{block}.bn3", stage, f"{block}.2")
            if before != stage:
                layer(f"{block}.downsample.0", f"{block}.downsample.1", stage, before)
            before = stage
    return result | {"fc.weight": (None, before), "fc.bias": (None,)}


def case(name: str) -> Case:
    """Return the case of a name: ``resnet50``, or the width of an MLP."""
    if name == "resnet50":
        return Case(ResNet50, (1, 3, 64, 64), resnet50_groups, gate=5.0)
    width = int(name)
    return Case(lambda: mlp(width), (2, INPUTS), mlp_groups, gate={1024: 9.0, 2048: 3.0}.get(width))
