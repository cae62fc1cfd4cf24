"""Derivation on single operators: fused attention, wrapped blocks, unknown operators, odd outputs."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from weightspace.errors import SpecError
from weightspace.symmetry import derive_spec
from weightspace.symmetry.pattern import format_axes


class _Three(nn.Module):
    """Three layers; ``between`` says what happens after the first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 7), nn.Linear(7, 6), nn.Linear(6, 3)

    def between(self, h: Tensor) -> Tensor:
        return h.relu()

    def forward(self, x: Tensor) -> Any:
        return self.c(self.b(self.between(self.a(x))).relu())


def _derive(module: nn.Module) -> Any:
    return derive_spec(module, (torch.randn(2, 4),))


def test_an_unknown_operator_freezes_what_it_touches_and_is_reported() -> None:
    class Fourier(_Three):
        def between(self, h: Tensor) -> Tensor:
            return torch.fft.fft(h).real

    spec = _derive(Fourier())
    assert spec.groups == {"b": 6}
    assert spec.frozen == ("fft_fft: a.weight, a.bias",)
    assert spec.verification.frozen == spec.frozen


def test_an_operator_that_depends_on_order_freezes_that_axis_only() -> None:
    class Cumulated(_Three):
        def between(self, h: Tensor) -> Tensor:
            return h.cumsum(-1)

    spec = _derive(Cumulated())
    assert spec.groups == {"b": 6}
    assert spec.frozen == ("cumsum: a.weight, a.bias",)


def test_blocks_that_wrap_a_graph_are_walked() -> None:
    class Wrapped(_Three):
        def between(self, h: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                h = h.relu()
            with torch.enable_grad():
                return h * 2

    spec = _derive(Wrapped())
    assert spec.groups == {"a": 7, "b": 6}


def test_a_branch_that_depends_on_data_is_frozen_and_reported() -> None:
    class Branch(_Three):
        def between(self, h: Tensor) -> Tensor:
            return torch.cond(h.sum() > 0, torch.relu, torch.tanh, (h,))

    spec = _derive(Branch())
    assert spec.groups == {"b": 6}
    assert spec.frozen == ("cond: a.weight, a.bias",)


def test_outputs_may_be_dicts_and_hold_things_that_are_no_tensors() -> None:
    class Named(_Three):
        def forward(self, x: Tensor) -> Any:
            hidden = self.a(x).relu()
            return {"logits": self.c(self.b(hidden).relu()), "cache": object(), "more": [hidden, None]}

    assert _derive(Named()).groups == {"b": 6}


def test_a_network_that_caches_what_it_derives_from_its_weights_is_verified_afresh() -> None:
    class Cached(_Three):
        cached: Tensor | None = None

        def between(self, h: Tensor) -> Tensor:
            if self.cached is None:
                self.cached = self.b.weight.sum(0)
            return h * self.cached

    module = Cached()
    assert _derive(module).groups == {"a": 7, "b": 6}
    assert module.cached is None


@pytest.mark.parametrize("saved", [True, False])
def test_frozen_norm_buffers_are_permuted_and_a_table_is_not(saved: bool) -> None:
    class Buffers(_Three):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weight", torch.ones(7))  # as a frozen BatchNorm has it
            self.register_buffer("table", torch.randn(6), persistent=saved)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b((self.a(x) * self.weight).relu()) * self.table)

    spec = _derive(Buffers())
    assert list(spec.groups.values()) == [7]
    assert spec.axes["weight"] == spec.axes["a.bias"]
    assert spec.statistics == ({"weight", "table"} if saved else {"weight"})


def test_a_constant_of_equal_entries_leaves_its_axis_free() -> None:
    class Zeros(_Three):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("zeros", torch.zeros(7), persistent=False)

        def between(self, h: Tensor) -> Tensor:
            return (h + self.zeros).relu()

    assert _derive(Zeros()).groups == {"a": 7, "b": 6}


def test_an_einsum_is_a_contraction() -> None:
    class Einstein(_Three):
        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.einsum("bi,oi->bo", x, self.a.weight).relu()
            return self.c(torch.einsum("bi,oi->bo", hidden, self.b.weight).relu())

    assert _derive(Einstein()).groups == {"a": 7, "b": 6}


@pytest.mark.parametrize(("name", "tensor"), [("gpt", "qkv"), ("gpt_view", "qkv")])
def test_values_are_free_of_queries_and_keys_however_they_are_taken_apart(name: str, tensor: str, derived: Any) -> None:
    spec = derived(name)
    home = f"attention.inside.1.{tensor}"
    heads, inside, values = home, f"{home}/2", f"{home}/3"
    axis = f"({heads} [{inside}] + {heads} [{inside}] + {heads} [{values}])"
    assert format_axes(spec.axes[f"{home}.bias"]) == axis


def test_tied_tensors_share_their_axes(derived: Any) -> None:
    spec = derived("gpt")
    assert spec.axes["words.weight"] == spec.axes["head.weight"]


def test_deriving_leaves_the_network_as_it_is() -> None:
    module = _Three()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    _derive(module)
    assert module.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_two_derivations_agree(network: Any, derived: Any) -> None:
    assert derive_spec(*network("gpt")).digest == derived("gpt").digest


def test_a_network_that_cannot_be_traced_is_one_clear_line() -> None:
    class Odd(_Three):
        def between(self, h: Tensor) -> Tensor:
            return h if h.sum().item() > 0 else -h

    with pytest.raises(SpecError, match="cannot trace Odd") as caught:
        _derive(Odd())
    assert "\n" not in str(caught.value)


def test_a_list_of_inputs_is_refused() -> None:
    with pytest.raises(SpecError, match="Example inputs are a tuple"):
        derive_spec(_Three(), [torch.randn(2, 4)])  # type: ignore[arg-type]


def test_a_network_whose_output_is_not_finite_cannot_be_verified() -> None:
    class Infinite(_Three):
        def between(self, h: Tensor) -> Tensor:
            return h / 0

    with pytest.raises(SpecError, match="non-finite"):
        _derive(Infinite())
