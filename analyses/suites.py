"""Suites of the scoreboard: fine-tunes of one pretrained network on several tasks, and the joint score of a merge.

Only the body of a network is merged. A classifier's head is fixed before the fine-tuning and kept for its task, as is
usual where the tasks differ in their classes; a language model has one head for all tasks, which is merged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any, TypeAlias

import torch
from soups import fine_tune_path
from torch import Tensor, nn

from weightspace.soups.fingerprints import fingerprint_of_data
from weightspace.tasks import ClassificationTask, TrainConfig
from weightspace.tasks.classification import Batch
from weightspace.zoo.language_task import LanguageTask

#: One of the tasks of a suite.
Part: TypeAlias = "HeadedTask | LanguageTask"


@dataclass(frozen=True)
class Sizes:
    """Sizes of a suite, fixed before any result was seen.

    Attributes:
        pretraining: steps of pretraining, if the suite has its own pretrained network.
        training: examples (or steps, for language models) of fine-tuning a task.
        epochs: passes over them.
        validation, test: examples of every task on which merges are chosen and reported.
        width: features of the network, if the suite has its own.
    """

    training: int
    validation: int
    test: int
    epochs: int
    pretraining: int = 0
    width: int = 0


class WithHead(nn.Module):
    """A network that returns features, followed by a fixed linear head on the normalised features."""

    def __init__(self, body: nn.Module, head: Tensor) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("head", head, persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits ``(n, classes)``."""
        return nn.functional.normalize(self.body(inputs), dim=-1) @ self.get_buffer("head").T


@dataclass(frozen=True)
class HeadedTask(ClassificationTask):
    """A classification task whose network returns features, and whose head ``(classes, features)`` is never trained."""

    head: Tensor = field(default_factory=lambda: torch.zeros(0, 0))

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of a batch in nats, a differentiable scalar."""
        return super().loss(WithHead(module, self.head), batch)

    def logits(self, module: nn.Module, batch: Batch) -> Tensor:
        """Return the logits of a batch ``(n, classes)``, with the head."""
        return WithHead(module, self.head)(batch[0])

    def score(self, module: nn.Module, split: str = "test") -> dict[str, float]:
        """Return the mean ``loss`` and the ``accuracy`` over a split."""
        return super().score(WithHead(module, self.head), split)


@dataclass(frozen=True)
class JointTask:
    """All tasks of a suite as one: its scores are the means over the tasks, and the objective of every task."""

    name: str
    parts: Mapping[str, Part]
    objective: str
    recipe: TrainConfig = field(default_factory=TrainConfig)

    @property
    def example_args(self) -> tuple[Tensor, ...]:
        """The first few test inputs of the first task."""
        return next(iter(self.parts.values())).example_args

    def network(self) -> nn.Module:
        """Return a new network; those of all tasks are alike."""
        return next(iter(self.parts.values())).network()

    def score(self, module: nn.Module, split: Any = "test") -> dict[str, float]:
        """Return the means of ``loss`` and ``accuracy``, the worst objective, and that of every task by its name."""
        scores = {name: part.score(module, split) for name, part in self.parts.items()}
        each = {name: one[self.objective] for name, one in scores.items()}
        means = {figure: mean(one[figure] for one in scores.values()) for figure in ("loss", "accuracy")}
        worst = (max if self.objective == "loss" else min)(each.values())
        return {**means, "worst": worst, **each}

    def batches(self, split: Any, seed: int) -> Iterator[tuple[str, Batch]]:
        """Yield the batches of one task after the other, with its name."""
        for name, part in self.parts.items():
            yield from ((name, batch) for batch in part.batches(split, seed))

    def loss(self, module: nn.Module, batch: tuple[str, Batch]) -> Tensor:
        """Return the mean loss of a batch by its task."""
        name, examples = batch
        return self.parts[name].loss(module, examples)


@dataclass(frozen=True)
class Suite:
    """Fine-tunes and how their merges are scored.

    Attributes:
        joint: all tasks as one.
        base: file of the pretrained network.
        models: name of a task -> file of its fine-tune.
    """

    joint: JointTask
    base: Path
    models: Mapping[str, Path]

    @cached_property
    def digest(self) -> str:
        """Digest of the networks and of the data on which merges are scored."""
        files = [path.name for path in (self.base, *self.models.values())]
        data = [fingerprint_of_data(self.joint, split) for split in ("validation", "test")]
        return hashlib.sha256(json.dumps([files, data, self.joint.objective]).encode()).hexdigest()[:16]


def fine_tuned(name: str, parts: Mapping[str, Part], objective: str, seed: int, cache: Path) -> Suite:
    """Return a suite whose networks are fine-tuned now unless they are in the cache.

    Args:
        name: name of the suite.
        parts: name of a task -> task; their networks start from equal weights.
        objective: score by which merges are chosen and compared.
        seed: seed of the fine-tuning.
        cache: folder of the networks.
    """
    first = next(iter(parts.values()))
    untrained = replace(first, name=f"{name}-pretrained", recipe=replace(first.recipe, epochs=0))
    base = fine_tune_path(untrained, 0, cache)
    models = {label: fine_tune_path(part, seed, cache) for label, part in parts.items()}
    return Suite(JointTask(name, parts, objective), base, models)
