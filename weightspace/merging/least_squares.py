r"""Least squares after alignment: the layers of a merged network fitted to the mean of its parents' layers on data.

Layers are fitted in the order in which they run. With the inputs :math:`X` of a layer in the merged network so far, one
per row, those of network :math:`i`, :math:`X_i`, and weights :math:`λ_i` that sum to 1, the merged layer minimises
:math:`‖X W^\top - Σ_i λ_i X_i W_i^\top‖`. A bias is the weight of an input of 1.

Source:
    Nasery et al. 2025, https://arxiv.org/abs/2407.02447, section 3.2. There, :math:`X` is :math:`Σ_i λ_i X_i`, which no
    layer of the merged network sees: on aligned vision transformers, the barriers were twice as high.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.arguments import checked
from weightspace.arithmetic.coefficients import shares
from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError, warn_caller
from weightspace.merging.in_memory import merge
from weightspace.merging.layer_inputs import (
    MatrixLayer,
    groups_of,
    has_own_parameters,
    input_rows,
    on_inputs,
    other_layers,
)
from weightspace.progress import Progress
from weightspace.tasks.batches import first_examples
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
    examples: int = 1024,
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
        on_progress: called after every ``"layer"``, or layers that read the same tensor, with its name.

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
        >>> from weightspace.merging import least_squares
        >>> task = ws.load_task("digits-mlp")
        >>> a, b = (ws.train(task, seed, epochs=1) for seed in (0, 1))
        >>> spec = ws.derive_spec(task.network(), task.example_args)
        >>> aligned = ws.permute(spec, ws.weight_matching(spec, a, b).permutation, b)
        >>> merged = least_squares(task, [a, aligned], examples=256)
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
    examples: int = 1024,
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
    networks = [
        network_with(task, state, f"network {index}" if index else "the mean")
        for index, state in enumerate([merged, *states])
    ]
    if device is not None:
        networks = [network.to(device) for network in networks]
    with torch_threads(threads_of(task)), torch.no_grad(), task_errors(task, "on its training batches"):
        fitting = _Fitting(task, networks, merged, shares(tuple(weights or (1.0,) * len(states))).values, ridge)
        batches = list(first_examples(task.batches("train", seed), examples))
        steps = fitting.steps(batches[0])
        for index, names in enumerate(steps, start=1):
            fitting.fit(names, batches)
            if on_progress is not None:
                on_progress(Progress("layer", index, len(steps), name=names[0]))
    if left := other_layers(networks[0], {name for names in steps for name in names}):
        warn_caller(
            f"Least squares left {len(left)} layers as means, since their inputs cannot be seen or their weights are "
            f"shared: {', '.join(left[:3])}{', …' if len(left) > 3 else ''}."
        )
    return fitting.merged


class _Fitting:
    """A merged network whose layers are replaced one after the other.

    Args:
        task: runs the networks.
        networks: the merged network, then those that were merged.
        merged: the weights of the merged network.
        factors: one per network that was merged, with the sum 1.
        ridge: as in ``least_squares``.
    """

    def __init__(
        self, task: Task, networks: Sequence[nn.Module], merged: StateDict, factors: Sequence[float], ridge: float
    ) -> None:
        self.task, self.networks, self.factors = task, networks, factors
        self.ridge = max(ridge, _SMALLEST_RIDGE)
        self.merged = dict(merged)
        self.layers = {
            name: layer for name, layer in networks[0].named_modules() if has_own_parameters(name, layer, networks[0])
        }

    def steps(self, batch: Any) -> list[list[str]]:
        """Return the names of the layers in the order in which they run; those that read the same tensor together."""
        steps: list[list[str]] = []
        seen: dict[str, Tensor] = {}

        def record(name: str, _: Any, inputs: Tensor) -> None:
            if name in self.layers and name not in seen:
                if steps and seen[steps[-1][0]] is inputs:
                    steps[-1].append(name)
                else:
                    steps.append([name])
                seen[name] = inputs

        with on_inputs(self.networks[0], record):
            self.task.loss(self.networks[0], batch)
        return steps

    def fit(self, names: Sequence[str], batches: Sequence[Any]) -> None:
        """Replace layers, which read the same tensor, by their least squares solutions."""
        matrices = {name: [_matrix(network.get_submodule(name)) for network in self.networks] for name in names}
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        for batch in batches:
            inputs = [self._inputs(network, names, batch) for network in self.networks]
            for name in names:
                for rows in self._calls(name, [own[name] for own in inputs]):
                    found = self._products(rows, matrices[name])
                    sums[name] = (sums[name][0] + found[0], sums[name][1] + found[1]) if name in sums else found
        for name in names:
            if not all(part.isfinite().all() for part in sums[name]):
                raise WeightspaceError(f"The inputs of layer {name!r} are not finite; least squares need finite ones.")
            self._replace(name, matrices[name][0] + _solved(*sums[name], self.ridge).mT)

    def _inputs(self, network: nn.Module, names: Sequence[str], batch: Any) -> dict[str, list[Tensor]]:
        """Return the rows of inputs of each call of layers."""
        inputs: dict[str, list[Tensor]] = {name: [] for name in names}

        def record(name: str, layer: Any, seen: Tensor) -> None:
            if name in inputs:
                inputs[name].append(_rows(layer, seen))

        with on_inputs(network, record):
            self.task.loss(network, batch)
        return inputs

    def _calls(self, name: str, inputs: Sequence[Sequence[Tensor]]) -> Iterator[tuple[Tensor, ...]]:
        """Yield the rows of every network, call by call."""
        if len({tuple(rows.shape for rows in own) for own in inputs}) > 1:
            raise WeightspaceError(
                f"The networks run layer {name!r} on different numbers of inputs for the same batch; least squares "
                "need one row of each network for every row of the others."
            )
        yield from zip(*inputs, strict=True)

    def _products(self, rows: Sequence[Tensor], matrices: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the products of the merged network's rows with themselves, and with the errors of its outputs."""
        inputs, outputs = rows[0], rows[0] @ matrices[0].mT
        pairs = zip(self.factors, rows[1:], matrices[1:], strict=True)
        errors = [factor * (seen @ matrix.mT - outputs) for factor, seen, matrix in pairs]  # 0 for copies
        return inputs.mT @ inputs, inputs.mT @ torch.stack(errors).sum(0)

    def _replace(self, name: str, matrix: Tensor) -> None:
        """Set weight and bias of a layer, in the merged network and in its weights."""
        layer: Any = self.layers[name]
        parts = {"weight": matrix} if layer.bias is None else {"weight": matrix[..., :-1], "bias": matrix[..., -1]}
        for part, value in parts.items():
            old = self.merged[f"{name}.{part}" if name else part]
            self.merged[f"{name}.{part}" if name else part] = new = value.reshape(old.shape).to(old)
            getattr(layer, part).copy_(new)


