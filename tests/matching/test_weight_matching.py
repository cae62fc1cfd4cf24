"""Weight matching finds what was planted, never falls, and gives the same answer every time."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from weightspace.checkpoints import StateDict
from weightspace.errors import CheckpointError, SpecError, WeightspaceError
from weightspace.matching import Matching, gains, l2_reduction, weight_matching
from weightspace.matching.coordinate_ascent import step
from weightspace.matching.gains import families, pair_blocks
from weightspace.progress import Progress
from weightspace.symmetry import Permutation, PermutationSpec, permute
from weightspace.symmetry.pattern import parse_axes

#: Full depth; the widest layers of VGG and of the ViT are narrowed, because their assignments take a minute.
PLANTED = [
    *(
        "mlp",
        "resnet18",
        "resnet50",
        "vgg16_bn_narrow",
        "densenet121",
        "mobilenet_v2",
        "convnext_tiny",
        "vit_narrow",
    ),
    *(
        "gpt",
        "encoder_layer",
        "gpt_view",
        "gpt_unfused",
        "llama",
        "multihead_attention",
        "shufflenet",
        "unet",
    ),
    *("gated", "group_norm", "prelu", "padded_shortcut", "tied", "recurrent"),
    *("experts_scattered", "experts_as_vectors", "experts_looked_up", "experts_best", "experts_balanced"),
    *("experts_in_groups", "experts_masked", "spectral_norm", "spectral_norm_old", "weight_norm", "weight_norm_old"),
    *("lstm", "lstm_both_ways", "gru", "gru_both_ways", "gru_all_layers", "rnn", "translator"),
    *("lstm_cell", "gru_cell", "rnn_cell"),
]
#: One of each kind, small: for the properties that cost several matchings.
SMALL = ["mlp", "gpt", "llama", "group_norm", "unet", "gated", "tied", "recurrent", "lstm_both_ways", "gru"]


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_permutation_is_recovered_exactly(name: str, derived: Any, state: Any) -> None:
    spec, target = derived(name), state(name)
    planted = Permutation.random(spec, seed=1)
    matching = weight_matching(spec, target, permute(spec, planted, target))
    assert matching.permutation == planted.inverse()
    assert matching.converged
    assert matching.l2_reduction == 1.0


@pytest.mark.parametrize("name", SMALL)
def test_a_planted_permutation_is_recovered_through_noise(name: str, derived: Any, state: Any) -> None:
    spec, target = derived(name), state(name)
    planted = Permutation.random(spec, seed=1)
    generator = torch.Generator().manual_seed(2)
    source = {
        key: tensor + 0.02 * tensor.std(correction=0) * torch.randn(tensor.shape, generator=generator)
        for key, tensor in permute(spec, planted, target).items()
        if tensor.is_floating_point()
    }
    assert weight_matching(spec, target, source).permutation == planted.inverse()


@pytest.mark.parametrize("name", SMALL)
def test_the_objective_never_falls_and_is_what_it_says(name: str, derived: Any, state: Any) -> None:
    spec, target, source = derived(name), state(name, 0), state(name, 1)
    matching = weight_matching(spec, target, source)
    assert all(after >= before for before, after in itertools.pairwise(matching.objective))
    assert matching.objective[-1] > matching.objective[0]
    permuted = permute(spec, matching.permutation, source)
    assert _inner_product(spec, target, permuted) == pytest.approx(matching.objective[-1], rel=1e-5)
    assert 0 < matching.l2_reduction < 1
    assert matching.l2_reduction == l2_reduction(spec, target, source, permuted)


def _inner_product(spec: PermutationSpec, a: StateDict, b: StateDict) -> float:
    """Sum over distinct parameters that the spec permutes anywhere; blocks without groups are constants."""
    total, seen = 0.0, set()
    for name, axes in spec.axes.items():
        key = a[name].data_ptr()
        if name not in spec.statistics and key not in seen:
            seen.add(key)
            total += float((a[name].double() * b[name].double()).sum()) if any(map(_moves, axes)) else 0.0
    return total


def _moves(axis: Any) -> bool:
    return "Units" in str(axis)


@pytest.mark.parametrize("name", [*SMALL, "shufflenet"])
def test_the_same_seed_gives_the_same_matching_on_any_number_of_threads(name: str, derived: Any, state: Any) -> None:
    spec, target, source = derived(name), state(name, 0), state(name, 1)
    one = weight_matching(spec, target, source, seed=3, threads=1)
    two = weight_matching(spec, target, source, seed=3, threads=2)
    assert one.permutation == two.permutation
    assert one.objective == two.objective


@pytest.mark.parametrize("width", [1, 2, 4, 6])
def test_one_hidden_layer_is_matched_as_well_as_possible(width: int) -> None:
    spec = _one_group(width)
    target, source = _random(spec, 0), _random(spec, 1)
    best = max(
        _inner_product(spec, target, permute(spec, Permutation(spec, {"h": torch.tensor(order)}), source))
        for order in itertools.permutations(range(width))
    )
    assert weight_matching(spec, target, source).objective[-1] == pytest.approx(best, rel=1e-6)


def _one_group(width: int) -> PermutationSpec:
    axes = {"in": parse_axes("h 3"), "bias": parse_axes("h"), "out": parse_axes("2 h")}
    return PermutationSpec(groups={"h": width}, axes=axes)


def _random(spec: PermutationSpec, seed: int) -> StateDict:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(spec.shape(name), generator=generator) for name in spec.axes}


def test_heads_and_their_dimensions_are_matched_as_well_as_possible() -> None:
    axes = {"in": parse_axes("(h [d]) 3"), "out": parse_axes("2 (h [d])")}
    spec = PermutationSpec(groups={"h": 3, "d": 3}, outer={"d": "h"}, axes=axes)
    target, source = _random(spec, 0), _random(spec, 1)
    orders = [torch.tensor(order) for order in itertools.permutations(range(3))]
    best = max(
        _inner_product(spec, target, permute(spec, Permutation(spec, {"h": h, "d": torch.stack(d)}), source))
        for h in orders
        for d in itertools.product(orders, repeat=3)
    )
    assert weight_matching(spec, target, source).objective[-1] == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("name", ["gpt", "llama", "unet", "group_norm", "recurrent", "mlp"])
def test_gains_updated_step_by_step_equal_recomputed_gains(name: str, derived: Any, state: Any) -> None:
    spec, target, source = derived(name), state(name, 0), state(name, 1)
    kept = families(spec, pair_blocks(spec, target, source))
    indices = dict(Permutation.random(spec, seed=5).indices)
    for _ in range(3):
        for family in kept:
            indices.update(step(family, indices) or {})
    anew = families(spec, pair_blocks(spec, target, source))
    for old, new in zip(kept, anew, strict=True):
        for rows in [(old.group,), *((old.group, inner) for inner in old.inner)]:
            torch.testing.assert_close(old.gains(rows, indices), new.gains(rows, indices), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["group_norm", "unet", "experts_looked_up"])
def test_gains_pair_by_pair_equal_those_of_all_pairs(
    name: str, derived: Any, state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, target, source = derived(name), state(name, 0), state(name, 1)
    kept = weight_matching(spec, target, source)
    indices = dict(Permutation.random(spec, seed=5).indices)
    monkeypatch.setattr(gains, "_KEPT", 0)
    for family in families(spec, pair_blocks(spec, target, source)):
        for inner in family.inner if family.is_linear() else ():
            pairs, whole = family.pair_gains(inner, indices), family.gains((family.group, inner), indices)
            for i, j in itertools.product(range(spec.groups[family.group]), repeat=2):
                torch.testing.assert_close(pairs(i, j), whole[i, :, j], rtol=1e-4, atol=1e-5)
    assert weight_matching(spec, target, source).permutation == kept.permutation


@pytest.mark.parametrize("name", ["mlp", "unet"])
def test_a_gain_is_what_the_objective_gains(name: str, derived: Any, state: Any) -> None:
    spec, target, source = derived(name), state(name, 0), state(name, 1)
    indices = dict(Permutation.random(spec, seed=5).indices)
    for family in families(spec, pair_blocks(spec, target, source)):
        found = family.gains((family.group,), indices).double()
        expected = float(found.gather(1, indices[family.group][:, None]).sum())
        assert family.objective(indices) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_statistics_are_carried_along_but_do_not_count(derived: Any, state: Any) -> None:
    spec, target, source = derived("resnet18"), dict(state("resnet18", 0)), dict(state("resnet18", 1))
    before = weight_matching(spec, target, source)
    generator = torch.Generator().manual_seed(0)
    for one in (target, source):
        for name in spec.statistics:
            if one[name].is_floating_point():
                one[name] = torch.randn(one[name].shape, generator=generator)
    after = weight_matching(spec, target, source)
    assert after.permutation == before.permutation
    assert after.objective == before.objective
    assert after.l2_reduction == before.l2_reduction
    moved = permute(spec, after.permutation, source)
    assert torch.equal(moved["bn1.running_mean"], source["bn1.running_mean"][after.permutation["conv1"]])


def test_a_group_on_both_axes_of_a_tensor_only_moves_where_the_objective_rises(derived: Any, state: Any) -> None:
    spec = derived("recurrent")
    assert len({str(axis) for axis in spec.axes["again.weight"]}) == 1
    for seed in range(1, 6):
        matching = weight_matching(spec, state("recurrent", 0), state("recurrent", seed))
        assert all(after >= before for before, after in itertools.pairwise(matching.objective))
        assert matching.converged


def test_equal_networks_are_left_as_they_are(derived: Any, state: Any) -> None:
    matching = weight_matching(derived("mlp"), state("mlp"), state("mlp"))
    assert matching.permutation == Permutation.identity(derived("mlp"))
    assert matching.l2_reduction == 0.0
    assert matching.objective[0] == matching.objective[-1]


def test_inputs_are_not_changed_and_threads_are_put_back(derived: Any, state: Any) -> None:
    target, source = state("gpt", 0), state("gpt", 1)
    before = [{name: tensor.clone() for name, tensor in one.items()} for one in (target, source)]
    threads = torch.get_num_threads()
    weight_matching(derived("gpt"), target, source)
    assert torch.get_num_threads() == threads
    for one, old in zip((target, source), before, strict=True):
        assert all(torch.equal(tensor, old[name]) for name, tensor in one.items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_matched_too(dtype: torch.dtype, derived: Any, state: Any) -> None:
    spec = derived("mlp")
    target = {name: tensor.to(dtype) for name, tensor in state("mlp").items()}
    planted = Permutation.random(spec, seed=1)
    assert weight_matching(spec, target, permute(spec, planted, target)).permutation == planted.inverse()


def test_every_sweep_is_reported(derived: Any, state: Any) -> None:
    facts: list[Progress] = []
    matching: Matching = weight_matching(derived("mlp"), state("mlp", 0), state("mlp", 1), on_progress=facts.append)
    assert [fact.index for fact in facts] == list(range(1, len(facts) + 1))
    assert tuple(fact.value for fact in facts) == matching.objective[1:]
    assert facts[-1].details["moved"] == 0


def test_a_limit_on_sweeps_is_kept(derived: Any, state: Any) -> None:
    matching = weight_matching(derived("unet"), state("unet", 0), state("unet", 1), max_sweeps=1)
    assert len(matching.objective) == 2
    assert not matching.converged
    with pytest.raises(WeightspaceError, match="max_sweeps must be at least 1; found 0"):
        weight_matching(derived("mlp"), state("mlp"), state("mlp"), max_sweeps=0)
    with pytest.raises(WeightspaceError, match="threads must be at least 1; found -1"):
        weight_matching(derived("mlp"), state("mlp"), state("mlp"), threads=-1)


@pytest.mark.parametrize("name", SMALL)
def test_a_warm_start_is_climbed_from(name: str, derived: Any, state: Any) -> None:
    spec, target, source = derived(name), state(name, 0), state(name, 1)
    start = Permutation.random(spec, seed=4)
    warm = weight_matching(spec, target, source, start=start)
    moved = _inner_product(spec, target, permute(spec, start, source))
    assert warm.objective[0] == pytest.approx(moved, rel=1e-5)
    assert all(after >= before for before, after in itertools.pairwise(warm.objective))


@pytest.mark.parametrize("name", SMALL)
def test_where_an_ascent_ended_another_has_nothing_to_do(name: str, derived: Any, state: Any) -> None:
    spec, target, source = derived(name), state(name, 0), state(name, 1)
    first = weight_matching(spec, target, source)
    again = weight_matching(spec, target, source, start=first.permutation)
    assert again.permutation == first.permutation
    assert len(again.objective) == 2


def test_restarts_keep_the_highest_objective(derived: Any, state: Any) -> None:
    spec, target, source = derived("recurrent"), state("recurrent", 0), state("recurrent", 2)
    heights = [weight_matching(spec, target, source, restarts=count).objective[-1] for count in range(6)]
    assert heights == sorted(heights)
    assert heights[-1] > heights[0]
    with pytest.raises(WeightspaceError, match="restarts must be at least 0; found -1"):
        weight_matching(spec, target, source, restarts=-1)


def test_a_start_of_another_spec_is_an_error(derived: Any, state: Any) -> None:
    start = Permutation.identity(derived("gated"))
    with pytest.raises(SpecError, match="to start from belongs to another spec"):
        weight_matching(derived("mlp"), state("mlp"), state("mlp"), start=start)


def _with(state: StateDict, name: str, tensor: Tensor) -> StateDict:
    return {**state, name: tensor}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["target", "source"])
def test_weights_that_are_not_finite_are_an_error_that_names_the_tensor(
    value: float, side: str, derived: Any, state: Any
) -> None:
    spoilt = _with(state("mlp"), "2.bias", torch.full((12,), value))
    pair = (spoilt, state("mlp")) if side == "target" else (state("mlp"), spoilt)
    with pytest.raises(CheckpointError, match=rf"The {side}.*'2\.bias'"):
        weight_matching(derived("mlp"), *pair)


def test_checkpoints_that_do_not_fit_are_errors_that_name_the_tensor(derived: Any, state: Any) -> None:
    spec, good = derived("mlp"), state("mlp")
    with pytest.raises(CheckpointError, match=r"2\.bias"):
        weight_matching(spec, good, _with(good, "2.bias", torch.zeros(13)))
    wider = _with(good, "2.bias", torch.zeros(13))
    with pytest.raises(CheckpointError, match=r"2\.bias"):
        weight_matching(spec, wider, wider)
    foreign = state("gated")
    with pytest.raises(CheckpointError, match="Is this its spec"):
        weight_matching(spec, foreign, foreign)
