"""Shifted images, unlike those of the training, made from images with values from 0 to 1.

A shift changes images ``(n, channels, size, size)`` given a generator, and is the same for equal generators. The
strengths are those at which a small network on Fashion-MNIST loses some ten points of accuracy.

Source:
    After the corruptions of Hendrycks, Dietterich 2019, https://arxiv.org/abs/1903.12261.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Generator, Tensor, nn

from weightspace.zoo.images import ArrayImages, Chosen, Images

Shift: TypeAlias = Callable[[Tensor, Generator], Tensor]


def rotation(images: Tensor, generator: Generator, *, degrees: float = 20.0) -> Tensor:
    """Turn each image by ``degrees``, to the left or to the right, about its middle."""
    signs = 2.0 * torch.randint(2, (len(images),), generator=generator) - 1
    return turned(images, degrees * signs)


def noise(images: Tensor, generator: Generator, *, std: float = 0.2) -> Tensor:
    """Add Gaussian noise of standard deviation ``std`` to every pixel."""
    return (images + std * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def blur(images: Tensor, generator: Generator, *, share: float = 0.0375) -> Tensor:
    """Blur by a Gaussian whose standard deviation is a ``share`` of the side: 1.2 pixels of 32."""
    return blurred(images, share * images.shape[-1])


def contrast(images: Tensor, generator: Generator, *, factor: float = 0.35) -> Tensor:
    """Bring every pixel ``1 − factor`` of the way to the mean of its image."""
    return recontrasted(images, torch.full((len(images),), factor))


#: Name -> shift: the splits that a task of images may have beyond train, validation and test.
SHIFTS: Mapping[str, Shift] = {"rotation": rotation, "noise": noise, "blur": blur, "contrast": contrast}


def turned(images: Tensor, degrees: Tensor) -> Tensor:
    """Return images turned about their middle, each by its own angle ``(n,)``; corners come in black."""
    angles = torch.deg2rad(degrees)
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    maps = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = nn.functional.affine_grid(maps, list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, align_corners=False)


def blurred(images: Tensor, std: float) -> Tensor:
    """Return images blurred by a Gaussian of a standard deviation in pixels, cut off at three; edges come in black."""
    reach, channels = math.ceil(3 * std), images.shape[1]
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / std) ** 2)
    kernel = (kernel / kernel.sum()).expand(channels, 1, 1, -1)
    across = nn.functional.conv2d(images, kernel, padding=(0, reach), groups=channels)
    return nn.functional.conv2d(across, kernel.transpose(2, 3), padding=(reach, 0), groups=channels)


def recontrasted(images: Tensor, factors: Tensor) -> Tensor:
    """Return images with the distance of each pixel from its image's mean multiplied by a factor each ``(n,)``."""
    means = images.mean((1, 2, 3), keepdim=True)
    return (means + (images - means) * factors.view(-1, 1, 1, 1)).clamp(0, 1)


@dataclass(frozen=True)
class ShiftedImages:
    """Images that are shifted when they are asked for: each by a generator of its own, whatever is asked with it."""

    images: Images
    shift: Shift

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the images."""
        return self.images.shape

    def __getitem__(self, chosen: Chosen) -> Tensor:
        """Return the shifted images at some positions, float32 from 0 to 1."""
        images = self.images[chosen]
        seeds = torch.arange(self.shape[0])[chosen].tolist()
        each = zip(images.split(1), seeds, strict=True)
        shifted = [self.shift(image, Generator().manual_seed(seed)) for image, seed in each]
        return torch.cat(shifted) if shifted else images


@dataclass(frozen=True)
class KeptShift:
    """Shifted images in memory, as bytes: made when the first of them is asked for."""

    images: ArrayImages
    shift: Shift

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the images."""
        return self.images.shape

    def __getitem__(self, chosen: Chosen) -> Tensor:
        """Return the shifted images at some positions, float32 from 0 to 1."""
        return self._made[chosen]

    @cached_property
    def _made(self) -> ArrayImages:
        made = ShiftedImages(self.images, self.shift)
        parts = (made[part] for part in torch.arange(self.shape[0]).split(512))
        return ArrayImages(torch.cat([(255 * part).round().to(torch.uint8) for part in parts]), self.images.size)


def shifted(images: Images, shift: Shift) -> Images:
    """Return the shifted images: kept as bytes if the images are in memory, else made whenever they are asked for."""
    return KeptShift(images, shift) if isinstance(images, ArrayImages) else ShiftedImages(images, shift)
