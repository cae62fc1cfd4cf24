"""Fashion-MNIST: 70,000 greyscale images of 28×28 pixels in ten classes of clothing, read from IDX files.

The folder is the given one, ``$WEIGHTSPACE_DATA``, or that of Debian's package.

Source:
    Xiao, Rasul, Vollgraf 2017, https://arxiv.org/abs/1708.07747
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path

import torch

from weightspace.errors import WeightspaceError
from weightspace.tasks.classification import ClassificationTask, Examples, carve
from weightspace.tasks.protocol import Split, TrainConfig
from weightspace.zoo.architectures import cnn, mlp
from weightspace.zoo.idx import read_idx
from weightspace.zoo.vision_transformer import VisionTransformer

#: Folder of the files of ``apt-get install dataset-fashion-mnist``.
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_VALIDATION = 5_000


def fashion_mlp(data: Path | None = None) -> ClassificationTask:
    """Return the task ``fashion-mlp``: three hidden layers of 512 units, 89 % accuracy in about 35 s."""
    return ClassificationTask(
        name="fashion-mlp",
        build=partial(mlp, 28 * 28, (512, 512, 512), 10),
        load=partial(fashion_examples, fashion_folder(data)),
        batch_size=128,
        recipe=TrainConfig(epochs=5, cooldown=True),
    )


def fashion_cnn(data: Path | None = None) -> ClassificationTask:
    """Return the task ``fashion-cnn``: three convolutions with BatchNorm, 88 % accuracy in about 50 s."""
    return ClassificationTask(
        name="fashion-cnn",
        build=partial(cnn, 1, (32, 64, 128), 10, strides=(2, 2, 2)),
        load=partial(fashion_examples, fashion_folder(data)),
        batch_size=128,
        recipe=TrainConfig(epochs=2, learning_rate=2e-3, cooldown=True),
    )


def vit_fashion(data: Path | None = None) -> ClassificationTask:
    """Return the task ``vit-fashion``: a pre-norm vision transformer of four blocks, 87 % accuracy in about 80 s."""
    return ClassificationTask(
        name="vit-fashion",
        build=partial(
            VisionTransformer, size=28, patch=7, channels=1, classes=10, width=64, depth=4, heads=4, hidden=128
        ),
        load=partial(fashion_examples, fashion_folder(data)),
        batch_size=128,
        recipe=TrainConfig(epochs=4, learning_rate=2e-3, cooldown=True),
    )


def fashion_folder(data: Path | None = None) -> Path:
    """Return the folder that the images are read from.

    Raises:
        WeightspaceError: the images aren't there.
    """
    named = data or os.environ.get("WEIGHTSPACE_DATA")
    folder = Path(named) if named else DEBIAN_FOLDER
    if not (folder / "train-images-idx3-ubyte.gz").is_file():
        raise WeightspaceError(
            f"Fashion-MNIST isn't in {folder} (train-images-idx3-ubyte.gz is missing): "
            "apt-get install dataset-fashion-mnist, or pass --data DIR with the four .gz files."
        )
    return folder


@lru_cache(maxsize=1)
def fashion_examples(folder: Path) -> Mapping[Split, Examples]:
    """Return images ``(n, 1, 28, 28)``, standardised by the training pixels, and classes ``0 … 9``.

    Raises:
        WeightspaceError: a file is missing or broken.
    """
    training, validation = carve(_floats(read_fashion(folder, "train")), _VALIDATION)
    std, mean = torch.std_mean(training.inputs)
    splits: dict[Split, Examples] = {
        "train": training,
        "validation": validation,
        "test": _floats(read_fashion(folder, "t10k")),
    }
    return {name: Examples(split.inputs.sub_(mean).div_(std), split.labels) for name, split in splits.items()}


def read_fashion(folder: Path, prefix: str) -> Examples:
    """Return the images, uint8 ``(n, 1, 28, 28)``, and the labels of one pair of files, ``train`` or ``t10k``.

    Raises:
        WeightspaceError: a file is missing or broken.
    """
    images = torch.tensor(read_idx(folder / f"{prefix}-images-idx3-ubyte.gz"))
    labels = torch.tensor(read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz"), dtype=torch.int64)
    if len(images) != len(labels):
        raise WeightspaceError(f"{folder} has {len(images):,} {prefix} images and {len(labels):,} labels.")
    return Examples(images.unsqueeze(1), labels)


def _floats(examples: Examples) -> Examples:
    """Return the examples with pixels from 0 to 1."""
    return Examples(examples.inputs.float() / 255, examples.labels)
