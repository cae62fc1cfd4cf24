r"""Least squares after alignment: the layers of a merged network fitted to the mean of its parents' layers on data.

With the inputs :math:`X_i` of a layer in network :math:`i`, one per row, and weights :math:`λ_i` that sum to 1, the
merged layer minimises :math:`‖\bar X W^\top - Σ_i λ_i X_i W_i^\top‖` with :math:`\bar X = Σ_i λ_i X_i`: the mean of the
inputs is mapped to the mean of the outputs. A bias is the weight of an input of 1.

Source:
    Nasery et al. 2025, https://arxiv.org/abs/2407.02447, section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from weightspace.arguments import checked
from weightspace.arithmetic.coefficients import shares
from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError, warn_caller
from weightspace.merging.in_memory import merge
from weightspace.merging.layer_inputs import MatrixLayer, groups_of, input_rows, is_matrix_layer, on_inputs
from weightspace.progress import Progress
from weightspace.tasks.batches import batch_length, first_examples
from weightspace.tasks.building import network_with
from weightspace.tasks.failures import task_errors
from weightspace.tasks.protocol import Task, threads_of
from weightspace.threads import torch_threads

#: Smallest ridge, against rounding.
_SMALLEST_RIDGE = 1e-10


@checked
def least_squares(
    task: Task,
    states: Sequence[StateDict],
    *,
    weights: Sequence[float] | None = None,
    examples: int = 2048,
    ridge: float = 0.01,
    seed: int = 0,
    device: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> StateDict:
    """Merge aligned networks layer by layer by least squares on the training data of a task.

    Every linear layer and 2-d convolution is fitted, biases included. All other parameters (embeddings, positions,
    norms) are means, and so is what the data leave open. Networks that were trained apart must be aligned first.

    Args:
        task: builds the network and provides the data; labels are not used.
        states: state dicts of two or more aligned networks of the task.
        weights: one finite number per network, divided by their sum; equal by default.
        examples: maximum number of training examples.
        ridge: penalty on the distance from the mean, at least 1e-10: a fraction of the mean square of each input.
        seed: seed of the task's batches.
        device: where the networks run, by default where the task builds them.
        on_progress: called after every ``"example"``.

    Returns:
        New tensors in the order and dtype of the inputs; copies give the copy.

    Raises:
        CheckpointError: names or shapes differ, or are not those of the task's network.
        WeightspaceError: the weights are invalid, there are no examples, or the inputs of a layer are not finite.

    Warns:
        WeightspaceWarning: some layers are means, since others share their weights or hooks cannot see their inputs, as
            inside ``nn.MultiheadAttention``; or BatchNorm's running statistics are, which ``reset_statistics``
            recomputes.

    Source:
        Nasery et al. 2025 (PLeaS), https://arxiv.org/abs/2407.02447, section 3.2.

    Example:
        >>> import weightspace as ws
        >>> task = ws.load_task("digits-mlp")
        >>> a, b = (ws.train(task, seed, epochs=1) for seed in (0, 1))
        >>> spec = ws.derive_spec(task.network(), task.example_args)
        >>> aligned = ws.permute(spec, ws.weight_matching(spec, a, b).permutation, b)
        >>> merged = ws.least_squares(task, [a, aligned], examples=256)
    """
    merged = merge(states, weights=weights)
    options = {"examples": examples, "ridge": ridge, "seed": seed, "device": device, "on_progress": on_progress}
    return fit_layers(task, states, merged, weights, **options)


def fit_layers(
    task: Task,
    states: Sequence[StateDict],
    merged: StateDict,
    weights: Sequence[float] | None = None,
    *,
    examples: int = 2048,
    ridge: float = 0.01,
    seed: int = 0,
    device: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> StateDict:
    """Return the mean ``merged`` of networks with its layers fitted, as ``least_squares`` does."""
    if examples < 1:
        raise WeightspaceError(f"Least squares need at least one example; found examples={examples}.")
    if not 0 <= ridge < float("inf"):
        raise WeightspaceError(f"Found a ridge of {ridge}; expected a small number that is not negative, such as 0.01.")
    networks = [network_with(task, state, f"network {index}") for index, state in enumerate(states, start=1)]
    if device is not None:
        networks = [network.to(device) for network in networks]
    layers = {name: layer for name, layer in networks[0].named_modules() if _can_be_fitted(name, layer, networks[0])}
    merged, found = dict(merged), _Products(layers, shares(tuple(weights or (1.0,) * len(states))).values)
    with torch_threads(threads_of(task)), torch.no_grad(), task_errors(task, "on its training batches"):
        used = 0
        for batch in first_examples(task.batches("train", seed), examples):
            found.add([_inputs_of(network, task, batch) for network in networks])
            used += batch_length(batch)
            if on_progress is not None:
                on_progress(Progress("example", used, examples))
        for name, products in found.products.items():
            merged |= _fitted(name, layers[name], products, states, merged, max(ridge, _SMALLEST_RIDGE))
    if left := _left_as_means(networks[0], found.products):
        warn_caller(
            f"{len(left)} layers are means, not fitted by least squares, since their inputs cannot be seen or their "
            f"weights are shared: {', '.join(left[:3])}{', …' if len(left) > 3 else ''}."
        )
    return merged


@dataclass
class _Products:
    """Products of the mean inputs of each layer with those of every network, added over batches.

    Attributes:
        layers: name -> layer.
        factors: one per network, with the sum 1.
        products: name -> those of every network times its factor, float64 ``(networks, groups, n, n)``.
    """

    layers: dict[str, Any]
    factors: tuple[float, ...]
    products: dict[str, Tensor] = field(default_factory=dict)

    def add(self, inputs: Sequence[dict[str, list[Tensor]]]) -> None:
        """Add the inputs of one batch: of every network, name -> the inputs of each call.

        Raises:
            WeightspaceError: the networks run a layer on different numbers of inputs, or on some that are not finite.
        """
        for name, layer in self.layers.items():
            calls = [[_rows(layer, seen) for seen in own.get(name, [])] for own in inputs]
            if len({tuple(rows.shape for rows in own) for own in calls}) > 1:
                raise WeightspaceError(
                    f"The networks run layer {name!r} on different numbers of inputs for the same batch; least squares "
                    "need one row of each network for every row of the others."
                )
            for rows in zip(*calls, strict=True):
                self._add(name, torch.stack(rows))

    def _add(self, name: str, rows: Tensor) -> None:
        """Add the inputs of one call, ``(networks, groups, rows, n)``."""
        factors = rows.new_tensor(self.factors).view(-1, 1, 1, 1)
        product = factors * ((factors * rows).sum(0).mT @ rows)
        if not product.isfinite().all():
            raise WeightspaceError(f"The inputs of layer {name!r} are not finite; least squares need finite ones.")
        self.products[name] = self.products.get(name, 0) + product


def _rows(layer: MatrixLayer, inputs: Tensor) -> Tensor:
    """Return inputs in float64 with a 1 for the bias, ``(groups, rows, n)``."""
    rows = input_rows(layer, inputs).double()
    return rows if layer.bias is None else nn.functional.pad(rows, (0, 1), value=1.0)


def _inputs_of(network: nn.Module, task: Task, batch: Any) -> dict[str, list[Tensor]]:
    """Return the inputs of all calls of a network's layers on a batch."""
    inputs: dict[str, list[Tensor]] = {}
    with on_inputs(network, lambda name, _, seen: inputs.setdefault(name, []).append(seen.clone())):
        task.loss(network, batch)
    return inputs


