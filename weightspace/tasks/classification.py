"""Classification of arrays: the class of the built-in tasks, ready for a user's own data.

An epoch is split into batches of nearly equal size: no example is dropped, and no batch is tiny.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Generator, Tensor, nn

from weightspace.errors import WeightspaceError
from weightspace.tasks.evaluating import evaluating, on_device_of
from weightspace.tasks.failures import RAISED
from weightspace.tasks.objectives import Mode
from weightspace.tasks.parts import ValidationPart
from weightspace.tasks.protocol import SPLITS, Split, TrainConfig
from weightspace.threads import torch_threads

#: Number of examples scored at a time: bounds memory, and is fixed so that sums are rounded identically.
_SCORED_AT_ONCE = 512
#: Number of examples in ``example_args``.
_SHOWN = 4

Batch: TypeAlias = "tuple[Tensor, Tensor]"
Augmentation: TypeAlias = "Callable[[Tensor, Generator], Tensor]"


class Examples(NamedTuple):
    """Inputs ``(n, …)`` of the network, and classes ``0 … c−1`` of shape ``(n,)``, int64.

    The inputs are a tensor, or ``Images``, which are computed when they are indexed.
    """

    inputs: Any
    labels: Tensor


def carve(examples: Examples, count: int, *, seed: int = 0) -> tuple[Examples, Examples]:
    """Split examples at random into ``(rest, taken)`` with ``count`` taken; reproducible for a fixed seed."""
    order = torch.randperm(len(examples.labels), generator=torch.Generator().manual_seed(seed))
    taken, rest = order[:count], order[count:]
    return (
        Examples(examples.inputs[rest], examples.labels[rest]),
        Examples(examples.inputs[taken], examples.labels[taken]),
    )


def add_noise(inputs: Tensor, generator: Generator, *, std: float) -> Tensor:
    """Return the inputs plus Gaussian noise of standard deviation ``std``: an augmentation."""
    return inputs + std * torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype)


@dataclass(frozen=True)
class ClassificationTask:
    """A classifier with a cross-entropy loss, scored by ``loss`` (nats) and ``accuracy`` (a fraction).

    A pickled task contains its functions but not its data, which is reloaded after unpickling.

    Args:
        name: name of the task in tables and plots.
        build: returns a new network: inputs ``(n, …)`` to logits ``(n, classes)``.
        load: returns the examples of the splits train, validation and test, and of any additional ones, which are
            ``shifts``; called once per task and process.
        batch_size: maximum number of examples in a batch.
        augment: transforms the inputs of a training batch, given a generator; it returns new inputs.
        augmentations: others to choose from by name, with ``variant`` or ``weightspace train --augmentation``.
        recipe: configuration of ``train``.
        objective: the score that soups optimise.
        mode: ``"min"`` or ``"max"``; required if the name of the objective doesn't imply it.
    """

    name: str
    build: Callable[[], nn.Module]
    load: Callable[[], Mapping[Any, Examples]]
    batch_size: int = 64
    augment: Augmentation | None = None
    augmentations: Mapping[str, Augmentation | None] = field(default_factory=dict)
    recipe: TrainConfig = field(default_factory=TrainConfig)
    objective: str = "accuracy"
    mode: Mode | None = None

    def __post_init__(self) -> None:
        for piece, returns in (("build", "a new network"), ("load", "the examples of every split by its name")):
            value = getattr(self, piece)
            if not callable(value) or isinstance(value, nn.Module):
                raise WeightspaceError(
                    f"The piece {piece!r} of task {self.name!r} is a {type(value).__name__}; expected a function that "
                    f"returns {returns}: {piece}, not {piece}()."
                )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "examples"}

    @cached_property
    def examples(self) -> Mapping[str, Examples]:
        """The examples of every split.

        Raises:
            WeightspaceError: a split is missing or empty, or its labels don't fit its inputs.
        """
        examples = self._loaded()
        if missing := [split for split in SPLITS if split not in examples]:
            raise WeightspaceError(f"Task {self.name!r} has no split {missing[0]!r}; found {', '.join(examples)}.")
        for split, (inputs, labels) in examples.items():
            if labels.shape != inputs.shape[:1] or labels.dtype != torch.int64 or not len(labels):
                raise WeightspaceError(
                    f"Split {split!r} of task {self.name!r} has inputs {tuple(inputs.shape)} and "
                    f"labels {tuple(labels.shape)} {labels.dtype}; expected (n, …) and (n,) torch.int64."
                )
        return examples

    def _loaded(self) -> dict[str, Examples]:
        """Return the result of ``load``, with pairs of arrays and tensors as examples."""
        try:
            found = self.load()
        except RAISED as error:  # an AttributeError in a property would look like a missing attribute
            raise WeightspaceError(f"Loading the examples of task {self.name!r} raised {error!r}.") from error
        if not isinstance(found, Mapping):
            raise WeightspaceError(
                f"Task {self.name!r} loads a {type(found).__name__}; expected a mapping of the splits "
                f"{', '.join(SPLITS)} to Examples(inputs, labels)."
            )
        return {split: _examples(one, f"Split {split!r} of task {self.name!r}") for split, one in found.items()}

    def part(self, index: int, parts: int) -> ClassificationTask:
        """Return the task with every ``parts``-th validation example, from ``index`` on."""
        return replace(self, load=ValidationPart(partial(getattr, self, "examples"), index, parts))

    @property
    def example_args(self) -> tuple[Tensor, ...]:
        """The first few test inputs."""
        return (self.examples["test"].inputs[:_SHOWN],)

    @property
    def shifts(self) -> tuple[str, ...]:
        """Names of the splits beyond train, validation and test: out-of-distribution test data."""
        return tuple(split for split in self.examples if split not in SPLITS)

    def network(self) -> nn.Module:
        """Return a new network, with weights drawn from torch's global generator."""
        network = self.build()
        if not isinstance(network, nn.Module):
            raise WeightspaceError(
                f"The piece 'build' of task {self.name!r} returned a {type(network).__name__}; expected a module."
            )
        return network

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of a batch in nats, a differentiable scalar."""
        inputs, labels = on_device_of(module, *batch)
        return nn.functional.cross_entropy(module(inputs), labels)

    def batches(self, split: Split | str, seed: int) -> Iterator[Batch]:
        """Yield ``(inputs, labels)``: for training, shuffled and augmented by the seed; otherwise in order."""
        inputs, labels = self._split(split)
        pieces = math.ceil(len(labels) / self.batch_size)
        if split != "train":
            yield from ((inputs[chosen], labels[chosen]) for chosen in _slices(len(labels), pieces))
            return
        generator = torch.Generator().manual_seed(seed)
        for chosen in torch.randperm(len(labels), generator=generator).tensor_split(pieces):
            batch = inputs[chosen]
            yield (batch if self.augment is None else self.augment(batch, generator)), labels[chosen]

    def score(self, module: nn.Module, split: Split | str = "test") -> dict[str, float]:
        """Return the mean ``loss`` and the ``accuracy`` over a split or a shift, unaugmented, in evaluation mode."""
        examples = self._split(split)
        loss, correct = 0.0, 0
        with evaluating(module), torch_threads(self.recipe.threads), torch.inference_mode():
            for start in range(0, len(examples.labels), _SCORED_AT_ONCE):
                chosen = slice(start, start + _SCORED_AT_ONCE)
                inputs, labels = on_device_of(module, examples.inputs[chosen], examples.labels[chosen])
                logits = module(inputs)
                loss += nn.functional.cross_entropy(logits.double(), labels, reduction="sum").item()
                correct += int((logits.argmax(dim=1) == labels).sum())
        count = len(examples.labels)
        return {"loss": loss / count, "accuracy": correct / count}

    def _split(self, split: str) -> Examples:
        """Return the examples of a split."""
        if split not in self.examples:
            raise WeightspaceError(f"Task {self.name!r} has no split {split!r}; expected {', '.join(self.examples)}.")
        return self.examples[split]


def _examples(found: Any, where: str) -> Examples:
    """Return inputs and labels of a split, with arrays converted to tensors."""
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise WeightspaceError(f"{where} is a {type(found).__name__}; expected Examples(inputs, labels).")
    inputs, labels = (torch.from_numpy(part) if isinstance(part, np.ndarray) else part for part in found)
    if not hasattr(inputs, "shape") or not isinstance(labels, Tensor):
        kinds = f"{type(inputs).__name__} and {type(labels).__name__}"
        raise WeightspaceError(f"{where} has inputs and labels of types {kinds}; expected tensors or arrays.")
    return Examples(inputs, labels)


def _slices(count: int, pieces: int) -> Iterator[slice]:
    """Yield the slices of ``count`` examples in pieces of nearly equal size, the larger ones first."""
    size, larger = divmod(count, pieces)
    start = 0
    for piece in range(pieces):
        stop = start + size + (piece < larger)
        yield slice(start, stop)
        start = stop
