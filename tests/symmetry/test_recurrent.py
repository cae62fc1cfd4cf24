"""Recurrent layers: gates share the hidden units, states have theirs row by row."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from weightspace.errors import SpecError
from weightspace.symmetry import PermutationSpec, derive_spec, verify_spec
from weightspace.symmetry.pattern import format_axes

SEQUENCE = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))


def _texts(spec: PermutationSpec) -> dict[str, str]:
    return {name: format_axes(axes) for name, axes in spec.axes.items()}


def test_the_gates_of_every_kind_share_the_hidden_units(derived: Any) -> None:
    for name, gates in (("lstm", "(4 layers)"), ("gru", "(3 layers)"), ("rnn", "layers")):
        texts = _texts(derived(name))
        assert texts["words.weight"] == "17 words"
        assert texts["layers.weight_ih_l0"] == f"{gates} words"
        assert texts["layers.weight_hh_l0"] == f"{gates} layers"
        upper = gates.replace("layers", "layers/2")
        assert texts["layers.weight_ih_l1"] == f"{upper} layers"
        assert texts["layers.weight_hh_l1"] == f"{upper} layers/2"
        assert texts["head.weight"] == "3 layers/2"
        if name != "rnn":
            assert texts["layers.bias_ih_l1"] == texts["layers.bias_hh_l1"] == upper


def test_the_next_layer_reads_both_directions_end_to_end_and_a_projection_has_units_of_its_own(derived: Any) -> None:
    texts = _texts(derived("lstm_both_ways"))
    assert texts["layers.weight_hh_l0"] == "(4 layers) layers/2"
    assert texts["layers.weight_hr_l0"] == "layers/2 layers"
    assert texts["layers.weight_hh_l0_reverse"] == "(4 layers/3) layers/4"
    assert texts["layers.weight_ih_l1"] == "(4 layers/5) (layers/2 + layers/4)"
    assert texts["layers.weight_ih_l1_reverse"] == "(4 layers/7) (layers/2 + layers/4)"
    assert texts["head.weight"] == "3 (layers/6 + layers/8)"


def test_last_states_that_are_laid_side_by_side_keep_the_layers_apart(derived: Any) -> None:
    assert _texts(derived("gru_all_layers"))["head.weight"] == "3 (layers + layers/2 + layers/3)"


def test_a_decoder_shares_the_units_of_the_encoder_that_starts_it(derived: Any) -> None:
    texts = _texts(derived("translator"))
    assert texts["start"] == "1 1 start"
    assert texts["encoder.weight_hr_l0"] == texts["decoder.weight_hr_l0"] == "start encoder"
    assert texts["head.weight"] == "3 start"


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_alone_shows_its_states_so_that_nothing_is_free(kind: type[nn.RNNBase]) -> None:
    spec = derive_spec(kind(4, 6, 2, batch_first=True), (SEQUENCE,))
    assert spec.groups == {}
    assert spec.frozen == ()


class _Outputs(nn.Module):
    """What the last layer says at every step, or what ``see`` makes of the outputs and the states."""

    def __init__(self, layers: nn.RNNBase) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor, *states: Tensor) -> Tensor:
        return self.see(*self.layers(x, *states))

    def see(self, outputs: Tensor, states: Any) -> Tensor:
        return outputs


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("both_ways", [True, False])
def test_layers_below_the_last_are_free_where_their_states_are_not_seen(
    kind: type[nn.RNNBase], batch_first: bool, both_ways: bool
) -> None:
    layers = kind(4, 6, 3, batch_first=batch_first, bidirectional=both_ways)
    spec = derive_spec(_Outputs(layers), (SEQUENCE,))
    assert list(spec.groups.values()) == [6] * (4 if both_ways else 2)
    assert spec.frozen == ()


def test_a_sequence_without_a_batch_is_read_too() -> None:
    assert list(derive_spec(_Outputs(nn.GRU(4, 6, 2)), (SEQUENCE[0],)).groups.values()) == [6]


def test_initial_states_that_are_inputs_fix_the_units() -> None:
    assert derive_spec(_Outputs(nn.GRU(4, 6, 2)), (SEQUENCE, torch.randn(2, 5, 6))).groups == {}


def test_one_learnt_initial_state_of_several_layers_ties_their_units() -> None:
    class Learnt(_Outputs):
        def __init__(self) -> None:
            super().__init__(nn.GRU(4, 6, 3))
            self.start, self.head = nn.Parameter(torch.randn(3, 1, 6)), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layers(x, self.start.repeat(1, x.shape[1], 1))[0])

    spec = derive_spec(Learnt(), (SEQUENCE,))
    assert spec.groups == {"start": 6}


def test_a_learnt_state_of_a_step_belongs_to_its_units_and_keeps_its_batch() -> None:
    class Started(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.GRUCell(4, 6), nn.Linear(6, 2)
            self.start = nn.Parameter(torch.randn(2, 6))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cell(x[:, 0], self.start))

    assert _texts(derive_spec(Started(), (SEQUENCE,)))["start"] == "2 start"


@pytest.mark.parametrize("zeros", ["zeros", "new_zeros"])
def test_initial_states_of_zeros_tie_nothing(zeros: str) -> None:
    class Zeros(_Outputs):
        def forward(self, x: Tensor) -> Tensor:
            shape = (3, x.shape[1], 6)
            return super().forward(x, x.new_zeros(shape) if zeros == "new_zeros" else torch.zeros(shape))

    assert list(derive_spec(Zeros(nn.GRU(4, 6, 3)), (SEQUENCE,)).groups.values()) == [6, 6]


def test_states_that_are_summed_over_the_layers_tie_them() -> None:
    class Summed(_Outputs):
        def see(self, outputs: Tensor, states: Tensor) -> Tensor:
            return states.sum(0).square().sum(-1)

    assert list(derive_spec(Summed(nn.RNN(4, 6, 3)), (SEQUENCE,)).groups.values()) == [6]


class _Lengths(nn.Module):
    """A classifier of sequences of several lengths, packed or padded."""

    def __init__(self, packed: bool) -> None:
        super().__init__()
        self.packed = packed
        self.layers, self.head = nn.GRU(4, 6, 2, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        read = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False) if self.packed else x
        return self.head(self.layers(read)[1][-1])


def test_packed_sequences_cannot_be_traced_but_the_spec_of_padded_ones_holds_for_them() -> None:
    args = (SEQUENCE, torch.tensor([3, 5]))
    with pytest.raises(SpecError, match="cannot trace _Lengths"):
        derive_spec(_Lengths(packed=True), args)
    spec = derive_spec(_Lengths(packed=False), args)
    assert list(spec.groups.values()) == [6, 6]
    assert verify_spec(spec, _Lengths(packed=True), args).passed
