"""Handwritten digits of 8×8 pixels (UCI, 1,797 images, bundled with scikit-learn), for experiments of seconds.

This is the only module that imports scikit-learn, when the images are first needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial

import torch

from weightspace.errors import WeightspaceError
from weightspace.tasks.classification import ClassificationTask, Examples, add_noise, carve
from weightspace.tasks.protocol import Split, TrainConfig
from weightspace.zoo.architectures import cnn, mlp

_TEST, _VALIDATION = 450, 200


def digits_mlp() -> ClassificationTask:
    """Return the task ``digits-mlp``: three hidden layers of 512 units, 98 % accuracy in about 3 s."""
    return ClassificationTask(
        name="digits-mlp",
        build=partial(mlp, 64, (512, 512, 512), 10),
        load=digits_examples,
        augment=partial(add_noise, std=0.3),
        recipe=TrainConfig(epochs=25),
    )


def digits_cnn() -> ClassificationTask:
    """Return the task ``digits-cnn``: three convolutions with BatchNorm, 98 % accuracy in about 6 s."""
    return ClassificationTask(
        name="digits-cnn",
        build=partial(cnn, 1, (64, 128, 128), 10, strides=(1, 2, 2)),
        load=digits_examples,
        augment=partial(add_noise, std=0.3),
        recipe=TrainConfig(epochs=15),
    )


@lru_cache(maxsize=1)
def digits_examples() -> Mapping[Split, Examples]:
    """Return images ``(n, 1, 8, 8)``, standardised by the training pixels, and their digits.

    Raises:
        WeightspaceError: scikit-learn isn't installed.
    """
    try:
        from sklearn.datasets import load_digits
    except Exception as error:  # a broken installation raises more than ImportError
        raise WeightspaceError(
            f'The digits come with scikit-learn, which cannot be imported ({error}): pip install "weightspace[demo]"'
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    images = torch.as_tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8)
    rest, test = carve(Examples(images, torch.as_tensor(labels, dtype=torch.int64)), _TEST)
    training, validation = carve(rest, _VALIDATION)
    std, mean = torch.std_mean(training.inputs)
    splits: dict[Split, Examples] = {"train": training, "validation": validation, "test": test}
    return {name: Examples((split.inputs - mean) / std, split.labels) for name, split in splits.items()}
