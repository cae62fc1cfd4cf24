"""A small pre-norm vision transformer whose linear layers are all named: queries, keys and values are not fused.

Source:
    Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929, with a mean over the patches in place of a class token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

_POSITION_STD = 0.02


class VisionTransformer(nn.Module):
    """Logits of square images: patches, learned positions, pre-norm blocks, mean over the patches, linear head.

    Args:
        size: side length of the images, in pixels.
        patch: side length of a patch, a divisor of ``size``.
        channels: of the images.
        classes: number of logits.
        width: features of the residual stream.
        depth: number of blocks.
        heads: attention heads of each block, a divisor of ``width``.
        hidden: units of the MLP of each block.
    """

    def __init__(
        self, *, size: int, patch: int, channels: int, classes: int, width: int, depth: int, heads: int, hidden: int
    ) -> None:
        super().__init__()
        self.patch = patch
        self.patches = nn.Linear(channels * patch**2, width)
        self.positions = nn.Parameter(_POSITION_STD * torch.randn((size // patch) ** 2, width))
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(n, classes)`` of images ``(n, channels, size, size)``."""
        stream = self.patches(patches_of(images, self.patch)) + self.positions
        for block in self.blocks:
            stream = block(stream)
        return self.head(self.norm(stream).mean(dim=1))


class Block(nn.Module):
    """Attention and an MLP, each of which adds to the stream what it computes from the normalised stream."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, hidden)

    def forward(self, stream: Tensor) -> Tensor:
        """Return the stream ``(n, patches, width)`` after the block."""
        stream = stream + self.attention(self.norm1(stream))
        return stream + self.mlp(self.norm2(stream))


class Attention(nn.Module):
    """Self-attention of every position to all positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))

    def forward(self, features: Tensor) -> Tensor:
        """Return the addition to the stream, ``(n, patches, width)``, from the normalised stream."""
        split = [
            layer(features).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        ]
        return self.output(scaled_dot_product_attention(*split).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """One hidden layer with GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, features: Tensor) -> Tensor:
        """Return the addition to the stream, ``(n, patches, width)``, from the normalised stream."""
        return self.down(gelu(self.up(features)))


def patches_of(images: Tensor, patch: int) -> Tensor:
    """Return the pixels of the patches, ``(n, patches, channels · patch²)``, row by row."""
    split = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    return split.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
