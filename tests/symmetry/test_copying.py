"""Whatever a module keeps, deriving from it works and leaves it as it was."""

import threading
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from weightspace.errors import SpecError
from weightspace.symmetry import derive_spec, verify_spec
from weightspace.symmetry.module_copy import copy_module

warnings.filterwarnings("ignore", category=FutureWarning)


class _Keeps(nn.Module):
    """Keeps what it computed, in attributes and in containers of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 7), nn.Linear(7, 2)
        self.kept: list[Any] = []
        self.named: dict[str, Any] = {}
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(x).relu()
        self.kept.append((hidden, [hidden * 2]))
        self.named["hidden"] = {"here": hidden}
        self.record = SimpleNamespace(hidden=hidden)
        self.last = hidden
        return self.b(hidden)


class _Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 7), nn.Linear(7, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x) + torch.randn(7)).relu())


def _normed(norm: Callable[..., nn.Module]) -> nn.Module:
    return nn.Sequential(norm(nn.Linear(6, 7)), nn.ReLU(), norm(nn.Linear(7, 2)))


KEEPERS: dict[str, Callable[[], nn.Module]] = {
    "weight_norm": lambda: _normed(nn.utils.weight_norm),
    "spectral_norm": lambda: _normed(nn.utils.spectral_norm),
    "weight_norm, parametrised": lambda: _normed(nn.utils.parametrizations.weight_norm),
    "spectral_norm, parametrised": lambda: _normed(nn.utils.parametrizations.spectral_norm),
    "caches": _Keeps,
    "noise": _Noisy,
}


def _record(module: nn.Module) -> dict[str, Any]:
    """Return all that a derivation could change in a module."""
    return {
        "tensors": {name: tensor.clone() for name, tensor in module.state_dict().items()},
        "identities": {name: id(tensor) for name, tensor in module.named_parameters()},
        "gradients": {name: tensor.requires_grad for name, tensor in module.named_parameters()},
        "training": [part.training for part in module.modules()],
        "hooks": [dict(part._forward_pre_hooks) for part in module.modules()],
        "attributes": [{name: id(value) for name, value in vars(part).items()} for part in module.modules()],
        "random": torch.get_rng_state(),
    }


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


@pytest.mark.parametrize("name", KEEPERS)
@pytest.mark.parametrize("used", [False, True])
def test_deriving_and_verifying_leave_the_module_as_it_was(name: str, used: bool) -> None:
    module, x = KEEPERS[name](), torch.randn(3, 6)
    if used:  # its cached tensors are now part of an autograd graph
        module(x).sum().backward()
    before = _record(module)
    spec = derive_spec(module, (x,))
    assert verify_spec(spec, module, (x,)).passed
    assert spec.groups == ({"b": 5} if name == "noise" else {next(iter(spec.groups)): 7})
    assert _same(_record(module), before)


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "caches"])
def test_a_copy_has_the_values_and_none_of_the_memory(name: str) -> None:
    module, x = KEEPERS[name](), torch.randn(3, 6)
    module(x)
    copied = copy_module(module.eval())
    with torch.no_grad():
        assert torch.equal(copied(x), module(x))
        for tensor in copied.state_dict().values():
            tensor.zero_()
        assert float(copied(x).nan_to_num().abs().max()) == 0
        assert float(module(x).abs().max()) > 0


def test_networks_that_cannot_be_copied_are_one_clear_line() -> None:
    class Locked(nn.Linear):
        def __init__(self) -> None:
            super().__init__(6, 2)
            self.lock = threading.Lock()

    with pytest.raises(SpecError, match="Locked cannot be copied") as caught:
        derive_spec(Locked(), (torch.randn(3, 6),))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
