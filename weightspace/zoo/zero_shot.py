"""CLIP models as classifiers to fine-tune: an image tower, and a linear head initialised from text features.

The head is computed from class names and templates, so that the network is CLIP's zero-shot classifier before training
and all fine-tunes start from the same point, as soups require. The text tower isn't part of the network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.clip import Pixels, build_clip, pixels_of, zero_shot_head

#: CLIP's own template.
TEMPLATES = ("a photo of a {}.",)


class ImageClassifier(nn.Module):
    """Logits of images ``(n, 1 or 3, size, size)`` with values from 0 to 1.

    Args:
        visual: image tower: normalised pixels ``(n, 3, size, size)`` to features ``(n, features)``.
        head: weights of the linear head on the normalised features, ``(classes, features)``.
        pixels: mean and standard deviation of the colours.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, visual: nn.Module, head: Tensor, pixels: Pixels) -> None:
        super().__init__()
        self.visual = visual
        classes, features = head.shape
        self.head = nn.Linear(features, classes, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(head)
        self.register_buffer("mean", torch.tensor(pixels.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(pixels.std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(n, classes)``; a greyscale image is expanded to three equal channels."""
        return self.head(nn.functional.normalize(self.visual((images - self.mean) / self.std), dim=-1))


@dataclass(frozen=True)
class ZeroShot:
    """A builder of the zero-shot classifier of a CLIP model; the texts are encoded once per process.

    Args:
        model: name in open_clip, or ``FILE.json``.
        class_names: in the order of the classes.
        templates: texts with ``{}`` for the name.
        weights: a file, a tag of open_clip, or a function that returns a file; None draws random weights from ``seed``.
        seed: seed of random weights.
    """

    model: str
    class_names: tuple[str, ...]
    templates: tuple[str, ...] = TEMPLATES
    weights: str | Callable[[], str] | None = None
    seed: int = 0

    def __call__(self) -> nn.Module:
        """Return a new network, always with the same weights.

        Raises:
            WeightspaceError: open_clip isn't installed, or the model, file or tag doesn't exist.
        """
        return copy.deepcopy(_zero_shot(self))


@lru_cache(maxsize=2)
def _zero_shot(source: ZeroShot) -> nn.Module:
    weights = source.weights() if callable(source.weights) else source.weights
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(source.seed)
        model: Any = build_clip(source.model, weights=weights)
    head = zero_shot_head(source.model, model, source.class_names, source.templates)
    return ImageClassifier(model.visual, head, pixels_of(model))
