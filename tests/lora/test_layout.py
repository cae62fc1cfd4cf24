"""Layout of extracted adapters: the weights they can hold, how PEFT finds them, tied weights and experts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import weightspace as ws
from weightspace.checkpoints import StateDict
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.lora import extract_lora, extract_lora_files, read_adapter
from weightspace.lora.fused_experts import Part
from weightspace.lora.layout import Layout
from weightspace.merging import ExecutionOptions, merge_adapters, merge_files

Normal = Callable[..., Tensor]

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
MIXTRAL = {"model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}
QWEN = {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]}


def kind(
    name: str, shape: tuple[int, ...], config: dict[str, Any] | None = None, **others: tuple[int, ...]
) -> str | None:
    return Layout({name: shape, **others}, config or {}, fan_in_fan_out=False).kind(name)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("layers.0.q_proj.weight", (3, 3), "linear"),
        ("model.embed_tokens.weight", (9, 3), "embedding"),
        ("text_model.embeddings.token_embedding.weight", (9, 3), "embedding"),
        ("vision_model.embeddings.position_embedding.weight", (9, 3), "embedding"),
        ("bert.embeddings.token_type_embeddings.weight", (2, 3), "embedding"),
        ("backbone.embeddings.weight", (9, 3), "embedding"),
        ("transformer.wpe.weight", (9, 3), "embedding"),
        ("block.0.layer.0.SelfAttention.relative_attention_bias.weight", (9, 3), "embedding"),
        ("decoder.embed_tokens.1.weight", (9, 3), "embedding"),
        ("embed_out.weight", (9, 3), "linear"),
        ("vision_embed_tokens.weight", (9, 3), "linear"),
        ("electra.embeddings_project.weight", (9, 3), "linear"),
        ("patch_embed.proj.weight", (9, 3, 2, 2), "convolution"),
        ("visual.patch_embed.proj.weight", (9, 3, 2, 2, 2), "convolution"),
        ("encoder.conv1.weight", (9, 3, 3), "convolution"),
        ("feature_extractor.conv_layers.0.conv.weight", (9, 1, 3), "convolution"),
        ("conv.weight", (9, 1, 3, 3), "convolution"),
        ("mixer.conv1d.weight", (9, 1, 3), None),
        ("mlp.experts.fc1.weight", (4, 9, 3), None),
        ("model.decoder.embed_positions.weight", (9, 3), None),
        ("some_embthing.weight", (9, 3), None),
        ("norm.weight", (3,), None),
        ("layers.0.q_proj.bias", (3,), None),
        ("pos_embed", (9, 3), None),
    ],
)
def test_weights_are_known_by_their_names_and_shapes(name: str, shape: tuple[int, ...], expected: str | None) -> None:
    assert kind(name, shape) == expected


def test_a_configuration_resolves_the_layout() -> None:
    assert kind("h.0.attn.c_proj.weight", (3, 3), {"model_type": "gpt2"}) == "in_out"
    assert kind("lm_head.weight", (3, 3), {"model_type": "gpt2"}) == "linear"
    assert kind("h.0.attn.c_proj.weight", (3, 3), {"model_type": "gpt_bigcode"}) == "linear"
    assert kind("mixer.out_proj.weight", (3, 3), {"model_type": "mamba"}) is None
    assert kind("mlp.dwconv.weight", (9, 1, 3, 3), {"model_type": "segformer", "num_channels": 3}) is None
    assert kind("stem.conv.weight", (9, 1, 3, 3), {"model_type": "vit", "num_channels": 1}) == "convolution"
    attention = {"head.attention.in_proj_weight": (9, 3)}
    assert kind("head.attention.out_proj.weight", (3, 3), None, **attention) is None


def model(normal: Normal, shapes: dict[str, tuple[int, ...]]) -> StateDict:
    return {name: normal(*shape) for name, shape in shapes.items()}


def changed(normal: Normal, base: StateDict, *names: str) -> StateDict:
    return {name: tensor + normal(*tensor.shape) if name in names else tensor for name, tensor in base.items()}


def product(state: StateDict, module: str) -> Tensor:
    if f"base_model.model.{module}.lora_embedding_A" in state:
        a, b = (state[f"base_model.model.{module}.lora_embedding_{side}"] for side in "AB")
        return (b @ a).T
    a, b = (state[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
    return b @ a


@pytest.mark.parametrize("stored", [True, False])
def test_tied_weights_have_the_same_factors_each(stored: bool, normal: Normal) -> None:
    base = model(normal, {"model.embed_tokens.weight": (9, 4)})
    tuned = changed(normal, base, "model.embed_tokens.weight")
    if stored:  # under both names, in one memory
        base["lm_head.weight"], tuned["lm_head.weight"] = (s["model.embed_tokens.weight"] for s in (base, tuned))
    extraction = extract_lora(base, tuned, rank=9, config=LLAMA)
    difference = tuned["model.embed_tokens.weight"] - base["model.embed_tokens.weight"]
    for module in ("model.embed_tokens", "lm_head"):
        torch.testing.assert_close(product(extraction.state, module), difference, rtol=1e-4, atol=1e-5)
    assert extraction.repeated == ("lm_head.weight",)
    assert extraction.report.error < 1e-5


@pytest.mark.parametrize("tied", ["base", "model"])
def test_a_head_that_one_of_the_two_ties_is_compared_with_its_embedding(tied: str, normal: Normal) -> None:
    whole = model(normal, {"model.embed_tokens.weight": (9, 4), "lm_head.weight": (9, 4)})
    half = model(normal, {"model.embed_tokens.weight": (9, 4)})
    base, tuned = (half, whole) if tied == "base" else (whole, half)
    extraction = extract_lora(base, tuned, rank=9, config=LLAMA)
    embedding = half["model.embed_tokens.weight"]
    difference = whole["lm_head.weight"] - embedding if tied == "base" else embedding - whole["lm_head.weight"]
    torch.testing.assert_close(product(extraction.state, "lm_head"), difference, rtol=1e-4, atol=1e-4)
    assert extraction.repeated == ()


def test_models_of_which_one_has_a_head_on_another_scale_do_not_fit_together(normal: Normal) -> None:
    base, tuned = (
        model(normal, {"shared.weight": (9, 4)}),
        model(normal, {"shared.weight": (9, 4), "lm_head.weight": (9, 4)}),
    )
    with pytest.raises(CheckpointError, match="do not fit together"):
        extract_lora(base, tuned, config={"model_type": "t5", "d_model": 4})


EXPERTS = {
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.block_sparse_moe.gate.weight": (2, 8),
    **{
        f"model.layers.0.block_sparse_moe.experts.{expert}.{part}.weight": (8, 6) if part == "w2" else (6, 8)
        for expert in range(2)
        for part in ("w1", "w2", "w3")
    },
}


def test_experts_and_their_router_have_one_rank(normal: Normal) -> None:
    base = model(normal, EXPERTS)
    extraction = extract_lora(base, changed(normal, base, *EXPERTS), rank=8, config=MIXTRAL)
    ranks = extraction.report.ranks
    assert ranks.pop("model.layers.0.self_attn.q_proj.weight") == 8
    assert set(ranks.values()) == {6}
    assert extraction.config["r"] == 6
    assert extraction.report.error < 1e-5
    assert "target_parameters" not in extraction.config


def test_experts_are_targeted_as_parameters_as_in_peft(normal: Normal) -> None:
    names = {name.replace("block_sparse_moe", "mlp"): shape for name, shape in EXPERTS.items()}
    for old, new in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
        names = {name.replace(f".{old}.", f".{new}."): shape for name, shape in names.items()}
    names["model.layers.1.mlp.gate_proj.weight"] = (6, 8)  # of a layer without experts
    base = model(normal, names)
    config = extract_lora(base, changed(normal, base, *names), rank=8, config=QWEN).config
    assert config["target_modules"] == ["model.layers.0.self_attn.q_proj"]
    assert config["target_parameters"] == [
        "model.layers.0.mlp.gate.weight",
        "model.layers.0.mlp.experts.gate_up_proj",
        "model.layers.0.mlp.experts.down_proj",
        "model.layers.1.mlp.gate_proj.weight",
    ]
    assert config["rank_pattern"][r".*\.gate_up_proj"] == config["alpha_pattern"][r".*\.gate_up_proj"] == 12


def test_the_part_of_an_expert_is_cut_out_of_stacked_factors(normal: Normal) -> None:
    experts, rank, rows, columns = 3, 2, 6, 5
    a, b = normal(experts * rank, columns), normal(2 * rows, rank * experts)
    stacked = torch.einsum("ore,eri->eoi", b.view(2 * rows, rank, experts), a.view(experts, rank, columns))
    for expert in range(experts):
        for first in (0, rows):
            own_a, own_b = Part(expert, experts, first, first + rows).of(a, b)
            torch.testing.assert_close(own_b @ own_a, stacked[expert, first : first + rows])


FUSED = {
    "model.layers.0.mlp.experts.base_layer.lora_A.weight": (2 * 2, 8),
    "model.layers.0.mlp.experts.base_layer.lora_B.weight": (12, 2 * 2),
    "model.layers.0.mlp.experts.lora_A.weight": (2 * 2, 6),
    "model.layers.0.mlp.experts.lora_B.weight": (8, 2 * 2),
}
PARAMETERS = {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}


def saved_mixtral(normal: Normal, folder: Path) -> Path:
    ws.save_checkpoint(model(normal, EXPERTS), folder)
    (folder / "config.json").write_text(json.dumps(MIXTRAL))
    return folder


def test_factors_of_all_experts_change_each_of_them(write: Callable[..., Path], normal: Normal, tmp_path: Path) -> None:
    tensors = model(normal, FUSED)
    source = f"{saved_mixtral(normal, tmp_path / 'm')}+{write('a', tensors, **PARAMETERS)}"
    merge_files([source], tmp_path / "out.safetensors", execution=ExecutionOptions(fsync=False))
    before, found = ws.load_checkpoint(tmp_path / "m"), ws.load_checkpoint(tmp_path / "out.safetensors")
    for container, parts in (("base_layer.", ("w1", "w3")), ("", ("w2",))):
        a, b = (tensors[f"model.layers.0.mlp.experts.{container}lora_{side}.weight"] for side in "AB")
        for expert in range(2):
            change = 2 * b.view(len(b), 2, 2)[:, :, expert] @ a.view(2, 2, -1)[expert]
            for part, own in zip(parts, change.chunk(len(parts)), strict=True):
                name = f"model.layers.0.block_sparse_moe.experts.{expert}.{part}.weight"
                torch.testing.assert_close(found[name], before[name] + own)


MISTAKES: dict[str, tuple[dict[str, tuple[int, ...]], dict[str, Any], str]] = {
    "more experts than the model has": (
        {name: (6, s[1]) if "lora_A" in name else (s[0], 6) for name, s in FUSED.items()},
        PARAMETERS,
        "parameter of 3 experts",
    ),
    "fewer": (
        {name: (2, s[1]) if "lora_A" in name else (s[0], 2) for name, s in FUSED.items()},
        PARAMETERS,
        "parameter of 1 experts",
    ),
    "another rank": (FUSED, {**PARAMETERS, "r": 3}, "3 · experts"),
    "factors inside others of no parameter": (FUSED, {}, "has no target_parameters; expected"),
    "a parameter that is none of experts": (FUSED, {"target_parameters": ["A_log"]}, "targets the parameter 'A_log'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_factors_of_other_experts_are_refused(
    mistake: str, write: Callable[..., Path], normal: Normal, tmp_path: Path
) -> None:
    shapes, fields, expected = MISTAKES[mistake]
    source = f"{saved_mixtral(normal, tmp_path / 'm')}+{write('a', model(normal, shapes), **fields)}"
    with pytest.raises(CheckpointError, match=expected) as error:
        merge_files([source], tmp_path / "out.safetensors", dry_run=True)
    assert "\n" not in str(error.value)


def test_merged_adapters_of_experts_have_one_rank_for_them(normal: Normal, tmp_path: Path) -> None:
    base = model(normal, EXPERTS)
    for name in "ab":
        ws.save_checkpoint(changed(normal, base, *EXPERTS), tmp_path / name)
    ws.save_checkpoint(base, tmp_path / "base")
    for folder in ("base", "a", "b"):
        (tmp_path / folder / "config.json").write_text(json.dumps(MIXTRAL))
    for name in "ab":
        extract_lora_files(tmp_path / "base", tmp_path / name, tmp_path / f"lora_{name}", rank=2)
    report = merge_adapters([tmp_path / "lora_a", tmp_path / "lora_b"], tmp_path / "merged", method="core_space")
    ranks = {name: rank for name, rank in report.ranks.items() if "block_sparse_moe" in name}
    assert set(ranks.values()) == {4}
    assert read_adapter(tmp_path / "merged").configuration.rank == 4


def test_adapters_of_all_experts_are_not_merged_without_their_model(
    write: Callable[..., Path], normal: Normal, tmp_path: Path
) -> None:
    folder = write("a", model(normal, FUSED), **PARAMETERS)
    assert len(read_adapter(folder).fused) == 2
    with pytest.raises(CheckpointError, match="such as those of fused experts"):
        merge_adapters([folder, folder], tmp_path / "out")


def test_families_with_other_names_in_transformers_are_refused_or_keep_theirs(normal: Normal, tmp_path: Path) -> None:
    base = model(normal, {"encoder.layer.0.q.weight": (4, 4)})
    for name, state in (("base", base), ("tuned", changed(normal, base, *base))):
        ws.save_checkpoint(state, tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "gte"}))
    with pytest.raises(WeightspaceError, match=r"\(gte\) whose modules transformers renames"):
        extract_lora_files(tmp_path / "base", tmp_path / "tuned", tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
    extract_lora_files(tmp_path / "base", tmp_path / "tuned", tmp_path / "adapter", lenient=True)
    assert list(read_adapter(tmp_path / "adapter").factors) == ["encoder.layer.0.q.weight"]


def test_extracted_names_are_those_of_modules(normal: Normal, tmp_path: Path) -> None:
    base = model(normal, {"vit.encoder.layer.0.attention.attention.query.weight": (4, 4)})
    for name, state in (("base", base), ("tuned", changed(normal, base, *base))):
        ws.save_checkpoint(state, tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "vit"}))
    report = extract_lora_files(tmp_path / "base", tmp_path / "tuned", tmp_path / "adapter", rank=4)
    assert list(report.ranks) == list(base)
    assert list(read_adapter(tmp_path / "adapter").factors) == ["vit.layers.0.attention.q_proj.weight"]
    fields = read_adapter(tmp_path / "adapter").configuration.fields
    assert fields["target_modules"] == ["vit.layers.0.attention.q_proj"]