def _fitted(
    name: str, layer: MatrixLayer, products: Tensor, states: Sequence[StateDict], merged: StateDict, ridge: float
) -> StateDict:
    """Return weight and bias of a layer that minimise the squared error."""
    prefix = f"{name}." if name else ""
    mean = _matrix(layer, merged, prefix).to(products)
    deviations = torch.stack([_matrix(layer, state, prefix).to(products) - mean for state in states])
    fitted = mean + _solved(products.sum(0), (products @ deviations.mT).sum(0), ridge).mT
    parts = {"weight": fitted} if layer.bias is None else {"weight": fitted[..., :-1], "bias": fitted[..., -1]}
    return {
        prefix + part: value.reshape(merged[prefix + part].shape).to(merged[prefix + part])
        for part, value in parts.items()
    }


def _solved(gram: Tensor, residual: Tensor, ridge: float) -> Tensor:
    """Return the solutions of ``gram · x = residual`` per group; inputs that are always 0 give 0."""
    scale = gram.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    inverse = torch.where(scale > 0, 1 / scale, 0.0).unsqueeze(-1)
    correlations = (gram + gram.mT) / 2 * inverse * inverse.mT
    correlations.diagonal(dim1=-2, dim2=-1).fill_(1 + ridge)
    return inverse * torch.cholesky_solve(inverse * residual, torch.linalg.cholesky(correlations))


def _matrix(layer: MatrixLayer, state: StateDict, prefix: str) -> Tensor:
    """Return weight and bias of a layer as one float64 matrix per group, ``(groups, units, n)``."""
    weight = state[f"{prefix}weight"].detach().double().flatten(1).unflatten(0, (groups_of(layer), -1))
    if layer.bias is None:
        return weight
    bias = state[f"{prefix}bias"].detach().double().view(len(weight), -1, 1)
    return torch.cat([weight, bias], dim=-1)


def _can_be_fitted(name: str, layer: nn.Module, network: nn.Module) -> bool:
    """Return whether a layer has rows of inputs, and its parameters are its own."""
    if not is_matrix_layer(layer):
        return False
    own = {f"{name}.{part}" if name else part for part, _ in layer.named_parameters(recurse=False)}
    users: dict[int, set[str]] = {}
    for other, parameter in network.named_parameters(remove_duplicate=False):
        users.setdefault(id(parameter), set()).add(other)
    expected = {"weight"} if layer.bias is None else {"weight", "bias"}
    return own == {f"{name}.{part}" if name else part for part in expected} and all(
        users[id(parameter)] <= own for parameter in layer.parameters(recurse=False)
    )


def _left_as_means(network: nn.Module, fitted: dict[str, Tensor]) -> list[str]:
    """Return the names of the layers with matrices that were not fitted."""
    kinds = (nn.Linear, _ConvNd, nn.MultiheadAttention)
    return [name for name, layer in network.named_modules() if isinstance(layer, kinds) and name not in fitted]
