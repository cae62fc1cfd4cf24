"""Matching by weights alone says what it may do to networks with attention."""

import warnings
from typing import Any

import pytest
import torch
from torch import nn

from weightspace.errors import WeightspaceWarning
from weightspace.matching import match, weight_matching
from weightspace.matching.attention import attention_name
from weightspace.matching.registry import MANY_MATCHINGS, MATCHINGS, match_many
from weightspace.symmetry import derive_spec

ATTENTION = (
    "layers.0.self_attn.in_proj_weight",
    "blocks.3.attn.qkv.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "encoder.layer.1.attention.self.query.weight",
    "transformer.h.0.attn.c_attn.weight",
    "visual.transformer.resblocks.0.attn.out_proj.weight",
    "h.0.self_attention.query_key_value.weight",
    "mid.attn1.to_q.weight",
    "decoder.block.0.layer.0.SelfAttention.q.weight",
    "layers.0.attention.wq.weight",
    "block.in_proj_weight",
)
OTHER = (
    "layer1.0.conv1.weight",
    "fc.weight",
    "features.0.weight",
    "lstm.weight_ih_l0",
    "keyboard.weight",
    "attnet.weight",
)


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_is_recognised_by_the_names_of_its_weights(name: str) -> None:
    assert attention_name(["conv.weight", name]) == name


@pytest.mark.parametrize("name", OTHER)
def test_other_layers_are_none(name: str) -> None:
    assert attention_name([name]) is None


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Linear(3, 8), layer, nn.Linear(8, 2)).eval()


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))


ROWS = (MATCHINGS | MANY_MATCHINGS).values()
BY_WEIGHTS = [row.name for row in ROWS if not row.needs_task and row.symmetry == "permutations"]


@pytest.mark.parametrize("method", BY_WEIGHTS)
def test_methods_that_look_at_weights_alone_say_so(method: str) -> None:
    networks = [transformer() for _ in range(2)]
    spec = derive_spec(networks[0], (torch.randn(2, 5, 3),))
    with pytest.warns(
        WeightspaceWarning, match=rf"attention \('1\.self_attn.*{method} can make.*prefer full, .* activation-matching"
    ):
        run(method, spec, networks)


@pytest.mark.parametrize("method", BY_WEIGHTS)
def test_other_networks_are_not_warned_about(method: str) -> None:
    networks = [plain() for _ in range(2)]
    spec = derive_spec(networks[0], (torch.randn(2, 3),))
    with warnings.catch_warnings():
        warnings.simplefilter("error", WeightspaceWarning)
        run(method, spec, networks)


def run(method: str, spec: object, networks: list[nn.Module]) -> None:
    states = [dict(network.state_dict()) for network in networks]
    options = {"steps": 1} if method == "sinkhorn-l2" else {"max_sweeps": 2}
    if method in MATCHINGS:
        match(spec, *states, method, **options)  # type: ignore[arg-type]
    else:
        match_many(spec, states, method, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("call", [weight_matching, match])
def test_weight_matching_says_so_once_where_it_is_called(call: Any) -> None:
    states = [dict(transformer().state_dict()) for _ in range(2)]
    spec = derive_spec(transformer(), (torch.randn(2, 5, 3),))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(spec, *states)
    (warning,) = [one for one in caught if one.category is WeightspaceWarning]
    assert "weight-matching can make the barrier higher" in str(warning.message)
    assert warning.filename == __file__


def test_weight_matching_of_other_networks_says_nothing() -> None:
    spec = derive_spec(plain(), (torch.randn(2, 3),))
    with warnings.catch_warnings():
        warnings.simplefilter("error", WeightspaceWarning)
        weight_matching(spec, dict(plain().state_dict()), dict(plain().state_dict()))
