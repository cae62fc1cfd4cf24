"""Training a task from a seed: a convenient way to obtain networks in seconds.

Training is bit-reproducible for a fixed seed: initial weights, dropout, order and augmentation of the batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import torch

from weightspace.arguments import checked
from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.progress import Progress
from weightspace.suggestions import unknown
from weightspace.tasks.failures import task_errors
from weightspace.tasks.protocol import OptimizerName, Task, TrainConfig
from weightspace.threads import torch_threads

_MOMENTUM = 0.9


@checked
def train(
    task: Task,
    seed: int,
    *,
    epochs: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> StateDict:
    """Train a new network of the task and return its weights.

    Args:
        task: trained by its ``recipe`` if it has one, otherwise by ``TrainConfig()``.
        seed: training is bit-reproducible for a fixed seed; torch's global generator is left unchanged.
        epochs: passes over the training data, instead of the recipe's number; 0 returns the initial weights.
        on_progress: called after every ``"epoch"``, with its mean training loss in nats.

    Returns:
        Parameters and buffers, on the CPU; BatchNorm's statistics are those of training, ready for evaluation.

    Raises:
        WeightspaceError: a negative number of epochs, an unknown optimizer, or a loss that is no longer finite.

    Example:
        >>> import weightspace as ws
        >>> task = ws.load_task("digits-mlp")
        >>> state = ws.train(task, seed=0, epochs=1)
        >>> network = task.network()
        >>> _ = network.load_state_dict(state)
        >>> task.score(network, split="test")["accuracy"] > 0.5
        True
    """
    recipe: TrainConfig = getattr(task, "recipe", TrainConfig())
    count = recipe.epochs if epochs is None else epochs
    if count < 0:
        raise WeightspaceError(f"Found {count} epochs; expected at least 0.")
    shuffles = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch_threads(recipe.threads):
        torch.manual_seed(seed)
        network = task.network().train()
        optimizer = _optimizer(recipe, network)
        for epoch in range(1, count + 1):
            if recipe.cooldown:
                optimizer.param_groups[0]["lr"] = recipe.learning_rate * (1 - (epoch - 1) / count)
            order = int(torch.randint(2**62, (), generator=shuffles))
            loss = _epoch(task, network, optimizer, order)
            if on_progress is not None:
                on_progress(Progress("epoch", epoch, count, loss))
    return {name: tensor.detach() for name, tensor in network.eval().cpu().state_dict().items()}


def _optimizer(recipe: TrainConfig, network: torch.nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser of a recipe."""
    if recipe.optimizer not in get_args(OptimizerName):
        raise unknown("optimizer", recipe.optimizer, get_args(OptimizerName))
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            network.parameters(), lr=recipe.learning_rate, momentum=_MOMENTUM, weight_decay=recipe.weight_decay
        )
    return torch.optim.Adam(network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)


def _epoch(task: Task, network: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> float:
    """Run one pass over the training data and return the mean loss of its batches in nats."""
    losses = []
    with task_errors(task, "on its training batches"):
        for batch in task.batches("train", seed):
            optimizer.zero_grad()
            loss = task.loss(network, batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    mean = float(torch.stack(losses).double().mean()) if losses else float("nan")
    if not mean < float("inf"):
        raise WeightspaceError(
            f"The training loss of task {task.name!r} is {mean} over {len(losses)} batches; expected a "
            "finite number. Is the learning rate too high, or the training split empty?"
        )
    return mean
