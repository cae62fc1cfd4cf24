"""Data statistics that some merge methods need in addition to the weights, from each model's own task.

They are state dicts under the names of the weights they belong to, saved in files like any checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.arguments import checked
from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.progress import Progress
from weightspace.suggestions import unknown
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
    batches = _first(task.batches("train", seed), examples)
    collect = _grams if kind == "gram" else _squared_gradients
    return {name: tensor.cpu() for name, tensor in collect(task, module, batches, examples, on_progress).items()}


@torch.no_grad()
def _grams(
    task: Task, module: nn.Module, batches: Iterator[Any], examples: int, on_progress: Callable[[Progress], None] | None
) -> StateDict:
    """Return the mean of ``xᵀx``, by name of the weight."""
    totals: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def recorder(name: str, rows_of: Callable[[Any, Tensor], Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def record(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            rows = rows_of(layer, inputs[0]).double()
            totals[name] = totals.get(name, 0) + rows.T @ rows
            counts[name] = counts.get(name, 0) + len(rows)

        return record

    handles = [
        layer.register_forward_pre_hook(recorder(f"{name}.weight", rows_of))
        for name, layer in module.named_modules()
        if (rows_of := _rows_of(layer)) is not None
    ]
    try:
        used = 0
        with task_errors(task, "on its batches"):
            for batch in batches:
                task.loss(module, batch)
                used += _length(batch)
                if on_progress is not None:
                    on_progress(Progress("example", used, examples))
    finally:
        for handle in handles:
            handle.remove()
    return {name: total / counts[name] for name, total in totals.items()}


def _rows_of(layer: nn.Module) -> Callable[[Any, Tensor], Tensor] | None:
    """Return a function that converts the inputs of a layer to rows, one for every product with its weight."""
    if isinstance(layer, nn.Linear):
        return _linear_rows
    if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros":
        return _convolution_rows
    return None


def _linear_rows(layer: nn.Linear, inputs: Tensor) -> Tensor:
    return inputs.reshape(-1, inputs.shape[-1])


def _convolution_rows(layer: nn.Conv2d, inputs: Tensor) -> Tensor:
    padding = layer.padding
    if isinstance(padding, str):
        sizes = zip(layer.dilation, layer.kernel_size, strict=True)
        both = [0 if padding == "valid" else dilation * (size - 1) for dilation, size in sizes]
        inputs = nn.functional.pad(inputs, [side for total in both[::-1] for side in (total // 2, total - total // 2)])
        padding = (0, 0)
    patches = nn.functional.unfold(
        inputs, layer.kernel_size, dilation=layer.dilation, padding=padding, stride=layer.stride
    )
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])


def _squared_gradients(
    task: Task, module: nn.Module, batches: Iterator[Any], examples: int, on_progress: Callable[[Progress], None] | None
) -> StateDict:
    """Return the mean squares of per-example gradients, by name of the parameter."""
    parameters = {name: one for name, one in module.named_parameters(remove_duplicate=False) if one.requires_grad}
    totals = {name: torch.zeros_like(one, dtype=torch.float32) for name, one in parameters.items()}
    used = 0
    for batch in batches:
        for index in range(_length(batch)):
            with task_errors(task, "on its batches"):
                loss = task.loss(module, _part(batch, index, index + 1))
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            for total, gradient in zip(totals.values(), gradients, strict=True):
                if gradient is not None:
                    total += gradient.float().square()
            used += 1
        if on_progress is not None:
            on_progress(Progress("example", used, examples))
    return {name: total / used for name, total in totals.items()}


def _first(batches: Any, examples: int) -> Iterator[Any]:
    """Yield batches up to a number of examples.

    Raises:
        WeightspaceError: there are no batches.
    """
    left = examples
    for batch in batches:
        length = _length(batch)
        yield batch if length <= left else _part(batch, 0, left)
        left -= length
        if left <= 0:
            return
    if left == examples:
        raise WeightspaceError("Found no batches to collect evidence from; expected training data.")


def _length(batch: Any) -> int:
    """Return the number of examples in a batch.

    Raises:
        WeightspaceError: its tensors don't determine it.
    """
    lengths = {len(tensor) if tensor.dim() else -1 for tensor in _tensors(batch)}
    if len(lengths) != 1 or -1 in lengths:
        raise WeightspaceError(
            f"A batch is a {type(batch).__name__} whose tensors have the first sizes {sorted(lengths)}; expected "
            "tuples, lists or dicts of tensors with one row per example."
        )
    return lengths.pop()


def _tensors(batch: Any) -> Iterator[Tensor]:
    """Yield the tensors of a batch."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, Sequence) and not isinstance(batch, str):
        for value in batch:
            yield from _tensors(value)


def _part(batch: Any, start: int, stop: int) -> Any:
    """Return some examples of a batch, in the same structure."""
    if isinstance(batch, Tensor):
        return batch[start:stop]
    if isinstance(batch, Mapping):
        return {name: _part(value, start, stop) for name, value in batch.items()}
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        parts = [_part(value, start, stop) for value in batch]
        return parts if isinstance(batch, list) else tuple(parts)
    return batch
