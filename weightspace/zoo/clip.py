"""Tasks of fine-tuning a CLIP model of open_clip on images in a folder or in arrays.

Classes are matched by folder name. All fine-tunes of a task start from the same point, the zero-shot classifier, which
``train(task, seed, epochs=0)`` returns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightspace.clip import image_size
from weightspace.errors import WeightspaceError
from weightspace.suggestions import unknown
from weightspace.tasks.classification import ClassificationTask, Examples, carve
from weightspace.tasks.protocol import TrainConfig
from weightspace.zoo.augmentations import AUGMENTATIONS
from weightspace.zoo.images import ArrayImages, FolderImages, find_images, split_folders
from weightspace.zoo.shifts import SHIFTS, shifted
from weightspace.zoo.zero_shot import TEMPLATES, ZeroShot

#: Adam with a decreasing learning rate. For full-size networks, rates of 1e-6 to 1e-4 are usual.
RECIPE = TrainConfig(epochs=4, learning_rate=1e-5, cooldown=True, threads=None)


def clip_task(
    model: str,
    data: str | Path | Callable[[], Mapping[str, Examples]],
    class_names: Sequence[str] | None = None,
    *,
    name: str | None = None,
    templates: Sequence[str] = TEMPLATES,
    weights: str | Callable[[], str] | None = None,
    shifts: Sequence[str] = (),
    held_out: int = 0,
    augmentation: str = "none",
    batch_size: int = 128,
    recipe: TrainConfig = RECIPE,
) -> ClassificationTask:
    """Return the task of fine-tuning an open_clip model on images.

    Args:
        model: name in open_clip (``ViT-B-32``), or a configuration, ``FILE.json``.
        data: a folder, ``train/CLASS/…``, ``validation/CLASS/…``, ``test/CLASS/…``, whose additional folders are
            shifts; or a function that returns examples by split, with uint8 inputs ``(n, 1 or 3, height, width)``.
            Files are decoded on demand and never kept.
        class_names: names of the classes in texts, in the order of the folder names or the labels; by default the
            folder names, with spaces for underscores.
        name: name of the task; by default ``clip-`` and the model's.
        templates: texts with ``{}`` for the class.
        weights: the pretrained model: a file, a tag that open_clip downloads (``openai``), or a function that returns a
            file. None draws random weights, which is only useful for tests.
        shifts: names in ``SHIFTS``; each adds a split of that name, made from the test images.
        held_out: number of images to move from the training to the validation split, if there is none.
        augmentation: name in ``AUGMENTATIONS``; ``variant`` changes it.
        batch_size: maximum number of images in a batch.
        recipe: configuration of ``train``.

    Raises:
        WeightspaceError: open_clip isn't installed, an unknown model, folder, shift or augmentation, or no class names.

    Source:
        Wortsman et al. 2022, https://arxiv.org/abs/2203.05482, section 3.1: the head is initialised from the texts, and
        trained with the whole image tower.
    """
    for kind, known, found in (("shift", SHIFTS, shifts), ("augmentation", AUGMENTATIONS, [augmentation])):
        if absent := [one for one in found if one not in known]:
            raise unknown(kind, absent[0], known)
    size = image_size(model)
    load = data if callable(data) else partial(folder_examples, Path(data), size, held_out)
    if class_names is None:
        if callable(data):
            raise WeightspaceError("Examples from a function have no class names; give class_names, in their order.")
        class_names = [folder.replace("_", " ") for folder in folder_classes(Path(data))]
    return ClassificationTask(
        name=name or f"clip-{Path(model).stem}",
        build=ZeroShot(model, tuple(class_names), tuple(templates), weights),
        load=partial(_image_examples, load, size, tuple(shifts)),
        batch_size=batch_size,
        augment=AUGMENTATIONS[augmentation],
        augmentations=AUGMENTATIONS,
        recipe=recipe,
    )


def folder_classes(folder: Path) -> list[str]:
    """Return the class names of an image folder: the folder names in ``train``, in order.

    Raises:
        WeightspaceError: the folder doesn't exist, or has no subfolders.
    """
    train = split_folders(folder)["train"]
    names = sorted(place.name for place in train.iterdir() if place.is_dir())
    if not names:
        raise WeightspaceError(f"{train} has no folders; expected one per class.")
    return names


def folder_examples(folder: Path, size: int, held_out: int = 0) -> dict[str, Examples]:
    """Return the examples of an image folder by split; classes are the folders in ``train``, matched by name.

    Args:
        folder: ``SPLIT/CLASS/…``.
        size: side length of the images, in pixels.
        held_out: number of random images to move from the training to the validation split, if there is none.

    Raises:
        WeightspaceError: a split is missing, a folder has no images, or one has a name that isn't in ``train``.
    """
    names = folder_classes(folder)
    found = {split: Examples(*find_images(place, names, size)) for split, place in split_folders(folder).items()}
    if "validation" not in found:
        if not 0 < held_out < len(found["train"].labels):
            raise WeightspaceError(
                f"{folder} has no folder 'validation', and held_out is {held_out}; expected one or the other: a "
                f"number from 1 to {len(found['train'].labels) - 1}, of training images to hold out."
            )
        found["train"], found["validation"] = _carved(found["train"], held_out)
    return found


def _carved(examples: Examples, held_out: int) -> tuple[Examples, Examples]:
    """Split files at random into ``(rest, held out)`` without decoding them."""
    images: FolderImages = examples.inputs
    parts = carve(Examples(torch.arange(len(images.files)), examples.labels), held_out)
    rest, taken = (
        Examples(FolderImages(tuple(images.files[at] for at in part.inputs.tolist()), images.size), part.labels)
        for part in parts
    )
    return rest, taken


def _image_examples(
    load: Callable[[], Mapping[str, Examples]], size: int, shifts: tuple[str, ...]
) -> dict[str, Examples]:
    """Return the examples in the network's format, and the shifted ones."""
    found = {split: Examples(_images(inputs, size), labels) for split, (inputs, labels) in load().items()}
    for shift in shifts:
        if shift in found:
            raise WeightspaceError(f"The data already has a split {shift!r}; expected no shift of that name.")
        found[shift] = Examples(shifted(found["test"].inputs, SHIFTS[shift]), found["test"].labels)
    return found


def _images(inputs: Any, size: int) -> Any:
    return ArrayImages(inputs, size) if isinstance(inputs, Tensor) else inputs
