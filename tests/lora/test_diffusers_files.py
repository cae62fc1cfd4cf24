"""Adapters of diffusers' models: read as diffusers reads them, and written so that its loader gives the same model."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders import WanLoraLoaderMixin
from diffusers.loaders.lora_conversion_utils import (
    _convert_unet_lora_key,
    _maybe_map_sgm_blocks_to_diffusers,
)
from diffusers.utils.state_dict_utils import StateDictType, convert_state_dict_to_peft
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

import weightspace as ws
from weightspace.errors import CheckpointError
from weightspace.lora.formats.diffusers import diffusers_module, dotted
from weightspace.lora.formats.module import canonical
from weightspace.merging import ExecutionOptions, merge_adapters, merge_files

FAST = ExecutionOptions(fsync=False)

Modules = dict[str, nn.Module]


def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
    )


@pytest.fixture(scope="module")
def model() -> UNet2DConditionModel:
    return unet()


def layers(model: nn.Module) -> Modules:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}


def factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    ones = [1] * (weight.ndim - 2)
    return torch.randn(rank, *weight.shape[1:]) * 0.1, torch.randn(weight.shape[0], rank, *ones) * 0.1


def kohya(path: Path, modules: Modules, rank: int, alpha: float) -> Path:
    state = {}
    for name, module in modules.items():
        a, b = factors(module.weight, rank)
        flat = f"lora_unet_{name.replace('.', '_')}"
        state |= {f"{flat}.lora_down.weight": a, f"{flat}.lora_up.weight": b, f"{flat}.alpha": torch.tensor(alpha)}
    ws.save_checkpoint(state, path)
    return path


def fused(file: Path) -> dict[str, Tensor]:
    """Return the weights of the model that diffusers' loader changes by a file."""
    model = unet()
    state, alphas, metadata = StableDiffusionPipeline.lora_state_dict(
        str(file), unet_config=model.config, return_lora_metadata=True
    )
    StableDiffusionPipeline.load_lora_into_unet(state, alphas, model, adapter_name="x", metadata=metadata)
    model.fuse_lora()
    changed = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    return {f"{name}.weight": module.base_layer.weight.detach() for name, module in changed.items()}


def added(source: Path | str, adapters: list[Path], tmp_path: Path) -> dict[str, Tensor]:
    """Return the model with the sum of the adapters, each applied to the model."""
    out = tmp_path / "sum.safetensors"
    sources = [f"{source}+{adapter}" for adapter in adapters]
    merge_files(sources, out, method="task_arithmetic", weights=[1.0] * len(sources), base=str(source), execution=FAST)
    return ws.load_checkpoint(out)


@pytest.mark.parametrize("written", ["kohya", "diffusers"])
def test_two_kohya_files_of_other_ranks_become_one_that_diffusers_loads(
    written: str, model: UNet2DConditionModel, tmp_path: Path
) -> None:
    ws.save_checkpoint(model.state_dict(), tmp_path / "unet.safetensors")
    every = layers(model)
    attention = {name: module for name, module in every.items() if "attn" in name}
    inputs = [
        kohya(tmp_path / "style.safetensors", attention, 4, 2.0),
        kohya(tmp_path / "face.safetensors", every, 3, 6.0),
    ]
    out = tmp_path / "both.safetensors"
    report = merge_adapters(inputs, out, method="linear", weights=[1.0, 1.0], format=written)
    assert set(report.ranks.values()) == {3, 7}
    found, expected = fused(out), added(tmp_path / "unet.safetensors", inputs, tmp_path)
    assert found.keys() == {f"{name}.weight" for name in every}
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("spelling", ["lora_A", "dora", "processor"])
def test_files_of_diffusers_are_read_as_diffusers_reads_them(
    spelling: str, model: UNet2DConditionModel, tmp_path: Path
) -> None:
    ws.save_checkpoint(model.state_dict(), tmp_path / "unet.safetensors")
    chosen = {name: module for name, module in layers(model).items() if "attn1" in name}
    state = {}
    for name, module in chosen.items():
        a, b = factors(module.weight, 2)
        if spelling != "processor":
            state |= {f"unet.{name}.lora_A.weight": a, f"unet.{name}.lora_B.weight": b}
            if spelling == "dora":
                state[f"unet.{name}.lora_magnitude_vector"] = torch.rand(len(b)) + 0.5
            continue
        front, _, last = name.removesuffix(".0").rpartition(".")
        old = f"unet.{front}.processor.{last}_lora"
        state |= {f"{old}.down.weight": a, f"{old}.up.weight": b}
    ws.save_checkpoint(state, tmp_path / "a.safetensors")
    found = added(tmp_path / "unet.safetensors", [tmp_path / "a.safetensors"], tmp_path)
    expected = fused(tmp_path / "a.safetensors")
    assert expected.keys() == {f"{name}.weight" for name in chosen}
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-6, msg=name)


