"""Suite of image towers: a tiny CLIP of clothes and digits, fine-tuned on eight tasks of Fashion-MNIST and of digits.

The CLIP is pretrained here on distorted images with texts. Each task has its own classes or its own kind of image, and
CLIP's zero-shot head for its classes, which is not trained. Fine-tunes see other images than the pretraining.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from suites import HeadedTask, Sizes, Suite, fine_tuned
from torch import Tensor, nn

import weightspace as ws
from weightspace.clip import build_clip, image_size, pixels_of, zero_shot_head
from weightspace.tasks import Examples, TrainConfig
from weightspace.zoo.augmentations import distort
from weightspace.zoo.contrastive import pretrained_clip
from weightspace.zoo.fashion import fashion_folder, read_fashion
from weightspace.zoo.fashion_clip import CLASS_NAMES, MODEL, TEMPLATES
from weightspace.zoo.images import ArrayImages
from weightspace.zoo.zero_shot import ImageClassifier

FULL = Sizes(pretraining=800, training=1_500, epochs=3, validation=150, test=400)
SMALL = Sizes(pretraining=2, training=64, epochs=1, validation=16, test=16)

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS = tuple(f"digit {word}" for word in _WORDS)
#: Images for pretraining: the first ones of Fashion-MNIST, and the first digits, each several times.
_CLOTHES, _DIGITS, _REPEATS = 12_000, 400, 8
#: Training digits; there are 1,397 for all splits.
_FEW = 600

Data = Literal["clothes", "digits"]


class Source(NamedTuple):
    """The images of a task: which data, which of its classes, and how they are changed."""

    data: Data
    classes: tuple[int, ...]
    change: Callable[[Tensor], Tensor]


def _same(images: Tensor) -> Tensor:
    return images


def _quarter(images: Tensor) -> Tensor:
    return images.rot90(1, (2, 3))


def _half(images: Tensor) -> Tensor:
    return images.rot90(2, (2, 3))


def _negative(images: Tensor) -> Tensor:
    return 255 - images


def _noisy(images: Tensor) -> Tensor:
    """Return images with noise of a third of the range, always the same for the same images."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + 85 * noise).clamp(0, 255).to(torch.uint8)


_ALL = tuple(range(10))
PARTS: Mapping[str, Source] = {
    "tops": Source("clothes", (0, 2, 3, 4, 6), _same),
    "other clothes, turned": Source("clothes", (1, 5, 7, 8, 9), _quarter),
    "clothes, upside down": Source("clothes", _ALL, _half),
    "clothes, negative": Source("clothes", _ALL, _negative),
    "clothes, noisy": Source("clothes", _ALL, _noisy),
    "digits": Source("digits", _ALL, _same),
    "digits, turned": Source("digits", _ALL, _quarter),
    "digits, negative": Source("digits", _ALL, _negative),
}
_NAMES: Mapping[Data, tuple[str, ...]] = {"clothes": CLASS_NAMES, "digits": DIGITS}


def suite(seed: int, sizes: Sizes, cache: Path) -> Suite:
    """Return the suite of a seed, which determines the splits and the fine-tuning."""
    weights = _pretrained(sizes.pretraining, cache)
    parts = {name: _task(name, source, seed, sizes, weights) for name, source in PARTS.items()}
    return fine_tuned("images", parts, "accuracy", seed, cache)


def _task(name: str, source: Source, seed: int, sizes: Sizes, weights: Path) -> HeadedTask:
    names = [_NAMES[source.data][index] for index in source.classes]
    epochs = sizes.epochs * (3 if source.data == "digits" else 1)  # there are fewer digits
    return HeadedTask(
        name=f"images-{name.replace(', ', '-').replace(' ', '-')}",
        build=partial(_tower, weights),
        load=partial(_splits, name, seed, sizes),
        batch_size=64,
        recipe=TrainConfig(epochs=epochs, learning_rate=5e-4, cooldown=True),
        head=zero_shot_head(MODEL, _clip(weights), names, TEMPLATES),
    )


