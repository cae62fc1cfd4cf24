"""Augmentations of images with values from 0 to 1, applied during training batch by batch.

An augmentation takes images ``(n, channels, size, size)`` and a generator, and returns new ones.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from weightspace.tasks.classification import Augmentation
from weightspace.zoo.shifts import blurred, recontrasted, turned


def flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirror images with probability one half."""
    return torch.where(_chance(images, generator, 0.5), images.flip(3), images)


def jitter(images: Tensor, generator: Generator) -> Tensor:
    """Rotate by up to 10 degrees, scale the contrast by .6 to 1.2, add noise of up to .1."""
    return _distorted(images, generator, degrees=10.0, factors=(0.6, 1.2), noise=0.1)


def distort(images: Tensor, generator: Generator) -> Tensor:
    """Mirror, rotate by up to 30 degrees, blur 30 % of images, scale the contrast by .3 to 1.2, add noise up to .2."""
    mirrored = flip(images, generator)
    soft = blurred(mirrored, 0.0375 * images.shape[-1])
    mixed = torch.where(_chance(images, generator, 0.3), soft, mirrored)
    return _distorted(mixed, generator, degrees=30.0, factors=(0.3, 1.2), noise=0.2)


#: Name on the command line -> augmentation.
AUGMENTATIONS: Mapping[str, Augmentation | None] = {"none": None, "flip": flip, "jitter": jitter, "distort": distort}


def _distorted(
    images: Tensor, generator: Generator, *, degrees: float, factors: tuple[float, float], noise: float
) -> Tensor:
    low, high = factors
    turns = degrees * (2 * torch.rand(len(images), generator=generator) - 1)
    scales = low + (high - low) * torch.rand(len(images), generator=generator)
    stds = noise * torch.rand((len(images), 1, 1, 1), generator=generator)
    changed = recontrasted(turned(images, turns), scales)
    return (changed + stds * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def _chance(images: Tensor, generator: Generator, share: float) -> Tensor:
    """Draw a mask of chosen images, each with a given probability: bool ``(n, 1, 1, 1)``."""
    return torch.rand((len(images), 1, 1, 1), generator=generator) < share
