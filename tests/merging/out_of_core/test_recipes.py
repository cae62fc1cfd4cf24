"""Recipes from files to files: mergekit's own outputs, slices, gradients with filters, and heads that are tied."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from samples import half_way

import weightspace as ws
from weightspace.checkpoints import StateDict
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging import ExecutionOptions, merge_files


def cases(dtype: str) -> list[dict]:
    manifest = Path(__file__).parents[2] / "data" / "conformance" / "merging" / "manifest.json"
    return [case for case in json.loads(manifest.read_text())["cases"] if case["input_dtype"] == dtype]


@pytest.fixture
def folder(conformance: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(conformance / "merging")
    return conformance / "merging"


@pytest.mark.parametrize("case", cases("fp32"), ids=lambda case: case["id"])
def test_a_recipe_of_mergekit_gives_its_output_in_float32(case: dict, folder: Path, tmp_path: Path) -> None:
    merge_files(case["config"], tmp_path / "out", execution=ExecutionOptions(fsync=False))
    if not case.get("expected"):
        return  # mergekit crashed; what comes out is compared with an oracle elsewhere
    found = ws.load_checkpoint(tmp_path / "out")
    expected = ws.load_checkpoint(folder / case["expected"])
    assert found.keys() == expected.keys()
    aside = {*case["ref"]["threshold_tie_tensors"], *case["ref"]["ill_conditioned_tensors"]}
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        if name not in aside:
            error = (found[name].double() - tensor.double()).norm() / tensor.double().norm().clamp_min(1e-30)
            assert error < (2e-6 if tensor.dtype == torch.float32 else 4e-3), name


@pytest.mark.parametrize("name", ["linear_gradient_filter", "passthrough_slices", "linear_dtype_fp32_out_bf16"])
def test_a_recipe_in_bfloat16_gives_the_rounded_exact_result(name: str, folder: Path, tmp_path: Path) -> None:
    recipe = yaml.safe_load((folder / "configs" / f"{name}.bf16.yml").read_text())
    (tmp_path / "narrow.yml").write_text(yaml.safe_dump({**recipe, "out_dtype": "bfloat16"}))
    (tmp_path / "wide.yml").write_text(yaml.safe_dump({**recipe, "out_dtype": "float64"}))
    merge_files(tmp_path / "narrow.yml", tmp_path / "narrow", execution=ExecutionOptions(fsync=False))
    merge_files(tmp_path / "wide.yml", tmp_path / "wide", execution=ExecutionOptions(fsync=False))
    narrow, wide = ws.load_checkpoint(tmp_path / "narrow"), ws.load_checkpoint(tmp_path / "wide")
    equal = [((narrow[name] == t.bfloat16()) | half_way(narrow[name], t)).flatten() for name, t in wide.items()]
    assert torch.cat(equal).double().mean() >= 0.999


PUBLIC = """
slices:
  - sources:
      - model: inputs/fp32/a
        layer_range: [0, 4]
      - model: inputs/fp32/tied
        layer_range: [0, 4]
merge_method: slerp
base_model: inputs/fp32/a
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - filter: mlp
      value: [1, 0.5, 0.7, 0.3, 0]
    - value: 0.5
dtype: bfloat16
tokenizer_source: base
"""


def test_a_recipe_as_people_publish_them_runs_as_it_is(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yml").write_text(PUBLIC)
    merge_files(tmp_path / "recipe.yml", tmp_path / "out")
    found = ws.load_checkpoint(tmp_path / "out")
    a, b = (ws.load_checkpoint(folder / "inputs" / "fp32" / name) for name in ("a", "tied"))
    b["lm_head.weight"] = b["model.embed_tokens.weight"]
    assert found.keys() == a.keys()
    for name, t in {
        "model.layers.0.self_attn.q_proj.weight": 0.0,
        "model.layers.0.mlp.up_proj.weight": 1.0,
        "model.layers.3.self_attn.q_proj.weight": 1.0,
        "model.layers.1.self_attn.k_proj.weight": 0.5 + (4 / 3 - 1) * (0.3 - 0.5),
        "model.layers.2.mlp.down_proj.weight": 0.7 + (8 / 3 - 2) * (0.3 - 0.7),
        "model.norm.weight": 0.5,
        "lm_head.weight": 0.5,
    }.items():
        pair = [{name: a[name].double()}, {name: b[name].double()}]
        exact = ws.merge(pair, "slerp", parameters={"t": t})[name]
        assert (found[name] == exact.bfloat16()).double().mean() > 0.995, name
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert config["num_hidden_layers"] == 4


def test_models_that_are_all_tied_stay_tied(folder: Path, tmp_path: Path) -> None:
    merge_files(["inputs/bf16/tied", "inputs/bf16/tied"], tmp_path / "out")
    assert "lm_head.weight" not in ws.load_checkpoint(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True


def test_stacked_slices_are_renumbered_and_the_configuration_counts_them(folder: Path, tmp_path: Path) -> None:
    merge_files("configs/passthrough_slices.fp32.yml", tmp_path / "out")
    found = ws.load_checkpoint(tmp_path / "out")
    a, b = (ws.load_checkpoint(folder / "inputs" / "fp32" / name) for name in "ab")
    assert torch.equal(found["model.layers.2.mlp.up_proj.weight"], a["model.layers.2.mlp.up_proj.weight"])
    assert torch.equal(found["model.layers.3.mlp.up_proj.weight"], b["model.layers.1.mlp.up_proj.weight"])
    assert torch.equal(found["model.embed_tokens.weight"], a["model.embed_tokens.weight"])
    assert torch.equal(found["model.norm.weight"], b["model.norm.weight"])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slices": [{"sources": [{"model": "inputs/fp32/a", "layer_range": [2, 6]}]}]}, r"no layer 4"),
        ({"parameters": {"scale": [{"filter": "mpl", "value": 2}]}}, "'mpl' of 'scale' matches no tensor"),
        ({"tokenizer_source": "nowhere.json"}, "tokenizer_source 'nowhere.json'"),
        ({"tokenizer_source": "nowhere"}, "nowhere does not exist"),
        ({"base_model": "nowhere"}, "nowhere does not exist"),
    ],
)
def test_errors_visible_in_headers_are_raised_before_anything_is_written(
    change: dict, message: str, folder: Path, tmp_path: Path
) -> None:
    slices = [{"sources": [{"model": "inputs/fp32/a", "layer_range": [0, 4]}]}]
    recipe = {"merge_method": "passthrough", "slices": slices, **change}
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))
    with pytest.raises((CheckpointError, WeightspaceError), match=message):
        merge_files(tmp_path / "recipe.yml", tmp_path / "out", strict=True)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yml"]


def test_vocabularies_that_differ_are_refused_where_no_embedding_is_known(tmp_path: Path) -> None:
    state: StateDict = {"w": torch.ones(2)}
    for name, tokens in (("a", {"x": 0, "y": 1}), ("b", {"y": 0, "x": 1})):
        ws.save_checkpoint(state, tmp_path / name)
        (tmp_path / name / "tokenizer.json").write_text(json.dumps({"model": {"vocab": tokens}}))
    models = [{"model": str(tmp_path / name)} for name in "ab"]
    recipe = {"merge_method": "linear", "models": models, "tokenizer_source": "union"}
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(
        WeightspaceError, match=r"b has a different vocabulary from .*none of its tensors is recognised"
    ):
        merge_files(tmp_path / "recipe.yml", tmp_path / "out")
