"""A group on both axes of one tensor: a quadratic step, and the recurrent layers that need it."""

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from weightspace.connectivity import barrier, loss_curve
from weightspace.matching import weight_matching
from weightspace.matching.assignment import assign
from weightspace.matching.coordinate_ascent import step
from weightspace.matching.gains import families, pair_blocks
from weightspace.symmetry import Permutation, PermutationSpec, derive_spec, permute
from weightspace.symmetry.pattern import parse_axes
from weightspace.tasks import train
from weightspace.tasks.classification import ClassificationTask, add_noise
from weightspace.tasks.protocol import TrainConfig
from weightspace.zoo.digits import digits_examples


@pytest.mark.parametrize("name", ["lstm_both_ways", "gru", "rnn", "translator", "lstm_cell", "recurrent"])
@pytest.mark.parametrize("seed", range(5))
def test_a_planted_permutation_is_recovered_through_much_noise_from_any_seed(
    name: str, seed: int, derived: Any, state: Any
) -> None:
    spec, target = derived(name), state(name)
    planted = Permutation.random(spec, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    source = {
        key: tensor + 0.3 * tensor.std(correction=0) * torch.randn(tensor.shape, generator=generator)
        for key, tensor in permute(spec, planted, target).items()
    }
    assert weight_matching(spec, target, source, seed=seed).permutation == planted.inverse()


@pytest.mark.parametrize("name", ["lstm", "gru_both_ways", "rnn", "recurrent"])
def test_the_objective_of_networks_that_have_nothing_in_common_never_falls(name: str, derived: Any, state: Any) -> None:
    for seed in range(1, 6):
        matching = weight_matching(derived(name), state(name, 0), state(name, seed))
        assert all(after >= before for before, after in itertools.pairwise(matching.objective))
        assert matching.converged


def _quadratic(units: int) -> PermutationSpec:
    return PermutationSpec(groups={"h": units}, axes={"again": parse_axes("h h"), "in": parse_axes("h 2")})


def _random(spec: PermutationSpec, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(spec.shape(name), generator=generator) for name in spec.axes}


def test_rewarding_units_for_staying_climbs_higher_than_the_bare_slope() -> None:
    spec = _quadratic(24)
    ours = bare = 0.0
    for seed in range(10):
        target, source = _random(spec, seed), _random(spec, 100 + seed)
        ours += weight_matching(spec, target, source).objective[-1]
        bare += _by_bare_slope(spec, target, source)
    assert ours > 2 * bare > 0


def _by_bare_slope(spec: PermutationSpec, target: dict[str, Tensor], source: dict[str, Tensor]) -> float:
    """Go from the best assignment by the inputs to the best by the slope while that rises; return the objective."""

    def objective(p: Tensor) -> float:
        return float((target["again"] * source["again"][p][:, p]).sum() + (target["in"] * source["in"][p]).sum())

    now = assign(target["in"] @ source["in"].T)
    while True:
        slope = target["again"] @ source["again"][:, now].T + target["again"].T @ source["again"][now]
        after = assign(slope + target["in"] @ source["in"].T)
        if objective(after) <= objective(now):
            return objective(now)
        now = after


@pytest.mark.parametrize("seed", range(4))
def test_quadratic_steps_rise_from_any_start_and_from_some_start_to_the_top(seed: int) -> None:
    spec = _quadratic(6)
    (family,) = families(spec, pair_blocks(spec, _random(spec, seed), _random(spec, 100 + seed)))
    ends = []
    for start in range(30):
        indices = dict(Permutation.random(spec, seed=start).indices)
        while (change := step(family, indices)) is not None:
            assert family.objective(change) > family.objective(indices)
            indices.update(change)
        ends.append(family.objective(indices))
    every = [family.objective({"h": torch.tensor(order)}) for order in itertools.permutations(range(6))]
    assert max(ends) == pytest.approx(max(every), rel=1e-6)
    assert sum(ends) / len(ends) > 0.5 * max(every)


def test_units_that_are_all_alike_stay_where_they_are() -> None:
    spec = _quadratic(5)
    ones = {name: torch.ones(spec.shape(name)) for name in spec.axes}
    matching = weight_matching(spec, ones, ones)
    assert matching.converged
    assert matching.l2_reduction == 0.0


class _Rows(nn.Module):
    """Reads the rows of an image one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.head = nn.GRU(8, 64, batch_first=True), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rows(x.flatten(1, 2))[0][:, -1])


def test_two_trained_recurrent_networks_are_brought_closer_to_one_basin() -> None:
    task = ClassificationTask(
        name="digit-rows",
        build=_Rows,
        load=digits_examples,
        augment=partial(add_noise, std=0.3),
        recipe=TrainConfig(epochs=25),
    )
    a, b = train(task, 0), train(task, 1)
    spec = derive_spec(task.network(), task.example_args)
    matching = weight_matching(spec, a, b)
    naive, matched = (loss_curve(task, a, other) for other in (b, permute(spec, matching.permutation, b)))
    assert naive.accuracy is not None
    assert min(naive.accuracy[0], naive.accuracy[-1]) > 0.93
    print(f"barrier {barrier(naive):.3f} -> {barrier(matched):.3f}, L2 reduction {matching.l2_reduction:.2f}")
    assert barrier(matched) < 0.4 * barrier(naive)
