"""Signs of units: which operators keep them, and networks in which a sign-flipped copy is the same network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import weightspace as ws
from weightspace.symmetry.kinds.verified import verify_symmetries
from weightspace.symmetry.pattern import Units, format_axes, parse_axes


class Between(nn.Module):
    """Two linear layers and something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor], inner: int = 8) -> None:
        super().__init__()
        self.write, self.scale, self.read = (
            nn.Linear(4, 8),
            nn.ParameterList([torch.rand(8) + 0.5]),
            nn.Linear(inner, 3),
        )
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.between(self.write(x) * self.scale[0]))


def signed(network: nn.Module, inputs: Any) -> ws.SymmetrySpec:
    torch.manual_seed(0)
    return ws.derive_spec(network.eval(), inputs, symmetry="signed")


@pytest.mark.parametrize(
    ("between", "kind"),
    [
        (torch.tanh, "signed"),
        (torch.sin, "signed"),
        (torch.erf, "signed"),
        (lambda x: x, "signed"),
        (lambda x: x**3 - 2 * x, "signed"),
        (lambda x: F.hardtanh(x, -2, 2), "signed"),
        (lambda x: x.clamp(-0.5, 0.5), "signed"),
        (F.softsign, "signed"),
        (lambda x: x * x.square().mean(-1, keepdim=True).rsqrt(), "signed"),
        (lambda x: F.normalize(x, dim=-1), "signed"),
        (lambda x: torch.tanh(x) * x.abs() + x.sin() * x.cos(), "signed"),
        (lambda x: torch.where(x.abs() > 0.1, x, 0.0), "signed"),
        (lambda x: torch.tanh(x) / x, "signed"),
        (lambda x: x.relu(), "permutation"),
        (lambda x: F.gelu(x), "permutation"),
        (lambda x: F.hardtanh(x, 0, 6), "permutation"),
        (lambda x: x.tanh() + 1, "permutation"),
        (lambda x: x.tanh() + x.abs(), "permutation"),
        (lambda x: x + x.mean(-1, keepdim=True), "permutation"),
        (lambda x: torch.where(x > 0.1, x, 0.0), "permutation"),
        (lambda x: x.masked_fill(x.abs() > 0.1, 1.0), "permutation"),
        (lambda x: F.layer_norm(x, (8,)), "permutation"),
        (lambda x: x.softmax(-1), "permutation"),
    ],
)
def test_odd_functions_keep_signs_and_others_do_not(between: Callable[[Tensor], Tensor], kind: str) -> None:
    spec = signed(Between(between), torch.randn(5, 4))
    assert list(spec.kinds.values()) == [kind]
    assert not spec.folds
    texts = format_axes(spec.axes["write.weight"])
    assert texts == ("±write 4" if kind == "signed" else "write 4")
    assert spec.axes["scale.0"] == (Units("write"),)
    assert bool(spec.frozen) == (kind == "permutation")


def test_a_gain_after_a_function_without_signs_has_its_own() -> None:
    class Scaled(Between):
        def forward(self, x: Tensor) -> Tensor:
            return self.read(self.write(x).relu() * self.scale[0])

    spec = signed(Scaled(torch.tanh), torch.randn(5, 4))
    texts = {name: format_axes(axes) for name, axes in spec.axes.items()}
    assert (texts["write.weight"], texts["scale.0"], texts["read.weight"]) == ("write 4", "±write", "3 ±write")


def test_signs_of_a_gated_layer_are_on_one_half() -> None:
    class Gated(Between):
        def forward(self, x: Tensor) -> Tensor:
            return self.read(F.glu(self.write(x), dim=-1))

    spec = signed(Gated(torch.tanh, inner=4), torch.randn(5, 4))
    assert format_axes(spec.axes["write.weight"]) == "(±write + write) 4"
    assert format_axes(spec.axes["read.weight"]) == "3 ±write"


