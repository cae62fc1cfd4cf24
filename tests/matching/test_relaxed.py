"""Soft permutations: exact where all permutations can be listed, and beside products with the matrices themselves."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from weightspace.checkpoints import StateDict
from weightspace.matching.cycle_consistent import Relaxation, stiff_groups
from weightspace.matching.soft_permutations import matrices_of, permute_softly
from weightspace.symmetry import Permutation, PermutationSpec, permute
from weightspace.symmetry.pattern import parse_axes

PLAIN = PermutationSpec(
    groups={"h": 3, "k": 2},
    axes={"in": parse_axes("h 5"), "between": parse_axes("(k + 1) h 2"), "out": parse_axes("2 k")},
)
NESTED = PermutationSpec(
    groups={"h": 2, "d": 3},
    outer={"d": "h"},
    axes={"in": parse_axes("(h [d]) 4"), "scale": parse_axes("h"), "out": parse_axes("2 (h [d])")},
)
TWICE = PermutationSpec(groups={"h": 3}, axes={"in": parse_axes("h 2"), "again": parse_axes("h h")})
SPECS = {"plain": PLAIN, "nested": NESTED, "twice": TWICE}


def random_state(spec: PermutationSpec, seed: int) -> StateDict:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(spec.shape(name), generator=generator, dtype=torch.float64) for name in spec.axes}


def all_permutations(spec: PermutationSpec) -> list[Permutation]:
    def of_group(group: str) -> list[Tensor]:
        orders = [torch.tensor(order) for order in itertools.permutations(range(spec.groups[group]))]
        if group not in spec.outer:
            return orders
        return [torch.stack(rows) for rows in itertools.product(orders, repeat=spec.groups[spec.outer[group]])]

    every = itertools.product(*(of_group(group) for group in spec.groups))
    return [Permutation(spec, dict(zip(spec.groups, indices, strict=True))) for indices in every]


def objective(states: list[StateDict]) -> float:
    """Sum over pairs of models; every element of these specs has a group on some axis."""
    pairs = itertools.combinations(states, 2)
    return sum(float((a[name] * b[name]).sum()) for a, b in pairs for name in a)


def on_the_line(spec: PermutationSpec, state: StateDict, goal: Permutation, share: float) -> StateDict:
    """Multiply by the matrices (1 − t) I + t D themselves."""
    start, end = (matrices_of(one, torch.float64) for one in (Permutation.identity(spec), goal))
    soft = {group: torch.lerp(start[group], end[group], share) for group in start}
    if not spec.outer:
        return permute_softly(spec, soft, state)
    index = (3 * goal["h"][:, None] + goal["d"]).flatten()  # heads with their dimensions have one matrix
    joint = torch.lerp(torch.eye(6).double(), torch.eye(6).double()[index], share)
    return {"in": joint @ state["in"], "scale": soft["h"] @ state["scale"], "out": state["out"] @ joint.T}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_line_is_what_matrices_give(name: str, share: float) -> None:
    spec = SPECS[name]
    states = [random_state(spec, seed) for seed in range(3)]
    goals = [Permutation.random(spec, seed=seed) for seed in range(3)]
    relaxation = Relaxation(spec, states, spread=False)
    line = relaxation.line([goal.indices for goal in goals])
    expected = objective([on_the_line(spec, s, p, share) for s, p in zip(states, goals, strict=True)])
    assert line(share) == pytest.approx(expected, rel=1e-12)
    relaxation.advance([goal.indices for goal in goals], share)
    assert relaxation.line([{}] * 3)(0) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", ["plain", "nested"])
def test_a_spread_start_is_the_mean_over_all_permutations(name: str) -> None:
    spec = SPECS[name]
    states = [random_state(spec, seed) for seed in range(3)]
    every = all_permutations(spec)

    def spread(state: StateDict) -> StateDict:
        moved = [permute(spec, one, state) for one in every]
        return {key: torch.stack([one[key] for one in moved]).mean(0) for key in state}

    found = Relaxation(spec, states, spread=True).line([{}] * 3)(0)
    assert found == pytest.approx(objective([states[0], spread(states[1]), spread(states[2])]), rel=1e-12)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("spread", [False, True])
def test_no_other_permutations_rise_more_steeply(name: str, spread: bool) -> None:
    spec = SPECS[name]
    relaxation = Relaxation(spec, [random_state(spec, seed) for seed in range(3)], spread=spread)
    relaxation.advance([Permutation.random(spec, seed=9).indices] * 3, 0.4)
    best = relaxation.directions()
    slope = relaxation.line(best).deriv()(0)
    for model in range(3):
        for other in all_permutations(spec):
            tried = [other.indices if number == model else indices for number, indices in enumerate(best)]
            assert relaxation.line(tried).deriv()(0) <= slope + 1e-9


@pytest.mark.parametrize("name", ["mlp", "gpt", "llama", "unet", "gated", "multihead_attention"])
def test_hardening_does_not_lower_the_objective(name: str, derived: Any, state: Any) -> None:
    spec, states = derived(name), [state(name, seed) for seed in range(3)]
    relaxation = Relaxation(spec, states, spread=True)
    for share in (0.5, 0.3):
        relaxation.advance(relaxation.directions(), share)
    soft = relaxation.line([{}] * 3)(0)
    indices = relaxation.harden()
    hard = relaxation.line([{}] * 3)(0)
    assert hard > soft
    again = Relaxation(spec, states, spread=False)
    again.advance(indices, 1.0)
    assert again.line([{}] * 3)(0) == pytest.approx(hard, rel=1e-4)


def test_only_grouped_convolutions_stay_hard(derived: Any, state: Any) -> None:
    assert not stiff_groups(derived("gpt"), state("gpt"))
    assert not stiff_groups(derived("recurrent"), state("recurrent"))
    spec = derived("group_norm")
    assert set(stiff_groups(spec, state("group_norm"))) == set(spec.groups)
