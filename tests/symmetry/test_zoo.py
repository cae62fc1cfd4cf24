"""Specs are derived for real architectures, verified, and as free as they should be."""

from typing import Any

import pytest
import torch
from torch import nn
from zoo import BUILDERS
from zoo_experts import NORMED, ROUTED

from weightspace.symmetry import Permutation, PermutationSpec, derive_spec, permute
from weightspace.symmetry.random_weights import randomise

#: Network -> number of free groups, and of those that are inside another. Fewer is a lost symmetry, more a wrong one.
GROUPS = {
    "mlp": (2, 0),
    "resnet18": (12, 0),
    "resnet50": (37, 0),
    "vgg16_bn": (15, 0),
    "densenet121": (120, 0),
    "mobilenet_v2": (25, 0),
    "convnext_tiny": (22, 0),
    "vit_b_16": (49, 24),
    "gpt": (5, 2),
    "encoder_layer": (4, 2),
    "gpt_view": (5, 2),
    "gpt_unfused": (5, 2),
    "llama": (5, 2),
    "encoder_layer_norm_first": (4, 2),
    "multihead_attention": (5, 2),
    "resnext50": (53, 32),
    "regnet_y": (69, 32),
    "shufflenet": (30, 0),
    "swin_t": (52, 24),
    "unet": (5, 0),
    "gated": (1, 0),
    "group_norm": (4, 3),
    "prelu": (2, 0),
    "padded_shortcut": (3, 0),
    "pixel_unshuffle": (2, 0),
    "pixel_unshuffle_units": (5, 4),
    "tied": (1, 0),
    "recurrent": (1, 0),
    "lstm": (3, 0),
    "lstm_both_ways": (9, 0),
    "gru": (3, 0),
    "gru_both_ways": (5, 0),
    "gru_all_layers": (4, 0),
    "rnn": (3, 0),
    "translator": (2, 0),
    "lstm_cell": (1, 0),
    "gru_cell": (1, 0),
    "rnn_cell": (1, 0),
    **dict.fromkeys((name for name in ROUTED if name != "experts_in_groups"), (3, 1)),
    "experts_in_groups": (4, 2),
    "spectral_norm": (5, 1),
    "spectral_norm_old": (5, 1),
    "spectral_norm_own": (1, 0),
    "weight_norm": (3, 0),
    "weight_norm_old": (3, 0),
}


#: Networks whose specs the tests of matching check.
ELSEWHERE = {"vgg16_bn_narrow", "vit_narrow"}


def test_every_network_of_the_zoo_has_its_number_of_groups() -> None:
    assert BUILDERS.keys() - ELSEWHERE == GROUPS.keys()


@pytest.mark.parametrize("name", GROUPS)
def test_a_derived_spec_holds_and_frees_every_group(name: str, network: Any) -> None:
    module, args = network(name)
    spec = derive_spec(module, args)
    assert spec.verification is not None
    print(f"{name}: {len(spec.groups)} groups, error {spec.verification.error:.1e}")
    assert spec.verification.error < 1e-5
    assert spec.frozen == ()
    assert (len(spec.groups), len(spec.outer)) == GROUPS[name]
    assert spec.axes.keys() == module.state_dict().keys()


#: Network -> tensors that may stay where they are: directions in which the function provably does not change.
#: A key's bias adds the same number to all scores of a query, which the softmax drops.
GAUGES = {
    "mlp": set(),
    "resnet18": set(),
    "gpt": set(),
    "gpt_view": set(),
    "gpt_unfused": {"attention.inside.1.key.bias"},
    "llama": set(),
    "encoder_layer": set(),
    "multihead_attention": set(),
    "shufflenet": set(),
    "unet": set(),
    "gated": set(),
    "group_norm": set(),
    "prelu": set(),
    "padded_shortcut": set(),
    "pixel_unshuffle": set(),
    "pixel_unshuffle_units": set(),
    "tied": set(),
    "recurrent": set(),
    "lstm": set(),
    "lstm_both_ways": set(),
    "gru": set(),
    "gru_both_ways": set(),
    "gru_all_layers": set(),
    "rnn": set(),
    "translator": set(),
    "lstm_cell": set(),
    "gru_cell": set(),
    "rnn_cell": set(),
    **{name: set() for name in (*ROUTED, *NORMED)},
}


@pytest.mark.parametrize("name", GAUGES)
def test_leaving_any_one_tensor_unpermuted_is_detected(name: str, network: Any, derived: Any) -> None:
    module, args = network(name)
    module, spec = module.double(), derived(name)
    args = tuple(arg.double() if arg.is_floating_point() else arg for arg in args)
    randomise(module, seed=1)
    before = _output(module, args)
    state = {key: tensor.detach().clone() for key, tensor in module.state_dict().items()}
    moved = permute(spec, Permutation.random(spec, seed=2), state)
    assert _error(module, args, moved, before) < 1e-12
    twins = _twins(module)
    unnoticed = {
        key
        for key in state
        if not torch.equal(state[key], moved[key])
        and _error(module, args, moved | dict.fromkeys(twins[key], state[key]), before) < 1e-8
    }
    assert unnoticed == GAUGES[name]
    assert _permuted(spec) <= {key for key in state if not torch.equal(state[key], moved[key])}


def _permuted(spec: PermutationSpec) -> set[str]:
    return {name for name, axes in spec.axes.items() if any(not hasattr(axis, "size") for axis in axes)}


def _twins(module: nn.Module) -> dict[str, list[str]]:
    held = module.state_dict(keep_vars=True)
    return {name: [other for other in held if held[other] is tensor] for name, tensor in held.items()}


def _output(module: nn.Module, args: tuple[Any, ...]) -> torch.Tensor:
    with torch.no_grad():
        return module(*args)


def _error(module: nn.Module, args: Any, state: dict[str, torch.Tensor], before: torch.Tensor) -> float:
    module.load_state_dict(state)
    return float((_output(module, args) - before).norm() / before.norm())
