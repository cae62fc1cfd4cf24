r"""Hessian-aware router calibration: routers of a merged mixture fitted to the routing of each of its parents.

Routers are calibrated in the order in which they run. With the router's inputs :math:`x` in the merged network so far,
on the data :math:`D_i` of parent :math:`i`, whose router has the weights :math:`W_i` and gives the probabilities
:math:`p_i = \mathrm{softmax}(W_i x)`, the calibrated router minimises

.. math:: \sum_i \mathbb{E}_{x \in D_i} \bigl[(W - W_i) x\bigr]^\top H_i(x) \bigl[(W - W_i) x\bigr],
    \qquad H_i(x) = \mathrm{diag}(p_i) - p_i p_i^\top,

twice the divergence of its probabilities from those of the parents, to second order in its logits. This is a linear
system in :math:`W`, solved by conjugate gradients without its matrix. A bias is the weight of an input of 1.

Source:
    Huang et al. 2026 (HARC), https://arxiv.org/abs/2606.03391. Of the paper, only the abstract and the introduction
    could be read; formulas and defaults are those of the authors' code, https://github.com/huangcb01/HARC.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.arguments import checked
from weightspace.checkpoints import StateDict, check_compatible
from weightspace.errors import WeightspaceError
from weightspace.merging.moe.router_modules import (
    bias_of,
    check_softmax,
    find_routers,
    on_routers,
    router_inputs,
    router_matrix,
)
from weightspace.progress import Progress
from weightspace.tasks.batches import training_batches
from weightspace.tasks.building import experts_for, network_with
from weightspace.tasks.failures import task_errors
from weightspace.tasks.protocol import Task, threads_of
from weightspace.threads import torch_threads

#: Conjugate gradients stop at this fraction of the initial residual, or after this many steps; as in the authors' code.
_RESIDUAL, _STEPS = 1e-6, 1000


@checked
def calibrate_routers(
    merged: StateDict,
    sources: Sequence[StateDict],
    tasks: Sequence[Task],
    *,
    routers: Sequence[str] | None = None,
    reduce: float = 0.9,
    examples: int = 256,
    seed: int = 0,
    device: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> StateDict:
    """Calibrate the routers of a merged mixture of experts on the training data of its parents.

    Give each parent the data that it was trained for: with the same data for all fine-tunes, there is little to gain.
    Parents that were trained apart must be aligned first.

    Args:
        merged: the merged network; not modified.
        sources: the networks that were merged.
        tasks: one per source, with its data; they build the same network. Labels are not used.
        routers: module names of the routers, with ``*`` for any characters; by default modules called ``gate`` or
            ``router`` beside ``experts``.
        reduce: factor of the off-diagonal elements of the linear system.
        examples: maximum number of training examples of each source.
        seed: seed of the tasks' batches.
        device: where the network runs, by default where the task builds it.
        on_progress: called after every ``"router"``, with its name.

    Returns:
        The merged network with other routers; all other tensors are those of ``merged``. Copies give the copy.

    Raises:
        CheckpointError: names or shapes differ, or are not those of the tasks' network.
        WeightspaceError: tasks, numbers or routers are refused; routers must weight experts by a softmax of logits.

    Source:
        Huang et al. 2026 (HARC), https://arxiv.org/abs/2606.03391, as in https://github.com/huangcb01/HARC.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> from weightspace.merging import calibrate_routers
        >>> from weightspace.tasks import ClassificationTask
        >>> class Mixture(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.gate, self.experts = torch.nn.Linear(64, 4, bias=False), torch.nn.Linear(64, 40)
        ...     def forward(self, x):
        ...         weights, chosen = self.gate(x.flatten(1)).softmax(-1).topk(2)
        ...         outputs = self.experts(x.flatten(1)).view(len(x), 4, 10)
        ...         return (outputs[torch.arange(len(x))[:, None], chosen] * weights[..., None]).sum(1)
        >>> task = ClassificationTask(name="mixture", build=Mixture, load=ws.load_task("digits-mlp").load)
        >>> a, b = (ws.train(task, seed, epochs=1) for seed in (0, 1))
        >>> calibrated = calibrate_routers(ws.merge([a, b]), [a, b], [task, task])
    """
    _check(sources, tasks, reduce, examples)
    network = network_with(tasks[0], merged, "the merged network")
    calibration = _Calibration(network if device is None else network.to(device), routers, tasks, examples, seed)
    return calibration.run(merged, sources, reduce, on_progress)


def _check(sources: Sequence[StateDict], tasks: Sequence[Task], reduce: float, examples: int) -> None:
    """Raise a WeightspaceError for arguments out of range."""
    if not sources or len(tasks) != len(sources):
        raise WeightspaceError(
            f"Routers are calibrated on one task per source; found {len(sources)} sources and {len(tasks)} tasks. "
            "Repeat a task for sources that share it."
        )
    if not 0 <= reduce <= 1:
        raise WeightspaceError(f"Found reduce={reduce}; expected a factor from 0 to 1.")
    if examples < 1:
        raise WeightspaceError(f"Calibration needs at least one example; found examples={examples}.")


class _Calibration:
    """A merged network whose routers are replaced one after the other.

    Args:
        network: the merged network.
        patterns: names of the routers, or None for those that can be recognised.
        tasks: one per source.
        examples: as in ``calibrate_routers``.
        seed: as in ``calibrate_routers``.
    """

    def __init__(
        self, network: nn.Module, patterns: Sequence[str] | None, tasks: Sequence[Task], examples: int, seed: int
    ) -> None:
        self.network, self.tasks = network, tasks
        self.routers = find_routers(network, patterns)
        self.batches: dict[int, list[Any]] = {}
        for task in tasks:
            if id(task) not in self.batches:
                self.batches[id(task)] = training_batches(task, examples, seed)

    def run(
        self,
        merged: StateDict,
        sources: Sequence[StateDict],
        reduce: float,
        on_progress: Callable[[Progress], None] | None,
    ) -> StateDict:
        """Return the merged network with all routers calibrated; see ``calibrate_routers``."""
        layout = experts_for(self.network, merged)
        result = dict(layout.stacked(merged))
        parents = [experts_for(self.network, state).stacked(state) for state in sources]
        for number, state in enumerate(parents, start=1):
            check_compatible(result, state, names=("the merged network", f"source {number}"))
        with torch_threads(threads_of(self.tasks[0])), torch.no_grad():
            names = self.order()
            for index, name in enumerate(names, start=1):
                result |= self.calibrate(name, result, parents, reduce)
                if on_progress is not None:
                    on_progress(Progress("router", index, len(names), name=name))
        return layout.separate(result)

    def order(self) -> list[str]:
        """Return the names of the routers in the order in which they run.

        Raises:
            WeightspaceError: one does not run, or does not weight experts by a softmax.
        """
        names: list[str] = []

        def record(name: str, inputs: Tensor, output: Any) -> None:
            if name not in names:
                names.append(name)
                check_softmax(name, self.routers[name], inputs, output)

        task = self.tasks[0]
        with on_routers(self.routers, record), task_errors(task, "on its training batches"):
            task.loss(self.network, self.batches[id(task)][0])
        if silent := [name for name in self.routers if name not in names]:
            raise WeightspaceError(f"The router {silent[0]!r} did not run on a batch of the task {task.name!r}.")
        return names

    def calibrate(self, name: str, merged: StateDict, sources: Sequence[StateDict], reduce: float) -> dict[str, Tensor]:
        """Replace a router in the network, and return its tensors."""
        router = self.routers[name]
        rows = {id(task): self._rows(name, task) for task in self.tasks}
        own, *others = (router_matrix(name, router, state) for state in (merged, *sources))
        terms = [
            _Quadratic(rows[id(task)], other.to(rows[id(task)].device), reduce)
            for task, other in zip(self.tasks, others, strict=True)
        ]
        start = own.to(terms[0].rows.device)
        errors = [term.product(term.parent - start) for term in terms]  # 0 for copies
        change = _solved(lambda step: _sum(term.product(step) for term in terms), _sum(errors))
        matrix = (start + change).cpu()
        parts = {"weight": matrix} if bias_of(router) is None else {"weight": matrix[:, :-1], "bias": matrix[:, -1]}
        result = {f"{name}.{part}": value.to(merged[f"{name}.{part}"]) for part, value in parts.items()}
        for part in parts:
            getattr(router, part).copy_(result[f"{name}.{part}"])
        return result

    def _rows(self, name: str, task: Task) -> Tensor:
        """Return the inputs of a router in the network on the data of a task, in float64, one per row."""
        found: list[Tensor] = []

        def record(_: str, inputs: Tensor, __: Any) -> None:
            found.append(router_inputs(self.routers[name], inputs))

        with on_routers({name: self.routers[name]}, record), task_errors(task, "on its training batches"):
            for batch in self.batches[id(task)]:
                task.loss(self.network, batch)
        rows = torch.cat(found)
        if not rows.isfinite().all():
            raise WeightspaceError(f"The inputs of the router {name!r} are not finite on the data of {task.name!r}.")
        return rows


class _Quadratic:
    """The divergence of a router from a parent's, to second order.

    Args:
        rows: inputs ``(n, width)``.
        parent: weights of the parent's router ``(experts, width)``.
        reduce: factor of the off-diagonal elements.
    """

    def __init__(self, rows: Tensor, parent: Tensor, reduce: float) -> None:
        self.rows, self.parent, self.reduce = rows, parent, reduce
        self.probabilities = (rows @ parent.T).softmax(-1)
        self.diagonal = (self.probabilities * (1 - self.probabilities)).T @ rows.square() / len(rows)

    def product(self, step: Tensor) -> Tensor:
        """Return the product of the Hessian with a change of the weights, ``(experts, width)``."""
        logits = self.probabilities * (self.rows @ step.T)
        curved = logits - self.probabilities * logits.sum(-1, keepdim=True)
        return self.reduce * (curved.T @ self.rows / len(self.rows)) + (1 - self.reduce) * self.diagonal * step


def _sum(tensors: Iterable[Tensor]) -> Tensor:
    """Return the sum of tensors of one shape."""
    return torch.stack(list(tensors)).sum(0)


def _solved(product: Callable[[Tensor], Tensor], target: Tensor) -> Tensor:
    """Return the solution of ``product(x) = target`` by conjugate gradients from 0; directions that are open stay 0."""
    solution, residual = torch.zeros_like(target), target
    direction, square = residual, float(residual.square().sum())
    least = _RESIDUAL**2 * square
    for _ in range(_STEPS):
        if square <= least:
            break
        curved = product(direction)
        curvature = float((direction * curved).sum())
        if curvature <= 0:  # rounding, where the system is singular
            break
        length = square / curvature
        solution, residual = solution + length * direction, residual - length * curved
        before, square = square, float(residual.square().sum())
        direction = residual + square / before * direction
    return solution
