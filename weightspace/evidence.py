"""Data statistics that some merge methods need in addition to the weights, from each model's own task.

They are state dicts under the names of the weights they belong to, saved in files like any checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from weightspace.arguments import checked
from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.merging.layer_inputs import InputProducts, on_inputs
from weightspace.progress import Progress
from weightspace.suggestions import unknown
from weightspace.tasks.batches import batch_length, first_examples, part_of_batch
from weightspace.tasks.building import network_with
from weightspace.tasks.failures import task_errors
from weightspace.tasks.protocol import Task

#: Kind of statistics -> description.
KINDS = {
    "gram": "XᵀX / n of the inputs of every linear layer and convolution, for regmean",
    "fisher": "mean squares of every example's gradient, for fisher",
}


@checked
def collect_evidence(
    task: Task,
    state: StateDict,
    kind: str,
    *,
    examples: int = 256,
    seed: int = 0,
    device: str = "cpu",
    on_progress: Callable[[Progress], None] | None = None,
) -> StateDict:
    """Collect statistics of a model on the training data of its task.

    Args:
        task: the task the model was trained on; builds the network and provides the data.
        state: the model's weights.
        kind: ``gram`` gives, for every weight of a linear layer or an ungrouped 2-d convolution, the mean of ``xᵀx``
            over its inputs ``x``, float64 of shape ``(n, n)`` for ``n`` inputs per unit. ``fisher`` gives, for every
            parameter, the mean over the examples of the squared gradient of the loss, float32 of its shape: the
            empirical Fisher information, with the labels of the data.
        examples: maximum number of examples.
        seed: seed of the task's batches.
        device: where the network runs.
        on_progress: called after every ``"example"``.

    Raises:
        CheckpointError: the names or shapes of the weights differ from those of the task's network.
        WeightspaceError: unknown kind, no examples, or a batch that can't be split.

    Source:
        Jin et al. 2023, https://arxiv.org/abs/2212.09849, section 3; Matena and Raffel 2022,
        https://arxiv.org/abs/2111.09832, section 3.2.

    Example:
        >>> import weightspace as ws
        >>> task = ws.load_task("digits-mlp")
        >>> a, b = (ws.train(task, seed, epochs=1) for seed in (0, 1))
        >>> fisher = [ws.collect_evidence(task, state, "fisher", examples=32) for state in (a, b)]
        >>> merged = ws.merge([a, b], "fisher", evidence=fisher)
    """
    if kind not in KINDS:
        raise unknown("kind of evidence", kind, KINDS)
    if examples < 1:
        raise WeightspaceError(f"Evidence needs at least one example; found examples={examples}.")
    module = network_with(task, state).to(device)
    batches = first_examples(task.batches("train", seed), examples)
    collect = _grams if kind == "gram" else _squared_gradients
    return {name: tensor.cpu() for name, tensor in collect(task, module, batches, examples, on_progress).items()}


@torch.no_grad()
def _grams(
    task: Task, module: nn.Module, batches: Iterator[Any], examples: int, on_progress: Callable[[Progress], None] | None
) -> StateDict:
    """Return the mean of ``xᵀx``, by name of the weight."""
    products = InputProducts()
    with on_inputs(module, products.record), task_errors(task, "on its batches"):
        used = 0
        for batch in batches:
            task.loss(module, batch)
            used += batch_length(batch)
            if on_progress is not None:
                on_progress(Progress("example", used, examples))
    return products.means()


def _squared_gradients(
    task: Task, module: nn.Module, batches: Iterator[Any], examples: int, on_progress: Callable[[Progress], None] | None
) -> StateDict:
    """Return the mean squares of per-example gradients, by name of the parameter."""
    parameters = {name: one for name, one in module.named_parameters(remove_duplicate=False) if one.requires_grad}
    totals = {name: torch.zeros_like(one, dtype=torch.float32) for name, one in parameters.items()}
    used = 0
    for batch in batches:
        for index in range(batch_length(batch)):
            with task_errors(task, "on its batches"):
                loss = task.loss(module, part_of_batch(batch, index, index + 1))
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for total, gradient in zip(totals.values(), gradients, strict=True):
                if gradient is not None:
                    total += gradient.float().square()
            used += 1
        if on_progress is not None:
            on_progress(Progress("example", used, examples))
    return {name: total / used for name, total in totals.items()}
