"""Language modelling: the class of tasks whose network predicts the next token of sequences of equal length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from weightspace.errors import WeightspaceError
from weightspace.tasks.evaluating import evaluating, on_device_of
from weightspace.tasks.parts import ValidationPart
from weightspace.tasks.protocol import Split, TrainConfig
from weightspace.threads import torch_threads

#: Tokens, and the ones that follow them, int64 ``(n, length)`` each.
Batch: TypeAlias = "tuple[Tensor, Tensor]"

#: Number of sequences in ``example_args``.
_SHOWN = 4


@dataclass(frozen=True)
class LanguageTask:
    """A model of the next token, scored by ``loss`` (nats per token) and ``accuracy`` (a fraction of the tokens).

    A pickled task contains its functions but not its data, which is reloaded after unpickling.

    Args:
        name: name of the task in tables and plots.
        build: returns a new network: tokens ``(n, length)`` to logits ``(n, length, vocabulary)``.
        load: returns the sequences of the splits train, validation and test, int64 ``(n, length + 1)``; called once per
            task and process.
        batch_size: number of sequences in a batch.
        epoch: number of batches in an epoch, each drawn anew from the training sequences.
        recipe: configuration of ``train``.
    """

    name: str
    build: Callable[[], nn.Module]
    load: Callable[[], Mapping[Split, Tensor]]
    batch_size: int
    epoch: int
    recipe: TrainConfig = field(default_factory=TrainConfig)
    objective: str = "loss"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "sequences"}

    @cached_property
    def sequences(self) -> Mapping[Split, Tensor]:
        """The sequences of every split."""
        return self.load()

    def part(self, index: int, parts: int) -> LanguageTask:
        """Return the task with every ``parts``-th validation sequence, from ``index`` on."""
        return replace(self, load=ValidationPart(partial(getattr, self, "sequences"), index, parts))

    @property
    def example_args(self) -> tuple[Tensor, ...]:
        """The first few test sequences."""
        return (self.sequences["test"][:_SHOWN, :-1],)

    def network(self) -> nn.Module:
        """Return a new network, with weights drawn from torch's global generator."""
        return self.build()

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of a batch in nats per token, a differentiable scalar."""
        tokens, following = on_device_of(module, *batch)
        return nn.functional.cross_entropy(module(tokens).flatten(0, 1), following.flatten())

    def batches(self, split: Split, seed: int) -> Iterator[Batch]:
        """Yield ``(tokens, following)``: for training, drawn by the seed; otherwise the whole split in order."""
        sequences = self._split(split)
        if split != "train":
            yield from ((part[:, :-1], part[:, 1:]) for part in sequences.split(self.batch_size))
            return
        generator = torch.Generator().manual_seed(seed)
        for _ in range(self.epoch):
            part = sequences[torch.randint(len(sequences), (self.batch_size,), generator=generator)]
            yield part[:, :-1], part[:, 1:]

    def score(self, module: nn.Module, split: Split = "test") -> dict[str, float]:
        """Return the mean ``loss`` and the ``accuracy`` over a split, in evaluation mode."""
        sequences = self._split(split)
        loss, correct, count = 0.0, 0, 0
        with evaluating(module), torch_threads(self.recipe.threads), torch.inference_mode():
            for part in sequences.split(self.batch_size):
                tokens, following = on_device_of(module, part[:, :-1], part[:, 1:])
                logits = module(tokens).flatten(0, 1)
                loss += nn.functional.cross_entropy(logits.double(), following.flatten(), reduction="sum").item()
                correct += int((logits.argmax(dim=1) == following.flatten()).sum())
                count += following.numel()
        return {"loss": loss / count, "accuracy": correct / count}

    def _split(self, split: Split) -> Tensor:
        """Return the sequences of a split."""
        if split not in self.sequences:
            raise WeightspaceError(f"Task {self.name!r} has no split {split!r}; expected {', '.join(self.sequences)}.")
        return self.sequences[split]
