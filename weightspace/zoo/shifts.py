"""Distribution shifts of images with values from 0 to 1.

A shift transforms images ``(n, channels, size, size)`` given a generator, deterministically for a fixed seed. Its
strength is such that a small network on Fashion-MNIST loses about ten points of accuracy.

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
    """Rotate each image about its centre by ``degrees``, in a random direction."""
    signs = 2.0 * torch.randint(2, (len(images),), generator=generator) - 1
    return turned(images, degrees * signs)


def noise(images: Tensor, generator: Generator, *, std: float = 0.2) -> Tensor:
    """Add Gaussian noise of standard deviation ``std`` to every pixel."""
    return (images + std * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def blur(images: Tensor, generator: Generator, *, share: float = 0.0375) -> Tensor:
    """Apply a Gaussian blur with a standard deviation of ``share`` times the side: 1.2 pixels of 32."""
    return blurred(images, share * images.shape[-1])


def contrast(images: Tensor, generator: Generator, *, factor: float = 0.35) -> Tensor:
    """Move every pixel by ``1 − factor`` of the distance to the mean of its image."""
    return recontrasted(images, torch.full((len(images),), factor))


#: Name -> shift: additional splits of an image task beyond train, validation and test.
SHIFTS: Mapping[str, Shift] = {"rotation": rotation, "noise": noise, "blur": blur, "contrast": contrast}


def turned(images: Tensor, degrees: Tensor) -> Tensor:
    """Return images rotated about their centre, each by its own angle ``(n,)``; empty corners are black."""
    angles = torch.deg2rad(degrees)
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    maps = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = nn.functional.affine_grid(maps, list(images.shape), align_corners=False)
    return nn.functional.grid_sample(images, grid, align_corners=False)


def blurred(images: Tensor, std: float) -> Tensor:
    """Return images after a Gaussian blur of ``std`` pixels, truncated at three deviations; the border is black."""
    reach, channels = math.ceil(3 * std), images.shape[1]
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / std) ** 2)
    kernel = (kernel / kernel.sum()).expand(channels, 1, 1, -1)
    across = nn.functional.conv2d(images, kernel, padding=(0, reach), groups=channels)
    return nn.functional.conv2d(across, kernel.transpose(2, 3), padding=(reach, 0), groups=channels)


def recontrasted(images: Tensor, factors: Tensor) -> Tensor:
    """Return images with the distance of each pixel from its image's mean multiplied by a factor per image ``(n,)``."""
    means = images.mean((1, 2, 3), keepdim=True)
    return (means + (images - means) * factors.view(-1, 1, 1, 1)).clamp(0, 1)


@dataclass(frozen=True)
class ShiftedImages:
    """Images that are shifted on demand, each with its own generator, independently of the others requested."""

    images: Images
    shift: Shift

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the images."""
        return self.images.shape

    def __getitem__(self, chosen: Chosen) -> Tensor:
        """Return the shifted images at given positions, float32 from 0 to 1."""
        images = self.images[chosen]
        seeds = torch.arange(self.shape[0])[chosen].tolist()
        each = zip(images.split(1), seeds, strict=True)
        shifted = [self.shift(image, Generator().manual_seed(seed)) for image, seed in each]
        return torch.cat(shifted) if shifted else images


@dataclass(frozen=True)
class KeptShift:
    """Shifted images in memory, as bytes, computed on first access."""

    images: ArrayImages
    shift: Shift

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the images."""
        return self.images.shape

    def __getitem__(self, chosen: Chosen) -> Tensor:
        """Return the shifted images at given positions, float32 from 0 to 1."""
        return self._made[chosen]

    @cached_property
    def _made(self) -> ArrayImages:
        made = ShiftedImages(self.images, self.shift)
        parts = (made[part] for part in torch.arange(self.shape[0]).split(512))
        return ArrayImages(torch.cat([(255 * part).round().to(torch.uint8) for part in parts]), self.images.size)


def shifted(images: Images, shift: Shift) -> Images:
    """Return the shifted images: stored as bytes if the images are in memory, otherwise computed on demand."""
    return KeptShift(images, shift) if isinstance(images, ArrayImages) else ShiftedImages(images, shift)
