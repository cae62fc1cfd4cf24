"""Soft permutations equal hard ones at the corners, and gradients flow through every block."""

from typing import Any

import pytest
import torch

from weightspace.checkpoints import StateDict
from weightspace.matching.soft_permutations import matrices_of, permute_softly
from weightspace.symmetry import Permutation, PermutationSpec, permute
from weightspace.symmetry.pattern import parse_axes

#: Every kind of pattern: products, concatenations, nested and doubled groups, tied tensors, integers.
NAMES = [
    *("mlp", "gpt", "gpt_view", "llama", "multihead_attention", "unet", "gated", "group_norm"),
    *("prelu", "padded_shortcut", "tied", "recurrent", "encoder_layer"),
]


@pytest.mark.parametrize("name", NAMES)
def test_the_matrices_of_a_permutation_move_what_its_indices_move(name: str, derived: Any, state: Any) -> None:
    spec, weights = derived(name), state(name)
    permutation = Permutation.random(spec, seed=1)
    soft = permute_softly(spec, matrices_of(permutation), weights)
    for key, tensor in permute(spec, permutation, weights).items():
        assert torch.equal(soft[key], tensor), key


@pytest.mark.parametrize("name", ["mlp", "gpt", "llama", "unet", "recurrent"])
def test_gradients_are_those_of_finite_differences(name: str, derived: Any, state: Any) -> None:
    spec = derived(name)
    weights = {key: tensor.double() for key, tensor in state(name).items()}
    generator = torch.Generator().manual_seed(0)
    probe = {key: torch.randn(one.shape, generator=generator, dtype=torch.float64) for key, one in weights.items()}
    matrices = matrices_of(Permutation.random(spec, seed=1), torch.float64)
    matrices = {group: 0.5 * one + 0.5 / one.shape[-1] for group, one in matrices.items()}

    def value(at: dict[str, torch.Tensor]) -> torch.Tensor:
        moved = permute_softly(spec, at, weights)
        return torch.stack([(probe[key] * one).sum() for key, one in moved.items()]).sum()

    leaves = {group: one.clone().requires_grad_() for group, one in matrices.items()}
    value(leaves).backward()
    for group, leaf in leaves.items():
        direction = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
        ends = [value({**matrices, group: matrices[group] + step * direction}) for step in (1e-4, -1e-4)]
        assert leaf.grad is not None
        assert float((leaf.grad * direction).sum()) == pytest.approx(float(ends[0] - ends[1]) / 2e-4, rel=1e-5)


def test_shares_are_taken_by_rows() -> None:
    spec = PermutationSpec(groups={"h": 2}, axes={"bias": parse_axes("h"), "count": ()})
    weights: StateDict = {"bias": torch.tensor([1.0, 3.0]), "count": torch.tensor(7)}
    moved = permute_softly(spec, {"h": torch.tensor([[0.0, 1.0], [0.5, 0.5]])}, weights)
    assert moved["bias"].tolist() == [3.0, 2.0]
    assert moved["count"] is weights["count"]
