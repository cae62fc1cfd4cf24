"""Permutations form a group, and act on tensors as written in the spec."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from weightspace.errors import CheckpointError, SpecError
from weightspace.symmetry import Permutation, PermutationSpec, permute
from weightspace.symmetry.pattern import Concat, Fixed, Pattern, Units, parse_axes, size_of

#: Every kind of pattern: concatenation inside a product, inner groups to the right, on another axis and to the left.
SPEC = PermutationSpec(
    groups={"a": 3, "b": 4, "h": 2, "d": 3},
    outer={"d": "h"},
    axes={
        "plain": parse_axes("a b"),
        "both": parse_axes("a a"),
        "fixed": parse_axes("5"),
        "flat": parse_axes("(a 2) b"),
        "joined": parse_axes("(a + 2 + b) a"),
        "deep": parse_axes("(2 (a + b)) (h [d])"),
        "heads": parse_axes("(h [d] + h [d] + a) b"),
        "apart": parse_axes("h b [d]"),
        "left": parse_axes("[d] a h"),
        "squared": parse_axes("(h [d]) (h [d])"),
        "number": (),
    },
)

seeds = st.integers(0, 2**31 - 1)


def _state(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(SPEC.shape(name), generator=generator).to(dtype) for name in SPEC.axes}


def _units(axis: Pattern) -> list[dict[str, Any]]:
    """List the units of an axis by which unit of which group they are (``place`` tells the others apart)."""
    if isinstance(axis, Fixed):
        return [{"place": (place,)} for place in range(axis.size)]
    if isinstance(axis, Units):
        return [{"place": (), axis.group: unit} for unit in range(SPEC.groups[axis.group])]
    if isinstance(axis, Concat):
        return [
            one | {"place": (number, *one["place"])} for number, term in enumerate(axis.terms) for one in _units(term)
        ]
    return [
        {key: value for one in several for key, value in one.items()}
        | {"place": tuple(place for one in several for place in one["place"])}
        for several in itertools.product(*(_units(factor) for factor in axis.factors))
    ]


def _moved(unit: dict[str, Any], beside: list[dict[str, Any]], permutation: Permutation) -> dict[str, Any]:
    """Return the unit that comes to stand in the place of ``unit``, by the definition w'[i, c] = w[p[i], q[i, c]]."""
    result = dict(unit)
    for group in unit.keys() - {"place"}:
        if group in SPEC.outer:
            outer = SPEC.outer[group]
            above = unit[outer] if outer in unit else next(one[outer] for one in beside if outer in one)
            result[group] = int(permutation[group][above, unit[group]])
        else:
            result[group] = int(permutation[group][unit[group]])
    return result


def _naive(permutation: Permutation, name: str, tensor: Tensor) -> Tensor:
    result = torch.empty_like(tensor)
    listed = [_units(axis) for axis in SPEC.axes[name]]
    for places in itertools.product(*(range(len(one)) for one in listed)):
        units = [one[place] for one, place in zip(listed, places, strict=True)]
        origin = [_moved(unit, units, permutation) for unit in units]
        result[places] = tensor[tuple(one.index(unit) for one, unit in zip(listed, origin, strict=True))]
    return result


@pytest.mark.parametrize("name", SPEC.axes)
def test_permuting_agrees_with_explicit_loops(name: str) -> None:
    permutation, state = Permutation.random(SPEC, seed=4), _state(5)
    assert torch.equal(permute(SPEC, permutation, state)[name], _naive(permutation, name, state[name]))


@settings(max_examples=40, deadline=None)
@given(seeds, seeds, seeds)
def test_composing_is_permuting_twice(p_seed: int, q_seed: int, seed: int) -> None:
    p, q, state = Permutation.random(SPEC, seed=p_seed), Permutation.random(SPEC, seed=q_seed), _state(seed)
    at_once = permute(SPEC, p.compose(q), state)
    in_turn = permute(SPEC, p, permute(SPEC, q, state))
    assert all(torch.equal(at_once[name], in_turn[name]) for name in state)


@settings(max_examples=40, deadline=None)
@given(seeds, seeds)
def test_the_inverse_undoes_from_both_sides(p_seed: int, seed: int) -> None:
    p, state = Permutation.random(SPEC, seed=p_seed), _state(seed)
    back = permute(SPEC, p.inverse(), permute(SPEC, p, state))
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert p.compose(p.inverse()) == p.inverse().compose(p) == Permutation.identity(SPEC)
    assert p.inverse().inverse() == p


