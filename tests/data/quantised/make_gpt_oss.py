"""Write a tiny gpt-oss whose experts NVIDIA's Model Optimizer quantises to MXFP4, and its values.

    pip install nvidia-modelopt
    python make_gpt_oss.py

Version 0.47.0 made the committed files on a CPU, in the steps of its example that makes checkpoints in OpenAI's own
format (examples/gpt-oss/convert_oai_mxfp4_weight_only.py). The values are those that its tensors dequantise to.
"""

import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import GptOssConfig, GptOssForCausalLM

DATA = Path(__file__).parent
NAME = "gpt-oss"

#: Elements that share an exponent.
BLOCK = 32


def network() -> GptOssForCausalLM:
    """Return a network of two experts, whose two matrices have other numbers of blocks."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 8, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1}
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    experts: dict[str, Any] = {"num_local_experts": 2, "num_experts_per_tok": 1, "layer_types": ["full_attention"]}
    return GptOssForCausalLM(GptOssConfig(**sizes, **heads, **experts, max_position_embeddings=16)).bfloat16()


def quantised(experts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the blocks and scales of matrices ``(experts, in, out)``, and their values in float32."""
    library: Any = import_module("modelopt.torch.quantization.qtensor").MXFP4QTensor
    blocks, scales, values = [], [], []
    for matrix in experts.transpose(1, 2).contiguous():
        own, exponents = library.quantize(matrix, block_size=BLOCK)
        blocks.append(own._quantized_data.view(len(matrix), -1, BLOCK // 2))
        scales.append(exponents.view(len(matrix), -1))
        value = own.dequantize(dtype=torch.float32, scale=exponents, block_sizes={-1: BLOCK})
        values.append(value.T)
    return torch.stack(blocks), torch.stack(scales), torch.stack(values).contiguous()


def main() -> None:
    """Write the files."""
    model, state, expected = network(), {}, {}
    for name, tensor in model.state_dict().items():
        if "experts" in name and "bias" not in name:
            state[f"{name}_blocks"], state[f"{name}_scales"], expected[name] = quantised(tensor)
        else:
            state[name] = expected[name] = tensor.contiguous()
    shutil.rmtree(DATA / NAME, ignore_errors=True)
    model.save_pretrained(DATA / NAME, state_dict=state)
    (DATA / NAME / "generation_config.json").unlink(missing_ok=True)
    path = DATA / NAME / "config.json"
    config = json.loads(path.read_text())
    full_precision = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    config["quantization_config"] = {"modules_to_not_convert": full_precision, "quant_method": "mxfp4"}
    path.write_text(json.dumps(config, indent=4) + "\n")
    save_file(expected, DATA / "expected" / f"{NAME}.safetensors")


if __name__ == "__main__":
    main()
