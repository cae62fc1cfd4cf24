"""What goes into and comes out of the modules of a network while it runs, recorded by hooks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from weightspace.symmetry.outputs import tensors_in


@dataclass(frozen=True)
class Tap:
    """One tensor that a module takes or gives: of its ``call``-th call, the ``number``-th of that side."""

    module: str
    side: Literal["input", "output"]
    call: int
    number: int


class Recorder:
    """Copies of the floating-point tensors at taps, from one run of a network.

    Args:
        network: its hooks are removed and its modes put back when a run ends.
        wanted: the taps to record; without them all are. Taps that meet one tensor unchanged share a copy.
    """

    def __init__(self, network: nn.Module, wanted: Collection[Tap] | None = None) -> None:
        self.network, self.wanted = network, wanted

    @torch.no_grad()
    def run(self, forward: Callable[[nn.Module, Any], Any], batch: Any) -> dict[Tap, Tensor]:
        """Run the network in evaluation mode on a batch, and return what was at the taps."""
        self.found: dict[Tap, Tensor] = {}
        self.calls: dict[tuple[str, str], int] = {}
        self.copies: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        with self._hooks(), _as_in_use(self.network):
            forward(self.network, batch)
        return self.found

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        names = None if self.wanted is None else {tap.module for tap in self.wanted}
        handles = []
        for name, module in self.network.named_modules():
            if names is None or name in names:
                handles += [
                    module.register_forward_pre_hook(self._before(name), with_kwargs=True),
                    module.register_forward_hook(self._after(name)),
                ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        return lambda _, args, kwargs: self._note(name, "input", [args, list(kwargs.values())])

    def _after(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _, inputs, result: self._note(name, "output", result)

    def _note(self, name: str, side: Literal["input", "output"], value: Any) -> None:
        call = self.calls.get((name, side), 0)
        self.calls[name, side] = call + 1
        for number, tensor in enumerate(tensors_in(value)):
            tap = Tap(name, side, call, number)
            if tensor.is_floating_point() and (self.wanted is None or tap in self.wanted):
                self.found[tap] = self._copy(tensor)

    def _copy(self, tensor: Tensor) -> Tensor:
        """Return a copy of a tensor, the same one as long as it is unchanged: in-place operators raise its version."""
        key = id(tensor), 0 if tensor.is_inference() else tensor._version
        if key not in self.copies:  # the original is held too, so that nothing else gets its address
            self.copies[key] = tensor, tensor.detach().clone()
        return self.copies[key][1]


@contextmanager
def _as_in_use(network: nn.Module) -> Iterator[None]:
    """Evaluate without dropout, and without the fused kernels that hooks do not see into."""
    modes = [(module, module.training) for module in network.modules()]
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        torch.backends.mha.set_fastpath_enabled(fastpath)
