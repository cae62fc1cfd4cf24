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
