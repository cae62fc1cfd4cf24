"""Spectra speak of the weights that a network uses, each once, whatever its checkpoint holds in their place."""

import copy
from typing import Any

import pytest
import torch
from parametrized_networks import BOTH, SPECTRAL_NORMS, WEIGHT_NORMS, fine_tunes, weight_of
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from weightspace.arithmetic.effective import effective_weights
from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.spectra import alignments, singular_alignment, spectral_distances, spectrum, weight_matrices

KINDS = (
    {f"weight norm, {name}": kind for name, kind in WEIGHT_NORMS.items()}
    | {f"spectral norm, {name}": kind for name, kind in SPECTRAL_NORMS.items()}
    | {"both": BOTH}
)


@pytest.mark.parametrize("name", KINDS)
def test_the_effective_weight_is_what_torch_computes(name: str) -> None:
    for state in fine_tunes(KINDS[name], 2):
        found = effective_weights(state)
        expected = weight_of(KINDS[name], state)
        torch.testing.assert_close(found[KINDS[name][2]], expected, rtol=1e-5, atol=1e-6)
        assert found[KINDS[name][2]].dtype == expected.dtype
        assert not any("original" in key or key.endswith(("_g", "_v", "_u", "_orig", "_bar")) for key in found)


@pytest.mark.parametrize("name", [name for name in KINDS if "embedding" not in name and "bias" not in name])
def test_spectra_are_those_of_the_plain_network(name: str) -> None:
    kind = KINDS[name]
    parametrized = fine_tunes(kind, 2)
    plain = [{**effective_weights(state), kind[2]: weight_of(kind, state)} for state in parametrized]
    if kind[2] != "weight" or plain[0]["weight"].ndim < 2:
        plain = [{key: state[key] for key in effective_weights(parametrized[0])} for state in plain]
    found, expected = (singular_alignment(*states, 0.3) for states in (parametrized, plain))
    assert found.per_layer.keys() == expected.per_layer.keys()
    assert found.total == pytest.approx(expected.total, abs=1e-5)
    distances = [spectral_distances(*(spectrum(state) for state in states)) for states in (parametrized, plain)]
    assert distances[0].total.squared == pytest.approx(distances[1].total.squared, rel=1e-4)


def test_a_column_of_norms_is_no_matrix() -> None:
    """What an independent check found: R of the norms hides that the weights have nothing to do with each other."""
    torch.manual_seed(0)
    states = [parametrizations.weight_norm(nn.Linear(40, 30)).state_dict() for _ in range(2)]
    result = singular_alignment(*states, 0.0)
    assert list(result.per_layer) == ["weight"]
    assert abs(result.total) < 0.1


def test_pruned_weights_are_those_that_are_left() -> None:
    layers = [prune.random_unstructured(nn.Linear(8, 6), "weight", 0.5) for _ in range(2)]
    (matrix,) = weight_matrices(layers[0].state_dict()).values()
    assert matrix.name == "weight"
    assert torch.equal(matrix.matrix, layers[0].weight.detach())


class Doubling(nn.Module):
    def forward(self, weight: Any) -> Any:
        return 2 * weight


@pytest.mark.parametrize(
    "wrap",
    [
        lambda layer: parametrizations.orthogonal(layer),
        lambda layer: parametrize.register_parametrization(layer, "weight", Doubling()),
    ],
)
def test_a_weight_that_cannot_be_determined_is_refused(wrap: Any) -> None:
    state = nn.Sequential(wrap(nn.Linear(5, 5))).state_dict()
    for call in (lambda: spectrum(state, label="a.pt"), lambda: weight_matrices(state, label="a.pt")):
        with pytest.raises(WeightspaceError, match=r"^a.pt: the weight '0.weight' is under a parametrization"):
            call()
    with pytest.raises(WeightspaceError, match="remove_parametrizations"):
        singular_alignment(state, state)


class Twice(nn.Module):
    """One layer under two names, and a head."""

    def __init__(self, wrap: Any = lambda layer: layer) -> None:
        super().__init__()
        self.first = wrap(nn.Linear(7, 7))
        self.second = self.first
        self.head = nn.Linear(7, 3)


class Once(nn.Module):
    def __init__(self, twice: Twice) -> None:
        super().__init__()
        self.first, self.head = twice.first, twice.head


def untied(state: StateDict) -> StateDict:
    return {name: tensor.clone() for name, tensor in state.items()}


@pytest.mark.parametrize("wrap", [lambda layer: layer, parametrizations.weight_norm, parametrizations.spectral_norm])
def test_modules_under_two_names_count_once(wrap: Any) -> None:
    torch.manual_seed(1)
    twice = [Twice(wrap).eval() for _ in range(2)]
    with torch.no_grad():
        twice[1].head.weight.copy_(twice[0].head.weight)  # so that layers have different R
    once = [Once(copy.deepcopy(network)).state_dict() for network in twice]
    states = [network.state_dict() for network in twice]
    expected, found = singular_alignment(*once, 0.2), singular_alignment(*states, 0.2)
    assert found == expected
    assert list(spectrum(states[0]).layers) == ["first.weight", "head.weight"]
    spectra = [spectrum(state) for state in states]
    assert alignments(*spectra, [0.2])[0].per_layer == pytest.approx(expected.per_layer)
    plain = [spectrum(state) for state in once]
    assert spectral_distances(*spectra) == spectral_distances(*plain)
    assert spectra[0].layer("second.weight") is spectra[0].layers["first.weight"]
    assert list(weight_matrices(states[0], names=["second.weight"])) == ["second.weight"]
    with pytest.raises(KeyError):
        spectra[0].layer("third.weight")


def test_a_tensor_that_only_one_network_ties_counts_twice() -> None:
    a, b = (Twice().state_dict() for _ in range(2))
    for one, other in ((a, untied(b)), (untied(a), b), (untied(a), untied(b))):
        result = singular_alignment(one, other)
        assert sorted(result.per_layer) == ["first.weight", "head.weight", "second.weight"]
        assert result == singular_alignment(untied(a), untied(b))