def test_batch_norm_moves_its_mean_and_shift_with_signs() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6, 2)
    )
    spec = signed(network, torch.randn(2, 1, 4, 4))
    texts = {name: format_axes(axes) for name, axes in spec.axes.items()}
    assert texts["0.weight"] == "±layer.0 1 3 3"
    assert texts["1.weight"] == texts["1.running_var"] == "layer.0"
    assert texts["1.bias"] == texts["1.running_mean"] == "±layer.0"


@pytest.mark.parametrize(("kind", "found"), [("LSTM", "permutation"), ("GRU", "permutation"), ("RNN", "signed")])
def test_recurrent_layers_have_signs_only_under_tanh(kind: str, found: str) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = getattr(nn, kind)(3, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(x)[0][:, -1])

    spec = signed(Recurrent(), torch.randn(2, 4, 3))
    assert set(spec.kinds.values()) == {found}


class Decoder(nn.Module):
    """One block of a decoder: RMSNorm with gains, attention, SwiGLU, and tied embeddings."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(3))
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up, self.down = nn.Linear(width, 12), nn.Linear(width, 12), nn.Linear(12, width)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        y = self.norms[0](x)
        q, k, v = (one(y).unflatten(-1, (2, -1)).transpose(1, 2) for one in (self.query, self.key, self.value))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        y = self.norms[1](x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return self.norms[2](x) @ self.embed.weight.T


class SwiGLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(4, 12), nn.Linear(4, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


CASES: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "decoder": lambda: (Decoder(), torch.arange(7)[None]),
    "swiglu": lambda: (SwiGLU(), torch.randn(5, 4)),
    "tanh": lambda: (nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), torch.randn(5, 4)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_copy_with_flipped_signs_is_the_same_network(name: str) -> None:
    torch.manual_seed(0)
    network, x = CASES[name]()
    network = network.double().eval()
    x = x.double() if x.is_floating_point() else x
    before, state = network(x), {key: tensor.clone() for key, tensor in network.state_dict().items()}
    for symmetry in ("signed", "full"):
        spec = ws.derive_spec(network, x, symmetry=symmetry)  # type: ignore[call-overload]
        start = ws.symmetry.fold(spec, state)
        element = ws.Element.random(spec, seed=1)
        assert any((signs < 0).any() for signs in element.signs.values())
        moved = element.apply(start)
        network.load_state_dict(moved)
        torch.testing.assert_close(network(x), before, rtol=1e-10, atol=1e-12)
        back = element.inverse().apply(moved)
        assert all(torch.allclose(back[key], start[key], rtol=0, atol=1e-12) for key in state)


def test_the_stream_of_a_tied_decoder_has_signs_everywhere_but_at_gains() -> None:
    torch.manual_seed(0)
    spec = ws.derive_spec(Decoder().eval(), torch.arange(7)[None], symmetry="full")
    texts = {name: format_axes(axes).replace("*", "") for name, axes in spec.axes.items()}
    assert spec.kinds["embed"] == "signed"
    assert texts["embed.weight"] == "11 ±embed"
    assert {texts[f"norms.{number}.weight"] for number in range(3)} == {"embed"}
    assert texts["gate.weight"] == "gate ±embed"
    assert (texts["up.weight"], texts["down.weight"]) == ("±gate ±embed", "±embed ±gate")
    assert texts["down.bias"] == "±embed"
    assert spec.frozen[0].startswith(
        "embed: only permuted, with signs, because embed.weight, which reads the output of"
    )
    assert "orthogonal" in spec.kinds.values()  # values of the heads


def test_a_sign_that_is_wrong_changes_the_function() -> None:
    network, x = CASES["tanh"]()
    spec = ws.derive_spec(network, x, symmetry="signed")
    axes = {**spec.axes, "0.bias": parse_axes("layer.0")}
    wrong = ws.SymmetrySpec(spec.groups, spec.kinds, axes)
    assert verify_symmetries(wrong, network, x)[1] > 1e-3
    assert not ws.verify_spec(wrong, network, x).passed
