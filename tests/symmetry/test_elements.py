"""Elements of a symmetry group: their algebra, and files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import weightspace as ws
from weightspace.errors import CheckpointError, SpecError
from weightspace.symmetry import Element, SymmetrySpec
from weightspace.symmetry.kinds.symmetry_spec import Fold, Reader
from weightspace.symmetry.pattern import parse_axes

#: All kinds, plain and inside groups that are permuted, with and without signs.
SPEC = SymmetrySpec(
    groups={"d": 6, "s": 4, "h": 3, "q": 4, "v": 3, "p": 3, "t": 2},
    kinds={
        "d": "orthogonal", "s": "signed", "h": "permutation", "q": "phases", "v": "orthogonal", "p": "permutation",
        "t": "signed",
    },
    outer={"q": "h", "v": "h", "p": "s", "t": "s"},
    fixes_ones=frozenset({"d"}),
    axes={
        name: parse_axes(text)
        for name, text in {
            "query": "(h [q]) d", "value": "(h [v]) d", "out": "d (h [v])", "up": "±s d", "down": "d* ±s",
            "gate": "s d", "experts": "s [p] ±[t]", "signed_experts": "±s ±[t] [p]", "transposed": "±[t] ±s",
            "twice": "±s ±s", "bias": "d", "gain": "6", "joint": "(±s + d + 2) 3", "count": "",
        }.items()
    },
    folds=(Fold("gain", None, (Reader("up", 1, None),)),),
)  # fmt: skip


def state(seed: int = 0) -> ws.StateDict:
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: SPEC.shape(name) for name in SPEC.axes}
    drawn = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    return {**drawn, "gain": torch.ones(6, dtype=torch.float64)}


def close(a: ws.StateDict, b: ws.StateDict) -> bool:
    return all(torch.allclose(a[name], b[name], rtol=0, atol=1e-12) for name in SPEC.axes)


@pytest.mark.parametrize("seed", range(4))
def test_an_element_and_its_inverse_leave_everything_as_it_was(seed: int) -> None:
    element, start = Element.random(SPEC, seed=seed), state(seed)
    assert not close(element.apply(start), start)
    assert close(element.inverse().apply(element.apply(start)), start)
    assert close(element.apply(element.inverse().apply(start)), start)
    assert close(element.compose(element.inverse()).apply(start), start)
    assert close(element.inverse().inverse().apply(start), element.apply(start))


@pytest.mark.parametrize("seed", range(4))
def test_composed_elements_act_in_turn(seed: int) -> None:
    first, second, start = Element.random(SPEC, seed=seed), Element.random(SPEC, seed=seed + 9), state(seed)
    composed = second.compose(first)
    assert close(composed.apply(start), second.apply(first.apply(start)))
    assert close(composed.inverse().apply(start), first.inverse().apply(second.inverse().apply(start)))
    third = Element.random(SPEC, seed=seed + 20)
    assert close(third.compose(second).compose(first).apply(start), third.compose(composed).apply(start))


def test_the_identity_leaves_everything_as_it_is() -> None:
    identity, element = Element.identity(SPEC), Element.random(SPEC, seed=3)
    assert close(identity.apply(state()), state())
    assert close(identity.compose(element).apply(state()), element.apply(state()))
    unsigned = Element(SPEC, element.maps)  # missing signs are 1
    assert close(unsigned.inverse().compose(unsigned).apply(state()), state())
    assert close(unsigned.compose(element).apply(state()), unsigned.apply(element.apply(state())))


def test_signs_belong_to_resulting_units_and_only_to_marked_axes() -> None:
    element = Element.random(SPEC, seed=1)
    order, signs = element.maps["s"], element.signs["s"].double()
    frozen = Element(SPEC, {**Element.identity(SPEC).maps, "s": order}, {"s": element.signs["s"]})
    start, moved = state(), frozen.apply(state())
    assert torch.equal(moved["up"], signs[:, None] * start["up"][order])
    assert torch.equal(moved["gate"], start["gate"][order])
    assert torch.equal(moved["twice"], signs[:, None] * start["twice"][order][:, order] * signs)


def test_a_saved_element_loads_as_it_was(tmp_path: Path) -> None:
    element, path = Element.random(SPEC, seed=2), tmp_path / "element.safetensors"
    element.inverse().save(path)
    loaded = Element.load(path, SPEC)
    assert all(torch.equal(loaded.maps[group], value) for group, value in element.inverse().maps.items())
    assert all(torch.equal(loaded.signs[group], value) for group, value in element.inverse().signs.items())
    assert len(repr(element)) < 300
    assert "\n" not in repr(element)


def test_an_element_is_tied_to_its_spec(tmp_path: Path) -> None:
    other = SymmetrySpec({"s": 4}, {"s": "signed"}, {"a": parse_axes("±s")})
    path = tmp_path / "element.safetensors"
    Element.random(SPEC, seed=2).save(path)
    with pytest.raises(SpecError, match="made for another spec"):
        Element.load(path, other)
    with pytest.raises(SpecError, match="different specs"):
        Element.random(SPEC, seed=0).compose(Element.random(other, seed=0))
    with pytest.raises(SpecError, match=r"larger symmetry .* only permutations"):
        ws.Permutation.load(path, ws.PermutationSpec({"s": 4}, {"a": parse_axes("s")}))
    with pytest.raises(SpecError, match="safetensors file"):
        Element.random(SPEC, seed=2).save(tmp_path / "element.pt")


def test_a_matrix_of_a_file_must_be_orthogonal_and_fix_ones(tmp_path: Path) -> None:
    path, identity = tmp_path / "element.safetensors", Element.identity(SPEC)
    for wrong in (2 * torch.eye(6, dtype=torch.float64), -torch.eye(6, dtype=torch.float64)):
        Element(SPEC, {**identity.maps, "d": wrong}).save(path)
        with pytest.raises(SpecError, match="'d' is not orthogonal, or moves the vector of ones"):
            Element.load(path, SPEC)


@pytest.mark.parametrize(
    ("group", "value", "message"),
    [
        ("s", torch.zeros(4, dtype=torch.int64), "not a permutation of 0 … 3"),
        ("s", torch.zeros(4), "int64 map of shape"),
        ("d", torch.eye(5), "floating-point map of shape"),
        ("q", torch.zeros(3, 4), r"\(phases\) needs a floating-point map of shape \(3, 2\)"),
        ("x", torch.zeros(4), "differ in 1 groups"),
    ],
)
def test_maps_that_make_no_sense_are_refused(group: str, value: torch.Tensor, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Element(SPEC, {**Element.identity(SPEC).maps, group: value})


@pytest.mark.parametrize("signs", [torch.ones(4), torch.zeros(4, dtype=torch.int8), torch.ones(3, dtype=torch.int8)])
def test_signs_that_make_no_sense_are_refused(signs: torch.Tensor) -> None:
    with pytest.raises(SpecError, match="needs int8 signs of shape"):
        Element(SPEC, Element.identity(SPEC).maps, {"s": signs})
    with pytest.raises(SpecError, match="no signed group"):
        Element(SPEC, Element.identity(SPEC).maps, {"d": signs})


def test_an_element_acts_on_folded_checkpoints_that_fit() -> None:
    element = Element.identity(SPEC)
    with pytest.raises(SpecError, match="gain is not 1 everywhere, so the checkpoint is not folded"):
        element.apply({**state(), "gain": torch.full((6,), 2.0)})
    with pytest.raises(CheckpointError, match="lacks 'query'"):
        element.apply({name: tensor for name, tensor in state().items() if name != "query"})
