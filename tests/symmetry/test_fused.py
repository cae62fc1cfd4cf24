"""Fused queries, keys and values are taken apart whatever lies between their view and the picking of each."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from weightspace.matching import weight_matching
from weightspace.symmetry import Permutation, derive_spec, permute
from weightspace.symmetry.pattern import format_axes
from weightspace.symmetry.rules import RULES, Call, follow
from weightspace.symmetry.rules.axis_algebra import Atom, fixed, resolve
from weightspace.symmetry.rules.call import Parts
from weightspace.symmetry.rules.operators import PASS_THROUGH


class _Fused(nn.Module):
    """Attention whose queries, keys and values are one layer.

    ``take`` makes three tensors of one of shape ``(batch, tokens, 3, heads, dim)``.
    """

    def __init__(self, take: Callable[[Any, Tensor], Sequence[Tensor]], width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.take, self.heads = take, heads
        self.enter, self.qkv, self.leave = nn.Linear(5, width), nn.Linear(width, 3 * width), nn.Linear(width, 2)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.randn(3, 1, 1))
        self.shift = nn.Parameter(torch.randn(3 * width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        batch, tokens, width = x.shape
        fused = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        queries, keys, values = (part.transpose(1, 2) for part in self.take(self, fused))
        y = scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)
        return self.leave(self.out(y))


FOLLOWED: dict[str, Callable[[Any, Tensor], Sequence[Tensor]]] = {
    "nothing": lambda self, y: y.unbind(2),
    "type_as": lambda self, y: y.type_as(self.out.weight).unbind(2),
    "a cast and back": lambda self, y: [part.float() for part in y.double().unbind(2)],
    "copies": lambda self, y: y.contiguous().clone().detach().unbind(2),
    "dropout": lambda self, y: self.dropout(y).unbind(2),
    "a factor": lambda self, y: (0.5 * y).unbind(2),
    "a learnt factor": lambda self, y: (self.scale * y).unbind(2),
    "a fused bias": lambda self, y: (y + self.shift.view(y.shape[2:])).unbind(2),
    "activations": lambda self, y: y.neg().tanh().nan_to_num().unbind(2),
    "a mask": lambda self, y: y.masked_fill(torch.zeros(1, 1, 1, 1, 1, dtype=torch.bool), 0.0).unbind(2),
    "lengths of one": lambda self, y: (y / y.norm(dim=-1, keepdim=True)).unbind(2),
    "root mean squares": lambda self, y: (y * (y.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()).unbind(2),
    "softmax": lambda self, y: y.softmax(-1).unbind(2),
    "the other order of tokens": lambda self, y: y.flip(1).unbind(2),
    "earlier tokens": lambda self, y: torch.cat([y, y], 1)[:, : y.shape[1]].unbind(2),
    "another view": lambda self, y: [part.view_as(y[:, :, 0]) for part in y.flatten(0, 1).unbind(1)],
    "chunks": lambda self, y: [part.squeeze(2) for part in (y * 2).chunk(3, 2)],
    "ranges": lambda self, y: [(y * 2)[:, :, number : number + 1].squeeze(2) for number in range(3)],
    "queries, then the rest": lambda self, y: [y[:, :, 0], *(y[:, :, 1:] * 2).unbind(2)],
}


def _derive(take: Callable[[Any, Tensor], Sequence[Tensor]]) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    network = _Fused(take).eval()
    return network, derive_spec(network, (torch.randn(2, 3, 5),))


def _told(spec: Any) -> list[str]:
    """Return what froze units, but for the parameters that only some of the networks use."""
    return [note for note in spec.frozen if not note.startswith("unused")]


@pytest.mark.parametrize("name", FOLLOWED)
def test_the_values_keep_their_own_units(name: str) -> None:
    network, spec = _derive(FOLLOWED[name])
    assert (len(spec.groups), len(spec.outer)) == (5, 2)
    assert _told(spec) == []
    inner, values = spec.outer
    heads = spec.outer[inner]
    axis = f"({heads} [{inner}] + {heads} [{inner}] + {heads} [{values}])"
    assert format_axes(spec.axes["qkv.bias"]) == axis
    state = {key: tensor.detach() for key, tensor in network.state_dict().items()}
    planted = Permutation.random(spec, seed=1)
    assert weight_matching(spec, state, permute(spec, planted, state)).permutation == planted.inverse()


ATEN = torch.ops.aten

#: Every pass-through operator -> a call of it on real numbers, in evaluation mode.
PASSING: dict[str, Callable[[Tensor], Tensor]] = {
    "clone": lambda y: y.clone(),
    "contiguous": lambda y: y.transpose(0, 1).contiguous().transpose(0, 1),
    "detach": lambda y: y.detach(),
    "detach_": lambda y: y.clone().detach_(),
    "alias": lambda y: ATEN.alias(y),
    "to": lambda y: y.to(torch.float64).to(torch.float32),
    "_to_copy": lambda y: ATEN._to_copy(y, dtype=torch.float32),
    "type_as": lambda y: y.type_as(torch.zeros(1)),
    "lift_fresh": lambda y: ATEN.lift_fresh(y),
    "lift_fresh_copy": lambda y: ATEN.lift_fresh_copy(y),
    "positive": lambda y: y.positive(),
    "conj": lambda y: y.conj(),
    "_conj": lambda y: y.conj(),
    "resolve_conj": lambda y: y.resolve_conj(),
    "resolve_neg": lambda y: y.resolve_neg(),
    "dropout": lambda y: nn.functional.dropout(y, 0.5, training=False),
    "dropout_": lambda y: nn.functional.dropout(y.clone(), 0.5, training=False, inplace=True),
    "feature_dropout": lambda y: ATEN.feature_dropout(y, 0.5, False),
    "alpha_dropout": lambda y: nn.functional.alpha_dropout(y, 0.5, training=False),
    "feature_alpha_dropout": lambda y: nn.functional.feature_alpha_dropout(y, 0.5, training=False),
    "native_dropout": lambda y: ATEN.native_dropout(y, 0.5, False)[0],
    "fake_quantize_per_tensor_affine": lambda y: torch.fake_quantize_per_tensor_affine(y, 0.001, 0, -32768, 32767),
}


class _Stack(nn.Module):
    """A residual stream with a layer of attention for every usual way to take queries, keys and values apart."""

    SPLITS = ("unbind", "select", "chunk", "split", "slices")

    def __init__(self, passing: Callable[[Tensor], Tensor], width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.passing, self.heads, self.enter, self.leave = passing, heads, nn.Linear(5, width), nn.Linear(width, 2)
        self.qkv = nn.ModuleDict({split: nn.Linear(width, 3 * width) for split in self.SPLITS})
        self.out = nn.ModuleDict({split: nn.Linear(width, width) for split in self.SPLITS})

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for split in self.SPLITS:
            fused = self.qkv[split](x)
            parts = [part.transpose(1, 2) for part in self.taken(split, fused)]
            x = x + self.out[split](scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))
        return self.leave(x)

    def taken(self, split: str, fused: Tensor) -> Sequence[Tensor]:
        width = fused.shape[-1] // 3
        apart = (*fused.shape[:2], 3, self.heads, width // self.heads)
        if split in ("unbind", "select"):
            fused = self.passing(fused.view(apart))
            return fused.unbind(2) if split == "unbind" else [fused[:, :, number] for number in range(3)]
        fused = self.passing(fused)
        ranges = [fused[..., number * width : (number + 1) * width] for number in range(3)]
        parts = {"chunk": fused.chunk(3, -1), "split": fused.split(width, -1), "slices": ranges}[split]
        return [part.view(*part.shape[:2], self.heads, -1) for part in parts]


def test_every_pass_through_operator_has_a_call() -> None:
    assert PASSING.keys() == PASS_THROUGH


@pytest.mark.parametrize("name", PASSING)
def test_heads_are_found_behind_every_pass_through_operator(name: str) -> None:
    torch.manual_seed(0)
    network = _Stack(PASSING[name]).eval()
    spec = derive_spec(network, (torch.randn(2, 3, 5),))
    assert _told(spec) == []
    assert len(spec.groups) == 1 + 3 * len(_Stack.SPLITS)
    for split in _Stack.SPLITS:
        heads = {outer for inner, outer in spec.outer.items() if inner in format_axes(spec.axes[f"qkv.{split}.bias"])}
        assert len(heads) == 1
        assert format_axes(spec.axes[f"qkv.{split}.bias"]).count(f"{next(iter(heads))} [") == 3


@pytest.mark.parametrize("name", sorted(PASS_THROUGH))
def test_a_pass_through_operator_leaves_the_parts_as_they_are(name: str) -> None:
    marker = fixed(3)
    parts = Parts(marker, tuple((Atom(2), marker, Atom(4)) for _ in range(3)))
    call = Call(name, {"self": parts}, (2, 3, 4))
    kept = follow(call, RULES[name])
    assert kept.alternatives == parts.alternatives
    assert len({atom for axes in kept.alternatives for atom in (resolve(axes[0]), resolve(axes[2]))}) == 6


#: Operators that are not followed part by part -> what is told.
LOST: dict[str, tuple[Callable[[Any, Tensor], Sequence[Tensor]], str]] = {
    "an order of the three": (lambda self, y: y.roll(1, 2).unbind(2), "roll"),
    "a sum over the three": (lambda self, y: y.cumsum(2).unbind(2), "cumsum"),
    "an unknown operator": (lambda self, y: torch.fft.fft(y, dim=1).real.unbind(2), "fft_fft"),
    "an einsum": (lambda self, y: torch.einsum("btkhd->kbthd", y).unbind(0), "unbind"),
    "one used with all": (lambda self, y: [y[:, :, 0], y[:, :, 1], y[:, :, 2] + y.sum(2)], "select"),
}


@pytest.mark.parametrize("name", LOST)
def test_an_operator_that_loses_the_parts_says_so(name: str) -> None:
    take, operator = LOST[name]
    _, spec = _derive(take)
    assert _told(spec) == [f"{operator}: qkv.weight, qkv.bias"]


@pytest.mark.parametrize("between", ["type_as", "tanh", "mul", "layer_norm"])
def test_the_last_states_of_layers_are_followed_too(between: str) -> None:
    class States(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.head = nn.GRU(5, 6, num_layers=3), nn.Linear(18, 2)

        def forward(self, x: Tensor) -> Tensor:
            states = self.layers(x)[1]
            if between == "layer_norm":
                states = nn.functional.layer_norm(states, (6,))
            else:
                states = states * 2 if between == "mul" else getattr(states, between)(*[x][: between == "type_as"])
            return self.head(torch.cat([states[0], states[1], states[2]], -1))

    spec = derive_spec(States(), (torch.randn(4, 2, 5),))
    assert list(spec.groups.values()) == [6, 6, 6]
    assert spec.frozen == ()


def test_layers_whose_states_are_concatenated_are_one_group_and_reported() -> None:
    class States(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.head = nn.GRU(5, 6, num_layers=2), nn.Linear(12, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layers(x)[1].permute(1, 2, 0).flatten(1))

    spec = derive_spec(States(), (torch.randn(4, 2, 5),))
    assert list(spec.groups.values()) == [6]
    assert len(spec.frozen) == 1
    assert "view: layers.weight_ih_l0" in spec.frozen[0]
