"""Make the fixtures of this folder with kohya's sd-scripts: ``python make.py PATH``, that of a checkout.

Commit 48d368f made the committed files, on a CPU, with diffusers 0.42 and transformers 5.24. The text encoder is
wrapped, so that its modules have the names of transformers 4, which sd-scripts requires. OpenCV isn't needed.
"""

import copy
import sys
import types
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

HERE = Path(__file__).parent


def networks() -> dict[str, Any]:
    """Return a tiny U-Net and a tiny text encoder."""
    blocks: dict[str, Any] = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (4, 8),
    }
    sizes: dict[str, Any] = {"cross_attention_dim": 6, "attention_head_dim": 2, "norm_num_groups": 2}
    unet = UNet2DConditionModel(sample_size=8, layers_per_block=1, **blocks, **sizes)
    config = CLIPTextConfig(
        vocab_size=16,
        hidden_size=6,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
    )
    text_encoder = nn.Module()
    text_encoder.text_model = CLIPTextModel(config)
    return {"unet": unet, "text_encoder": text_encoder}


def main(scripts: str) -> None:
    """Write the weights, the adapter, and the weights that sd-scripts computes by its ``merge_to``."""
    sys.path.insert(0, scripts)
    sys.modules.setdefault("cv2", types.ModuleType("cv2"))
    library: Any = import_module("networks.lora")
    torch.manual_seed(0)
    parts = networks()
    trained = copy.deepcopy(parts)
    options: dict[str, Any] = {"conv_dim": 2, "conv_alpha": 1.0}
    adapter = library.create_network(1.0, 3, 2.0, None, trained["text_encoder"], trained["unet"], **options)
    adapter.apply_to(trained["text_encoder"], trained["unet"], True, True)
    for lora in (*adapter.text_encoder_loras, *adapter.unet_loras):
        nn.init.normal_(lora.lora_up.weight, std=0.3)
    saved = {name: tensor.detach().contiguous() for name, tensor in adapter.state_dict().items()}
    both = (parts["text_encoder"], parts["unet"])
    merging, _ = library.create_network_from_weights(1.0, None, None, *both, weights_sd=saved, for_inference=True)
    model = state(parts)
    merging.merge_to(*both, saved, torch.float32, "cpu")
    merged = state(parts)
    changed = [name for name, tensor in model.items() if not torch.equal(tensor, merged[name])]
    assert 3 * len(changed) == len(saved)
    save_file(saved, HERE / "adapter.safetensors")
    save_file({name: model[name] for name in changed}, HERE / "model.safetensors")
    save_file({name: merged[name] for name in changed}, HERE / "expected.safetensors")


def state(parts: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return copies of the tensors of the networks."""
    return {f"{part}.{name}": own.clone() for part, net in parts.items() for name, own in net.state_dict().items()}


if __name__ == "__main__":
    main(sys.argv[1])