def test_the_configuration_that_diffusers_saves_gives_the_scales(model: UNet2DConditionModel, tmp_path: Path) -> None:
    ws.save_checkpoint(model.state_dict(), tmp_path / "unet.safetensors")
    chosen = {name: module for name, module in layers(model).items() if "attn2" in name}
    state, patterns = {}, {}
    for name, module in chosen.items():
        rank = 3 if "to_q" in name else 2
        patterns |= {name: 3} if rank == 3 else {}
        a, b = factors(module.weight, rank)
        state |= {f"unet.{name}.lora_A.weight": a, f"unet.{name}.lora_B.weight": b}
    config = {"r": 2, "lora_alpha": 5, "rank_pattern": patterns, "alpha_pattern": {next(iter(patterns)): 7}}
    config |= {"target_modules": list(chosen), "use_rslora": True}
    metadata = {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in config.items()})}
    ws.save_checkpoint(state, tmp_path / "pytorch_lora_weights.safetensors", metadata=metadata)
    found = added(tmp_path / "unet.safetensors", [tmp_path], tmp_path)  # the folder that save_lora_weights writes
    for name, weight in fused(tmp_path / "pytorch_lora_weights.safetensors").items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-6, msg=name)
    patterns.clear()
    metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 5})}
    ws.save_checkpoint(state, tmp_path / "pytorch_lora_weights.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match="have rank 3; expected 2 from its metadata"):
        merge_adapters([tmp_path], tmp_path / "x.safetensors")


def test_names_of_ldm_are_those_that_diffusers_converts_them_to() -> None:
    """Every module with weights of SDXL's U-Net, in blocks of two residual blocks."""
    modules = [*(f"input_blocks_{n}_0_{part}" for n in (1, 2, 4, 5, 7, 8) for part in ("in_layers_2", "emb_layers_1"))]
    modules += [f"input_blocks_{n}_0_{part}" for n in (4, 7) for part in ("out_layers_3", "skip_connection")]
    modules += [
        "input_blocks_3_0_op",
        "input_blocks_6_0_op",
        "middle_block_0_in_layers_2",
        "middle_block_2_out_layers_3",
    ]
    modules += [f"input_blocks_{n}_1_transformer_blocks_1_attn1_to_q" for n in (4, 5, 7, 8)]
    modules += [f"output_blocks_{n}_1_transformer_blocks_0_ff_net_0_proj" for n in range(6)]
    modules += [f"output_blocks_{n}_0_in_layers_2" for n in range(9)]
    modules += [
        "middle_block_1_proj_in",
        "output_blocks_2_2_conv",
        "output_blocks_5_2_conv",
        "output_blocks_8_0_skip_connection",
    ]

    class Config:
        layers_per_block = 2

    names = {f"lora_unet_{module}.lora_down.weight": module for module in modules}
    converted = _maybe_map_sgm_blocks_to_diffusers({name: name for name in names}, Config())
    for theirs, name in converted.items():
        path = _convert_unet_lora_key(theirs).replace(".processor.", ".")
        path = path.replace("to_q_lora.down.weight", "to_q").replace(".lora.down.weight", "")
        assert dotted(canonical(names[name])) == path, name


OLD_NAMES = [
    ("text_encoder.text_model.encoder.layers.0.self_attn.to_{}_lora.up.weight", "{}_proj"),
    ("text_encoder_2.text_model.encoder.layers.0.self_attn.{}_proj.lora_linear_layer.up.weight", "{}_proj"),
]


@pytest.mark.parametrize("which", ["q", "k", "v", "out"])
@pytest.mark.parametrize(("name", "expected"), OLD_NAMES)
def test_old_names_of_text_encoders_are_those_that_diffusers_converts_them_to(
    name: str, expected: str, which: str
) -> None:
    kind = StateDictType.DIFFUSERS_OLD if "{}_lora." in name else StateDictType.DIFFUSERS
    name = name.format(which)
    (theirs,) = convert_state_dict_to_peft({name: torch.zeros(1)}, original_type=kind)
    found = diffusers_module(name)
    assert found is not None
    module, role = found
    assert f"{module.name}.lora_{role}.weight" == theirs
    assert module.path.endswith(expected.format(which))


def test_both_text_encoders_of_sdxl_are_loaded(tmp_path: Path) -> None:
    modules = {
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj": "text_encoder",
        "lora_te2_text_model_encoder_layers_0_mlp_fc1": "text_encoder_2",
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_out_0": "unet",
    }
    for rank in (2, 3):
        state = {}
        for name in modules:
            state |= {f"{name}.lora_down.weight": torch.randn(rank, 6), f"{name}.lora_up.weight": torch.randn(5, rank)}
            state[f"{name}.alpha"] = torch.tensor(1.0)
        ws.save_checkpoint(state, tmp_path / f"{rank}.safetensors")
    inputs = [tmp_path / "2.safetensors", tmp_path / "3.safetensors"]
    keys = {}
    for written in ("kohya", "diffusers"):
        merge_adapters(inputs, tmp_path / "out.safetensors", method="linear", format=written)

        class Config:
            layers_per_block = 2

        state, _ = StableDiffusionXLPipeline.lora_state_dict(str(tmp_path / "out.safetensors"), unet_config=Config())
        keys[written] = {name.partition(".")[0] for name in state}
        assert len(state) == 6
    assert keys["kohya"] == keys["diffusers"] == set(modules.values())
    with pytest.raises(CheckpointError, match="PEFT's folder is for one model"):
        merge_adapters(inputs, tmp_path / "folder", method="linear", format="peft")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float8_e4m3fn])
