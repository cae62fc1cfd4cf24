"""Modules of a recipe: which tensors they have by their names, how each is merged, and what is in none of them."""

import json
from pathlib import Path

import pytest
import torch

import weightspace as ws
from weightspace.errors import WeightspaceError
from weightspace.merging import ExecutionOptions, merge_files
from weightspace.merging.plan.modules import divide

#: Names of models of vision and text: as files of older releases have them, of newer ones, and of Qwen's.
OLD = {
    "text_decoder": ["language_model.model.embed_tokens.weight", "language_model.model.layers.0.w", "lm_head.weight"],
    "vision_tower": ["vision_tower.vision_model.encoder.layers.0.w", "vision_tower.vision_model.post_layernorm.bias"],
    "multi_modal_projector": ["multi_modal_projector.linear_1.weight"],
}
NEW = {
    "text_decoder": ["model.language_model.layers.0.w", "model.language_model.norm.weight", "lm_head.weight"],
    "vision_tower": ["model.vision_tower.encoder.layers.0.w"],
    "multi_modal_projector": ["model.multi_modal_projector.linear_1.weight"],
}
QWEN = {
    "text_decoder": ["model.embed_tokens.weight", "model.layers.0.w", "model.norm.weight", "lm_head.weight"],
    "vision_tower": ["visual.blocks.0.w", "visual.patch_embed.proj.weight"],
    "multi_modal_projector": ["visual.merger.mlp.0.weight", "visual.deepstack_merger_list.0.w"],
}
QWEN3 = {
    "text_decoder": ["model.language_model.layers.0.w", "lm_head.weight"],
    "vision_tower": ["model.visual.blocks.0.w", "model.visual.pos_embed.weight"],
    "multi_modal_projector": ["model.visual.merger.norm.weight", "model.visual.deepstack_merger_list.1.w"],
}
T5 = {
    "encoder": ["encoder.block.0.layer.0.w", "encoder.final_layer_norm.weight"],
    "decoder": ["decoder.block.0.layer.0.w", "decoder.embed_tokens.weight"],
    "shared": ["shared.weight", "lm_head.weight"],
}
WHISPER = {"encoder": ["model.encoder.conv1.weight"], "decoder": ["model.decoder.layers.0.w", "proj_out.weight"]}


@pytest.mark.parametrize("family", [OLD, NEW, QWEN, QWEN3, T5, WHISPER])
def test_the_tensors_of_mergekits_modules_are_recognised_by_their_names(family: dict[str, list[str]]) -> None:
    names = [name for inside in family.values() for name in inside]
    assert divide(names, list(family)) == family
    for module, inside in family.items():  # whatever other modules the recipe names
        assert divide(names, [module]) == {module: inside}
        rest = [name for name in names if name not in inside]
        assert divide(names, [module, "default"]) == {module: inside, "default": rest}


def test_a_module_may_be_called_by_the_beginning_of_its_names() -> None:
    names = ["audio_tower.layers.0.w", "audio_tower.proj.w", "talker.layers.0.w", "talkers.w"]
    assert divide(names, ["audio_tower.layers", "talker", "default"]) == {
        "audio_tower.layers": names[:1],
        "talker": names[2:3],
        "default": [names[1], names[3]],
    }


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (["text_decodr"], "Unknown module of these models 'text_decodr'.*Did you mean 'text_decoder'"),
        (["text_decoder", "encoder"], "'encoder'; expected one of text_decoder, vision_tower, multi_modal_projector"),
        (["audio"], "'audio'.*vision_tower.*lm_head, default"),
        (["default", "text_decoder", "x" * 3000], "Unknown module"),
    ],
)
def test_a_module_that_no_tensor_belongs_to_is_refused(modules: list[str], message: str) -> None:
    names = [name for inside in OLD.values() for name in inside]
    with pytest.raises(WeightspaceError, match=message) as error:
        divide(names, modules)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_the_modules_of_the_models_are_listed_once_each() -> None:
    names = [name for inside in OLD.values() for name in inside]
    with pytest.raises(WeightspaceError) as error:
        divide(names, ["language"])
    listed = str(error.value).partition("expected one of ")[2].partition(". Did")[0].split(", ")
    assert sorted(listed) == sorted([*OLD, "shared", "language_model", "lm_head", "default"])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with models ``a``, ``b``, ``c`` of vision and text whose elements are 1, 2, 3 in all layers."""
    stacks = [f"language_model.model.layers.{i}.w" for i in range(3)]
    stacks += [f"vision_tower.encoder.layers.{i}.w" for i in range(2)]
    others = ["language_model.model.embed_tokens.weight", "language_model.model.norm.weight", "lm_head.weight"]
    others += ["vision_tower.patch_conv.weight", "multi_modal_projector.weight"]
    config = {
        "architectures": ["LlavaForConditionalGeneration"],
        "text_config": {"model_type": "llama", "num_hidden_layers": 3},
        "vision_config": {"model_type": "siglip_vision_model", "num_hidden_layers": 2},
    }
    for number, name in enumerate("abc"):
        ws.save_checkpoint({key: torch.full((2, 2), 1.0 + number) for key in (*stacks, *others)}, tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def merge(modules: str, method: str = "linear", more: str = "", **options: bool) -> tuple[dict[str, float], list[str]]:
    """Return the first element of each tensor of the output, and the warnings."""
    Path("recipe.yml").write_text(f"merge_method: {method}\nmodules:\n{modules}\n{more}")
    report = merge_files("recipe.yml", "out", execution=ExecutionOptions(fsync=False), **options)
    return {name: t[0, 0].item() for name, t in ws.load_checkpoint("out").items()}, list(report.warnings)


def counts() -> tuple[int, int]:
    config = json.loads(Path("out/config.json").read_text())
    return config["text_config"]["num_hidden_layers"], config["vision_config"]["num_hidden_layers"]


def test_each_module_has_models_and_settings_of_its_own(folder: Path) -> None:
    merged, warnings = merge(
        """
  text_decoder:
    models: [{model: a, parameters: {weight: [0, 0.5, 1]}}, {model: b}]
    parameters: {weight: 1}
  vision_tower:
    models: [{model: a}, {model: c, parameters: {weight: [0, 1]}}]
  multi_modal_projector: {models: [{model: c}]}
