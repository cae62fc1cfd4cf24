"""Name maps: every built-in one there and back, users' own, and all that is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import weightspace as ws
from weightspace.checkpoints import StateDict
from weightspace.checkpoints.name_maps.apply import mapped
from weightspace.checkpoints.name_maps.name_map import NameMap, Rule, parse_name_map
from weightspace.checkpoints.name_maps.named_maps import Names, built_in, read_name_maps
from weightspace.checkpoints.read_metadata import read_contents
from weightspace.checkpoints.reader import CheckpointReader
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging import ReadingOptions

#: A model with grouped queries: 4 heads, 2 of keys and values.
CONFIG = {"num_attention_heads": 4, "num_key_value_heads": 2}

EXPERTS = 3


def examples(rule: Rule, content: Mapping[str, Any], side: int) -> StateDict:
    """Return tensors that a rule matches on a side."""
    tables = {name: list(words.values() if side else words) for name, words in (content.get("tables") or {}).items()}
    is_fused = side == rule.fused and not (rule.renames or rule.ones)
    state: StateDict = {}
    for part, pattern in enumerate(rule.sides[side]):
        shape: tuple[int, ...] = (24, 24) if is_fused else (8, 24)
        if rule.sizes:
            shape = (32, 6) if is_fused else ((16, 8, 8)[part], 6)
        shape = (*shape, *(1,) * (rule.ones * side))
        shape = shape[:1] if pattern.text.endswith("bias") else shape
        shape = (EXPERTS, *shape) if is_fused and rule.each else shape
        for number in range(max((len(tables[field]) for field in pattern.fields if field in tables), default=EXPERTS)):
            name = pattern.text
            for field in pattern.fields:
                words = tables.get(field) or ([str(number)] if field == rule.each else [f"a{field}"])
                name = re.sub(rf"\{{{field}\*?\}}", words[number % len(words)], name)
            state[name] = torch.randn(shape)
    return state


def sample(name_map: NameMap, side: int) -> StateDict:
    """Return a checkpoint on a side of a map."""
    torch.manual_seed(side)
    state: StateDict = {}
    for rule in name_map.rules:
        state |= examples(rule, name_map.content, side)
    return state if name_map.complete else {**state, "untouched": torch.randn(3)}


def saved(state: StateDict, folder: Path) -> Path:
    ws.save_checkpoint(state, folder)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def converted(path: Path, names: Names, out: Path) -> Path:
    """Write a model under other names."""
    ws.merge_files([path], out, method="passthrough", reading=ReadingOptions(names=names))
    return out


def own_map(**content: Any) -> dict[str, Any]:
    return {"sides": ["a", "b"], **content}


def read_as(state: StateDict, content: Mapping[str, Any], side: int, path: Path) -> StateDict:
    """Return a state dict as read through a map."""
    ws.save_checkpoint(state, path)
    found = mapped(read_contents(path), parse_name_map(dict(content), "mine"), side)
    return CheckpointReader(found.contents).state()


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("name", built_in())
def test_built_in_maps_lead_there_and_back_to_equal_bytes(name: str, side: int, tmp_path: Path) -> None:
    (name_map,) = read_name_maps(name)
    state = sample(name_map, side)
    path = saved(state, tmp_path / "model")
    there = converted(path, f"{name}={name_map.sides[1 - side]}", tmp_path / "there")
    back = ws.load_checkpoint(converted(there, f"{name}={name_map.sides[side]}", tmp_path / "back"))
    other = ws.load_checkpoint(there)
    assert other.keys() != state.keys()
    assert sum(tensor.numel() for tensor in other.values()) == sum(tensor.numel() for tensor in state.values())
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in state.items())
    assert ws.reproduce(tmp_path / "back").equal


@pytest.mark.parametrize("name", built_in())
def test_built_in_maps_say_what_they_are(name: str) -> None:
    (name_map,) = read_name_maps(name)
    assert name_map.content["about"].endswith(".")


def test_fused_and_unfused_models_merge_as_by_hand(tmp_path: Path) -> None:
    gate, up, fused = torch.randn(6, 4), torch.randn(6, 4), torch.randn(12, 4)
    ws.save_checkpoint({"m.gate_proj.weight": gate, "m.up_proj.weight": up}, tmp_path / "a.safetensors")
    ws.save_checkpoint({"m.gate_up_proj.weight": fused}, tmp_path / "b.safetensors")
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    report = ws.merge_files(files, tmp_path / "m.safetensors", reading=ReadingOptions(names="gate-up"))
    merged = ws.load_checkpoint(tmp_path / "m.safetensors")
    joined = torch.cat([merged["m.gate_proj.weight"], merged["m.up_proj.weight"]])
    assert torch.equal(joined, ((torch.cat([gate, up]).double() + fused) / 2).float())
    assert any("gate-up" in line and "1 split" in line and "b.safetensors" in line for line in report.warnings)
    ws.merge_files(files[::-1], tmp_path / "f.safetensors", reading=ReadingOptions(names=["gate-up"]))
    assert torch.equal(ws.load_checkpoint(tmp_path / "f.safetensors")["m.gate_up_proj.weight"], joined)


def test_quantised_parts_are_fused(tmp_path: Path) -> None:
    weights = {name: torch.randn(8, 4) for name in ("gate", "up")}
    state: StateDict = {}
    for name, weight in weights.items():
        scale = weight.abs().amax(1, keepdim=True) / 448
        state |= {
            f"m.{name}_proj.weight": (weight / scale).to(torch.float8_e4m3fn),
            f"m.{name}_proj.weight_scale": scale,
        }
    ws.save_checkpoint(state, tmp_path / "q.safetensors")
    converted(tmp_path / "q.safetensors", "gate-up=fused", tmp_path / "m.safetensors")
    plain = ws.checkpoints.load_dequantised(tmp_path / "q.safetensors")
    expected = torch.cat([plain["m.gate_proj.weight"], plain["m.up_proj.weight"]])
    assert torch.equal(ws.load_checkpoint(tmp_path / "m.safetensors")["m.gate_up_proj.weight"], expected)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(("sizes", "groups"), [([1, 2], 1), ([2, 1], 2), ([1, 1], "interleaved")])
def test_parts_lie_where_einops_would_put_them(
    dim: int, transpose: bool, sizes: list[int], groups: int | str, tmp_path: Path
) -> None:
    unit, other = 4, 5
    parts = [torch.randn(size * unit, other) if dim == 0 else torch.randn(other, size * unit) for size in sizes]
    content = own_map(
        rules=[{"a": "f", "b": ["p.0", "p.1"], "dim": dim, "transpose": transpose, "sizes": sizes, "groups": groups}]
    )
    state = {f"p.{number}": part for number, part in enumerate(parts)}
    count = unit if groups == "interleaved" else int(groups)
    cut = [part.movedim(dim, 0).reshape(count, -1, other) for part in parts]
    expected = torch.cat(cut, 1).reshape(-1, other).movedim(0, dim)
    expected = expected.T if transpose else expected
    found = read_as(state, content, 0, tmp_path / "p.safetensors")
    assert torch.equal(found["f"], expected)
    back = read_as(found, content, 1, tmp_path / "f.safetensors")
    assert all(torch.equal(back[name], part) for name, part in state.items())


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_ranges_of_a_transposed_stack_are_those_of_the_whole(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightspace.checkpoints.assembled_reader.BLOCK", 50)
    state = {f"e.{number}.{part}": torch.randn(6, 5) for number in range(3) for part in ("w1", "w3")}
    rule = {"a": "e.w", "b": ["e.{n}.w1", "e.{n}.w3"], "each": "n", "transpose": True, "groups": "interleaved"}
    ws.save_checkpoint(state, tmp_path / "m.safetensors")
    found = mapped(read_contents(tmp_path / "m.safetensors"), parse_name_map(own_map(rules=[rule]), "mine"), 0)
    reader = CheckpointReader(found.contents).stored("e.w")
    assert reader is not None
    assert reader.shape == (3, 5, 12)
    pieces = [reader.read(start, min(180, start + chunk)) for start in range(0, 180, chunk)]
    expected = torch.stack(
        [torch.stack([state[f"e.{n}.w1"], state[f"e.{n}.w3"]], 1).reshape(12, 5).T for n in range(3)]
    )
    assert torch.equal(torch.cat(pieces), expected.flatten())


def test_a_users_map_is_read_from_a_file_and_recorded(tmp_path: Path) -> None:
    content = own_map(
        tables={"kind": {"weight": "kernel", "bias": "offset"}},
        rules=[{"a": "layers.{layer}.{kind}", "b": "block_{layer}/{kind}"}],
    )
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    ws.save_checkpoint({"layers.0.weight": torch.ones(2), "layers.0.bias": torch.zeros(2)}, tmp_path / "a.safetensors")
    other = {"block_0/kernel": torch.zeros(2), "block_0/offset": torch.ones(2)}
    ws.save_checkpoint(other, tmp_path / "b.safetensors")
    recipe = tmp_path / "recipe.yml"
    models = "".join(f"  - {{model: {tmp_path / name}.safetensors, parameters: {{weight: 1}}}}\n" for name in "ab")
    recipe.write_text(f"merge_method: linear\nmodels:\n{models}names: {tmp_path / 'mine.yaml'}\n")
    for out in ("option", "recipe"):
        if out == "option":
            reading = ReadingOptions(names=tmp_path / "mine.yaml")
            ws.merge_files([tmp_path / f"{name}.safetensors" for name in "ab"], tmp_path / out, reading=reading)
        else:
            ws.merge_files(recipe, tmp_path / out)
    (tmp_path / "mine.yaml").unlink()
    for out in ("option", "recipe"):
        merged = ws.load_checkpoint(tmp_path / out)
        assert {name: tensor.tolist() for name, tensor in merged.items()} == {
            "layers.0.weight": [0.5, 0.5],
            "layers.0.bias": [0.5, 0.5],
        }
        assert ws.reproduce(tmp_path / out).equal


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no sides": ({"rules": []}, "sides must be"),
    "no rules": (own_map(), "rules must be a list"),
    "unknown key": (own_map(rule=[]), "Did you mean 'rules'"),
    "other fields": (own_map(rules=[{"a": "x.{i}", "b": "y.{j}"}]), "not one-to-one: all names must have the same"),
    "lost field": (own_map(rules=[{"a": "x.{i}", "b": "y"}]), "not one-to-one"),
    "two lists": (own_map(rules=[{"a": ["x", "y"], "b": ["u", "v"]}]), "both are lists"),
    "name twice": (own_map(rules=[{"a": "x", "b": ["u", "u"]}]), "a name comes twice"),
    "word twice": (
        own_map(tables={"t": {"u": "w", "v": "w"}}, rules=[{"a": "{t}", "b": "{t}"}]),
        "'u' and 'v' both become 'w'",
    ),
    "many stars": (own_map(rules=[{"a": "{x*}.{y*}.{z*}", "b": "{z*}.{y*}.{x*}"}]), "more than 2 fields"),
    "stray brace": (own_map(rules=[{"a": "x.{i", "b": "y"}]), "stray brace"),
    "idle option": (own_map(rules=[{"a": "x", "b": "y", "dim": 1}]), "dim has no effect"),
    "sizes": (own_map(rules=[{"a": "x", "b": ["u", "v"], "sizes": [1]}]), "a number or a key"),
    "unknown side": (own_map(rules=[{"a": "x", "b": "y"}], to="c"), "Unknown side"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_maps_that_are_none_are_refused(case: str) -> None:
    content, problem = REFUSED[case]
    with pytest.raises(WeightspaceError, match=problem):
        parse_name_map(content, "mine.yaml")


UNFIT: dict[str, tuple[dict[str, Any], StateDict, str]] = {
    "matched twice": (
        own_map(rules=[{"a": "x.{i}", "b": "y.{i}"}, {"a": "{m}.w", "b": "{m}.v"}]),
        {"x.w": torch.ones(1)},
        r"matches 'x.w' twice, by 'x.\{i\}' and '\{m\}.w'",
    ),
    "two with one name": (
        own_map(rules=[{"a": "x", "b": "y"}]),
        {"x": torch.ones(1), "y": torch.ones(1)},
        r"gives '[xy]' the name 'y'",
    ),
    "unmatched": (
        own_map(complete=True, rules=[{"a": "x", "b": "y"}]),
        {"x": torch.ones(1), "other": torch.ones(1)},
        "has no rule for 'other'",
    ),
    "part is missing": (
        own_map(rules=[{"b": "f", "a": ["p", "q"]}]),
        {"p": torch.ones(2, 2)},
        "needs 'q' beside 'p', which this model lacks",
    ),
    "expert is missing": (
        own_map(rules=[{"b": "f", "a": "e.{n}.w", "each": "n"}]),
        {"e.0.w": torch.ones(2, 2), "e.2.w": torch.ones(2, 2)},
        "needs 'e.1.w' beside",
    ),
    "shapes": (
        own_map(rules=[{"b": "f", "a": ["p", "q"]}]),
        {"p": torch.ones(2, 2), "q": torch.ones(2, 3)},
        "cannot be joined",
    ),
    "shapes of experts": (
        own_map(rules=[{"b": "f", "a": "e.{n}.w", "each": "n"}]),
        {"e.0.w": torch.ones(2, 2), "e.1.w": torch.ones(3, 2)},
        "several shapes",
    ),
    "odd size": (own_map(rules=[{"a": "f", "b": ["p", "q"]}]), {"f": torch.ones(3, 2)}, "3 cannot be divided"),
    "no configuration": (
        own_map(rules=[{"a": "f", "b": ["p", "q"], "sizes": ["heads", "heads"]}]),
        {"f": torch.ones(4, 2)},
        "depends on heads of the configuration",
    ),
    "partly on the other side": (
        own_map(rules=[{"a": "{m}.f", "b": ["{m}.p", "{m}.q"]}]),
        {"x.f": torch.ones(4, 2), "y.p": torch.ones(2, 2), "y.q": torch.ones(2, 2)},
        "not one-to-one here: by its other direction, 'y.p' does not come back",
    ),
    "complex": (own_map(rules=[{"a": "f", "b": ["p", "q"]}]), {"f": torch.ones(2, dtype=torch.complex64)}, "complex"),
    "endless stack": (
        own_map(rules=[{"a": "f", "b": "e.{n}.w", "each": "n"}]),
        {"f": torch.ones(10**8, 2, 0)},
        "expected at most 16,384 tensors",
    ),
    "integers and floats": (
        own_map(rules=[{"b": "f", "a": ["p", "q"]}]),
        {"p": torch.ones(2, 2), "q": torch.ones(2, 2, dtype=torch.int32)},
        "expected one",
    ),
}


@pytest.mark.parametrize("case", UNFIT)
def test_models_that_a_map_does_not_fit_are_refused(case: str, tmp_path: Path) -> None:
    content, state, problem = UNFIT[case]
    with pytest.raises(CheckpointError, match=problem):
        read_as(state, content, 1, tmp_path / "m.safetensors")


def test_maps_are_refused_for_models_whose_layout_may_be_another_one(tmp_path: Path) -> None:
    ws.save_checkpoint({"h.0.attn.query_key_value.weight": torch.ones(24, 8)}, tmp_path / "falcon")
    (tmp_path / "falcon/config.json").write_text(json.dumps({**CONFIG, "model_type": "falcon"}))
    with pytest.raises(CheckpointError, match="is for models of the type gpt_neox, bloom; found 'falcon'"):
        converted(tmp_path / "falcon", "qkv-per-head=split", tmp_path / "split")


def test_unknown_maps_and_idle_ones_are_said(tmp_path: Path) -> None:
    ws.save_checkpoint({"w": torch.ones(2)}, tmp_path / "a.safetensors")
    files = [tmp_path / "a.safetensors"] * 2
    with pytest.raises(WeightspaceError, match=r"Unknown name map 'gateup'.*Did you mean 'gate-up'"):
        ws.merge_files(files, tmp_path / "m.safetensors", reading=ReadingOptions(names="gateup"))
    with pytest.raises(WeightspaceError, match="Unknown side of the map gate-up: 'both'"):
        ws.merge_files(files, tmp_path / "m.safetensors", reading=ReadingOptions(names="gate-up=both"))
    report = ws.merge_files(files, tmp_path / "m.safetensors", reading=ReadingOptions(names="gate-up"))
    assert any("gate-up has no effect" in line for line in report.warnings)


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_conversion_that_would_leave_names_of_the_other_side_is_refused(family: str, tmp_path: Path) -> None:
    state = {"unet.conv_in.weight": torch.ones(2), "text_encoder.pooler.weight": torch.ones(2, 2)}
    ws.save_checkpoint(state, tmp_path / "pipe.safetensors")
    out = tmp_path / "out.safetensors"
    reading = ReadingOptions(names=[f"{family}=ldm"])
    with pytest.raises(CheckpointError, match=r"has no rule for 'text_encoder.pooler.weight', but must match all"):
        ws.merge_files([tmp_path / "pipe.safetensors"], out, method="passthrough", reading=reading)
    assert not out.exists()


def test_the_safety_checker_of_a_pipeline_is_left_out_of_a_single_file(tmp_path: Path) -> None:
    state = {"unet.conv_in.weight": torch.ones(2), "safety_checker.concept_embeds": torch.ones(2, 2)}
    ws.save_checkpoint(state, tmp_path / "pipe.safetensors")
    (name_map,) = read_name_maps("sd15=ldm")
    found = mapped(read_contents(tmp_path / "pipe.safetensors"), name_map, 1)
    assert list(found.contents.tensors) == ["model.diffusion_model.input_blocks.0.0.weight"]
    assert "1 left out, such as safety_checker.concept_embeds" in found.describe()


def test_names_that_no_rule_matches_are_counted(tmp_path: Path) -> None:
    ws.save_checkpoint(
        {"a.gamma": torch.ones(2), "b.gama": torch.ones(2), "c": torch.ones(2)}, tmp_path / "m.safetensors"
    )
    one = parse_name_map({"sides": ["x", "y"], "rules": [{"x": "{m}.gamma", "y": "{m}.weight"}]}, "mine")
    found = mapped(read_contents(tmp_path / "m.safetensors"), one, 1)
    assert found.describe() == "1 renamed (such as a.gamma to a.weight); 2 keep their names, such as b.gama"


def test_variants_are_maps_that_exist() -> None:
    content = own_map(rules=[{"a": "x", "b": "y"}], variants={"a": "clip-text-6"})
    with pytest.raises(WeightspaceError, match=r"map of the variants.*clip-text-6"):
        read_name_maps(content)
    with pytest.raises(WeightspaceError, match=r"key of names: variants.*'c'"):
        read_name_maps(own_map(rules=[{"a": "x", "b": "y"}], variants={"c": "clip-text-5"}))
