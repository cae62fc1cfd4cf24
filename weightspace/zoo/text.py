"""Text classification tasks: fine-tune the upper layers of a BERT-like encoder with a linear head.

Embeddings and lower layers are frozen and not part of the network, so checkpoints are small. All fine-tunes of a task
start from the same point, which ``train(task, seed, epochs=0)`` returns; seeds differ in the order of the batches and
in dropout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from weightspace.tasks.classification import ClassificationTask, Examples
from weightspace.tasks.protocol import TrainConfig
from weightspace.zoo.text_encoder import frozen_features, text_classifier

#: Adam with a decreasing learning rate.
RECIPE = TrainConfig(epochs=3, learning_rate=1e-4, cooldown=True)


class Texts(NamedTuple):
    """Texts, and their classes ``0 … c−1`` of shape ``(n,)``, int64."""

    texts: Sequence[str]
    labels: Tensor


def text_task(
    name: str,
    encoder: str | Path,
    load: Callable[[], Mapping[str, Texts]],
    classes: int,
    *,
    trained: int = 2,
    length: int = 32,
    batch_size: int = 32,
    recipe: TrainConfig = RECIPE,
) -> ClassificationTask:
    """Return the task of fine-tuning an encoder on texts.

    Args:
        name: name of the task in tables and plots.
        encoder: Hugging Face folder with BERT's architecture and a tokenizer.json.
        load: returns texts by split: train, validation, test, and any additional ones, which are shifts.
        classes: number of logits.
        trained: number of top layers to fine-tune.
        length: maximum number of tokens in a text.
        batch_size: maximum number of texts in a batch.
        recipe: configuration of ``train``.
    """
    folder = Path(encoder)
    return ClassificationTask(
        name=name,
        build=partial(text_classifier, folder, classes, trained=trained),
        load=partial(_encoded, folder, load, trained, length),
        batch_size=batch_size,
        recipe=recipe,
    )


def _encoded(folder: Path, load: Callable[[], Mapping[str, Texts]], trained: int, length: int) -> dict[str, Examples]:
    """Return the texts of every split as outputs of the frozen layers."""
    return {
        split: Examples(frozen_features(folder, texts, trained=trained, length=length), labels)
        for split, (texts, labels) in load().items()
    }
