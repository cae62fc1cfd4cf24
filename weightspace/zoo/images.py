"""Images as the input of a network: values from 0 to 1, square, decoded and resized on demand.

They are indexed like a tensor: ``images[chosen]`` is float32 ``(n, channels, size, size)``. Only the requested images
are in memory, so a folder may be larger than it. This is the only module that imports Pillow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from weightspace.errors import WeightspaceError
from weightspace.suggestions import unknown

#: Indices of images, or a slice.
Chosen: TypeAlias = "Tensor | slice"
#: Suffixes of image files.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


class Images(Protocol):
    """A sequence of images that are computed on demand."""

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, channels, size, size)``."""
        ...

    def __getitem__(self, chosen: Chosen) -> Tensor:
        """Return the images at given positions, float32 ``(n, channels, size, size)``, from 0 to 1."""
        ...


@dataclass(frozen=True)
class ArrayImages:
    """Images in memory, stored as bytes.

    Args:
        pixels: uint8 ``(n, channels, height, width)`` with one or three channels.
        size: side length to resize to, in pixels; the aspect ratio isn't preserved.
    """

    pixels: Tensor
    size: int

    def __post_init__(self) -> None:
        found = self.pixels
        if found.dtype != torch.uint8 or found.ndim != 4 or found.shape[1] not in (1, 3):
            raise WeightspaceError(
                f"Found images {tuple(found.shape)} {found.dtype}; expected (n, 1 or 3, height, width) torch.uint8."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, channels, size, size)``."""
        return (*self.pixels.shape[:2], self.size, self.size)

    def __getitem__(self, chosen: Chosen) -> Tensor:
        """Return the images at given positions, float32 from 0 to 1."""
        images = self.pixels[chosen].float() / 255
        if images.shape[2:] == (self.size, self.size):
            return images
        options: dict[str, Any] = {"mode": "bilinear", "antialias": True, "align_corners": False}
        return nn.functional.interpolate(images, size=(self.size, self.size), **options).clamp(0, 1)


@dataclass(frozen=True)
class FolderImages:
    """Images in files: the shorter side is resized to ``size`` pixels and the centre cropped, as in CLIP."""

    files: tuple[Path, ...]
    size: int

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, 3, size, size)``."""
        return (len(self.files), 3, self.size, self.size)

    def __getitem__(self, chosen: Chosen) -> Tensor:
        """Return the images at given positions, float32 from 0 to 1.

        Raises:
            WeightspaceError: a file can't be read as an image.
        """
        if isinstance(chosen, slice):
            files = list(self.files[chosen])
        else:
            files = [self.files[position] for position in chosen.tolist()]
        if not files:
            return torch.zeros(0, *self.shape[1:])
        return torch.stack([self._read(file) for file in files])

    def _read(self, file: Path) -> Tensor:
        from PIL import Image

        try:
            with Image.open(file) as opened:
                image = opened.convert("RGB")
        except Exception as error:  # Pillow may raise any error of the format's reader
            raise WeightspaceError(f"{file} cannot be read as an image: {type(error).__name__}: {error}") from error
        width, height = image.size
        scale = self.size / min(width, height)
        wide, high = max(self.size, round(width * scale)), max(self.size, round(height * scale))
        left, top = (wide - self.size) // 2, (high - self.size) // 2
        resized = image.resize((wide, high), Image.Resampling.BICUBIC)
        cut = resized.crop((left, top, left + self.size, top + self.size))
        return torch.from_numpy(np.array(cut)).permute(2, 0, 1).float() / 255


def find_images(folder: Path, class_names: Sequence[str], size: int) -> tuple[FolderImages, Tensor]:
    """Return the images of ``folder/CLASS/…`` and their class indices, in the order of the paths.

    Args:
        folder: folder of one split.
        class_names: names of all possible folders; some may be missing.
        size: side length of the images, in pixels.

    Returns:
        The images, and their classes, int64 ``(n,)``.

    Raises:
        WeightspaceError: there are no images, or a folder isn't named after a class.
    """
    numbers = {name: number for number, name in enumerate(class_names)}
    files: list[Path] = []
    labels: list[int] = []
    for place in sorted(place for place in folder.iterdir() if place.is_dir()):
        if place.name not in numbers:
            raise unknown(f"class in {folder}", place.name, class_names)
        found = sorted(file for file in place.rglob("*") if file.suffix.lower() in SUFFIXES)
        files += found
        labels += [numbers[place.name]] * len(found)
    if not files:
        raise WeightspaceError(f"{folder} has no images; expected {folder}/CLASS/NAME{SUFFIXES[0]} and the like.")
    return FolderImages(tuple(files), size), torch.tensor(labels)


def split_folders(folder: Path) -> Mapping[str, Path]:
    """Return the folders of the splits: train, validation (or val), test, and any additional ones, which are shifts.

    Raises:
        WeightspaceError: the folder doesn't exist, or train or test is missing.
    """
    if not folder.is_dir():
        raise WeightspaceError(f"There is no folder {folder}. Expected one with train/CLASS/…, test/CLASS/….")
    folders = (place for place in sorted(folder.iterdir()) if place.is_dir())
    splits = {place.name: place for place in folders if not place.name.startswith((".", "__"))}  # caches
    if "val" in splits and "validation" not in splits:
        splits["validation"] = splits.pop("val")
    if missing := [name for name in ("train", "test") if name not in splits]:
        raise WeightspaceError(f"{folder} has no folder {missing[0]!r}; found {', '.join(splits) or 'none'}.")
    return splits
