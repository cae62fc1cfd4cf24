"""Layer numbers found in the names of tensors, for the namings that people have."""

import pytest
import timm
import torch
import torchvision

from weightspace.errors import WeightspaceError
from weightspace.merging.slices.layer_index import Layers

LLAMA = [
    "model.embed_tokens.weight",
    *(
        f"model.layers.{i}.{part}.weight"
        for i in range(12)
        for part in ("self_attn.q_proj", "mlp.up_proj", "input_layernorm")
    ),
    "model.norm.weight",
    "lm_head.weight",
]
MIXTRAL = [
    f"model.layers.{i}.block_sparse_moe.experts.{e}.w{w}.weight" for i in range(4) for e in range(8) for w in (1, 2, 3)
]
GPT2 = ["wte.weight", "wpe.weight", *(f"h.{i}.attn.c_attn.weight" for i in range(3)), "ln_f.weight"]
CLIP = [
    *(f"visual.transformer.resblocks.{i}.attn.in_proj_weight" for i in range(6)),
    *(f"transformer.resblocks.{i}.attn.in_proj_weight" for i in range(4)),
    *("visual.conv1.weight", "token_embedding.weight", "text_projection"),
]
HF_CLIP = [
    *(f"vision_model.encoder.layers.{i}.self_attn.q_proj.weight" for i in range(6)),
    *(f"text_model.encoder.layers.{i}.self_attn.q_proj.weight" for i in range(4)),
]
T5 = [
    f"{side}.block.{i}.layer.{j}.DenseReluDense.wi.weight"
    for side in ("encoder", "decoder")
    for i in range(3)
    for j in (0, 1)
]
DIFFUSERS = [
    "conv_in.weight",
    *(f"down_blocks.{i}.resnets.{j}.conv1.weight" for i in range(3) for j in range(2)),
    *(f"mid_block.resnets.{j}.conv1.weight" for j in range(2)),
    "mid_block.attentions.0.proj.weight",
    *(f"up_blocks.{i}.resnets.{j}.conv1.weight" for i in range(3) for j in range(3)),
    "conv_out.weight",
]
STABLE_DIFFUSION = [
    *(f"model.diffusion_model.input_blocks.{i}.0.in_layers.2.weight" for i in range(4)),
    *(f"model.diffusion_model.middle_block.{i}.in_layers.2.weight" for i in range(3)),
    *(f"model.diffusion_model.output_blocks.{i}.0.in_layers.2.weight" for i in range(4)),
    "model.diffusion_model.time_embed.0.weight",
    "model.diffusion_model.time_embed.2.weight",
]


@pytest.mark.parametrize(
    ("names", "name", "number", "position"),
    [
        (LLAMA, "model.layers.11.mlp.up_proj.weight", 11, 1.0),
        (LLAMA, "model.layers.0.mlp.up_proj.weight", 0, 0.0),
        (LLAMA, "model.norm.weight", None, 0.0),
        (MIXTRAL, "model.layers.3.block_sparse_moe.experts.7.w1.weight", 3, 1.0),
        (GPT2, "h.1.attn.c_attn.weight", 1, 0.5),
        (GPT2, "wte.weight", None, 0.0),
        (CLIP, "visual.transformer.resblocks.5.attn.in_proj_weight", 5, 1.0),
        (CLIP, "transformer.resblocks.3.attn.in_proj_weight", 3, 1.0),
        (HF_CLIP, "text_model.encoder.layers.3.self_attn.q_proj.weight", 3, 1.0),
        (T5, "decoder.block.2.layer.1.DenseReluDense.wi.weight", 2, 1.0),
        (DIFFUSERS, "down_blocks.0.resnets.1.conv1.weight", 0, 0.0),
        (DIFFUSERS, "mid_block.attentions.0.proj.weight", 3, 0.5),
        (DIFFUSERS, "up_blocks.2.resnets.2.conv1.weight", 6, 1.0),
        (DIFFUSERS, "conv_out.weight", None, 0.0),
        (STABLE_DIFFUSION, "model.diffusion_model.middle_block.2.in_layers.2.weight", 4, 0.5),
        (STABLE_DIFFUSION, "model.diffusion_model.output_blocks.3.0.in_layers.2.weight", 8, 1.0),
        (STABLE_DIFFUSION, "model.diffusion_model.time_embed.2.weight", None, 0.0),
    ],
)
def test_a_layer_is_found_in_the_name(names: list[str], name: str, number: int | None, position: float) -> None:
    layers = Layers(names)
    assert layers.number(name) == number
    assert layers.position(name) == position


def real_names(network: str) -> list[str]:
    with torch.device("meta"):
        built = timm.create_model(network) if network.startswith("vit") else torchvision.models.get_model(network)
    return list(built.state_dict())


def test_the_blocks_of_a_resnet_count_on_over_its_stages() -> None:
    layers = Layers(real_names("resnet50"))
    assert layers.stacks["layer#"] == 3 + 4 + 6 + 3
    assert layers.number("layer1.0.downsample.0.weight") == 0
    assert layers.number("layer2.0.conv1.weight") == 3
    assert layers.number("layer4.2.bn3.running_var") == 15
    assert layers.number("conv1.weight") is None
    assert layers.number("fc.bias") is None


def test_the_blocks_of_a_vit_are_its_layers() -> None:
    layers = Layers(real_names("vit_tiny_patch16_224"))
    assert layers.stacks == {"blocks": 12}
    assert layers.number("blocks.11.attn.qkv.weight") == 11
    assert layers.number("patch_embed.proj.weight") is None
    assert layers.number("head.weight") is None


def test_a_name_in_another_layer_changes_its_outermost_number_alone() -> None:
    assert Layers(MIXTRAL).renumbered(MIXTRAL[0], 9) == "model.layers.9.block_sparse_moe.experts.0.w1.weight"


def test_the_number_of_a_wrapper_counts_no_layers() -> None:
    """A text encoder beside its pooling and its head in an nn.Sequential, as sentence-transformers keep them."""
    inside = [f"0.auto_model.encoder.layer.{number}.output.dense.weight" for number in range(4)]
    layers = Layers([*inside, "0.auto_model.embeddings.weight", "2.linear.weight"])
    assert [layers.number(name) for name in inside] == [0, 1, 2, 3]
    assert layers.number("2.linear.weight") is None
    assert layers.renumbered(inside[1], 3) == inside[3]
    blocks = Layers([f"{number}.conv.{one}.weight" for number in range(2) for one in range(2)])
    assert blocks.number("1.conv.0.weight") == 1


def test_stages_are_not_renumbered() -> None:
    layers = Layers([f"layer{stage}.{block}.conv.weight" for stage in (1, 2) for block in range(3)])
    with pytest.raises(WeightspaceError, match=r"from 0 by one number; found 'layer2.0.conv.weight' in layer 3"):
        layers.renumbered("layer2.0.conv.weight", 4)


@pytest.mark.parametrize("part", ["²", "٣", "9" * 5000, "0" * 20])
def test_digits_other_than_layer_numbers_are_part_of_a_name(part: str) -> None:
    name = f"layers.{part}.weight"
    assert Layers([name, "layers.0.weight", "layers.1.weight"]).number(name) is None
