"""Straight-through estimation for several models: the held-out loss falls, by the gradients that it says it uses."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch

from weightspace.arithmetic.affine import affine
from weightspace.checkpoints import StateDict
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.matching import Losses, straight_through_many, weight_matching
from weightspace.matching.loss_driven import EndpointPair
from weightspace.matching.straight_through import Projecting
from weightspace.matching.straight_through_many import Mixing, simplex
from weightspace.progress import Progress
from weightspace.symmetry import Permutation, PermutationSpec, derive_spec, permute
from weightspace.tasks import Task, train
from weightspace.zoo import load_task
from weightspace.zoo.architectures import mlp


@pytest.fixture(scope="module")
def task() -> Task:
    built_in = load_task("digits-mlp")
    return replace(built_in, name="narrow", build=partial(mlp, 64, (24, 24), 10))  # type: ignore[type-var]


@pytest.fixture(scope="module")
def spec(task: Task) -> PermutationSpec:
    return derive_spec(task.network(), task.example_args)


@pytest.fixture(scope="module")
def models(task: Task) -> list[StateDict]:
    return [train(task, seed, epochs=8) for seed in range(3)]


def is_equal(a: StateDict, b: StateDict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def test_the_held_out_loss_falls_below_that_of_weight_matching(
    task: Task, spec: PermutationSpec, models: list[StateDict]
) -> None:
    trials: list[Progress] = []
    matching = straight_through_many(
        spec, models, task=task, steps=75, learning_rate=1e-2, every=20, on_progress=trials.append
    )
    assert all(after >= before for before, after in itertools.pairwise(matching.objective))
    assert matching.objective[-1] > matching.objective[1] > matching.objective[0]
    assert Losses(task).mean(matching.merged) == pytest.approx(-matching.objective[-1], rel=1e-5)
    assert [(trial.index, trial.total) for trial in trials] == [(20, 75), (40, 75), (60, 75), (75, 75)]
    assert tuple(-trial.details["best"] for trial in trials) == matching.objective[2:]
    assert matching.permutations[0] == Permutation.identity(spec)
    cycle = matching.between(0, 1).compose(matching.between(1, 2)).compose(matching.between(2, 0))
    assert cycle == Permutation.identity(spec)


def test_two_models_and_shares_of_zero_are_trained(task: Task, spec: PermutationSpec, models: list[StateDict]) -> None:
    matching = straight_through_many(spec, models[:2], task=task, steps=30, learning_rate=1e-2, every=10)
    assert matching.objective[-1] >= matching.objective[1]
    tensors = [torch.randn(4, requires_grad=True) for _ in range(3)]
    affine(tensors, [0.6, 0.4, 0.0]).sum().backward()
    assert [None if one.grad is None else one.grad[0].item() for one in tensors] == pytest.approx([0.6, 0.4, None])


def test_without_training_it_is_weight_matching_to_the_first(
    task: Task, spec: PermutationSpec, models: list[StateDict]
) -> None:
    matching = straight_through_many(spec, models, task=task, steps=0)
    for model, permutation in zip(models[1:], matching.permutations[1:], strict=True):
        assert permutation == weight_matching(spec, models[0], model).permutation


def test_copies_are_brought_together_and_merge_to_the_copy(
    task: Task, spec: PermutationSpec, models: list[StateDict]
) -> None:
    copies = [permute(spec, Permutation.random(spec, seed=seed), models[0]) for seed in range(4)]
    assert is_equal(straight_through_many(spec, copies, task=task, steps=20).merged, copies[0])


def test_one_step_is_that_of_autograd_through_the_straight_through_trick(
    task: Task, spec: PermutationSpec, models: list[StateDict]
) -> None:
    first, losses, generator = models[0], Losses(task), torch.Generator()
    starts = [weight_matching(spec, first, other).permutation for other in models[1:]]
    projections = [
        Projecting(EndpointPair(spec, first, other), losses, start=start.indices, sweeps=2, generator=generator)
        for other, start in zip(models[1:], starts, strict=True)
    ]
    way = Mixing(projections, losses, torch.Generator().manual_seed(5))
    batch = next(iter(task.batches("train", 0)))
    loss = way.loss(batch)
    loss.backward()

    shares = simplex(3, torch.Generator().manual_seed(5))
    moved = [permute(spec, start, other) for start, other in zip(starts, models[1:], strict=True)]
    mixture = {
        name: (shares[0] * first[name] + shares[1] * moved[0][name] + shares[2] * moved[1][name]).requires_grad_()
        for name in first
    }
    expected = losses(mixture, batch)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for share, projection in zip(shares[1:], projections, strict=True):
        for name, tensor in mixture.items():
            found, plain = projection.free[name].grad, tensor.grad
            assert found is not None
            assert plain is not None
            torch.testing.assert_close(found, share * plain, rtol=1e-3, atol=1e-6)


def test_shares_are_uniform_on_the_simplex() -> None:
    generator = torch.Generator().manual_seed(0)
    shares = torch.tensor([simplex(4, generator) for _ in range(4000)])
    assert bool((shares >= 0).all())
    torch.testing.assert_close(shares.sum(1), torch.ones(4000))
    # Dirichlet(1, 1, 1, 1): mean 1/4, variance 3/80
    torch.testing.assert_close(shares.mean(0), torch.full((4,), 0.25), rtol=0, atol=0.01)
    torch.testing.assert_close(shares.var(0), torch.full((4,), 3 / 80), rtol=0.1, atol=0)


def test_the_same_seed_gives_the_same_and_inputs_stay(
    task: Task, spec: PermutationSpec, models: list[StateDict]
) -> None:
    before = [{name: tensor.clone() for name, tensor in one.items()} for one in models]
    first, second = (straight_through_many(spec, models, task=task, steps=20, seed=2) for _ in range(2))
    assert first.objective == second.objective
    assert first.permutations == second.permutations
    assert all(map(is_equal, models, before))


def test_batchnorm_is_carried_along(digits_cnn: Task, trained: Callable[[str, int], StateDict]) -> None:
    spec = derive_spec(digits_cnn.network(), digits_cnn.example_args)
    models = [trained("digits-cnn", seed) for seed in range(2)]
    matching = straight_through_many(spec, models, task=digits_cnn, steps=0)
    assert matching.objective[1] > 0.5 * matching.objective[0]
    assert torch.equal(matching.merged["norm1.num_batches_tracked"], models[0]["norm1.num_batches_tracked"])


def test_mistakes_are_plain_errors(task: Task, spec: PermutationSpec, models: list[StateDict]) -> None:
    with pytest.raises(WeightspaceError, match=r"at least two models.*found 1"):
        straight_through_many(spec, models[:1], task=task)
    with pytest.raises(WeightspaceError, match=r"steps must be at least 0.*found -1"):
        straight_through_many(spec, models, task=task, steps=-1)
    wider = replace(task, name="wider", build=partial(mlp, 64, (25, 24), 10))  # type: ignore[type-var]
    with pytest.raises(CheckpointError, match="the network of wider"):
        straight_through_many(spec, models, task=wider)
    huge = [models[0], *({name: 1e30 * tensor for name, tensor in one.items()} for one in models[1:])]
    with pytest.raises(WeightspaceError, match="Is the learning rate too high"):
        straight_through_many(spec, huge, task=task)