def _rows(layer: MatrixLayer, inputs: Tensor) -> Tensor:
    """Return inputs in float64 with a 1 for the bias, ``(groups, rows, n)``."""
    rows = input_rows(layer, inputs).double()
    return rows if layer.bias is None else nn.functional.pad(rows, (0, 1), value=1.0)


def _solved(gram: Tensor, residual: Tensor, ridge: float) -> Tensor:
    """Return the solutions of ``gram · x = residual`` per group; inputs that are always 0 give 0."""
    scale = gram.diagonal(dim1=-2, dim2=-1).sqrt()
    inverse = torch.where(scale > 0, 1 / scale, 0.0).unsqueeze(-1)
    correlations = gram * inverse * inverse.mT
    correlations.diagonal(dim1=-2, dim2=-1).fill_(1 + ridge)
    return inverse * torch.cholesky_solve(inverse * residual, torch.linalg.cholesky(correlations))


def _matrix(layer: Any) -> Tensor:
    """Return weight and bias of a layer as one float64 matrix per group, ``(groups, units, n)``."""
    weight = layer.weight.detach().double().flatten(1).unflatten(0, (groups_of(layer), -1))
    return weight if layer.bias is None else torch.cat([weight, layer.bias.double().view(len(weight), -1, 1)], dim=-1)