""",
        more="parameters: {weight: 0.5, normalize: false}",
    )
    assert not warnings
    assert merged == {
        "language_model.model.layers.0.w": 2.0,
        "language_model.model.layers.1.w": 2.5,
        "language_model.model.layers.2.w": 3.0,
        "language_model.model.embed_tokens.weight": 2.0,
        "language_model.model.norm.weight": 2.0,
        "lm_head.weight": 2.0,
        "vision_tower.encoder.layers.0.w": 0.5,
        "vision_tower.encoder.layers.1.w": 3.5,
        "vision_tower.patch_conv.weight": 0.5,
        "multi_modal_projector.weight": 1.5,
    }
    assert counts() == (3, 2)


def test_the_example_of_the_documentation_merges_each_module_as_the_page_says(folder: Path) -> None:
    page = (Path(__file__).parents[3] / "docs/pages/how-to/recipes.md").read_text(encoding="utf-8")
    recipe = page.partition("## Modules of a model")[2].partition("```yaml\n")[2].partition("```")[0]
    (folder / "a").rename("chat")
    (folder / "b").rename("ocr")
    Path("recipe.yml").write_text(recipe)
    assert not merge_files("recipe.yml", "out", execution=ExecutionOptions(fsync=False)).warnings
    merged = ws.load_checkpoint("out")
    assert merged["language_model.model.layers.1.w"][0, 0].item() == pytest.approx(0.7 * 1 + 0.3 * 2)
    assert merged["vision_tower.encoder.layers.1.w"][0, 0] == 2
    assert merged["multi_modal_projector.weight"][0, 0] == 1


def test_modules_are_sliced_each_by_its_own_layers(folder: Path) -> None:
    merged, warnings = merge(
        """
  text_decoder:
    slices:
      - sources: [{model: a, layer_range: [0, 2]}]
      - sources: [{model: b, layer_range: [1, 3]}]
  vision_tower: {slices: [{sources: [{model: c, layer_range: [1, 2]}]}]}
  multi_modal_projector: {slices: [{sources: [{model: b, layer_range: [0, 0]}]}]}
""",
        "passthrough",
    )
    assert not warnings
    assert counts() == (4, 1)
    assert [merged[f"language_model.model.layers.{i}.w"] for i in range(4)] == [1, 1, 2, 2]
    assert merged["language_model.model.embed_tokens.weight"] == 1
    assert merged["language_model.model.norm.weight"] == merged["lm_head.weight"] == 2
    assert merged["vision_tower.encoder.layers.0.w"] == merged["vision_tower.patch_conv.weight"] == 3
    assert merged["multi_modal_projector.weight"] == 2
    assert len(merged) == 10


def test_a_module_may_be_sliced_beside_one_that_is_merged_whole(folder: Path) -> None:
    merged, _ = merge(
        """
  default: {models: [{model: a}, {model: c}]}
  text_decoder:
    slices: [{sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [1, 3]}]}]
