r"""RegMean++: RegMean whose inputs of every layer come through the merged layers before it.

Layers are merged in the order in which they run. The inputs :math:`X_i` of a layer of model ``i``, on the data of its
own task, come from the merged network so far, and then

.. math:: W = \Bigl(\sum_i W_i G_i\Bigr) \Bigl(\sum_i G_i\Bigr)^{-1}, \qquad G_i = X_i^\top X_i

with the off-diagonal elements of :math:`G_i` reduced, as in ``regmean``. As in the paper, the linear layers of one
numbered layer (a transformer's block) are merged together: their inputs come through the merged blocks before, and
through model ``i`` within the block. A layer outside numbered ones is a block of its own.

Source:
    Nguyen et al. 2025, https://arxiv.org/abs/2508.03121. Only its abstract was available; the rest follows the
    authors' code, https://github.com/nthehai01/RegMean-plusplus, with its default for ``reduce``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.arguments import checked
from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError, warn_caller
from weightspace.merging.in_memory import merge
from weightspace.merging.layer_inputs import InputProducts, groups_of, has_own_parameters, on_inputs, other_layers
from weightspace.merging.slices.layer_index import Layers
from weightspace.progress import Progress
from weightspace.tasks.batches import training_batches
from weightspace.tasks.building import experts_for, network_with
from weightspace.tasks.failures import task_errors
from weightspace.tasks.protocol import Task, threads_of
from weightspace.threads import torch_threads


@checked
def regmean_plusplus(
    tasks: Sequence[Task],
    states: Sequence[StateDict],
    *,
    reduce: float = 0.95,
    examples: int = 256,
    seed: int = 0,
    device: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> StateDict:
    """Merge networks layer by layer, each layer on the inputs that it will read in the merged network.

    The weights of linear layers and ungrouped 2-d convolutions are merged by RegMean. All other tensors (biases,
    embeddings, norms) are means, and so is what the data leave open. Models that were trained apart must be aligned
    first.

    Args:
        tasks: one per model, with its data; they build the same network. Labels are not used.
        states: state dicts of two or more networks.
        reduce: factor of the off-diagonal elements of the products of inputs, from 0 to 1.
        examples: maximum number of training examples of each task.
        seed: seed of the tasks' batches.
        device: where the networks run, by default where the tasks build them.
        on_progress: called after every ``"block"``, with the name of its first layer.

    Returns:
        New tensors in the order and dtype of the inputs; copies give the copy.

    Raises:
        CheckpointError: names or shapes differ, or are not those of the tasks' network.
        WeightspaceError: tasks or numbers are refused, or the inputs of a layer are not finite.

    Warns:
        WeightspaceWarning: some layers are means, since others share their weights, hooks cannot see their inputs, or
            not every task runs them.

    Source:
        Nguyen et al. 2025 (RegMean++), https://arxiv.org/abs/2508.03121.

    Example:
        >>> import weightspace as ws
        >>> from weightspace.merging import regmean_plusplus
        >>> task = ws.load_task("digits-mlp")
        >>> a, b = (ws.train(task, seed, epochs=1) for seed in (0, 1))
        >>> merged = regmean_plusplus([task, task], [a, b], examples=64)
    """
    _check(tasks, states, reduce, examples)
    merging = _Merging(tasks, states, examples, seed, device)
    blocks = merging.blocks()
    for index, names in enumerate(blocks, start=1):
        merging.merge_block(names, reduce)
        if on_progress is not None:
            on_progress(Progress("block", index, len(blocks), name=names[0]))
    if left := other_layers(merging.networks[0], merging.fitted):
        warn_caller(
            f"RegMean++ left {len(left)} layers as means, since their inputs cannot be seen, their weights are shared, "
            f"or not every task runs them: {', '.join(left[:3])}{', …' if len(left) > 3 else ''}."
        )
    return merging.merged


def _check(tasks: Sequence[Task], states: Sequence[StateDict], reduce: float, examples: int) -> None:
    """Raise a WeightspaceError for arguments out of range."""
    if not states or len(tasks) != len(states):
        raise WeightspaceError(
            f"RegMean++ takes one task per model; found {len(tasks)} tasks for {len(states)} models. Repeat a task for "
            "models that share it."
        )
    if not 0 <= reduce <= 1:
        raise WeightspaceError(f"Found reduce={reduce}; expected a factor from 0 to 1.")
    if examples < 1:
        raise WeightspaceError(f"RegMean++ needs at least one example; found examples={examples}.")


class _Merging:
    """Networks with the weights of their models, whose blocks are replaced by merged ones, one after the other.

    Attributes:
        merged: the merged weights so far, means in the blocks that follow.
        networks: one per model, with means outside the blocks.
        fitted: names of the layers that were merged by RegMean.
    """

    def __init__(
        self, tasks: Sequence[Task], states: Sequence[StateDict], examples: int, seed: int, device: str | None
    ) -> None:
        self.tasks, self.states, self.fitted = tasks, states, set[str]()
        self.merged = dict(merge(states))
        self.networks = [
            network_with(task, state, f"model {number}")
            for number, (task, state) in enumerate(zip(tasks, states, strict=True), start=1)
        ]
        if device is not None:
            self.networks = [network.to(device) for network in self.networks]
        self._block_of = _blocks(self.networks[0])
        self._batches = [training_batches(task, examples, seed) for task in tasks]

    def blocks(self) -> list[list[str]]:
        """Return the layers to merge by block, in the order in which they run; give all other tensors their means."""
        network = self.networks[0]
        modules: dict[str, Any] = dict(network.named_modules())
        own = {
            name
            for name, layer in modules.items()
            if has_own_parameters(name, layer, network) and groups_of(layer) == 1
        }
        order: dict[object, dict[str, None]] = {}

        def record(name: str, _: Any, __: Tensor) -> None:
            if name in own:
                order.setdefault(self._block_of[_weight(name)], {})[name] = None

        self._run(0, record, self._batches[0][:1])
        self._take_merged([name for name, block in self._block_of.items() if block not in order])
        return [list(names) for names in order.values()]

    def merge_block(self, names: Sequence[str], reduce: float) -> None:
        """Merge the layers of a block, and give its tensors to all networks."""
        evidence = []
        for index, batches in enumerate(self._batches):
            products = InputProducts(names)
            self._run(index, products.record, batches)
            evidence.append({name: product.cpu() for name, product in products.means().items()})
        weights = [_weight(name) for name in names if all(_weight(name) in found for found in evidence)]
        for found in evidence:
            if wrong := [name for name in weights if not found[name].isfinite().all()]:
                raise WeightspaceError(f"The inputs of {wrong[0]!r} are not finite; RegMean++ needs finite ones.")
        if weights:
            models = [{name: state[name] for name in weights} for state in self.states]
            own = [{name: found[name] for name in weights} for found in evidence]
            self.merged |= merge(models, "regmean", parameters={"reduce": reduce}, evidence=own)
        self.fitted |= {name for name in names if _weight(name) in weights}
        here = self._block_of[_weight(names[0])]
        self._take_merged([name for name, block in self._block_of.items() if block == here])

    def _run(self, index: int, record: Callable[[str, Any, Tensor], None], batches: Sequence[Any]) -> None:
        """Run a network on batches of its task, and record the inputs of its layers."""
        task, network = self.tasks[index], self.networks[index]
        running = task_errors(task, "on its training batches")
        with torch_threads(threads_of(task)), torch.no_grad(), running, on_inputs(network, record):
            for batch in batches:
                task.loss(network, batch)

    def _take_merged(self, names: Sequence[str]) -> None:
        """Give tensors of all networks their merged values."""
        merged = experts_for(self.networks[0], self.merged).stacked(self.merged)
        for network in self.networks:
            network.load_state_dict({name: merged[name] for name in names}, strict=False)


def _blocks(network: nn.Module) -> Mapping[str, object]:
    """Return the block of every tensor: its layer in its stack, or the module that holds it."""
    names = list(network.state_dict())
    layers = Layers(names)
    numbered = {name: (stack, number) for stack in layers.stacks for name, number in layers.numbers(stack).items()}
    return {name: numbered.get(name, name.rpartition(".")[0]) for name in names}


def _weight(name: str) -> str:
    """Return the name of a layer's weight."""
    return f"{name}.weight" if name else "weight"
