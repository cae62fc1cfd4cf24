"""Specs of larger symmetries are files, too; files without kinds stay permutation specs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import weightspace as ws
from weightspace.errors import SpecError, WeightspaceError
from weightspace.symmetry.kinds.verified import read_spec
from weightspace.symmetry.pattern import parse_axes

#: A permutation spec as the first version wrote it.
OLD = """\
weightspace_spec: 1
groups:
  layer.0: 8
tensors:
  0.weight: layer.0 4
  0.bias: layer.0
  2.weight: 2 layer.0
  2.bias: '2'
statistics: []
frozen: []
verification:
  error: 1.0e-07
  tolerance: 1.0e-05
  groups: 1
digest: 754a313aa71bdfc75b362f6ee05e153e97c726612b7560c94e4f9aae5e001db2
"""

#: Its digest, by which permutation files refer to it.
DIGEST = "905af6db118064d6c7b30486deb344642aa33776c8c8c8d8c0d62c0e3f0139ba"


class PreNorm(nn.Module):
    """A residual stream with a norm that is folded, a norm whose shift stays, and odd hidden units."""

    def __init__(self) -> None:
        super().__init__()
        self.write, self.first, self.last = nn.Linear(4, 8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.up, self.down, self.head = nn.Linear(8, 6), nn.Linear(6, 8), nn.Linear(8, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.write(x)
        return self.head(self.last(x + self.down(self.up(self.first(x)).tanh())))


NETWORK, INPUTS = PreNorm().eval(), torch.randn(5, 4)


@pytest.fixture(scope="module")
def spec() -> ws.SymmetrySpec:
    return ws.derive_spec(NETWORK, INPUTS, symmetry="full")


@pytest.fixture
def saved(spec: ws.SymmetrySpec, tmp_path: Path) -> Path:
    spec.save(tmp_path / "spec.yaml")
    return tmp_path / "spec.yaml"


def test_a_saved_spec_loads_as_it_was(spec: ws.SymmetrySpec, saved: Path) -> None:
    loaded = ws.SymmetrySpec.load(saved)
    assert loaded == spec
    assert loaded.digest == spec.digest
    assert read_spec(saved) == (spec, True)
    assert ws.load_spec(saved, NETWORK, INPUTS) == spec
    assert dict(spec.kinds) == {"write": "orthogonal", "up": "signed"}
    assert [fold.keeps_shift for fold in spec.folds] == [False, True]


def test_a_saved_spec_can_be_read_by_a_person(saved: Path) -> None:
    text = saved.read_text()
    assert "up.weight: ±up write" in text
    assert "kind: orthogonal\n    fixes: ones" in text
    assert "gain: last.weight\n  shift: last.bias" in text


def test_a_spec_of_permutations_only_keeps_its_class(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    for symmetry in ("signed", "full"):
        spec = ws.derive_spec(network, INPUTS, symmetry=symmetry)  # type: ignore[call-overload]
        spec.save(tmp_path / "spec.yaml")
        assert ws.SymmetrySpec.load(tmp_path / "spec.yaml") == spec
        assert spec.kinds == {"layer.0": "permutation"}


def test_the_digest_depends_on_kinds_marks_and_folds(spec: ws.SymmetrySpec) -> None:
    others = [
        replace(spec, fixes_ones=frozenset()),
        replace(spec, folds=spec.folds[:1]),
        replace(spec, axes={**spec.axes, "up.bias": parse_axes("up")}),
    ]
    assert len({spec.digest, *(other.digest for other in others)}) == 4


def test_an_edited_spec_needs_the_network(saved: Path) -> None:
    text = saved.read_text()
    saved.write_text(text.replace("up.weight: ±up", "up.weight: up"))
    with pytest.raises(SpecError, match="the digest doesn't match"):
        ws.SymmetrySpec.load(saved)
    with pytest.raises(SpecError, match="moving units by this spec changes the network's output"):
        ws.load_spec(saved, NETWORK, INPUTS)
    saved.write_text(text.replace("fixes: ones", "fixes: null"))
    with pytest.raises(SpecError, match="so the spec is wrong for it"):
        ws.load_spec(saved, NETWORK, INPUTS)


def test_a_fold_that_is_wrong_is_rejected(saved: Path) -> None:
    text = saved.read_text()
    folds = text.index("folds:")
    saved.write_text(text[:folds] + "folds: []\n" + text[text.index("frozen:") :])
    with pytest.raises(SpecError, match="so the spec is wrong for it"):
        ws.load_spec(saved, NETWORK, INPUTS)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kind: signed", "kind: sine", "the kind 'sine'; expected one of permutation, signed, orthogonal, phases"),
        ("kind: signed", "kind: [signed]", "expected one of"),
        ("kind: signed", "kind: orthogonal", "marks group 'up' with ±, but its kind is orthogonal"),
        ("kind: signed", "kind: permutation", "marks group 'up' with ±, but its kind is permutation"),
        ("size: 6\n    kind: signed", "size: 7\n    kind: phases", "'up' of 7 units cannot have phases"),
        ("fixes: ones", "fixes: twos", "fixes 'twos'; expected 'ones'"),
        ("kind: orthogonal", "kind: permutation", "only orthogonal groups"),
        ("gain: first.weight", "gain: third.weight", "'third.weight', which is no tensor of the spec"),
        ("weight: up.weight", "weight: nowhere", "'nowhere', which is no tensor"),
        ("axis: 1\n    bias: up.bias", "axis: 5\n    bias: up.bias", "read along axis 5 of 'up.weight'"),
        ("axis: 1\n    bias: up.bias", "axis: one\n    bias: up.bias", "must name its tensors"),
        ("gain: first.weight\n  shift: first.bias", "gain: null\n  shift: null", "a gain or a shift"),
        ("gain: first.weight", "gain: up.weight", "vectors of one length"),
        ("folds:", "folds: 3\nfolders:", "'folds' is a int, expected a list"),
        ("±up", "±±up", "expected the name of a group"),
    ],
)
def test_a_spec_that_makes_no_sense_is_one_line(old: str, new: str, message: str, saved: Path) -> None:
    text = saved.read_text()
    assert old in text
    saved.write_text(text.replace(old, new))
    with pytest.raises(SpecError, match=message) as caught:
        read_spec(saved)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_signed_group_needs_a_mark_and_nesting_needs_an_order() -> None:
    axes = {"a": parse_axes("(h [d])")}
    with pytest.raises(SpecError, match="'d' is signed, but no axis marks it"):
        ws.SymmetrySpec({"h": 2, "d": 4}, {"h": "permutation", "d": "signed"}, axes, {"d": "h"})
    with pytest.raises(SpecError, match="'d' is inside 'h', whose units are mixed"):
        ws.SymmetrySpec({"h": 2, "d": 4}, {"h": "orthogonal", "d": "orthogonal"}, axes, {"d": "h"})
    with pytest.raises(SpecError, match="groups and kinds differ in 1 groups"):
        ws.SymmetrySpec({"h": 2, "d": 4}, {"h": "permutation"}, axes, {"d": "h"})


@pytest.mark.parametrize("mark", ["±layer.0", "layer.0*"])
def test_permutation_specs_have_no_marks(mark: str, tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(OLD.replace("layer.0 4", f"{mark} 4"))
    with pytest.raises(SpecError, match="the units of a permutation spec are only permuted"):
        read_spec(path)


def test_each_class_refuses_the_file_of_the_other(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"spec\.yaml holds orthogonal and signed groups, but only permutations"):
        ws.PermutationSpec.load(saved)
    (tmp_path / "old.yaml").write_text(OLD)
    with pytest.raises(SpecError, match=r"old\.yaml is a permutation spec; expected groups with kinds"):
        ws.SymmetrySpec.load(tmp_path / "old.yaml")


def test_an_old_file_is_read_as_before(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(OLD)
    found, untouched = read_spec(path)
    assert isinstance(found, ws.PermutationSpec)
    assert untouched
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    assert ws.derive_spec(network, INPUTS).digest == found.digest == DIGEST


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda spec: ws.weight_matching(spec, {}, {}), "spec is a symmetry spec; expected a permutation spec"),
        (lambda spec: ws.permute(spec, ws.Element.identity(spec), {}), "spec is a symmetry spec"),
        (lambda spec: ws.verify_spec(NETWORK, spec, INPUTS), "spec is a module; expected a spec"),
    ],
)
def test_what_needs_permutations_refuses_other_specs(call: Any, message: str, spec: ws.SymmetrySpec) -> None:
    with pytest.raises(WeightspaceError, match=message):
        call(spec)


def test_an_unknown_symmetry_is_refused() -> None:
    with pytest.raises(SpecError, match=r"symmetry is 'half'; expected one of 'permutations', 'signed', 'full'"):
        ws.derive_spec(NETWORK, INPUTS, symmetry="half")  # type: ignore[call-overload]
