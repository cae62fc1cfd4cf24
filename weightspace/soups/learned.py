r"""The learned soup: ingredient coefficients found by gradient descent on held-out data.

The logits are :math:`\beta f(x; \sum_i \alpha_i \theta_i)`, with :math:`\alpha = \mathrm{softmax}(a)` per tensor, per
layer, or for the whole model. The gradient needs no graph through the ingredients: with
:math:`g = \partial L / \partial \theta` at the mixture :math:`\theta`,
:math:`\partial L / \partial a_i = \alpha_i \langle g, \theta_i - \theta \rangle`, accumulated tensor by tensor.
Weight-norm pairs are mixed as the weights that they represent, with the coefficients of their direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from weightspace.arguments import checked
from weightspace.arithmetic.affine import affine
from weightspace.arithmetic.coefficients import shares
from weightspace.arithmetic.dtypes import output_dtype, widened
from weightspace.arithmetic.integers import unaveraged
from weightspace.arithmetic.linear_combination import combine
from weightspace.arithmetic.parametrizations import Coordinates, combined
from weightspace.arithmetic.weight_norm import weight_and_gradient
from weightspace.checkpoints import StateDict
from weightspace.checkpoints.measure import is_inexact
from weightspace.checkpoints.state_dict import tied_names
from weightspace.connectivity.batchnorm import batch_statistics
from weightspace.errors import WeightspaceError
from weightspace.progress import Progress
from weightspace.reprs import brief
from weightspace.soups.ingredients import IngredientCheck, Source, ingredients_of
from weightspace.soups.scoring import Scorer, Statistics, settled
from weightspace.suggestions import unknown
from weightspace.tasks.protocol import Task, threads_of
from weightspace.threads import torch_threads

#: Granularity of the coefficients.
Per: TypeAlias = Literal["tensor", "layer", "model"]


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
    alphas = mixture.alphas()
    coefficients = {group: tuple(alpha.tolist()) for group, alpha in alphas.items()}
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


class _Mixture:
    """A network with the weights ``Σ α_i θ_i``, and the logits of ``α`` with their gradients."""

    def __init__(self, states: Sequence[StateDict], network: nn.Module, per: Per) -> None:
        self.states, self.network, self.aliases = states, network, tied_names(network.state_dict())
        self.coordinates = Coordinates(states)
        self.parameters = {name: one for name, one in network.named_parameters() if is_inexact(one)}
        self.groups = {name: _group(self.aliases.get(name, name), per) for name in self.coordinates.names}
        own = dict.fromkeys(self.groups[name] for name in self.parameters if name in self.groups)
        self.logits = {group: torch.zeros(len(states), dtype=torch.float64, requires_grad=True) for group in own}
        self.log_scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
        for parameter in network.parameters():
            parameter.requires_grad_(is_inexact(parameter))

    def alphas(self) -> dict[str, Tensor]:
        """Return the coefficients of each group, float64 of shape ``(ingredients,)``."""
        return {group: logits.detach().softmax(0) for group, logits in self.logits.items()}

    @torch.no_grad()
    def mix(self) -> None:
        """Set the weights of the network."""
        alphas, own = self.alphas(), self.network.state_dict()
        for name in self.coordinates.names:
            tensors = [self.coordinates.of(state, name) for state in self.states]
            kept = unaveraged(name, tensors)
            mixed = affine(widened(tensors), self._alpha(name, alphas).tolist()) if kept is None else kept
            for part, tensor in self.coordinates.tensors(name, mixed):
                own[part].copy_(tensor)
        for parameter in self.network.parameters():
            parameter.grad = None

    @torch.no_grad()
    def pull(self) -> None:
        """Set the gradients of the coefficients' logits from the gradient of the weights."""
        alphas = self.alphas()
        slopes = {group: torch.zeros_like(alpha) for group, alpha in alphas.items()}
        for name in self.parameters:
            slope = self._slope(name) if name in self.groups else None
            if slope is None:
                continue
            weight, gradient = slope
            for number, state in enumerate(self.states):
                away = self.coordinates.of(state, name).to(weight) - weight
                slopes[self.groups[name]][number] += (gradient * away).sum(dtype=torch.float64).cpu()
        for group, alpha in alphas.items():
            self.logits[group].grad = alpha * slopes[group]

    def state(self) -> StateDict:
        """Return the mixture, in the dtype of the ingredients, rounded once."""
        alphas = self.alphas()

        def mixed(name: str, tensors: list[Tensor]) -> Tensor:
            kept = unaveraged(name, tensors)
            if kept is not None:
                return kept
            own = shares(tuple(self._alpha(name, alphas).tolist()))
            return combine(tensors, own, output_dtype(tensor.dtype for tensor in tensors))

        return combined(self.states, mixed)

    def _slope(self, name: str) -> tuple[Tensor, Tensor] | None:
        """Return a coordinate of the network and its gradient, or None if it has no gradient."""
        parameter, norm = self.parameters[name], self.coordinates.parametrizations.weight_norms.get(name)
        if parameter.grad is None or norm is None:
            return None if parameter.grad is None else (parameter, parameter.grad)
        magnitude = self.parameters[norm.magnitude]
        return None if magnitude.grad is None else weight_and_gradient(magnitude, parameter)

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

    def _alpha(self, name: str, alphas: Mapping[str, Tensor]) -> Tensor:
        """Return the coefficients of a tensor."""
        alpha = alphas.get(self.groups[name])
        if alpha is not None:
            return alpha
        # A buffer has no gradient: it uses the mean coefficients of its layer, else of all groups.
        layer = self.aliases.get(name, name).rpartition(".")[0]
        near = [one for group, one in alphas.items() if group.rpartition(".")[0] == layer] or list(alphas.values())
        return torch.stack(near).mean(0)


def _group(name: str, per: Per) -> str:
    """Return the name of the group whose coefficients a tensor uses."""
    return {"tensor": name, "layer": name.rpartition(".")[0], "model": ""}[per]
