"""Write tiny Llamas that NVIDIA's Model Optimizer exports in NVFP4, MXFP8 and FP8 per channel, and their values.

    pip install nvidia-modelopt
    python make_modelopt.py

Version 0.47.0 made the committed files on a CPU: scales are those of the weights, without a run on data. The values are
those that its own tensors dequantise to; FP8 per channel has none, so it's numbers times scales.
"""

import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

DATA = Path(__file__).parent

#: Folder -> the library's configuration.
CONFIGURATIONS = {
    "modelopt-nvfp4": "NVFP4_DEFAULT_CFG",
    "modelopt-mxfp8": "MXFP8_DEFAULT_CFG",
    "modelopt-fp8-channel": "FP8_PER_CHANNEL_PER_TOKEN_CFG",
}


def network() -> LlamaForCausalLM:
    """Return a network whose matrices are as wide as blocks need."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 8, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 16}
    config = LlamaConfig(architectures=["LlamaForCausalLM"], **sizes, **heads)
    return LlamaForCausalLM(config).bfloat16()


def values(stored: dict[str, Tensor], name: str) -> Tensor:
    """Return the values of a matrix in float32, as the library computes them."""
    tensors: Any = import_module("modelopt.torch.quantization.qtensor")
    packed, scale, whole = stored[name], stored.get(f"{name}_scale"), stored.get(f"{name}_scale_2")
    if scale is None:
        return packed
    if whole is not None:
        shape = torch.Size((packed.shape[0], 2 * packed.shape[1]))
        own = tensors.NVFP4QTensor(shape, torch.float32, packed)
        return own.dequantize(dtype=torch.float32, scale=scale, double_scale=whole, block_sizes={-1: 16})
    if scale.dtype == torch.uint8:
        own = tensors.MXFP8QTensor(packed.shape, torch.float32, packed)
        return own.dequantize(dtype=torch.float32, scale=scale)
    return packed.float() * scale[:, None]


def main() -> None:
    """Write the files."""
    quantising: Any = import_module("modelopt.torch.quantization")
    exporting: Any = import_module("modelopt.torch.export")
    for name, configuration in CONFIGURATIONS.items():
        shutil.rmtree(DATA / name, ignore_errors=True)
        quantised = quantising.quantize(network(), getattr(quantising, configuration), None)
        exporting.export_hf_checkpoint(quantised, export_dir=str(DATA / name))
        (DATA / name / "generation_config.json").unlink(missing_ok=True)
        stored = load_file(DATA / name / "model.safetensors")
        found = {key: values(stored, key).contiguous() for key in stored if key.endswith("weight")}
        save_file(found, DATA / "expected" / f"{name}.safetensors")


if __name__ == "__main__":
    main()
