"""Methods of the scoreboard that learn from the tasks' data, and so are not in the registry: all at their defaults.

They see 128 training examples of every task, those that Fisher information and RegMean's products come from; AdaMerging
sees the inputs of the validation data. ``merge_settings.LEARNED`` says which of them use labels.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, TypeAlias

import torch
from merge_settings import EVIDENCE_EXAMPLES
from suites import JointTask, Part, Suite
from torch import Tensor, nn

import weightspace as ws
from weightspace.merging import least_squares, regmean_plusplus
from weightspace.soups import AdaMergingOptions, LocalizationOptions, adamerging, localize_and_stitch
from weightspace.tasks import TrainConfig
from weightspace.tasks.batches import first_examples

ADAMERGING = AdaMergingOptions()
LOCALIZATION = LocalizationOptions(split="train")
#: Examples of every task in a step of AdaMerging, as in the authors' code.
ADAMERGING_BATCH = 16
_PLACES: Mapping[str, str] = {
    "regmean_plusplus": "merging.regmean_plusplus",
    "least_squares": "merging.least_squares",
    "localize_and_stitch, learned masks": "soups.localization",
    "learned_soup": "soups.learned",
    "adamerging": "soups.adamerging",
}


@dataclass(frozen=True)
class GivenBatches:
    """A task whose batches are given ones, in all splits."""

    task: Part | JointTask
    given: Sequence[Any]

    @property
    def name(self) -> str:
        """Name of the task."""
        return self.task.name

    @property
    def objective(self) -> str:
        """Score of the task that is optimised."""
        return self.task.objective

    @property
    def recipe(self) -> TrainConfig:
        """Configuration of training, for its threads."""
        return self.task.recipe

    @property
    def example_args(self) -> tuple[Tensor, ...]:
        """The first few test inputs."""
        return self.task.example_args

    def network(self) -> nn.Module:
        """Return a new network."""
        return self.task.network()

    def score(self, module: nn.Module, split: Any = "test") -> Mapping[str, float]:
        """Return the scores of the task on a split."""
        return self.task.score(module, split)

    def batches(self, split: Any, seed: int) -> Iterator[Any]:
        """Yield the given batches."""
        yield from self.given

    def loss(self, module: nn.Module, batch: Any) -> Tensor:
        """Return the mean loss of a batch."""
        return self.task.loss(module, batch)

    def logits(self, module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Return the logits of a batch, with the head of the task if it has one."""
        own: Any = getattr(self.task, "logits", None)
        return module(batch[0]) if own is None else own(module, batch)


def training_part(part: Part) -> GivenBatches:
    """Return a task with the training examples that evidence is collected on."""
    return GivenBatches(part, list(first_examples(part.batches("train", 0), EVIDENCE_EXAMPLES)))


def validation_inputs(part: Part) -> GivenBatches:
    """Return a task with its validation inputs in small batches; its labels are all 0."""
    inputs = torch.cat([batch[0] for batch in part.batches("validation", 0)])
    return GivenBatches(part, [(one, torch.zeros_like(one)) for one in inputs.split(ADAMERGING_BATCH)])


def joint_training_part(joint: JointTask) -> GivenBatches:
    """Return all tasks as one with the training examples that evidence is collected on, a batch of each in turn."""
    each = [[(name, batch) for batch in training_part(part).given] for name, part in joint.parts.items()]
    return GivenBatches(joint, [batch for batch in chain.from_iterable(zip_longest(*each)) if batch is not None])


def _regmean_plusplus(suite: Suite, models: Sequence[ws.StateDict]) -> ws.StateDict:
    tasks = [training_part(suite.joint.parts[name]) for name in suite.models]
    return regmean_plusplus(tasks, models, examples=EVIDENCE_EXAMPLES)


def _least_squares(suite: Suite, models: Sequence[ws.StateDict]) -> ws.StateDict:
    return least_squares(joint_training_part(suite.joint), models, examples=EVIDENCE_EXAMPLES * len(models))


def _localize_and_stitch(suite: Suite, models: Sequence[ws.StateDict]) -> ws.StateDict:
    tasks = [training_part(suite.joint.parts[name]) for name in suite.models]
    return localize_and_stitch(models, suite.base, tasks, options=LOCALIZATION).state


def _learned_soup(suite: Suite, models: Sequence[ws.StateDict]) -> ws.StateDict:
    return ws.learned_soup(models, joint_training_part(suite.joint)).state


def _adamerging(suite: Suite, models: Sequence[ws.StateDict]) -> ws.StateDict:
    tasks = [validation_inputs(suite.joint.parts[name]) for name in suite.models]
    return adamerging(models, suite.base, tasks, options=ADAMERGING).state


#: Takes a suite and the weights of its models.
Learn: TypeAlias = Callable[[Suite, Sequence[ws.StateDict]], ws.StateDict]
METHODS: Mapping[str, Learn] = {
    "regmean_plusplus": _regmean_plusplus,
    "least_squares": _least_squares,
    "localize_and_stitch, learned masks": _localize_and_stitch,
    "learned_soup": _learned_soup,
    "adamerging": _adamerging,
}


def learned(label: str, suite: Suite) -> ws.StateDict:
    """Return the merge of all models of a suite by a method."""
    return METHODS[label](suite, [ws.load_checkpoint(path) for path in suite.models.values()])


def settings_of(label: str) -> dict[str, Any]:
    """Return what the merge by a method depends on beside its code and the suite."""
    options = {"adamerging": ADAMERGING, "localize_and_stitch, learned masks": LOCALIZATION}.get(label)
    return {"examples": EVIDENCE_EXAMPLES, "batch": ADAMERGING_BATCH, "options": repr(options)}


def code_of(label: str) -> str:
    """Return the digest of the file of a method."""
    file = importlib.import_module(f"weightspace.{_PLACES[label]}").__file__
    return hashlib.sha256(Path(str(file)).read_bytes()).hexdigest()[:12]
