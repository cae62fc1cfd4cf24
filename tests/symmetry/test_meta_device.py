"""Networks on the meta device: specs are those of real networks, and are verified with few weights held at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils._python_dispatch import _disable_current_modes

from weightspace.errors import SpecError
from weightspace.symmetry import derive_spec, verify_spec
from weightspace.symmetry.inputs import Inputs
from weightspace.symmetry.pattern import Fixed
from weightspace.symmetry.streamed import StreamedNetwork
from weightspace.zoo.llama import Llama, rotations

TOKENS = torch.arange(8)[None]

#: Builds a network, and its inputs.
Case = tuple[Callable[[], nn.Module], Any]


def small_llama() -> nn.Module:
    network = Llama(vocabulary=16, length=8, width=16, depth=2, heads=4, groups=2, hidden=24)
    network.cos, network.sin = rotations(8, 4)
    return network


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 24, norm_first=True, batch_first=True)
    return nn.Sequential(nn.Linear(5, 16), layer, nn.LayerNorm(16), nn.Linear(16, 3))


def convolutions() -> nn.Module:
    first = weight_norm(nn.Conv2d(3, 8, 3))
    return nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 2))


def of_transformers(name: str, config: dict[str, Any]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        transformers = pytest.importorskip("transformers")
        architecture = transformers.AutoConfig.for_model(name, **config)
        return transformers.AutoModel.from_config(architecture).eval()

    return build


SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = of_transformers("llama", {**SMALL, "vocab_size": 64, "num_key_value_heads": 2})

CASES: dict[str, Case] = {
    "llama": (small_llama, TOKENS),
    "torch": (encoder, torch.randn(2, 6, 5)),
    "convolutions": (convolutions, torch.randn(1, 3, 4, 4)),
    "transformers-llama": (LLAMA, TOKENS),
    "transformers-llama-bfloat16": (lambda: LLAMA().to(torch.bfloat16), TOKENS),
    "transformers-bert": (of_transformers("bert", {**SMALL, "vocab_size": 64}), TOKENS),
    "transformers-mixtral": (
        of_transformers("mixtral", {**SMALL, "vocab_size": 64, "num_key_value_heads": 2, "num_local_experts": 2}),
        TOKENS,
    ),
}


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        network = build()
    if isinstance(network, Llama):
        network.cos, network.sin = rotations(8, 4)
    return network


@pytest.mark.parametrize(("build", "inputs"), CASES.values(), ids=CASES)
def test_the_spec_of_a_network_on_the_meta_device_is_that_of_a_real_one(
    build: Callable[[], nn.Module], inputs: Tensor
) -> None:
    network = on_meta(build)
    spec = derive_spec(network, (inputs,), symmetry="full")
    expected = derive_spec(build(), (inputs,), symmetry="full", verify=False)
    assert spec.digest == expected.digest
    assert spec.frozen == expected.frozen
    assert spec.verification is not None
    assert spec.verification.error < 1e-12
    assert all(parameter.is_meta for parameter in network.parameters())


@pytest.mark.parametrize("symmetry", ["permutations", "signed"])
def test_other_symmetries_are_derived_on_the_meta_device(symmetry: Any) -> None:
    expected = derive_spec(encoder(), (torch.randn(2, 6, 5),), symmetry=symmetry)
    spec = derive_spec(on_meta(encoder), (torch.randn(2, 6, 5),), symmetry=symmetry)
    assert spec.digest == expected.digest
    assert spec.verification is not None
    assert spec.verification.passed


@pytest.mark.parametrize("symmetry", ["permutations", "full"])
def test_a_wrong_spec_fails_on_the_meta_device(symmetry: Any) -> None:
    network, inputs = on_meta(encoder), (torch.randn(2, 6, 5),)
    spec = derive_spec(network, inputs, symmetry=symmetry, verify=False)
    wrong = replace(spec, axes={**spec.axes, "1.linear1.weight": (Fixed(24), spec.axes["1.linear1.weight"][1])})
    assert verify_spec(wrong, network, inputs).error > 1e-3


def test_unknown_constants_are_named_where_symmetries_depend_on_them() -> None:
    with torch.device("meta"):
        network = Llama(vocabulary=16, length=8, width=16, depth=1, heads=4, groups=2, hidden=24)
    with pytest.raises(SpecError, match="constants without values, as cos is on the meta device"):
        derive_spec(network, (TOKENS,), symmetry="full")


def test_inputs_that_do_not_fit_are_one_line_on_the_meta_device() -> None:
    with pytest.raises(SpecError, match=r"cannot run on its example inputs \(\(1, 8\) float32\)"):
        derive_spec(on_meta(small_llama), (TOKENS.float(),))


class Everything(nn.Module):
    """Uses parameters in many ways: sliced, tied, looked up, transposed, and inside recurrent layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.recurrent = nn.LSTM(8, 8, batch_first=True)
        self.mixing = nn.Parameter(torch.randn(8, 8))
        self.norm = nn.BatchNorm1d(8)
        self.last = weight_norm(nn.Linear(8, 8))
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x, _ = self.recurrent(self.embedding(tokens))
        x = self.norm(x.mT).mT @ self.mixing[1:4].T
        return self.head(self.last(torch.cat([x, x, x[..., :2]], -1) * self.mixing.diagonal()))


def test_streamed_outputs_and_gradients_are_those_of_the_network() -> None:
    network = Everything().double().eval()
    streamed, state = StreamedNetwork(network, seed=0), network.state_dict()
    assert torch.allclose(streamed.outputs(state.__getitem__, Inputs.of(TOKENS)), network(TOKENS).detach().flatten())
    network(TOKENS).square().sum().backward()
    with streamed.running(lambda name: state[name].clone()) as running:
        for parameter in running.parameters():
            parameter.requires_grad_()
        running(TOKENS).square().sum().backward()
    for parameter, expected in zip(running.parameters(), network.parameters(), strict=True):
        assert parameter.untyped_storage().nbytes() == 8  # holds one value
        assert parameter.grad is not None
        assert expected.grad is not None
        assert torch.allclose(parameter.grad, expected.grad)


def test_random_weights_are_seeded_by_name_and_ties_are_equal() -> None:
    network = Everything()
    real, drawn = StreamedNetwork(network, 0), StreamedNetwork(on_meta(Everything), 0)
    for weights in (real.random_weights, drawn.random_weights):
        assert torch.equal(weights("head.weight"), weights("embedding.weight"))
        assert weights("norm.running_var").min() > 0
        assert weights("norm.num_batches_tracked").dtype == torch.int64
    assert not torch.equal(
        drawn.random_weights("mixing"), StreamedNetwork(on_meta(Everything), 1).random_weights("mixing")
    )
    assert torch.equal(real.random_weights("mixing"), network.mixing.double())  # not constant along an axis
    assert real.random_weights("norm.weight").std() > 0.1


def test_stand_ins_are_nan_where_they_are_not_replaced() -> None:
    network = nn.Linear(4, 4)
    with StreamedNetwork(network, 0).running(network.state_dict().__getitem__) as running, _disable_current_modes():
        assert running.get_parameter("weight").isnan().all()
