"""Activation matching finds where units appear, compares them as numpy does, and says what it cannot see."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny_tasks
import torch
from torch import Tensor, nn

from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.matching import match_activations
from weightspace.matching.activation_matching import feed
from weightspace.matching.activation_sites import Place, places_of
from weightspace.matching.correlations import CrossCorrelation
from weightspace.symmetry import Permutation, PermutationSpec, derive_spec, permute

#: Every kind of axis: flattened positions, residual streams, fused and grouped queries, tied and doubled groups.
PLANTED = [
    *("mlp", "gpt", "gpt_view", "gpt_unfused", "llama", "encoder_layer", "multihead_attention"),
    *("unet", "gated", "group_norm", "prelu", "padded_shortcut", "tied", "recurrent"),
]


def inputs_like(example: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    if example.is_floating_point():
        return torch.randn(48, *example.shape[1:], generator=generator)
    return torch.randint(17, (64, *example.shape[1:]), generator=generator)


def permuted(network: nn.Module, spec: PermutationSpec, permutation: Permutation) -> nn.Module:
    other = copy.deepcopy(network)
    state = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    other.load_state_dict(permute(spec, permutation, state))
    return other


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_permutation_is_recovered_exactly(name: str, derived: Any, network: Any) -> None:
    spec, (target, args) = derived(name), network(name)
    planted = Permutation.random(spec, seed=1)
    matching = match_activations(spec, target, permuted(target, spec, planted), [inputs_like(args[0])])
    assert matching.permutation == planted.inverse()
    assert matching.l2_reduction == 1.0
    assert matching.converged


@pytest.mark.parametrize("kind", ["mlp", "cnn", "resnet", "attention"])
def test_a_planted_permutation_is_recovered_through_noise(kind: str) -> None:
    spec, state = tiny_tasks.spec(kind), tiny_tasks.trained(kind, 0)
    planted = Permutation.random(spec, seed=1)
    generator = torch.Generator().manual_seed(2)
    source = {
        name: tensor + 0.02 * torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in permute(spec, planted, state).items()
    }
    a, b = (tiny_tasks.network(kind, one) for one in (state, source))
    found = match_activations(spec, a, b, tiny_tasks.task(kind).batches("train", 0))
    assert found.permutation == planted.inverse()


def described(places: list[Place]) -> set[tuple[str, str, bool]]:
    return {(place.tap.module, place.tap.side, place.is_read) for place in places}


def test_units_are_looked_at_where_layers_read_them(derived: Any, network: Any) -> None:
    target, args = network("mlp")
    assert described(places_of(derived("mlp"), target, feed, args[0])) == {("2", "input", True), ("4", "input", True)}


def test_queries_and_keys_are_looked_at_where_they_are_made(derived: Any, network: Any) -> None:
    target, args = network("gpt_unfused")
    found = described(places_of(derived("gpt_unfused"), target, feed, args[0]))
    assert {("attention.inside.1.query", "output", False), ("attention.inside.1.key", "output", False)} <= found
    assert ("attention.inside.1.out", "input", True) in found


def test_small_groups_of_equal_size_are_distinguished() -> None:
    layers = [nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        target = nn.Sequential(*layers)
        inputs = torch.randn(20, 3)
    spec = derive_spec(target, (inputs,))
    found = {place.tap.module: place.groups() for place in places_of(spec, target, feed, inputs)}
    assert found == {"2": {"layer.0"}, "4": {"layer.2"}, "6": {"layer.4"}}


@pytest.mark.parametrize(("samples", "pixels"), [(6, 7), (4, 7), (6, 4)])
def test_dimensions_as_long_as_a_group_inside_a_group_are_none(samples: int, pixels: int) -> None:
    """A grouped convolution has four channels per group; there may be as many samples or pixels."""
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2, padding=1), nn.ReLU()]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        target = nn.Sequential(*layers, nn.Conv2d(8, 5, 3, padding=1))
        inputs = torch.randn(samples, 3, pixels, pixels)
    spec = derive_spec(target, (inputs,))
    planted = Permutation.random(spec, seed=1)
    source = copy.deepcopy(target)
    source.load_state_dict(permute(spec, planted, target.state_dict()))
    assert match_activations(spec, target, source, [inputs]).permutation == planted.inverse()


def test_correlations_of_batches_are_those_of_all_samples_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    a = 1e3 + torch.randn(100, 4, generator=generator)
    b = torch.randn(100, 5, generator=generator) + a[:, :1]
    sums = CrossCorrelation(4, 5)
    for rows in (a[:1], a[1:1], a[1:40], a[40:]):
        start = 0 if rows is a else sums.count
        sums.add(rows, b[start : start + len(rows)])
    expected = np.corrcoef(a.double().T.numpy(), b.double().T.numpy())[:4, 4:]
    np.testing.assert_allclose(sums.correlation().numpy(), expected, atol=1e-6)


def test_a_unit_that_never_changes_is_correlated_with_none() -> None:
    a = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    a[:, 1] = 0.1
    sums = CrossCorrelation(3, 3)
    for rows in a.split(20):
        sums.add(rows, rows)
    correlation = sums.correlation()
    assert correlation[1].tolist() == [0.0, 0.0, 0.0]
    assert correlation[:, 1].tolist() == [0.0, 0.0, 0.0]
    torch.testing.assert_close(correlation.diagonal(), torch.tensor([1.0, 0.0, 1.0]))


def test_dead_units_are_matched_by_their_weights() -> None:
    spec, state = tiny_tasks.spec("mlp"), dict(tiny_tasks.trained("mlp", 0))
    state["1.bias"] = state["1.bias"].clone()
    state["1.bias"][:4] = -1e3
    planted = Permutation.random(spec, seed=1)
    a, b = (tiny_tasks.network("mlp", one) for one in (state, permute(spec, planted, state)))
    found = match_activations(spec, a, b, tiny_tasks.task("mlp").batches("train", 0))
    assert found.permutation == planted.inverse()


def test_units_without_recorded_activations_are_matched_by_weights_or_refused(derived: Any, network: Any) -> None:
    spec, (target, args) = derived("multihead_attention"), network("multihead_attention")
    source = permuted(target, spec, Permutation.random(spec, seed=1))
    with pytest.raises(WeightspaceError, match=r"3 of \d groups appear at no module's input or output.*'attention'"):
        match_activations(spec, target, source, [args[0]], unseen="error")
    with pytest.raises(WeightspaceError, match="expected one of weights, error"):
        match_activations(spec, target, source, [args[0]], unseen="weihgts")  # type: ignore[arg-type]


class Taking(nn.Module):
    """Notes what it is called with."""

    def forward(self, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:
        return x, scale, bias


def test_batches_are_fed_as_the_network_takes_them() -> None:
    x, y, z = torch.ones(1), torch.zeros(1), torch.ones(2)
    assert feed(Taking(), (x, y, z)) == (x, y, None)
    assert feed(Taking(), {"x": x, "scale": y, "bias": z}) == (x, y, z)
    assert feed(nn.Identity(), x) is x
    assert feed(nn.Identity(), [x, y]) is x


def test_labels_that_come_with_the_inputs_are_left_out() -> None:
    spec = tiny_tasks.spec("cnn")
    a, b = (tiny_tasks.network("cnn", tiny_tasks.trained("cnn", seed)) for seed in (0, 1))
    batches = list(tiny_tasks.task("cnn").batches("train", 0))
    with_labels = match_activations(spec, a, b, batches)
    without = match_activations(spec, a, b, [inputs for inputs, _ in batches])
    by_loss = match_activations(spec, a, b, batches, forward=tiny_tasks.task("cnn").loss)
    assert with_labels.permutation == without.permutation == by_loss.permutation
    assert with_labels.objective == without.objective == by_loss.objective


def test_networks_are_left_as_they_were() -> None:
    spec = tiny_tasks.spec("cnn")
    a, b = (tiny_tasks.network("cnn", tiny_tasks.trained("cnn", seed)).train() for seed in (0, 1))
    before = [{name: tensor.clone() for name, tensor in one.state_dict().items()} for one in (a, b)]
    match_activations(spec, a, b, tiny_tasks.task("cnn").batches("train", 0))
    for one, old in zip((a, b), before, strict=True):
        assert all(torch.equal(tensor, old[name]) for name, tensor in one.state_dict().items())
        for module in one.modules():
            assert module.training
            assert not module._forward_hooks
            assert not module._forward_pre_hooks


def test_incomparable_activations_are_an_error() -> None:
    spec, state = tiny_tasks.spec("mlp"), tiny_tasks.trained("mlp", 0)
    network = tiny_tasks.network("mlp", state)
    with pytest.raises(WeightspaceError, match="Found no batches"):
        match_activations(spec, network, network, [])
    with pytest.raises(WeightspaceError, match="activations at '3' are not finite"):
        match_activations(spec, network, network, [torch.ones(2, 12), torch.full((2, 12), torch.inf)])
    with pytest.raises(CheckpointError, match="do not fit together"):
        match_activations(spec, network, tiny_tasks.cnn(), [torch.ones(2, 12)])
    with pytest.raises(WeightspaceError, match="The source is a dict; expected a network"):
        match_activations(spec, network, state, [torch.ones(2, 12)])  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_networks_that_keep_their_normalised_weights_are_matched(norm: Callable[..., nn.Module]) -> None:
    def network(state: Any = None) -> nn.Module:
        built = nn.Sequential(norm(nn.Linear(12, 8)), nn.ReLU(), norm(nn.Linear(8, 7)), nn.ReLU(), nn.Linear(7, 3))
        if state is not None:
            built.load_state_dict(state)
        return built.eval()

    torch.manual_seed(0)
    x = torch.randn(64, 12)
    target = network()
    target(x)  # the weight that it keeps is part of an autograd graph
    spec = derive_spec(target, (x,))
    planted = Permutation.random(spec, seed=1)
    source = network(permute(spec, planted, {key: tensor.detach() for key, tensor in target.state_dict().items()}))
    source(x)
    assert match_activations(spec, target, source, [x]).permutation == planted.inverse()
