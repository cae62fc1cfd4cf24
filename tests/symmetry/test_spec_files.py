"""A spec is a file that a person can read and edit, and that is not believed before it was verified."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import weightspace as ws
from weightspace.errors import SpecError
from weightspace.symmetry import Permutation, PermutationSpec, derive_spec, load_spec
from weightspace.symmetry.pattern import Concat, Fixed, Product, Units, format_axes, parse_axes


@pytest.fixture
def saved(tmp_path: Path, derived: Any) -> Path:
    path = tmp_path / "mlp.yaml"
    derived("mlp").save(path)
    return path


@pytest.mark.parametrize("name", ["mlp", "gpt", "group_norm", "unet"])
def test_a_saved_spec_loads_as_it_was(name: str, derived: Any, tmp_path: Path) -> None:
    derived(name).save(tmp_path / "spec.yaml")
    assert PermutationSpec.load(tmp_path / "spec.yaml") == derived(name)
    assert PermutationSpec.load(tmp_path / "spec.yaml").digest == derived(name).digest


def test_a_saved_spec_can_be_read_by_a_person(saved: Path) -> None:
    text = saved.read_text()
    assert "2.weight: '2' " not in text
    assert "2.weight: layer.2 layer.0" in text
    assert "layer.0: 16" in text
    assert text.startswith("# Which axes")


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_an_edited_spec_is_refused_without_a_network(saved: Path) -> None:
    _edit(saved, "layer.2", "second")
    with pytest.raises(SpecError, match=r"mlp\.yaml: the digest doesn't match"):
        PermutationSpec.load(saved)


def test_an_edited_spec_is_accepted_with_a_network_that_it_holds_for(saved: Path, network: Any) -> None:
    _edit(saved, "layer.2", "second")
    spec = load_spec(saved, *network("mlp"))
    assert spec.groups == {"layer.0": 16, "second": 12}
    assert spec.verification is not None
    assert spec.verification.passed


def test_an_edited_spec_that_is_wrong_is_rejected_with_its_error(saved: Path, network: Any) -> None:
    _edit(saved, "2.weight: layer.2 layer.0", "2.weight: layer.2 16")
    with pytest.raises(SpecError, match="so the spec is wrong for it"):
        load_spec(saved, *network("mlp"))


def test_a_spec_that_was_never_verified_is_refused_without_a_network(tmp_path: Path, network: Any) -> None:
    path = tmp_path / "spec.yaml"
    derive_spec(*network("mlp"), verify=False).save(path)
    with pytest.raises(SpecError, match="never verified"):
        PermutationSpec.load(path)
    assert load_spec(path, *network("mlp")).verification is not None


def test_a_verification_that_failed_does_not_count(tmp_path: Path, derived: Any) -> None:
    spec = derived("mlp")
    failed = replace(spec, verification=replace(spec.verification, error=0.5))
    failed.save(tmp_path / "spec.yaml")
    with pytest.raises(SpecError, match="never verified"):
        PermutationSpec.load(tmp_path / "spec.yaml")


@pytest.mark.parametrize("text", ["", "- 1", "a: 1", "{", "weightspace_spec: 1", "weightspace_spec: 2\ngroups: {}"])
def test_a_foreign_file_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "foreign.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=r"foreign\.yaml") as caught:
        PermutationSpec.load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        PermutationSpec.load(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(SpecError, match="not valid YAML"):
        PermutationSpec.load(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("layer.0: 16", "layer.0: -16"),
        ("layer.0: 16", "layer.0: sixteen"),
        ("layer.0: 16", "other: 16"),
        ("2.weight: layer.2 layer.0", "2.weight: (layer.2 layer.0"),
        ("2.weight: layer.2 layer.0", "2.weight: layer.2 [layer.0]"),
        ("2.weight: layer.2 layer.0", "2.weight: layer.2 (layer.0 + )"),
        ("2.weight: layer.2 layer.0", "2.weight: 7"),
        ("2.weight: layer.2 layer.0", "2.weight: " + "(" * 2000 + "layer.2" + ")" * 2000),
        ("2.weight: layer.2 layer.0", "2.weight: layer.2 " + "9" * 5000),
        ("2.weight: layer.2 layer.0", "2.weight: layer.2 (" + "99999999 " * 20_000 + ")"),
        ("2.weight: layer.2 layer.0", "2.weight: layer.2 (layer.0 99999999999 99999999999)"),
        ("2.weight: layer.2 layer.0", "2.weight: layer.2 ²"),
        ("2.weight: layer.2 layer.0", "2.weight: [layer.2, layer.0]"),
        ("2.weight: layer.2 layer.0", "7: layer.2 layer.0"),
        ("layer.0: 16", "layer.0: true"),
        ("layer.0: 16", "layer.0: 1e400"),
        ("layer.0: 16", "layer.0: 99999999999999999999"),
        ("layer.0: 16", "layer.0: {inside: layer.2}"),
        ("layer.0: 16", "layer.0: {size: 16, inside: [layer.2]}"),
        ("layer.0: 16", "layer.0: 16\n  idle: 100000000000"),
        ("layer.0: 16", "layer.0: 16\n  2024-01-01: 5"),
        ("layer.0: 16", "layer.0: 16\n  layer.0: 16"),
        ("statistics: []", "statistics: 5"),
        ("statistics: []", "statistics: [[a]]"),
        ("frozen: []", "frozen: word"),
        ("error: ", "error: one # "),
        ("groups: 2", "groups: .inf"),
        ("groups: 2", "groups: 2\n  more: &a [*a]"),
        ("frozen: []", "frozen: []\n1: 2"),
    ],
)
def test_a_spec_that_makes_no_sense_is_a_spec_error(old: str, new: str, saved: Path) -> None:
    _edit(saved, old, new)
    with pytest.raises(SpecError, match=r"mlp\.yaml") as caught:
        PermutationSpec.load(saved)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "axes"),
    [
        ("a 3", (Units("a"), Fixed(3))),
        ("(a 49) b", (Product((Units("a"), Fixed(49))), Units("b"))),
        ("(a + b c + 3)", (Concat((Units("a"), Product((Units("b"), Units("c"))), Fixed(3))),)),
        (
            "(h [d] (a + b))",
            (Product((Units("h"), Units("d", inner=True), Concat((Units("a"), Units("b"))))),),
        ),
        ("", ()),
    ],
)
def test_patterns_are_written_as_they_are_read(text: str, axes: Any) -> None:
    assert parse_axes(text) == axes
    assert format_axes(axes) == text


def test_a_permutation_file_is_tied_to_its_spec(tmp_path: Path, derived: Any) -> None:
    path = tmp_path / "p.safetensors"
    permutation = Permutation.random(derived("gpt"), seed=3)
    permutation.save(path)
    assert Permutation.load(path, derived("gpt")) == permutation
    with pytest.raises(SpecError, match=r"made for another spec: found \w{12}…, expected \w{12}…"):
        Permutation.load(path, derived("mlp"))


def test_a_file_without_a_digest_is_no_permutation(tmp_path: Path, derived: Any) -> None:
    from weightspace.checkpoints import save_checkpoint

    save_checkpoint({"a": torch.arange(3)}, tmp_path / "p.safetensors")
    with pytest.raises(SpecError, match=r"is not a permutation: .* Expected a file written by `weightspace match`"):
        Permutation.load(tmp_path / "p.safetensors", derived("mlp"))


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "folder"])
def test_a_checkpoint_in_the_place_of_a_spec_is_named(name: str, tmp_path: Path) -> None:
    ws.save_checkpoint({"w": torch.ones(2)}, tmp_path / name)
    with pytest.raises(SpecError, match=f"{name} is a checkpoint, not a permutation spec; expected the YAML") as caught:
        PermutationSpec.load(tmp_path / name)
    assert "--network" in str(caught.value)
