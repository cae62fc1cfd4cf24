"""Three models and more: what was planted is found, cycles close, objectives never fall."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from weightspace.arithmetic.mean import mean
from weightspace.checkpoints import StateDict
from weightspace.connectivity.batchnorm import reset_batchnorm
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.matching import ManyMatching, cycle_consistent, merge_many, weight_matching
from weightspace.progress import Progress
from weightspace.symmetry import Permutation, PermutationSpec, derive_spec, permute
from weightspace.tasks import Task

Method = Callable[..., ManyMatching]
METHODS: dict[str, Method] = {"merge_many": merge_many, "cycle_consistent": cycle_consistent}
#: One of each kind, small.
SMALL = ["mlp", "gpt", "llama", "group_norm", "unet", "gated", "tied", "recurrent"]

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def copies(spec: PermutationSpec, state: StateDict, count: int) -> tuple[list[Permutation], list[StateDict]]:
    planted = [Permutation.random(spec, seed=seed) for seed in range(count)]
    return planted, [permute(spec, one, state) for one in planted]


def is_equal(a: StateDict, b: StateDict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


@every_method
@pytest.mark.parametrize(("name", "count"), [*((name, 3) for name in SMALL), ("gated", 4), ("mlp", 5)])
def test_copies_are_brought_together_and_merge_to_the_copy(
    method: Method, name: str, count: int, derived: Any, state: Any
) -> None:
    spec = derived(name)
    planted, models = copies(spec, state(name), count)
    matching = method(spec, models)
    assert is_equal(matching.merged, models[0])
    for a, b in itertools.product(range(count), repeat=2):
        assert matching.between(a, b) == planted[a].compose(planted[b].inverse())


@every_method
@pytest.mark.parametrize("name", SMALL)
def test_the_objective_never_falls_and_is_what_it_says(method: Method, name: str, derived: Any, state: Any) -> None:
    spec, models = derived(name), [state(name, seed) for seed in range(3)]
    matching = method(spec, models)
    assert all(after >= before for before, after in itertools.pairwise(matching.objective))
    assert matching.objective[-1] > matching.objective[0]
    moved = [permute(spec, p, one) for p, one in zip(matching.permutations, models, strict=True)]
    # weight matching reports ⟨a, b⟩ of two networks as they come
    pairs = [weight_matching(spec, a, b, max_sweeps=1).objective[0] for a, b in itertools.combinations(moved, 2)]
    assert sum(pairs) == pytest.approx(matching.objective[-1], rel=1e-5)


@every_method
def test_every_cycle_is_the_identity(method: Method, derived: Any, state: Any) -> None:
    spec = derived("gpt")
    matching = method(spec, [state("gpt", seed) for seed in range(4)])
    identity = Permutation.identity(spec)
    assert matching.permutations[0] == identity
    for a, b, c in itertools.permutations(range(4), 3):
        there = matching.between(a, b).compose(matching.between(b, c))
        assert there == matching.between(a, c)
        assert there.compose(matching.between(c, a)) == identity


@every_method
def test_the_merged_network_is_the_mean_of_the_permuted_ones(method: Method, derived: Any, state: Any) -> None:
    spec, models = derived("gpt"), [state("gpt", seed) for seed in range(3)]
    matching = method(spec, models)
    moved = [permute(spec, p, one) for p, one in zip(matching.permutations, models, strict=True)]
    for name, tensor in matching.merged.items():
        torch.testing.assert_close(tensor, sum(one[name] for one in moved) / 3)
    assert matching.merged["head.weight"] is matching.merged["words.weight"]


@every_method
@pytest.mark.parametrize("name", SMALL)
def test_two_models_are_matched_as_well_as_by_weight_matching(
    method: Method, name: str, derived: Any, state: Any
) -> None:
    spec, models = derived(name), [state(name, 0), state(name, 1)]
    pair = weight_matching(spec, *models)
    many = method(spec, models)
    assert many.objective[0] == pytest.approx(pair.objective[0], rel=1e-6, abs=1e-6)
    assert many.objective[-1] > 0.99 * pair.objective[-1]


@pytest.mark.parametrize("name", SMALL)
def test_cycle_consistent_matching_ends_no_lower_than_merge_many(name: str, derived: Any, state: Any) -> None:
    spec, models = derived(name), [state(name, seed) for seed in range(3)]
    assert cycle_consistent(spec, models).objective[-1] >= merge_many(spec, models).objective[-1]


@every_method
def test_another_order_of_copies_only_reorders_the_permutations(method: Method, derived: Any, state: Any) -> None:
    spec, order = derived("mlp"), [2, 0, 3, 1]
    _, models = copies(spec, state("mlp"), 4)
    plain, shuffled = method(spec, models), method(spec, [models[old] for old in order])
    for a, b in itertools.product(range(4), repeat=2):
        assert shuffled.between(a, b) == plain.between(order[a], order[b])


@every_method
def test_another_order_of_models_ends_about_as_high(method: Method, derived: Any, state: Any) -> None:
    spec, models = derived("gated"), [state("gated", seed) for seed in range(3)]
    ends = [method(spec, list(order)).objective[-1] for order in itertools.permutations(models)]
    assert max(ends) < 1.1 * min(ends)


@every_method
def test_the_same_seed_gives_the_same_and_inputs_stay(method: Method, derived: Any, state: Any) -> None:
    spec, models = derived("gpt"), [state("gpt", seed) for seed in range(3)]
    before = [{name: tensor.clone() for name, tensor in one.items()} for one in models]
    first, second = method(spec, models, seed=3), method(spec, models, seed=3)
    assert first.objective == second.objective
    assert first.permutations == second.permutations
    assert is_equal(first.merged, second.merged)
    assert all(map(is_equal, models, before))


@every_method
def test_models_of_one_basin_are_left_as_they_are(method: Method, derived: Any, state: Any) -> None:
    spec, base = derived("mlp"), state("mlp")
    generator = torch.Generator().manual_seed(0)
    models = [
        {name: tensor + 1e-3 * torch.randn(tensor.shape, generator=generator) for name, tensor in base.items()}
        for _ in range(3)
    ]
    assert all(one == Permutation.identity(spec) for one in method(spec, models).permutations)


@every_method
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_keep_their_dtype(method: Method, dtype: torch.dtype, derived: Any, state: Any) -> None:
    spec = derived("mlp")
    _, models = copies(spec, {name: tensor.to(dtype) for name, tensor in state("mlp").items()}, 3)
    merged = method(spec, models).merged
    assert is_equal(merged, models[0])
    assert all(tensor.dtype == dtype for tensor in merged.values())


@every_method
def test_trained_models_merge_into_one_that_works(
    method: Method, digits_cnn: Task, trained: Callable[[str, int], StateDict]
) -> None:
    models = [trained("digits-cnn", seed) for seed in range(3)]
    for epochs, model in enumerate(models):
        model["norm1.num_batches_tracked"] += epochs  # trained for different lengths
    matching = method(derive_spec(digits_cnn.network(), digits_cnn.example_args), models)
    assert _loss(digits_cnn, matching.merged) < 0.1 * _loss(digits_cnn, mean(models))
    assert torch.equal(matching.merged["norm1.num_batches_tracked"], models[2]["norm1.num_batches_tracked"])


def _loss(task: Task, state: StateDict) -> float:
    network = task.network()
    network.load_state_dict(state)
    reset_batchnorm(network, task.batches("train", 0), task.loss)
    return task.score(network)["loss"]


def test_every_sweep_and_step_is_reported(derived: Any, state: Any) -> None:
    spec, models = derived("mlp"), [state("mlp", seed) for seed in range(3)]
    sweeps: list[Progress] = []
    matching = merge_many(spec, models, on_progress=sweeps.append)
    assert [sweep.stage for sweep in sweeps] == ["sweep"] * len(sweeps)
    assert tuple(sweep.value for sweep in sweeps) == matching.objective[1:]
    assert sweeps[-1].details["moved"] == 0
    events: list[Progress] = []
    cycle_consistent(spec, models, on_progress=events.append)
    for start in (1, 2):
        own = [event for event in events if event.stage == "step" and event.details["start"] == start]
        assert own
        assert [step.index for step in own] == list(range(1, len(own) + 1))
        objectives = [step.value for step in own if step.value is not None]
        assert objectives == sorted(objectives)


def test_limits_are_kept(derived: Any, state: Any) -> None:
    spec, models = derived("mlp"), [state("mlp", seed) for seed in range(3)]
    assert len(merge_many(spec, models, max_sweeps=1).objective) == 2
    with pytest.raises(WeightspaceError, match="max_sweeps must be at least 1; found 0"):
        merge_many(spec, models, max_sweeps=0)
    with pytest.raises(WeightspaceError, match="max_steps must be at least 1; found 0"):
        cycle_consistent(spec, models, max_steps=0)


@every_method
def test_too_few_models_and_models_that_do_not_fit_are_plain_errors(method: Method, derived: Any, state: Any) -> None:
    spec, good = derived("mlp"), state("mlp")
    for count in (0, 1):
        with pytest.raises(WeightspaceError, match=f"at least two models.*found {count}"):
            method(spec, [good] * count)
    with pytest.raises(CheckpointError, match=r"Model 3 .*2\.bias"):
        method(spec, [good, good, {**good, "2.bias": torch.zeros(13)}])
    with pytest.raises(CheckpointError, match=r"Model 2.*'2\.bias'"):
        method(spec, [good, {**good, "2.bias": torch.full((12,), float("nan"))}])
    with pytest.raises(CheckpointError, match="Is this its spec"):
        method(spec, [good, state("gated")])
