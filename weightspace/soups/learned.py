r"""The learned soup: ingredient coefficients found by gradient descent on held-out data.

The logits are :math:`\beta f(x; \sum_i \alpha_i \theta_i)`, with :math:`\alpha = \mathrm{softmax}(a)` per tensor, per
layer, or for the whole model. With :math:`g = \partial L / \partial \theta` at the mixture :math:`\theta`,
:math:`\partial L / \partial a_i = \alpha_i \langle g, \theta_i - \theta \rangle`, without a graph through the
ingredients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
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
from weightspace.soups.ingredients import IngredientCheck, Source, ingredients_of
from weightspace.soups.mixture import Mixture, Per
from weightspace.soups.scoring import Scorer, Statistics, settled
from weightspace.suggestions import unknown
from weightspace.tasks.protocol import Task, threads_of
from weightspace.threads import torch_threads


@brief
@dataclass(frozen=True)
class LearnedSoup:
    """A learned soup.

    Attributes:
        state: the weights, ``Σ α_i θ_i``.
        coefficients: tensor, layer or ``""`` (the model) -> ``α``, one per ingredient in the given order, sum 1.
        scale: ``β``, the factor of the logits; not part of the state.
        losses: mean validation loss per epoch, in nats.
    """

    state: StateDict
    coefficients: Mapping[str, tuple[float, ...]]
    scale: float
    losses: tuple[float, ...]


@checked
def learned_soup(
    paths: Sequence[Source],
    task: Task,
    per: Per = "tensor",
    *,
    epochs: int = 5,
    learning_rate: float = 0.05,
    statistics: Statistics = "auto",
    on_progress: Callable[[Progress], None] | None = None,
) -> LearnedSoup:
    """Learn the coefficients of the ingredients by AdamW on the validation split.

    Unlike in other recipes, all ingredients are open at once. They are memory-mapped if the format allows it, so that
    private memory holds only a network, its gradient and a few copies of one tensor (one per ingredient if they are
    narrower than float32), but each step reads all of them twice. If BatchNorm statistics are re-estimated afterwards,
    BatchNorm uses batch statistics during training.

    Args:
        paths: checkpoints or state dicts, one or more, with the same names and shapes.
        task: task with the loss and the held-out batches.
        per: granularity of the coefficients: per ``"tensor"``, per ``"layer"`` (module), or for the ``"model"``.
        epochs: passes over the validation batches.
        learning_rate: learning rate of AdamW for the logits of the coefficients and for ``log β``.
        statistics: BatchNorm statistics of the soup; see ``greedy_soup``.
        on_progress: called with each ``"epoch"`` and its mean validation loss in nats.

    Raises:
        CheckpointError: an ingredient cannot be read, or differs from the first in names or shapes.
        WeightspaceError: there are no validation batches, the loss isn't finite, the network doesn't return a tensor of
            logits, or integer tensors differ.

    Source:
        Wortsman et al. 2022, https://arxiv.org/abs/2203.05482, appendix I; the gradient as an inner product with each
        ingredient is our derivation.

    Example:
        >>> import weightspace as ws
        >>> task = ws.load_task("digits-mlp")
        >>> a, b = (ws.train(task, seed, epochs=1) for seed in (0, 1))
        >>> soup = ws.learned_soup([a, b], task, per="model", epochs=1)
        >>> list(soup.state) == list(a)
        True
    """
    if per not in get_args(Per):
        raise unknown("grouping of coefficients", per, get_args(Per))
    scorer = Scorer(task, statistics)
    ingredients = ingredients_of(paths, scorer.shapes)
    states = [ingredient.mapped() for ingredient in ingredients]
    against = IngredientCheck()
    for ingredient, state in zip(ingredients, states, strict=True):
        against.add(state, ingredient.name)
        scorer.check(state, ingredient.name)
    mixture = _Mixture(states, scorer.network, per)
    context = batch_statistics(scorer.network) if scorer.resets else nullcontext()
    with torch_threads(threads_of(task)), context:
        losses = _descend(mixture, task, epochs, learning_rate, on_progress)
    coefficients = {group: tuple(alpha.tolist()) for group, alpha in mixture.coefficients().items()}
    state = ingredients[0].as_stored(settled(task, mixture.state(), statistics))
    return LearnedSoup(state, coefficients, float(mixture.log_scale.detach().exp()), tuple(losses))


def _descend(
    mixture: _Mixture, task: Task, epochs: int, learning_rate: float, on_progress: Callable[[Progress], None] | None
) -> list[float]:
    """Learn the coefficients and return the mean loss per epoch."""
    optimizer = torch.optim.AdamW([*mixture.logits.values(), mixture.log_scale], lr=learning_rate, weight_decay=0.0)
    means = []
    for epoch in range(1, epochs + 1):
        losses = [_step(mixture, task, optimizer, batch) for batch in task.batches("validation", epoch)]
        mean = sum(losses) / len(losses) if losses else float("nan")
        if not abs(mean) < float("inf"):
            raise WeightspaceError(
                f"The validation loss of task {task.name!r} is {mean} over {len(losses)} batches; expected a finite "
                "number. Try a smaller learning rate, or check that the validation split has batches."
            )
        means.append(mean)
        if on_progress is not None:
            on_progress(Progress("epoch", epoch, epochs, mean))
    return means


def _step(mixture: _Mixture, task: Task, optimizer: torch.optim.Optimizer, batch: Any) -> float:
    """Take one optimiser step and return the loss before it, in nats."""
    optimizer.zero_grad()
    mixture.mix()
    with mixture.scaled() as network:
        loss = task.loss(network, batch)
        loss.backward()
    mixture.pull()
    optimizer.step()
    return float(loss.detach())


class _Mixture(Mixture):
    """A mixture whose coefficients are the softmax of logits, which get gradients, and the scale of its output."""

    def __init__(self, states: Sequence[StateDict], network: nn.Module, per: Per) -> None:
        super().__init__(states, network, per)
        self.logits = {group: torch.zeros(len(states), dtype=torch.float64, requires_grad=True) for group in self.own}
        self.log_scale = torch.zeros((), dtype=torch.float64, requires_grad=True)

    def coefficients(self) -> dict[str, Tensor]:
        """Return ``α`` of each group."""
        return {group: logits.detach().softmax(0) for group, logits in self.logits.items()}

    @torch.no_grad()
    def pull(self) -> None:
        """Set the gradients of the coefficients' logits from the gradient of the weights."""
        slopes = self.slopes()
        for group, alpha in self.coefficients().items():
            self.logits[group].grad = alpha * slopes[group]

    @contextmanager
    def scaled(self) -> Iterator[nn.Module]:
        """Multiply the network's output by ``β`` inside the block."""

        def multiply(module: nn.Module, inputs: Any, output: Any) -> Tensor:
            if not isinstance(output, Tensor):
                raise WeightspaceError(f"A learned soup scales logits; the network returns a {type(output).__name__}.")
            return output * self.log_scale.exp().to(output)

        handle = self.network.register_forward_hook(multiply)
        try:
            with torch.enable_grad():
                yield self.network
        finally:
            handle.remove()
