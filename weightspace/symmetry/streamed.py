"""Execution of a network in float64 with parameters that are computed one at a time, when an operator uses them.

The network's own code runs, on a copy whose parameters are stand-ins of one NaN each. An operator that is given a
stand-in gets the parameter's values instead, which are freed when the operator and its views no longer need them. For
the backward pass, too, only the name of a parameter is saved, and its values are recomputed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from weightspace.errors import SpecError
from weightspace.symmetry.buffers import moves_with_units
from weightspace.symmetry.inputs import Inputs
from weightspace.symmetry.module_copy import copy_module
from weightspace.symmetry.outputs import output_vector
from weightspace.symmetry.random_weights import draw, perturb, seeded
from weightspace.symmetry.stand_ins import stand_in_copy

#: Returns the values of a tensor by its name, in float64.
Values = Callable[[str], Tensor]


class StreamedNetwork:
    """A network that runs in float64 with other values for its tensors, only a few of which are held at a time.

    Args:
        module: the network, which may be on the meta device; not modified.
        seed: of its random weights, and of constants on the meta device.

    Raises:
        SpecError: the network can't be copied.
    """

    def __init__(self, module: nn.Module, seed: int) -> None:
        self.label, self.seed = type(module).__name__, seed
        self.state = module.state_dict(keep_vars=True)
        self._tensors = {**dict(module.named_parameters(remove_duplicate=False)), **self.state}
        self._owners = {id(tensor): name for name, tensor in reversed(self._tensors.items())}
        self._copy = stand_in_copy(module, seed)
        #: Storage of a parameter -> its name; for tied ones, the last name.
        self._names = {
            storage_key(parameter): name
            for name, parameter in self._copy.named_parameters(remove_duplicate=False)
            if _is_stand_in(parameter)
        }

    def random_weights(self, name: str) -> Tensor:
        """Return a tensor in float64, perturbed if it is constant along an axis, or drawn if it has no values."""
        tensor = self._tensors[name]
        owner = self._owners[id(tensor)]
        if tensor.is_meta:
            return draw(owner, tensor, self.seed)
        is_float = tensor.is_floating_point()
        values = tensor.detach().to(torch.float64 if is_float else tensor.dtype, copy=True)
        if is_float and (isinstance(tensor, nn.Parameter) or moves_with_units(name, self.state)):
            generator = seeded(owner, self.seed)
            perturb(owner, values, lambda: torch.randn(values.shape, generator=generator, dtype=torch.float64))
        return values

    def outputs(self, values: Values, inputs: Inputs) -> Tensor:
        """Return all floating-point outputs for these values of the tensors, as one vector.

        Raises:
            SpecError: the network can't be run in float64, or has no floating-point output, or a non-finite one.
        """
        torch.default_generator.manual_seed(self.seed)  # a network with noise draws the same each time
        with self.running(values) as network:
            return output_vector(network, inputs)

    @contextmanager
    def running(self, values: Values) -> Iterator[nn.Module]:
        """Provide a copy of the network that runs with these values of its tensors, and passes gradients to parameters.

        Raises:
            SpecError: the network can't be run in float64.
        """
        network = copy_module(self._copy, share_parameters=True)  # a new one each time: a call may leave a cache
        for name, tensor in network.state_dict(keep_vars=True).items():
            if not _is_stand_in(tensor):
                tensor.detach().copy_(values(name))
        streaming = _Streaming(self._names, lambda name: (values if name in self.state else self.random_weights)(name))
        kept = torch.autograd.graph.saved_tensors_hooks(streaming.pack, streaming.unpack)
        try:
            with kept, streaming, InFloat64():
                network.train().eval()  # networks that cache derived tables in eval mode drop them here
                yield network
        except RuntimeError as error:
            raise SpecError(
                f"{self.label} cannot be run in float64, which signs, rotations and networks on the meta device need: "
                f"{str(error).splitlines()[0]}"
            ) from error


class _View(NamedTuple):
    """A view of a parameter's values."""

    name: str
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int


class _Streaming(TorchDispatchMode):
    """Gives operators the values of parameters for their stand-ins."""

    def __init__(self, names: dict[int, str], values: Values) -> None:
        super().__init__()
        self.names, self.values = names, values
        #: Storage of values -> a weak reference, which keeps its address from being reused, and the parameter's name.
        self.given: dict[int, tuple[StorageWeakRef, str]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(Tensor, self._filled, (args, kwargs or {}))
        return func(*args, **kwargs)

    def _filled(self, tensor: Tensor) -> Tensor:
        name = self.names.get(storage_key(tensor))
        return tensor if name is None else self._values(name)

    def _values(self, name: str) -> Tensor:
        values = self.values(name)
        reference = StorageWeakRef(values.untyped_storage())
        self.given[reference.cdata] = reference, name
        return values

    def pack(self, tensor: Tensor) -> Tensor | _View | str:
        """Return a parameter's name, the description of a view of its values, or any other tensor unchanged."""
        key = storage_key(tensor)
        if key in self.names:
            return self.names[key]
        if key not in self.given:
            return tensor
        return _View(self.given[key][1], tensor.shape, tensor.stride(), int(tensor.storage_offset()))

    def unpack(self, packed: Tensor | _View | str) -> Tensor:
        """Return what was packed."""
        if isinstance(packed, Tensor):
            return packed
        if isinstance(packed, str):
            return self._values(packed)
        return self._values(packed.name).as_strided(packed.shape, packed.stride, packed.offset)


def storage_key(tensor: Tensor) -> int:
    """Return a number that is equal for tensors that share memory."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else 0


def _is_stand_in(tensor: Tensor) -> bool:
    """Return whether a tensor is a stand-in: a parameter with a single stored value."""
    return isinstance(tensor, nn.Parameter) and tensor.untyped_storage().nbytes() == tensor.element_size()


class InFloat64(TorchDispatchMode):
    """Computes in float64 what a network casts to float32, such as norms and angles."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") == torch.float32:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)
