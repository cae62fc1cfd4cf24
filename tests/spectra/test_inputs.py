"""Inputs on the leading right vectors, and what the midpoint does to outputs: against sums over the inputs."""

import math

import pytest
import torch

import weightspace as ws
from weightspace.checkpoints import StateDict
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.spectra import input_energy, midpoint_change, spectrum


@pytest.fixture
def drawn() -> tuple[StateDict, StateDict, torch.Tensor]:
    """Return two networks of one layer, and inputs ``(50, 4)``."""
    generator = torch.Generator().manual_seed(0)
    a, b = ({"weight": torch.randn(6, 4, generator=generator)} for _ in range(2))
    return a, b, torch.randn(50, 4, generator=generator)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_the_share_is_the_energy_of_the_projected_inputs(drawn, gamma: float) -> None:
    a, _, inputs = drawn
    _, values, right = torch.linalg.svd(a["weight"], full_matrices=False)
    kept = int((values >= gamma * values[0]).sum())
    expected = float((inputs @ right[:kept].T).square().sum() / inputs.square().sum())
    found = input_energy(spectrum(a), {"weight": inputs.T @ inputs / 50}, gamma=gamma)["weight"]
    assert found.share == pytest.approx(expected, rel=1e-5)
    assert found.directions == kept / 4
    assert found.ratio == pytest.approx(expected / (kept / 4), rel=1e-5)


def test_inputs_on_the_first_right_vector_have_all_their_energy_there() -> None:
    a = spectrum({"weight": torch.diag(torch.tensor([5.0, 1.0, 0.5, 0.25]))})
    first = torch.tensor([1.0, 0, 0, 0])
    found = input_energy(a, {"weight": torch.outer(first, first)}, gamma=0.3)["weight"]
    assert (found.share, found.directions, found.ratio) == pytest.approx((1, 0.25, 4))
    last = torch.tensor([0, 0, 0, 1.0])
    assert input_energy(a, {"weight": torch.outer(last, last)})["weight"].share == pytest.approx(0)


def test_the_midpoint_changes_outputs_by_a_quarter_of_the_difference(drawn) -> None:
    """T4: E‖Ax − ½(A + B)x‖² = ¼ tr[(A − B) Σ (A − B)ᵀ]."""
    a, b, inputs = drawn
    first, second = a["weight"], b["weight"]
    change = (inputs @ first.T - inputs @ ((first + second) / 2).T).square().sum()
    expected = float(change / (inputs @ first.T).square().sum())
    grams = {"weight": inputs.T @ inputs / 50}
    assert midpoint_change(spectrum(a), spectrum(b), grams)["weight"] == pytest.approx(expected, rel=1e-5)
    assert midpoint_change(spectrum(a), spectrum(a), grams)["weight"] == 0


def test_fused_weights_share_their_inputs_and_layers_without_any_are_left_out() -> None:
    state = {"attn.qkv.weight": torch.randn(9, 3), "fc.weight": torch.randn(2, 5)}
    found = input_energy(spectrum(state), {"attn.qkv.weight": torch.eye(3)}, gamma=0.0)
    assert list(found) == [f"attn.qkv.weight[{part}]" for part in "qkv"]
    assert all(one.share == pytest.approx(1) for one in found.values())


def test_inputs_and_outputs_that_are_all_zero_have_no_share() -> None:
    zero, one = ({"weight": factor * torch.eye(2)} for factor in (0, 1))
    assert math.isnan(input_energy(spectrum(one), {"weight": torch.zeros(2, 2)})["weight"].share)
    assert math.isnan(input_energy(spectrum(zero), {"weight": torch.eye(2)})["weight"].ratio)
    assert math.isnan(midpoint_change(spectrum(zero), spectrum(one), {"weight": torch.eye(2)})["weight"])


def test_grams_that_do_not_fit_are_errors() -> None:
    a = spectrum({"weight": torch.randn(6, 4)}, gamma=0.3)
    with pytest.raises(CheckpointError, match=r"'weight' has shape \(6, 6\).*give \(4, 4\)"):
        input_energy(a, {"weight": torch.eye(6)})
    with pytest.raises(CheckpointError, match="No weight matrix has a Gram matrix"):
        input_energy(a, {"other": torch.eye(4)})
    with pytest.raises(WeightspaceError, match=r"vectors from 0\.3 up"):
        input_energy(a, {"weight": torch.eye(4)}, gamma=0.2)


def test_hidden_inputs_of_a_trained_network_lie_on_the_leading_right_vectors(
    mlp_states: tuple[StateDict, StateDict],
) -> None:
    grams = ws.collect_evidence(ws.load_task("digits-mlp"), mlp_states[0], "gram")
    found = input_energy(spectrum(mlp_states[0]), grams, gamma=0.3)
    assert list(found) == ["hidden1.weight", "hidden2.weight", "hidden3.weight", "head.weight"]
    assert all(one.ratio > 3 for name, one in found.items() if name != "hidden1.weight")
