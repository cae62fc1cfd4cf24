"""R of two networks: the naive double sum, what cannot change it, and what it says of planted vectors."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import weightspace as ws
from weightspace.checkpoints import StateDict
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.spectra import alignments, cross_products, singular_alignment, spectrum

SHAPES = {"first.weight": (7, 5), "conv.weight": (6, 7, 2, 2), "qkv.weight": (12, 4), "last.weight": (3, 6)}
Rotation = Callable[[int, int], Tensor]
GAMMAS = [0.0, 0.3, 0.5, 0.7, 1.0]


def network(seed: int, dtype: torch.dtype = torch.float64) -> StateDict:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in SHAPES.items()}


def naive(a: StateDict, b: StateDict, gamma: float) -> float:
    """Return R by its definition, one pair of vectors at a time."""
    product, kept = 0.0, 0
    for name in a:
        pieces = zip(*(one[name].flatten(1).chunk(3 if name == "qkv.weight" else 1) for one in (a, b)), strict=True)
        for first, second in pieces:
            (u, s, vt), (x, t, yt) = (
                np.linalg.svd(one.double().numpy(), full_matrices=False) for one in (first, second)
            )
            mine = [i for i in range(len(s)) if s[i] >= gamma * s[0] * (1 - 1e-12)]
            yours = [j for j in range(len(t)) if t[j] >= gamma * t[0] * (1 - 1e-12)]
            product += sum((u[:, i] @ x[:, j]) * (vt[i] @ yt[j]) for i in mine for j in yours)
            kept += min(len(mine), len(yours))
    return product / kept


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("seed", range(3))
def test_r_is_the_double_sum_over_pairs_of_vectors(gamma: float, seed: int) -> None:
    a, b = network(seed), network(seed + 10)
    assert singular_alignment(a, b, gamma).total == pytest.approx(naive(a, b, gamma), abs=1e-10)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_r_is_the_inner_product_of_truncated_polar_factors(gamma: float) -> None:
    a, b = spectrum(network(0)), spectrum(network(1))
    (found,) = alignments(a, b, [gamma])
    for name, layer in a.layers.items():
        mine, yours = found.kept[name]
        other = b.layers[name]
        polar = layer.left[:, :mine] @ layer.right[:, :mine].T
        product = (polar * (other.left[:, :yours] @ other.right[:, :yours].T)).sum()
        assert found.per_layer[name] == pytest.approx(float(product) / min(mine, yours), abs=1e-12)


def test_the_inner_product_of_matrices_is_the_weighted_sum_of_cross_products(orthogonal: Rotation) -> None:
    """T2: ⟨A, PBQᵀ⟩ = Σ σ_i σ_j (u_i·Pu_j)(v_i·Qv_j)."""
    a, b = network(0)["first.weight"], network(1)["first.weight"]
    moved = orthogonal(7, 2) @ b @ orthogonal(5, 3).T
    first, second = (spectrum({"weight": one}).layers["weight"] for one in (a, moved))
    weighted = first.values[:, None] * second.values[None] * cross_products(first, second)
    assert float((a * moved).sum()) == pytest.approx(float(weighted.sum()), abs=1e-10)


@pytest.mark.parametrize("seed", range(5))
def test_permutations_and_rotations_leave_singular_values_as_they_are(seed: int, orthogonal: Rotation) -> None:
    """T1."""
    generator = torch.Generator().manual_seed(seed)
    matrix = network(seed)["first.weight"]
    rotated = orthogonal(7, seed) @ matrix @ orthogonal(5, seed + 1).T
    shuffled = matrix[torch.randperm(7, generator=generator)][:, torch.randperm(5, generator=generator)]
    values = [spectrum({"weight": one}).layers["weight"].values for one in (matrix, rotated, shuffled)]
    torch.testing.assert_close(values[1], values[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(values[2], values[0], rtol=1e-12, atol=1e-12)


def test_a_permutation_of_a_convolution_and_the_next_layer_leaves_their_values(
    trained: Callable[[str, int], StateDict],
) -> None:
    task, state = ws.load_task("digits-cnn"), trained("digits-cnn", 0)
    spec = ws.derive_spec(task.network(), task.example_args)
    moved = ws.permute(spec, ws.Permutation.random(spec, seed=3), state)
    before, after = spectrum(state, spec=spec), spectrum(moved, spec=spec)
    assert len(before.layers) >= 3
    for name, layer in before.layers.items():
        torch.testing.assert_close(after.layers[name].values, layer.values, rtol=1e-9, atol=1e-12)
    assert abs(alignments(before, after, [0.3])[0].total) < 0.5


@pytest.mark.parametrize("gamma", GAMMAS)
def test_a_change_of_basis_that_both_networks_make_leaves_r_as_it_is(gamma: float, orthogonal: Rotation) -> None:
    a, b = ({"weight": network(seed)["first.weight"]} for seed in (0, 1))
    left, right = orthogonal(7, 2), orthogonal(5, 3)
    moved_a, moved_b = ({"weight": left @ one["weight"] @ right.T} for one in (a, b))
    expected = singular_alignment(a, b, gamma).total
    assert singular_alignment(moved_a, moved_b, gamma).total == pytest.approx(expected, abs=1e-10)


def test_neither_the_signs_of_vectors_nor_bases_of_equal_values_matter(orthogonal: Rotation) -> None:
    def built(seed: int, mix: Tensor) -> Tensor:
        left, right = orthogonal(6, seed)[:, :4] @ mix, orthogonal(5, seed + 1)[:, :4] @ mix
        values = torch.tensor([2.0, 1.0, 1.0, 0.1], dtype=torch.float64)
        return (left * values) @ right.T

    mix = torch.eye(4, dtype=torch.float64)
    turned = mix.clone()
    turned[1:3, 1:3] = orthogonal(2, 9)
    flipped = mix * torch.tensor([-1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    b = {"weight": built(20, mix)}
    expected = [one.total for one in alignments(spectrum({"weight": built(10, mix)}), spectrum(b), [0, 0.4, 0.6])]
    for other in (turned, flipped):
        found = alignments(spectrum({"weight": built(10, other)}), spectrum(b), [0, 0.4, 0.6])
        assert [one.total for one in found] == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("seed", range(10))
def test_r_is_between_minus_one_and_one_and_the_same_from_both_sides(seed: int) -> None:
    a, b = network(seed), network(seed + 100)
    if seed % 2:
        b = {name: -a[name] + 0.3 * b[name] for name in a}
    there, back = (alignments(spectrum(one), spectrum(other), GAMMAS) for one, other in ((a, b), (b, a)))
    for one, other in zip(there, back, strict=True):
        assert -1 <= one.total <= 1
        assert all(-1 <= each <= 1 for each in one.per_layer.values())
        assert one.total == pytest.approx(other.total, abs=1e-10)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_a_network_agrees_with_itself_and_not_with_its_opposite(gamma: float) -> None:
    a = network(0)
    assert singular_alignment(a, a, gamma).total == pytest.approx(1, abs=1e-10)
    assert singular_alignment(a, {name: 7 * one for name, one in a.items()}, gamma).total == pytest.approx(1, abs=1e-10)
    assert singular_alignment(a, {name: -one for name, one in a.items()}, gamma).total == pytest.approx(-1, abs=1e-10)


def test_shared_large_vectors_show_at_a_high_gamma_only(orthogonal: Rotation) -> None:
    shared = torch.outer(orthogonal(30, 0)[:, 0], orthogonal(30, 1)[:, 0])
    a, b = ({"weight": 3 * shared + 0.1 * orthogonal(30, seed)} for seed in (2, 3))
    high, low = singular_alignment(a, b, 0.5), singular_alignment(a, b, 0.0)
    assert high.kept["weight"] == (1, 1)
    assert high.total > 0.99
    assert low.total < 0.3


def test_layers_weigh_by_the_vectors_that_count() -> None:
    a, b = network(0), network(1)
    found = singular_alignment(a, b, 0.5)
    counts = {name: min(kept) for name, kept in found.kept.items()}
    assert len(counts) == 6
    mean = sum(found.per_layer[name] * count for name, count in counts.items()) / sum(counts.values())
    assert found.total == pytest.approx(mean)


def test_several_gammas_give_what_each_gives_alone() -> None:
    a, b = network(0, torch.float32), network(1, torch.float32)
    for one in alignments(spectrum(a), spectrum(b), GAMMAS):
        alone = singular_alignment(a, b, one.gamma)
        assert one.total == pytest.approx(alone.total, abs=1e-9)
        assert one.per_layer == pytest.approx(alone.per_layer, abs=1e-9)
        assert one.kept == alone.kept


def test_a_zero_matrix_has_no_alignment_and_does_not_count() -> None:
    a, b = network(0), network(1)
    a["first.weight"] = torch.zeros(7, 5)
    found = singular_alignment(a, b, 0.0)
    assert math.isnan(found.per_layer["first.weight"])
    assert found.kept["first.weight"] == (0, 5)
    names = [name for name in a if name != "first.weight"]
    assert found.total == pytest.approx(singular_alignment(a, b, 0.0, names=names).total)
    assert math.isnan(singular_alignment({"weight": torch.zeros(2, 2)}, {"weight": torch.eye(2)}).total)


def test_vectors_of_a_null_space_do_not_count(orthogonal: Rotation) -> None:
    thin = orthogonal(8, 0)[:, :2] @ orthogonal(6, 1)[:, :2].T
    a, b = {"weight": thin.float()}, {"weight": (2 * thin).float()}
    found = singular_alignment(a, b, 0.0)
    assert found.kept["weight"] == (2, 2)
    assert found.total == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("distance", "warned"), [(0.0, False), (1e-7, True), (1e-2, False)])
def test_a_cut_between_nearly_equal_values_is_warned_about(distance: float, warned: bool, orthogonal: Rotation) -> None:
    values = torch.tensor([1.0, 0.5 + distance, 0.5 - distance, 0.1], dtype=torch.float64)
    a = {"near.weight": torch.diag(values), "far.weight": torch.diag(torch.tensor([1.0, 0.9, 0.1])).double()}
    b = {"near.weight": orthogonal(4, 0), "far.weight": orthogonal(3, 1)}
    for one, other in ((a, b), (b, a)):
        assert singular_alignment(one, other, 0.5).near_degenerate == (("near.weight",) if warned else ())
    assert singular_alignment(a, b, 0.3).near_degenerate == ()


def test_the_order_of_names_does_not_matter_and_networks_stay_as_they_are() -> None:
    a, b = network(0), network(1)
    copies = [{name: one.clone() for name, one in state.items()} for state in (a, b)]
    turned = dict(reversed(b.items()))
    assert singular_alignment(a, turned) == singular_alignment(a, b)
    for state, copy in zip((a, b), copies, strict=True):
        assert all(torch.equal(one, copy[name]) for name, one in state.items())


def test_names_and_a_spec_choose_what_counts() -> None:
    a, b = network(0), network(1)
    assert list(singular_alignment(a, b, names=["first*"]).per_layer) == ["first.weight"]
    axes = {name: () for name in a}
    spec = ws.PermutationSpec(groups={}, axes=axes, statistics=frozenset({"first.weight"}))
    assert "first.weight" not in singular_alignment(a, b, spec=spec).per_layer


def test_networks_that_do_not_fit_together_are_refused() -> None:
    a, b = network(0), network(1)
    b["last.weight"] = torch.zeros(4, 6)
    with pytest.raises(CheckpointError, match=r"'last\.weight' \(3, 6\) against \(4, 6\)"):
        singular_alignment(a, b)
    with pytest.raises(CheckpointError, match=r"'last\.weight' \(3, 6\) against \(4, 6\)"):
        alignments(spectrum(a), spectrum(b), [0.3])
    del b["last.weight"]
    with pytest.raises(CheckpointError, match=r"1 name \('last\.weight'\) only in a"):
        singular_alignment(a, b)


@pytest.mark.parametrize("side", ["a", "b"])
def test_weights_that_are_not_finite_are_refused(side: str) -> None:
    networks = {"a": network(0), "b": network(1)}
    networks[side]["last.weight"][1, 1] = math.nan
    with pytest.raises(CheckpointError, match=rf"^{side}: .*'last\.weight' 1 of 18"):
        singular_alignment(networks["a"], networks["b"])


def test_a_gamma_that_there_are_no_vectors_for_is_refused() -> None:
    a, b = network(0), network(1)
    with pytest.raises(WeightspaceError, match="0 to 1; found 2"):
        singular_alignment(a, b, 2)
    with pytest.raises(WeightspaceError, match=r"gamma 0\.2, but the spectrum has vectors from 0\.3 up"):
        alignments(spectrum(a, gamma=0.3), spectrum(b), [0.5, 0.2])


def test_weight_matching_aligns_the_large_vectors_of_trained_networks(
    mlp_states: tuple[StateDict, StateDict],
) -> None:
    task = ws.load_task("digits-mlp")
    spec = ws.derive_spec(task.network(), task.example_args)
    a, b = mlp_states
    matched = ws.permute(spec, ws.weight_matching(spec, a, b).permutation, b)
    before = singular_alignment(a, b)
    everything, third, most = (one.total for one in alignments(spectrum(a), spectrum(matched), [0, 0.3, 0.7]))
    assert abs(before.total) < 0.05
    assert everything < 0.15 < 0.2 < third < most
