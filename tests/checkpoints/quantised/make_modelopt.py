"""Make the committed FP8 checkpoint of NVIDIA's Model Optimizer, and the weights that it was made of.

Run it by hand with nvidia-modelopt installed: ``python make_modelopt.py``.
"""

import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent / "modelopt"

if __name__ == "__main__":
    quantising: Any = import_module("modelopt.torch.quantization")
    exporting: Any = import_module("modelopt.torch.export")
    torch.manual_seed(0)
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=8,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
    )
    network = LlamaForCausalLM(config).bfloat16()
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir()
    save_file({name: tensor.clone() for name, tensor in network.state_dict().items()}, HERE / "original.safetensors")
    quantised = quantising.quantize(network, quantising.FP8_DEFAULT_CFG, lambda net: net(torch.arange(8)[None]))
    exporting.export_hf_checkpoint(quantised, export_dir=str(HERE / "exported"))
    (HERE / "exported" / "generation_config.json").unlink()
