"""No group is lost without a word: ``frozen`` names the operator and the tensors, and nothing where none is lost."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo_experts import TOLD_APART

from weightspace.symmetry import derive_spec


class _Between(nn.Module):
    """Two hidden layers; an operator stands between the first and the second."""

    def __init__(self, operator: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 3)
        self.operator = operator
        self.register_buffer("table", torch.randn(8))
        self.register_buffer("passing", torch.randn(8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.operator(self, self.a(x))).relu())


#: What stands between -> what is told to have frozen the first layer.
ORDERED: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "a running sum": (lambda self, h: h.cumsum(-1), "cumsum"),
    "a running maximum": (lambda self, h: h.cummax(-1).values, "cummax"),
    "a reversal": (lambda self, h: h.flip(-1), "flip"),
    "a rotation": (lambda self, h: h.roll(1, -1), "roll"),
    "a triangle": (lambda self, h: (h.unsqueeze(-1) * h.unsqueeze(-2)).tril().sum(-1), "tril"),
    "a fixed order": (lambda self, h: h[:, [1, 0, 2, 3, 4, 5, 6, 7]], "index"),
    "ranks": (lambda self, h: h + h.argsort(-1).argsort(-1), "argsort"),
    "a number of a unit": (lambda self, h: h * h.argmax(-1, keepdim=True), "mul"),
    "one unit": (lambda self, h: h * h[:, 3].unsqueeze(-1), "select"),
    "neighbours": (lambda self, h: nn.functional.avg_pool1d(h.unsqueeze(1), 3, 1, 1).squeeze(1), "avg_pool1d"),
    "an unknown operator": (lambda self, h: torch.fft.fft(h).real, "fft_fft"),
    "a saved table": (lambda self, h: h * self.table, "the buffer table"),
    "a table in another shape": (lambda self, h: h + self.passing[None].float(), "the buffer passing"),
    "numbers in the code": (lambda self, h: h * torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8]), "a constant"),
    "a ramp": (lambda self, h: h * torch.linspace(0, 1, 8), "linspace"),
    "noise": (lambda self, h: h + torch.randn(8), "randn"),
}


@pytest.mark.parametrize("name", ORDERED)
def test_operators_that_depend_on_the_order_of_units_are_named_with_the_tensors_they_froze(name: str) -> None:
    operator, told = ORDERED[name]
    spec = derive_spec(_Between(operator).eval(), (torch.randn(2, 4),))
    assert spec.groups == {"b": 6}
    assert spec.frozen == (f"{told}: a.weight, a.bias",)
    assert spec.verification is not None
    assert spec.verification.frozen == spec.frozen


#: Operators that are the same for any order of the units.
UNORDERED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "softmax": lambda self, h: h.softmax(-1),
    "the largest": lambda self, h: h * (h >= h.topk(3, -1).values[..., -1:]),
    "the middle": lambda self, h: h - h.median(-1, keepdim=True).values,
    "the n-th": lambda self, h: h - h.kthvalue(3, -1, keepdim=True).values,
    "a product": lambda self, h: h * torch.mv(h, h[0]).unsqueeze(-1),
    "positions of its own": lambda self, h: torch.where(torch.arange(8) == h.argmax(-1, keepdim=True), h, h * 0.5),
    "nought": lambda self, h: h + torch.zeros(8),
}


@pytest.mark.parametrize("name", UNORDERED)
def test_operators_invariant_to_the_order_of_units_freeze_nothing(name: str) -> None:
    spec = derive_spec(_Between(UNORDERED[name]).eval(), (torch.randn(2, 4),))
    assert spec.groups == {"a": 8, "b": 6}
    assert spec.frozen == ()


@pytest.mark.parametrize("name", TOLD_APART)
def test_a_router_whose_experts_are_distinguished_is_reported(name: str) -> None:
    build, operator = TOLD_APART[name]
    torch.manual_seed(0)
    spec = derive_spec(build().eval(), (torch.randn(7, 5),))
    assert any(note.startswith(f"{operator}: ") and "gate.weight" in note for note in spec.frozen)
    assert all(axis != "gate" for axis in spec.groups)


def test_parameters_that_the_run_does_not_use_are_reported_and_tied_ones_are_used() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.aux = nn.Linear(4, 7), nn.Linear(7, 4), nn.Linear(7, 5)
            self.twin = nn.Linear(4, 7)
            self.twin.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu())

    spec = derive_spec(Spare(), (torch.randn(2, 4),))
    assert spec.frozen == ("unused when run: aux.weight, aux.bias, twin.bias",)
    assert spec.axes["twin.weight"] == spec.axes["a.weight"]


def test_words_positions_kernels_inputs_and_outputs_are_no_loss() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(17, 6), nn.Embedding(9, 6)
            self.bias = nn.Parameter(torch.randn(5, 6))
            self.conv, self.head = nn.Conv1d(6, 8, 3), nn.Linear(8, 3)
            self.register_buffer("order", torch.arange(5).flip(0), persistent=False)

        def forward(self, words: Tensor) -> Tensor:
            x = self.words(words) + self.places(torch.arange(5)) + self.bias[self.order]
            return self.head(self.conv(x.transpose(1, 2)).relu().mean(-1))

    spec = derive_spec(Reader(), (torch.randint(0, 17, (2, 5)),))
    assert list(spec.groups.values()) == [6, 8]
    assert spec.frozen == ()


def test_a_position_table_of_just_the_right_length_stays_fixed() -> None:
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.places, self.leave = nn.Linear(4, 6), nn.Embedding(5, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.leave((self.enter(x) + self.places(torch.arange(x.shape[1]))).relu())

    spec = derive_spec(Placed(), (torch.randn(2, 5, 4),))
    assert spec.groups == {"enter": 6}
    assert spec.frozen == ()


@pytest.mark.parametrize("returned", [False, True])
def test_a_codebook_may_be_permuted_unless_its_numbers_are_returned(returned: bool) -> None:
    class Quantiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.book, self.leave = nn.Linear(5, 8), nn.Embedding(9, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Any:
            distances = ((self.enter(x).unsqueeze(1) - self.book.weight) ** 2).sum(-1)
            nearest = distances.argmin(-1)
            y = self.leave(self.book(nearest))
            return (y, nearest) if returned else y

    spec = derive_spec(Quantiser(), (torch.randn(7, 5),))
    assert spec.groups == {"enter": 8} if returned else {"enter": 8, "book": 9}
    assert spec.frozen == ()


def test_interleaved_halves_are_cut_apart_by_a_stride() -> None:
    class Interleaved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Linear(5, 16), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.enter(x)
            return self.leave(h[..., ::2].sigmoid() * h[..., 1::2])

    spec = derive_spec(Interleaved(), (torch.randn(7, 5),))
    assert spec.groups == {"enter": 8}
    assert spec.frozen == ()
