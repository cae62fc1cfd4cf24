"""ResNet-20 as for CIFAR-10, written plainly, of any width: the network of the REPAIR paper.

Source:
    He et al. 2016, https://arxiv.org/abs/1512.03385, section 4.2; a 1×1 convolution where a shortcut changes shape.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

#: Channels of the three stages at width 1, and blocks in each.
STAGES, BLOCKS = (16, 32, 64), 3


class Block(nn.Module):
    """Two 3×3 convolutions with BatchNorm, and a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(outputs)))

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of images ``(n, inputs, h, w)``."""
        hidden = self.norm1(self.conv1(images)).relu()
        return (self.norm2(self.conv2(hidden)) + self.shortcut(images)).relu()


def resnet20(width: float = 1.0, channels: int = 1, classes: int = 10) -> nn.Module:
    """Return the network, 16, 32 and 64 channels in its three stages times ``width``."""
    stem = round(STAGES[0] * width)
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(channels, stem, 3, padding=1, bias=False), norm=nn.BatchNorm2d(stem), relu=nn.ReLU()
    )
    inputs = stem
    for stage, base in enumerate(STAGES, start=1):
        outputs = round(base * width)
        for block in range(1, BLOCKS + 1):
            layers[f"stage{stage}_block{block}"] = Block(inputs, outputs, 2 if stage > 1 and block == 1 else 1)
            inputs = outputs
    layers.update(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), head=nn.Linear(inputs, classes))
    return nn.Sequential(layers)
