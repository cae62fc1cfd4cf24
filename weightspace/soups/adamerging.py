r"""AdaMerging: coefficients of task vectors found by making the predictions on unlabelled inputs certain.

.. math:: \theta = b + \sum_i \lambda_i (x_i - b), \qquad
    \min_\lambda \sum_t \operatorname{mean}_{z \in B_t} H\bigl(\operatorname{softmax} f(z; \theta)\bigr), \qquad
    0 \le \lambda_i \le 1

with :math:`\lambda` per tensor (layer-wise in the paper), per layer, or for every model (task-wise), and a batch
:math:`B_t` of the inputs of every task in each step of Adam. AdaMerging++ takes the task vectors of TIES: trimmed to
their largest elements, and without those that disagree with the elected sign.

Labels are never used: a task's ``loss`` is only called to run the network on a batch, and left before it reads them.
The predictions are the output of the network, logits of shape ``(n, classes)`` or ``(n, length, classes)``, or what the
task's optional method ``logits(module, batch)`` returns. With such a method, every task can have its own head, which
isn't part of the merged network. All tasks must share the network: names and shapes of its weights.

This follows the paper's abstract and the authors' code (https://github.com/EnnengYang/AdaMerging). The code sums the
entropies of two batches per task in each step; here it is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, nn

from weightspace.arguments import checked
from weightspace.checkpoints import StateDict
from weightspace.connectivity.batchnorm import batch_statistics
from weightspace.errors import WeightspaceError
from weightspace.progress import Progress
from weightspace.reprs import brief
from weightspace.soups.elected_models import elected_models
from weightspace.soups.entropy import prediction_entropy
from weightspace.soups.ingredients import Source, ingredients_of
from weightspace.soups.mixture import Mixture, Per, checked_states
from weightspace.soups.scoring import Scorer, Statistics, settled
from weightspace.suggestions import unknown
from weightspace.tasks.protocol import SPLITS, Split, Task, threads_of
from weightspace.threads import torch_threads


@brief
@dataclass(frozen=True)
class AdaMerged:
    """A network merged by AdaMerging.

    Attributes:
        state: the weights, ``b + Σ λ_i (x_i − b)``.
        coefficients: tensor, layer or ``""`` (the model) -> ``λ``, one per model in the given order, from 0 to 1.
        entropies: mean entropy of the predictions before each step, in nats, averaged over the tasks.
        scores: ``start`` (all ``λ_i`` as in the beginning) and ``adamerging`` -> task -> split -> its scores.
    """

    state: StateDict
    coefficients: Mapping[str, tuple[float, ...]]
    entropies: tuple[float, ...]
    scores: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]


@dataclass(frozen=True)
class AdaMergingOptions:
    """Options of AdaMerging; the defaults are those of the authors' code, apart from the split.

    Attributes:
        start: initial value of all coefficients, from 0 to 1.
        steps: steps of Adam, each with the next batch of every task; batches are repeated once all were used.
        learning_rate: learning rate of Adam.
        split: split of the inputs. The paper takes those that it reports on, ``"test"``.
        seed: seed of the order of the batches; only ``"train"`` is shuffled.
        density: fraction of each task vector that ``ties`` keeps, over the whole model, from 0 to 1.

    Raises:
        WeightspaceError: a number isn't from 0 to 1, or the split is unknown.

    Example:
        >>> from weightspace.soups import AdaMergingOptions
        >>> AdaMergingOptions(steps=100, split="test").learning_rate
        0.001
    """

    start: float = 0.3
    steps: int = 500
    learning_rate: float = 1e-3
    split: Split = "validation"
    seed: int = 0
    density: float = 0.2

    def __post_init__(self) -> None:
        for name in ("start", "density"):
            if not 0 <= getattr(self, name) <= 1:
                raise WeightspaceError(f"{name} must be a number from 0 to 1; found {getattr(self, name)!r}.")
        if self.split not in SPLITS:
            raise unknown("split", self.split, SPLITS)


@checked
def adamerging(
    models: Sequence[Source],
    base: Source,
    tasks: Sequence[Task],
    per: Per = "tensor",
    *,
    ties: bool = False,
    statistics: Statistics = "auto",
    options: AdaMergingOptions | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> AdaMerged:
    """Merge fine-tunes of a model with coefficients that minimise the entropy of predictions on unlabelled inputs.

    As for a learned soup, all models are open at once, memory-mapped if their format allows it, and each step reads all
    of them twice. With ``ties``, they are held in memory. BatchNorm statistics can be re-estimated only if there is a
    single task, on its training data; BatchNorm then uses batch statistics meanwhile.

    Args:
        models: fine-tunes, one or more: checkpoints or state dicts with the names and shapes of the base.
        base: the pretrained model.
        tasks: one or more tasks, usually one per model, in any order; their entropies are averaged.
        per: granularity of the coefficients: per ``"tensor"``, per ``"layer"`` (module), or for the ``"model"``.
        ties: whether to take the task vectors of TIES (AdaMerging++).
        statistics: BatchNorm statistics of the merged network; see ``greedy_soup``.
        options: further options.
        on_progress: called with each ``"step"`` and its entropy in nats.

    Raises:
        CheckpointError: a model cannot be read, or differs from the base in names or shapes.
        WeightspaceError: there are no tasks or batches, the predictions aren't logits, the entropy isn't finite, or
            BatchNorm statistics would have to be re-estimated on several tasks.

    Source:
        Yang et al. 2024, https://arxiv.org/abs/2310.02575; see the module for the sources used.

    Example:
        >>> import weightspace as ws
        >>> from weightspace.soups import AdaMergingOptions, adamerging
        >>> task = ws.load_task("digits-mlp")
        >>> base, a, b = (ws.train(task, 0, epochs=epochs) for epochs in (0, 1, 2))
        >>> merged = adamerging([a, b], base, [task], per="model", options=AdaMergingOptions(steps=20))
        >>> list(merged.coefficients), len(merged.coefficients[""]), len(merged.entropies)
        ([''], 2, 20)
    """
    chosen = AdaMergingOptions() if options is None else options
    if per not in get_args(Per):
        raise unknown("grouping of coefficients", per, get_args(Per))
    scorers = _scorers(tasks, statistics)
    states = checked_states(models, base, scorers)
    if ties:
        states = [states[0], *elected_models(states[1:], states[0], chosen.density, scorers[0].aliases)]
    mixture = _TaskVectorMixture(states, scorers[0].network, per, chosen.start)
    first = settled(tasks[0], mixture.state(), statistics)
    with torch_threads(threads_of(tasks[0])), batch_statistics(mixture.network) if scorers[0].resets else nullcontext():
        entropies = _descend(mixture, tasks, chosen, on_progress)
    state = settled(tasks[0], mixture.state(), statistics)
    coefficients = {group: tuple(raw.detach().clamp(0, 1).tolist()) for group, raw in mixture.raw.items()}
    scores = {name: _scores(scorers, one) for name, one in (("start", first), ("adamerging", state))}
    state = ingredients_of([base], scorers[0].shapes)[0].as_stored(state)
    return AdaMerged(state, coefficients, tuple(entropies), scores)


def _scorers(tasks: Sequence[Task], statistics: Statistics) -> list[Scorer]:
    """Return a network for every task.

    Raises:
        WeightspaceError: there are no tasks, or statistics would have to be re-estimated on several.
    """
    if isinstance(tasks, Task) or not len(tasks):
        raise WeightspaceError(f"AdaMerging needs a list of at least one task, for its inputs; found {tasks!r:.80}.")
    names = [task.name for task in tasks]
    if len(set(names)) < len(names):
        raise WeightspaceError(f"The tasks must have different names; found {', '.join(names)}.")
    scorers = [Scorer(task, statistics) for task in tasks]
    if len(tasks) > 1 and any(scorer.resets for scorer in scorers):
        raise WeightspaceError(
            "The network has BatchNorm statistics, which can be re-estimated on the data of one task only; found "
            f"{len(tasks)} tasks. Give a single one, or average the statistics with statistics='none' "
            "(--statistics none)."
        )
    return scorers


class _TaskVectorMixture(Mixture):
    """A mixture ``b + Σ λ_i (x_i − b)`` of the base, which comes first, and models."""

    def __init__(self, states: Sequence[StateDict], network: nn.Module, per: Per, start: float) -> None:
        super().__init__(states, network, per)
        values = torch.full((len(states) - 1,), start, dtype=torch.float64)
        self.raw = {group: values.clone().requires_grad_() for group in self.own}

    def coefficients(self) -> dict[str, Tensor]:
        """Return ``1 − Σ λ_i`` and ``λ`` of each group."""
        clamped = {group: raw.detach().clamp(0, 1) for group, raw in self.raw.items()}
        return {group: torch.cat([1 - values.sum(dim=0, keepdim=True), values]) for group, values in clamped.items()}

    @torch.no_grad()
    def pull(self) -> None:
        """Set the gradients of ``λ`` from the gradient of the weights; it is 0 beyond the bounds."""
        for group, slope in self.slopes().items():
            raw = self.raw[group]
            raw.grad = (slope[1:] - slope[0]) * ((raw >= 0) & (raw <= 1))


def _descend(
    mixture: _TaskVectorMixture,
    tasks: Sequence[Task],
    options: AdaMergingOptions,
    on_progress: Callable[[Progress], None] | None,
) -> list[float]:
    """Learn the coefficients and return the entropy before each step."""
    optimizer = torch.optim.Adam(list(mixture.raw.values()), lr=options.learning_rate)
    streams = [_repeated(task, options.split, options.seed) for task in tasks]
    entropies = []
    for step in range(1, options.steps + 1):
        optimizer.zero_grad()
        mixture.mix()
        total = 0.0
        for task, stream in zip(tasks, streams, strict=True):
            with torch.enable_grad():
                entropy = prediction_entropy(task, mixture.network, next(stream))
            entropy.backward()  # gradients add up
            total += float(entropy.detach())
        mean = total / len(tasks)
        if not abs(mean) < float("inf"):
            raise WeightspaceError(
                f"The entropy of the predictions is {mean} in step {step}; expected a finite number. Do all models "
                "give finite logits on these inputs?"
            )
        mixture.pull()
        optimizer.step()
        entropies.append(mean)
        if on_progress is not None:
            on_progress(Progress("step", step, options.steps, mean))
    return entropies


def _repeated(task: Task, split: Split, seed: int) -> Iterator[Any]:
    """Yield the batches of a split again and again.

    Raises:
        WeightspaceError: there are none.
    """
    while True:
        some = False
        for batch in task.batches(split, seed):
            some = True
            yield batch
        if not some:
            raise WeightspaceError(
                f"Task {task.name!r} has no {split} batches; AdaMerging needs their inputs. Choose another split."
            )
        seed += 1


def _scores(scorers: Sequence[Scorer], state: StateDict) -> dict[str, dict[str, Mapping[str, float]]]:
    """Return the scores of a network, by task and split."""
    found: dict[str, dict[str, Mapping[str, float]]] = {}
    for scorer in scorers:
        scorer.put(state.items(), mixed=False)
        found[scorer.task.name] = {name: scorer.scores(name) for name in ("validation", "test")}
    return found
