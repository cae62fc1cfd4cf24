"""Targets of adapters are found in a model's files, whichever of the two has the newer names, or a prefix."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import weightspace as ws
from weightspace.errors import CheckpointError
from weightspace.lora.locate import Targets
from weightspace.lora.module_names import all_names, is_renamed, names_of
from weightspace.merging import ExecutionOptions, merge_files

Write = Callable[..., Path]
Normal = Callable[..., Tensor]

VIT = {"model_type": "vit", "architectures": ["ViTForImageClassification"]}
LLAVA = {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}

#: Configuration, name in a file, name in transformers 5.
RENAMES: list[tuple[dict[str, Any], str, str]] = [
    (VIT, "vit.encoder.layer.3.attention.attention.query.weight", "vit.layers.3.attention.q_proj.weight"),
    (VIT, "vit.encoder.layer.3.attention.output.dense.weight", "vit.layers.3.attention.o_proj.weight"),
    (VIT, "vit.encoder.layer.3.output.dense.weight", "vit.layers.3.mlp.fc2.weight"),
    (
        {"model_type": "swin"},
        "encoder.layers.0.blocks.1.attention.self.key.weight",
        "encoder.layers.0.blocks.1.attention.k_proj.weight",
    ),
    (
        {"model_type": "dinov2"},
        "encoder.layer.0.attention.attention.value.weight",
        "encoder.layer.0.attention.v_proj.weight",
    ),
    ({"model_type": "gpt_neox"}, "embed_out.weight", "lm_head.weight"),
    ({"model_type": "mixtral"}, "model.layers.0.block_sparse_moe.gate.weight", "model.layers.0.mlp.gate.weight"),
    (LLAVA, "language_model.model.layers.0.mlp.up_proj.weight", "model.language_model.layers.0.mlp.up_proj.weight"),
    (LLAVA, "language_model.lm_head.weight", "lm_head.weight"),
    (
        LLAVA,
        "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
        "model.vision_tower.encoder.layers.0.mlp.fc1.weight",
    ),
    ({**LLAVA, "architectures": ["LlavaModel"]}, "language_model.model.norm.weight", "language_model.norm.weight"),
    (
        {"model_type": "qwen2_vl"},
        "model.layers.0.mlp.up_proj.weight",
        "model.language_model.layers.0.mlp.up_proj.weight",
    ),
    ({"model_type": "qwen2_vl"}, "visual.blocks.0.attn.qkv.weight", "model.visual.blocks.0.attn.qkv.weight"),
    (
        {"architectures": ["CLIPVisionModel"]},
        "vision_model.encoder.layers.0.mlp.fc1.weight",
        "encoder.layers.0.mlp.fc1.weight",
    ),
    (
        {"model_type": "vision-encoder-decoder", "encoder": {"model_type": "vit"}, "decoder": {"model_type": "bert"}},
        "encoder.encoder.layer.0.attention.attention.query.weight",
        "encoder.layers.0.attention.q_proj.weight",
    ),
    (
        {"model_type": "vision-encoder-decoder", "encoder": {"model_type": "vit"}, "decoder": {"model_type": "bert"}},
        "decoder.bert.encoder.layer.0.attention.output.dense.weight",
        "decoder.bert.encoder.layer.0.attention.output.dense.weight",
    ),
    (
        {"model_type": "bert"},
        "bert.encoder.layer.0.attention.self.query.weight",
        "bert.encoder.layer.0.attention.self.query.weight",
    ),
]


@pytest.mark.parametrize(("config", "file", "module"), RENAMES)
def test_names_of_files_become_those_of_modules_and_these_stay(config: dict[str, Any], file: str, module: str) -> None:
    names = names_of(config)
    assert names.module(file) == module
    assert names.module(module) == module


@pytest.mark.parametrize(("config", "file", "module"), RENAMES)
def test_targets_are_found_by_module_names_and_by_file_names(config: dict[str, Any], file: str, module: str) -> None:
    shapes = {file: (3, 5), "other.weight": (3, 5)}
    assert Targets(shapes, config).candidates(module, [(3, 5)]) == [file]
    assert Targets({module: (3, 5), "other.weight": (3, 5)}, config).candidates(file, [(3, 5)]) == [module]


def test_without_a_configuration_the_names_of_every_family_are_tried() -> None:
    shapes = {"vit.encoder.layer.0.attention.attention.query.weight": (3, 3)}
    assert Targets(shapes, {}).candidates("vit.layers.0.attention.q_proj.weight", [(3, 3)]) == list(shapes)
    assert len(list(all_names())) > 10


@pytest.mark.parametrize(
    ("names", "target", "expected"),
    [
        (["a.q.weight"], "a.q.weight", ["a.q.weight"]),
        (["model.a.q.weight"], "a.q.weight", ["model.a.q.weight"]),
        (["a.q.weight"], "model.a.q.weight", ["a.q.weight"]),
        (["bert.layer.0.q.weight"], "layer.0.q.weight", ["bert.layer.0.q.weight"]),
        (["layers.0.q.weight"], "q.weight", []),
        (["q.weight"], "layers.0.q.weight", []),
        (["weight"], "layers.q.weight", []),
        (
            ["vision_tower.vision_model.a.0.q.weight"],
            "model.vision_tower.a.0.q.weight",
            ["vision_tower.vision_model.a.0.q.weight"],
        ),
        (["a.q.weight", "model.a.q.weight"], "a.q.weight", ["a.q.weight"]),
        (["x.a.q.weight", "y.a.q.weight"], "a.q.weight", ["x.a.q.weight", "y.a.q.weight"]),
        (["a.qq.weight"], "a.q.weight", []),
    ],
)
def test_a_prefix_or_a_wrapper_may_be_missing_on_either_side(
    names: list[str], target: str, expected: list[str]
) -> None:
    shapes = dict.fromkeys(names, (3, 5))
    assert Targets(shapes, {"model_type": "llama"}).candidates(target, [(3, 5)]) == expected


def test_shapes_decide_between_names() -> None:
    targets = Targets({"x.a.q.weight": (3, 5), "y.a.q.weight": (4, 5), "z.a.q.weight": (6, 5)}, {})
    assert targets.candidates("a.q.weight", [(4, 5)]) == ["y.a.q.weight"]
    assert targets.candidates("a.q.weight", [(5, 3)]) == ["x.a.q.weight"]
    assert len(targets.candidates("a.q.weight", [(7, 7)])) == 3


def test_families_that_are_renamed_by_unknown_rules_are_known() -> None:
    assert is_renamed({"model_type": "gte"})
    assert is_renamed({"model_type": "x", "text_config": {"model_type": "gte"}})
    assert not is_renamed({"model_type": "llama"})


def pair(normal: Normal, module: str) -> dict[str, Tensor]:
    return {f"{module}.lora_A.weight": normal(2, 4), f"{module}.lora_B.weight": normal(4, 2)}


def folder(tmp_path: Path, normal: Normal, names: list[str], config: dict[str, Any]) -> Path:
    ws.save_checkpoint({name: normal(4, 4) for name in names}, tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    return tmp_path / "m"


def test_an_adapter_with_new_names_changes_the_tensor_with_the_old_one(
    write: Write, normal: Normal, tmp_path: Path
) -> None:
    names = [f"vit.encoder.layer.0.attention.attention.{part}.weight" for part in ("query", "key")]
    tensors = pair(normal, "vit.layers.0.attention.q_proj")
    tensors["vit.layers.0.attention.k_proj.weight"] = normal(4, 4)
    model = folder(tmp_path, normal, names, VIT)
    adapter = write("a", tensors, modules_to_save=["k_proj"])
    merge_files([f"{model}+{adapter}"], tmp_path / "out.safetensors", execution=ExecutionOptions(fsync=False))
    before, found = ws.load_checkpoint(model), ws.load_checkpoint(tmp_path / "out.safetensors")
    a, b = (tensors[f"vit.layers.0.attention.q_proj.lora_{side}.weight"] for side in "AB")
    torch.testing.assert_close(found[names[0]], before[names[0]] + 2 * b @ a)
    assert torch.equal(found[names[1]], tensors["vit.layers.0.attention.k_proj.weight"])


def test_a_target_that_may_be_either_of_two_tensors_is_refused(write: Write, normal: Normal, tmp_path: Path) -> None:
    model = folder(tmp_path, normal, ["x.a.q.weight", "y.a.q.weight"], {})
    with pytest.raises(CheckpointError, match=r"could be 'x.a.q.weight' or 'y.a.q.weight'") as error:
        merge_files([f"{model}+{write('a', pair(normal, 'a.q'))}"], tmp_path / "out")
    assert "\n" not in str(error.value)


def test_two_targets_that_are_one_tensor_are_refused(write: Write, normal: Normal, tmp_path: Path) -> None:
    model = folder(tmp_path, normal, ["model.a.q.weight"], {})
    tensors = {**pair(normal, "a.q"), **pair(normal, "model.a.q")}
    with pytest.raises(CheckpointError, match=r"which are the same tensor, 'model.a.q.weight'"):
        merge_files([f"{model}+{write('a', tensors)}"], tmp_path / "out")


@pytest.mark.parametrize("flag", [False, True])
def test_a_configuration_says_which_layers_are_transposed(
    flag: bool, write: Write, normal: Normal, tmp_path: Path
) -> None:
    config = {"model_type": "gpt2", "architectures": ["GPT2Model"]}
    model = folder(tmp_path, normal, ["h.0.attn.c_proj.weight", "score.weight"], config)
    tensors = {**pair(normal, "h.0.attn.c_proj"), **pair(normal, "score")}
    adapter = write("a", tensors, fan_in_fan_out=flag)  # of the layer that PEFT came to last
    merge_files([f"{model}+{adapter}"], tmp_path / "out.safetensors", execution=ExecutionOptions(fsync=False))
    before, found = ws.load_checkpoint(model), ws.load_checkpoint(tmp_path / "out.safetensors")
    for module, turned in (("h.0.attn.c_proj", True), ("score", False)):
        change = 2 * tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]
        expected = before[f"{module}.weight"] + (change.T if turned else change)
        torch.testing.assert_close(found[f"{module}.weight"], expected)


def test_heads_are_never_kept_turned(write: Write, normal: Normal, tmp_path: Path) -> None:
    ws.save_checkpoint({"lm_head.weight": normal(4, 4), "q.weight": normal(4, 4)}, tmp_path / "m.safetensors")
    tensors = {**pair(normal, "lm_head"), **pair(normal, "q")}
    source = f"{tmp_path}/m.safetensors+{write('a', tensors, fan_in_fan_out=True)}"
    merge_files([source], tmp_path / "out.safetensors", execution=ExecutionOptions(fsync=False))
    before, found = ws.load_checkpoint(tmp_path / "m.safetensors"), ws.load_checkpoint(tmp_path / "out.safetensors")
    for module, turned in (("q", True), ("lm_head", False)):
        change = 2 * tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]
        torch.testing.assert_close(
            found[f"{module}.weight"], before[f"{module}.weight"] + (change.T if turned else change)
        )


def test_heads_and_embeddings_that_peft_saves_beside_their_factors_are_what_these_are_added_to(
    write: Write, normal: Normal, tmp_path: Path
) -> None:
    ws.save_checkpoint({"lm_head.weight": normal(4, 4), "lm_head.bias": normal(4)}, tmp_path / "m.safetensors")
    tensors = {
        **pair(normal, "lm_head"),
        "lm_head.base_layer.weight": normal(4, 4),
        "lm_head.base_layer.bias": normal(4),
    }
    merge_files(
        [f"{tmp_path}/m.safetensors+{write('a', tensors)}"],
        tmp_path / "out.safetensors",
        execution=ExecutionOptions(fsync=False),
    )
    found = ws.load_checkpoint(tmp_path / "out.safetensors")
    change = 2 * tensors["lm_head.lora_B.weight"] @ tensors["lm_head.lora_A.weight"]
    torch.testing.assert_close(found["lm_head.weight"], tensors["lm_head.base_layer.weight"] + change)
    assert torch.equal(found["lm_head.bias"], tensors["lm_head.base_layer.bias"])


def test_factors_on_parameters_that_are_weights_of_modules_are_read(
    write: Write, normal: Normal, tmp_path: Path
) -> None:
    ws.save_checkpoint({"mlp.gate.weight": normal(4, 4)}, tmp_path / "m.safetensors")
    fields = {
        "target_parameters": ["gate.weight"],
        "r": 3,
        "rank_pattern": {"gate.weight": 2},
        "alpha_pattern": {r"gate\.weight": 6},
    }
    tensors = pair(normal, "mlp.gate")
    merge_files(
        [f"{tmp_path}/m.safetensors+{write('a', tensors, **fields)}"],
        tmp_path / "out.safetensors",
        execution=ExecutionOptions(fsync=False),
    )
    before, found = ws.load_checkpoint(tmp_path / "m.safetensors"), ws.load_checkpoint(tmp_path / "out.safetensors")
    change = 3 * tensors["mlp.gate.lora_B.weight"] @ tensors["mlp.gate.lora_A.weight"]
    torch.testing.assert_close(found["mlp.gate.weight"], before["mlp.gate.weight"] + change)