def test_files_of_comfyui_for_wan_are_merged_into_one_that_diffusers_loads(dtype: torch.dtype, tmp_path: Path) -> None:
    names = [f"diffusion_model.blocks.0.{name}" for name in ("self_attn.q", "cross_attn.v", "ffn.0")]
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file in files:
        pairs = {name: factors(torch.empty(8, 8), 2) for name in names}
        state = {f"{name}.lora_A.weight": a.to(dtype) for name, (a, _) in pairs.items()}
        ws.save_checkpoint(state | {f"{name}.lora_B.weight": b.to(dtype) for name, (_, b) in pairs.items()}, file)
    merge_adapters(files, tmp_path / "out.safetensors", method="linear")
    theirs = [WanLoraLoaderMixin.lora_state_dict(str(file)) for file in (*files, tmp_path / "out.safetensors")]
    assert theirs[2].keys() == theirs[0].keys()
    for name in (name.removesuffix(".lora_A.weight") for name in theirs[2] if "lora_A" in name):
        one, other, merged = (
            state[f"{name}.lora_B.weight"].float() @ state[f"{name}.lora_A.weight"].float() for state in theirs
        )
        torch.testing.assert_close(merged, (one + other) / 2, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "name", ["transformer_blocks.0.attn.to_q", "single_transformer_blocks.3.proj_mlp", "double_blocks.0.img_attn.proj"]
)
def test_blocks_of_transformers_need_no_prefix(name: str, tmp_path: Path) -> None:
    weight = torch.randn(8, 8)
    a, b = factors(weight, 2)
    ws.save_checkpoint({f"{name}.weight": weight}, tmp_path / "model.safetensors")
    state = {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b, f"{name}.alpha": torch.tensor(1.0)}
    ws.save_checkpoint(state, tmp_path / "adapter.safetensors")
    found = added(tmp_path / "model.safetensors", [tmp_path / "adapter.safetensors"], tmp_path)
    torch.testing.assert_close(found[f"{name}.weight"], weight + b @ a / 2)
