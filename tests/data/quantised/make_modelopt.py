"""Write tiny Llamas that NVIDIA's Model Optimizer exports in NVFP4, MXFP8 and FP8, and their values.

    pip install nvidia-modelopt
    python make_modelopt.py

Version 0.47.0 made the committed files on a CPU: scales are those of the weights, without a run on data except in plain
FP8. The values are those that its own tensors dequantise to; FP8 has none, so it's numbers times scales. Experts of
Llama 4 are a stack of transposed matrices, ``(experts, in, out)``.
"""

import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Llama4ForCausalLM, Llama4TextConfig, LlamaConfig, LlamaForCausalLM

DATA = Path(__file__).parent

#: Folder -> the library's configuration.
CONFIGURATIONS = {
    "modelopt-nvfp4": "NVFP4_DEFAULT_CFG",
    "modelopt-mxfp8": "MXFP8_DEFAULT_CFG",
    "modelopt-fp8-channel": "FP8_PER_CHANNEL_PER_TOKEN_CFG",
    "modelopt-fp8-block": "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG",
    "modelopt-experts-nvfp4": "NVFP4_DEFAULT_CFG",
    "modelopt-experts-mxfp8": "MXFP8_DEFAULT_CFG",
    "modelopt-experts-fp8": "FP8_DEFAULT_CFG",
    "modelopt-experts-fp8-channel": "FP8_PER_CHANNEL_PER_TOKEN_CFG",
}


def network(name: str) -> Any:
    """Return the network of a folder, whose matrices are as wide as blocks need."""
    torch.manual_seed(0)
    inner = 192 if "block" in name else 64  # more than one block, the last of which isn't full
    sizes: dict[str, Any] = {"vocab_size": 8, "hidden_size": 32, "intermediate_size": inner, "num_hidden_layers": 1}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16}
    if "experts" not in name:
        return LlamaForCausalLM(LlamaConfig(architectures=["LlamaForCausalLM"], **sizes, **heads)).bfloat16()
    others: dict[str, Any] = {"intermediate_size_mlp": 32, "num_local_experts": 2, "interleave_moe_layer_step": 1}
    config = Llama4TextConfig(architectures=["Llama4ForCausalLM"], head_dim=16, **sizes, **heads, **others)
    model = Llama4ForCausalLM(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter)  # experts have no values yet
    return model.bfloat16()


def values(stored: dict[str, Tensor], name: str) -> Tensor:
    """Return the values of a matrix, or of a stack of experts' matrices, in float32, as the library computes them."""
    scales = name if name.endswith("weight") else f"{name}_weight"
    packed, scale, whole = stored[name], stored.get(f"{scales}_scale"), stored.get(f"{scales}_scale_2")
    if scale is None:
        return packed
    if whole is not None and packed.dim() == 3:
        matrices = zip(packed, scale, strict=True)
        return torch.stack([nvfp4(own.T.contiguous(), one.T.contiguous(), whole).T for own, one in matrices])
    if whole is not None:
        return nvfp4(packed, scale, whole)
    if scale.dtype == torch.uint8:
        tensors: Any = import_module("modelopt.torch.quantization.qtensor")
        own = tensors.MXFP8QTensor(packed.shape, torch.float32, packed)
        return own.dequantize(dtype=torch.float32, scale=scale)
    if scale.dim() == 4:
        rows, columns = packed.shape
        blocks = scale[:, 0, :, 0].repeat_interleave(128, 0).repeat_interleave(128, 1)
        return packed.float() * blocks[:rows, :columns]
    return packed.float() * scale.view(-1, *[1] * (packed.dim() - 1))


def nvfp4(packed: Tensor, scale: Tensor, whole: Tensor) -> Tensor:
    """Return the values of a matrix whose rows are packed."""
    tensors: Any = import_module("modelopt.torch.quantization.qtensor")
    shape = torch.Size((packed.shape[0], 2 * packed.shape[1]))
    own = tensors.NVFP4QTensor(shape, torch.float32, packed)
    return own.dequantize(dtype=torch.float32, scale=scale, double_scale=whole, block_sizes={-1: 16})


def main() -> None:
    """Write the files."""
    quantising: Any = import_module("modelopt.torch.quantization")
    exporting: Any = import_module("modelopt.torch.export")
    for name, configuration in CONFIGURATIONS.items():
        shutil.rmtree(DATA / name, ignore_errors=True)
        run: Any = (lambda net: net(torch.arange(8)[None])) if name.endswith("-fp8") else None
        quantised = quantising.quantize(network(name), getattr(quantising, configuration), run)
        exporting.export_hf_checkpoint(quantised, export_dir=str(DATA / name))
        (DATA / name / "generation_config.json").unlink(missing_ok=True)
        stored = load_file(DATA / name / "model.safetensors")
        found = {key: values(stored, key).contiguous() for key in stored if key.endswith(("weight", "proj"))}
        save_file(found, DATA / "expected" / f"{name}.safetensors")


if __name__ == "__main__":
    main()