@settings(max_examples=20, deadline=None)
@given(seeds, seeds, seeds)
def test_composing_is_associative(a: int, b: int, c: int) -> None:
    p, q, r = (Permutation.random(SPEC, seed=seed) for seed in (a, b, c))
    assert p.compose(q).compose(r) == p.compose(q.compose(r))


def test_the_identity_moves_nothing_and_is_neutral() -> None:
    identity, p, state = Permutation.identity(SPEC), Permutation.random(SPEC, seed=1), _state(2)
    assert all(torch.equal(tensor, state[name]) for name, tensor in permute(SPEC, identity, state).items())
    assert identity.compose(p) == p == p.compose(identity)
    assert identity["d"].shape == (2, 3)


def test_equal_seeds_draw_equal_permutations() -> None:
    assert Permutation.random(SPEC, seed=7) == Permutation.random(SPEC, seed=7)
    assert Permutation.random(SPEC, seed=7) != Permutation.random(SPEC, seed=8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_permuting_keeps_dtypes_and_leaves_its_inputs_alone(dtype: torch.dtype) -> None:
    state = _state(3, dtype)
    before = {name: tensor.clone() for name, tensor in state.items()}
    moved = permute(SPEC, Permutation.random(SPEC, seed=1), state)
    assert list(moved) == list(state)
    assert all(tensor.dtype == dtype for tensor in moved.values())
    assert all(torch.equal(state[name], before[name]) for name in state)
    assert not {t.data_ptr() for t in state.values()} & {t.data_ptr() for t in moved.values()}


def test_tied_tensors_stay_tied(network: Any, derived: Any) -> None:
    module, _ = network("gpt")
    spec = derived("gpt")
    moved = permute(spec, Permutation.random(spec, seed=1), dict(module.state_dict()))
    assert moved["words.weight"].data_ptr() == moved["head.weight"].data_ptr()


def test_tensors_that_are_not_contiguous_are_permuted_alike() -> None:
    p, state = Permutation.random(SPEC, seed=1), _state(2)
    turned = {name: tensor.T.contiguous().T if tensor.ndim == 2 else tensor for name, tensor in state.items()}
    pair = permute(SPEC, p, state), permute(SPEC, p, turned)
    assert all(torch.equal(pair[0][name], pair[1][name]) for name in state)


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_a_checkpoint_that_does_not_fit_is_an_error_that_names_the_tensor(change: str) -> None:
    state = _state(0)
    if change == "missing":
        del state["flat"]
    else:
        state["odd" if change == "unknown" else "flat"] = torch.zeros(5, 4)
    with pytest.raises(CheckpointError, match="'odd'" if change == "unknown" else "'flat'"):
        permute(SPEC, Permutation.identity(SPEC), state)


@pytest.mark.parametrize(
    "bad",
    [
        torch.tensor([0, 1, 1]),
        torch.tensor([0, 1, 3]),
        torch.tensor([0, 1]),
        torch.tensor([0, 1, 2], dtype=torch.int32),
    ],
)
def test_invalid_permutations_are_refused(bad: Tensor) -> None:
    with pytest.raises(SpecError, match="'a'"):
        Permutation(SPEC, {**Permutation.identity(SPEC).indices, "a": bad})


def test_permutations_of_other_specs_are_refused(derived: Any) -> None:
    foreign = Permutation.identity(derived("mlp"))
    with pytest.raises(SpecError, match="another spec"):
        permute(SPEC, foreign, _state(0))
    with pytest.raises(SpecError, match="different specs"):
        Permutation.identity(SPEC).compose(foreign)
    with pytest.raises(SpecError, match="differ"):
        Permutation(SPEC, foreign.indices)


def test_sizes_of_patterns_add_and_multiply() -> None:
    assert [size_of(axis, SPEC.groups) for axis in SPEC.axes["deep"]] == [14, 6]


def test_units_of_an_inner_group_without_its_outer_one_are_refused() -> None:
    spec = PermutationSpec(
        groups={"h": 2, "d": 3}, outer={"d": "h"}, axes={"w": parse_axes("(h [d])"), "v": parse_axes("[d]")}
    )
    with pytest.raises(SpecError, match="units of 'd', which are inside 'h'"):
        permute(spec, Permutation.identity(spec), {"w": torch.ones(6), "v": torch.ones(3)})
