"""Tasks whose networks are placed elsewhere: on another device, in another precision, or built from another source.

The networks have a hook that moves their inputs to their device, and batches are yielded on the device, so a task
written for the CPU can train, match and measure anywhere. Its ``score`` must move whatever it compares with the outputs
(labels) to the device of the module, as ``ClassificationTask`` does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weightspace.devices import check_device
from weightspace.errors import WeightspaceError
from weightspace.networks import load_network
from weightspace.suggestions import unknown
from weightspace.symmetry.inputs import ExampleInputs
from weightspace.tasks.protocol import Split, Task

#: Precisions that a network can run in.
DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class PlacedTask:
    """A task with its networks placed elsewhere. Everything else is delegated to the original task.

    Attributes:
        task: the original task, which provides data and scores.
        device: where the networks run, such as ``cpu`` or ``cuda:1``.
        dtype: dtype of their weights and inputs, a name in ``DTYPES``; None keeps that of the built networks.
        source: builds the networks instead of the task, as in ``load_network``; None uses the task.
        inputs: inputs of the source, if it doesn't define them; see ``load_network``.
    """

    task: Task
    device: str = "cpu"
    dtype: str | None = None
    source: str | None = None
    inputs: tuple[str, ...] = ()

    def __getattr__(self, attribute: str) -> Any:
        if (
            attribute.startswith("__") or attribute == "task"
        ):  # copying and unpickling access attributes before there is a task
            raise AttributeError(attribute)
        return getattr(self.task, attribute)

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name

    @property
    def objective(self) -> str:
        """The task's objective."""
        return self.task.objective

    @property
    def example_args(self) -> ExampleInputs:
        """Inputs of one forward pass: those of the source, or of the task."""
        own = self._built().example_args if self.source is not None else ()
        return own or self.task.example_args

    def network(self) -> nn.Module:
        """Return a new network, on its device."""
        network = self.task.network() if self.source is None else self._built().module
        if self.device == "cpu" and self.dtype is None:
            return network
        dtype = None if self.dtype is None else DTYPES[self.dtype]
        network = network.to(self.device, dtype)
        network.register_forward_pre_hook(_Mover(self.device, dtype), with_kwargs=True)
        return network

    def score(self, module: nn.Module, split: Split = "test") -> Mapping[str, float]:
        """Return the task's scores of a network.

        Raises:
            WeightspaceError: the task compares tensors on different devices.
        """
        try:
            return self.task.score(module, split)
        except RuntimeError as error:
            if "same device" not in str(error):
                raise
            raise WeightspaceError(
                f"The score of task {self.name!r} compares tensors on different devices: it only runs on {self.device} "
                "if it moves its batches to the device of the module's parameters. Add that, or leave out --device."
            ) from error

    def batches(self, split: Split, seed: int) -> Iterable[Any]:
        """Yield the task's batches on the device."""
        return (_moved(batch, self.device, None) for batch in self.task.batches(split, seed))

    def loss(self, module: nn.Module, batch: Any) -> Tensor:
        """Return the task's loss of a batch."""
        return self.task.loss(module, batch)

    def _built(self) -> Any:
        assert self.source is not None
        return load_network(self.source, inputs=self.inputs, inputs_required=False)


def placed(
    task: Task,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    source: str | None = None,
    inputs: Sequence[str] = (),
) -> Task:
    """Return a task whose networks are placed elsewhere; see ``PlacedTask``.

    Raises:
        WeightspaceError: unknown device or precision.
    """
    if dtype is not None and dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    check_device(device, torch.float32 if dtype is None else DTYPES[dtype])
    if device == "cpu" and dtype is None and source is None:
        return task
    return PlacedTask(task, device, dtype, source, tuple(inputs))


def at_home(task: Task) -> Task:
    """Return a task with its networks on the CPU in their original precision, for deriving specs."""
    return dataclasses.replace(task, device="cpu", dtype=None) if isinstance(task, PlacedTask) else task


@dataclass(frozen=True)
class _Mover:
    """A forward pre-hook that moves the inputs of a network to its device; copied and pickled with the network."""

    device: str
    dtype: torch.dtype | None

    def __call__(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return _moved(args, self.device, self.dtype), _moved(kwargs, self.device, self.dtype)


def _moved(value: Any, device: str, dtype: torch.dtype | None) -> Any:
    """Move tensors to a device, also inside tuples, lists and mappings; convert floating ones to a dtype."""
    if isinstance(value, Tensor):
        return value.to(device, dtype if value.is_floating_point() else None)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_moved(item, device, dtype) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(_moved(item, device, dtype) for item in value)
    if isinstance(value, Mapping):
        return {name: _moved(item, device, dtype) for name, item in value.items()}
    return value