""",
        more="parameters: {weight: 1}",
    )
    assert counts() == (2, 2)
    assert {merged[name] for name in merged if name.startswith("language")} == {1.5}
    assert merged["vision_tower.encoder.layers.1.w"] == merged["multi_modal_projector.weight"] == 2
    assert len(merged) == 9


def test_tensors_outside_all_modules_are_copied_from_the_base_with_a_warning(folder: Path) -> None:
    text = "  text_decoder: {models: [{model: a}, {model: b}]}\n"
    merged, warnings = merge(text, more="parameters: {weight: 1}")
    assert merged["vision_tower.encoder.layers.1.w"] == merged["multi_modal_projector.weight"] == 1
    assert merged["lm_head.weight"] == 1.5
    assert len(merged) == 10
    (warning,) = warnings
    assert "3 more tensors belong to none of the recipe's modules: copied from a." in warning
    merged, _ = merge(text, "task_arithmetic", "base_model: c\nparameters: {weight: 1}")
    assert merged["vision_tower.encoder.layers.1.w"] == 3
    with pytest.raises(WeightspaceError, match=r"belong to none of the recipe's modules.*Expected all modules"):
        merge(text, more="parameters: {weight: 1}", strict=True)


def test_methods_with_a_base_have_it_in_every_module(folder: Path) -> None:
    merged, _ = merge(
        """
  text_decoder: {models: [{model: a}, {model: b, parameters: {weight: 2}}]}
  default: {models: [{model: b}]}
""",
        "task_arithmetic",
        "base_model: a\nparameters: {weight: 1}",
    )
    assert merged["language_model.model.layers.1.w"] == 1 + 2 * (2 - 1)
    assert merged["vision_tower.encoder.layers.1.w"] == 2


def test_modules_of_differing_numbers_of_models_have_arguments_of_their_own(folder: Path) -> None:
    merged, _ = merge(
        """
  default: {models: [{model: b}]}
  text_decoder: {models: [{model: b}, {model: c}]}
""",
        "ties",
        "base_model: a\nparameters: {weight: 1, density: 1}",
    )
    assert merged["vision_tower.encoder.layers.1.w"] == 2
    assert merged["language_model.model.layers.1.w"] == 2.5


def test_slices_of_differing_numbers_of_models_have_arguments_of_their_own(folder: Path) -> None:
    recipe = """
merge_method: ties
base_model: a
slices:
  - sources: [{model: b, layer_range: [0, 1]}]
  - sources: [{model: b, layer_range: [1, 3]}, {model: c, layer_range: [1, 3]}]
parameters: {weight: 1, density: 1}
"""
    Path("recipe.yml").write_text(recipe)
    merge_files("recipe.yml", "out", execution=ExecutionOptions(fsync=False))
    merged = ws.load_checkpoint("out")
    assert [merged[f"language_model.model.layers.{i}.w"][0, 0].item() for i in range(3)] == [2, 2.5, 2.5]


def test_a_filter_is_matched_in_all_modules(folder: Path) -> None:
    _, warnings = merge(
        """
  default:
    models: [{model: a, parameters: {weight: [{filter: patch_conv, value: 2}, {value: 1}]}}, {model: b}]
    parameters: {weight: [{filter: nothing, value: 2}, {value: 1}]}
  text_decoder: {models: [{model: a}]}
""",
        more="parameters: {weight: 1}",
    )
    (warning,) = warnings
    assert "'nothing'" in warning


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ("  text: {models: [{model: a}]}", "Unknown module of these models 'text'"),
        ("  text_decoder: {slices: [{sources: [{model: a, layer_range: [0, 4]}]}]}", "a has no layer 3"),
        ("  multi_modal_projector: {slices: [{sources: [{model: a, layer_range: [0, 1]}]}]}", "stack of numbered"),
        (
            "  text_decoder: {models: [{model: a}, {model: b}], slices: [{sources: []}]}",
            "modules.text_decoder must have exactly one of",
        ),
        ("  text_decoder: [a]", "modules.text_decoder must be a mapping"),
    ],
)
def test_a_module_that_makes_no_sense_is_refused_before_anything_is_written(
    modules: str, message: str, folder: Path
) -> None:
    with pytest.raises(WeightspaceError, match=message):
        merge(modules, more="parameters: {weight: 1}")
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "c", "recipe.yml"]


def test_the_sides_of_an_encoder_with_a_decoder_are_counted_apart(tmp_path: Path) -> None:
    state = {f"{side}.block.{i}.w": torch.ones(2) for side in ("encoder", "decoder") for i in range(3)}
    ws.save_checkpoint({**state, "shared.weight": torch.ones(2)}, tmp_path / "a")
    config = {"model_type": "t5", "is_encoder_decoder": True, "num_layers": 3, "num_decoder_layers": 3}
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    slices = f"slices: [{{sources: [{{model: {tmp_path / 'a'}, layer_range: [1, 3]}}]}}]"
    whole = f"models: [{{model: {tmp_path / 'a'}}}]"
    for side, expected in (("decoder", (3, 2)), ("encoder", (2, 3))):
        text = f"merge_method: passthrough\nmodules:\n  {side}: {{{slices}}}\n  default: {{{whole}}}\n"
        (tmp_path / "recipe.yml").write_text(text)
        merge_files(tmp_path / "recipe.yml", tmp_path / "out", execution=ExecutionOptions(fsync=False))
        found = json.loads((tmp_path / "out" / "config.json").read_text())
        assert (found["num_layers"], found["num_decoder_layers"]) == expected