def _splits(name: str, seed: int, sizes: Sizes) -> dict[str, Examples]:
    """Return the splits of a task, drawn by the seed."""
    source = PARTS[name]
    pools = _clothes() if source.data == "clothes" else _digits(seed)
    most = {"train": sizes.training, "validation": sizes.validation, "test": sizes.test}
    if source.data == "digits":
        most["train"] = min(_FEW, sizes.training)
    return {split: _drawn(pools[split], source, seed, count) for split, count in most.items()}


def _drawn(pool: Examples, source: Source, seed: int, count: int) -> Examples:
    """Return images of the classes of a task, numbered anew."""
    order = torch.randperm(len(pool.labels), generator=torch.Generator().manual_seed(seed))
    fitting = order[torch.isin(pool.labels[order], torch.tensor(source.classes))][:count]
    labels = torch.tensor([source.classes.index(int(label)) for label in pool.labels[fitting]])
    return Examples(ArrayImages(source.change(pool.inputs[fitting]), image_size(MODEL)), labels)


@lru_cache(maxsize=1)
def _clothes() -> Mapping[str, Examples]:
    """Return the images of Fashion-MNIST by the split that is drawn from them, uint8 ``(n, 1, 28, 28)``."""
    images, labels = read_fashion(fashion_folder(), "train")
    parts = {"train": slice(_CLOTHES, 50_000), "validation": slice(50_000, None)}
    found = {split: Examples(images[part], labels[part]) for split, part in parts.items()}
    return {**found, "test": read_fashion(fashion_folder(), "t10k")}


def _digits(seed: int) -> Mapping[str, Examples]:
    """Return the digits by the split that is drawn from them."""
    images, labels = digit_images()
    order = _DIGITS + torch.randperm(len(labels) - _DIGITS, generator=torch.Generator().manual_seed(seed))
    parts = {"train": order[:_FEW], "validation": order[_FEW : _FEW + 250], "test": order[_FEW + 250 :]}
    return {split: Examples(images[chosen], labels[chosen]) for split, chosen in parts.items()}


@lru_cache(maxsize=1)
def digit_images() -> Examples:
    """Return scikit-learn's digits as images of the size of Fashion-MNIST's, uint8 ``(1797, 1, 28, 28)``."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = torch.as_tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) * (255 / 16)
    larger = nn.functional.interpolate(images, size=(24, 24), mode="bilinear")
    return Examples(nn.functional.pad(larger, (2, 2, 2, 2)).round().to(torch.uint8), torch.as_tensor(labels))


def _pretrained(steps: int, cache: Path) -> Path:
    """Return the file of the pretrained CLIP, after training it if it isn't there."""
    path = cache / f"images-clip-{steps}.safetensors"
    if not path.exists():
        clothes, digits = read_fashion(fashion_folder(), "train"), digit_images()
        images = torch.cat([clothes.inputs[:_CLOTHES], digits.inputs[:_DIGITS].repeat(_REPEATS, 1, 1, 1)])
        labels = torch.cat([clothes.labels[:_CLOTHES], 10 + digits.labels[:_DIGITS].repeat(_REPEATS)])
        captions = [[one.replace("{}", name) for one in TEMPLATES] for name in (*CLASS_NAMES, *DIGITS)]
        inputs = ArrayImages(images, image_size(MODEL))
        network = pretrained_clip(MODEL, inputs, labels, captions, steps=steps, augment=distort)
        path.parent.mkdir(parents=True, exist_ok=True)
        ws.save_checkpoint({name: one.detach() for name, one in network.state_dict().items()}, path)
    return path


@lru_cache(maxsize=1)
def _clip(weights: Path) -> Any:
    with torch.random.fork_rng(devices=[]):
        return build_clip(MODEL, weights=str(weights))


def _tower(weights: Path) -> nn.Module:
    """Return a new image tower with pretrained weights, from images to features."""
    model = _clip(weights)
    tower = ImageClassifier(copy.deepcopy(model.visual), torch.zeros(1, 1), pixels_of(model))
    tower.head = nn.Identity()  # type: ignore[assignment]
    return tower
