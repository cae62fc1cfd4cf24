"""Write matrices that FBGEMM quantises to FP8 as transformers saves them, and their values as torch multiplies them.

    pip install fbgemm-gpu-genai
    python make_fbgemm.py

Version 1.9.0 made the committed files, with its function for CPUs, which transformers 5.24 calls for the experts of
Llama 4. Its own function for the inverse needs a GPU, so the values are numbers times scales in float32.
"""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Llama4TextConfig
from transformers.integrations import fbgemm_fp8

DATA, NAME = Path(__file__).parent, "fbgemm"


def experts(hidden: int, inner: int, generator: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the tensors of two experts as transformers quantises them, and their values.

    The scales of both matrices are per output, though those of ``down_proj`` have the shape ``(experts, out, 1)``.
    """
    config = Llama4TextConfig(hidden_size=hidden, intermediate_size=inner, num_local_experts=2)
    network = nn.ModuleDict({"experts": fbgemm_fp8.FbgemmFp8Llama4TextExperts(config)})
    state, values = {}, {}
    for name, shape in {"gate_up_proj": (2, hidden, 2 * inner), "down_proj": (2, inner, hidden)}.items():
        weight = torch.randn(shape, generator=generator).bfloat16()
        found = fbgemm_fp8.FbgemmFp8Quantize(None).convert({f"experts.{name}": [weight]}, network)
        numbers, scales = (tensor.data.contiguous() for tensor in found.values())
        state |= {name: numbers, f"{name}_scale": scales}
        values[name] = numbers.float() * scales.view(2, 1, -1)
    return state, values


def main() -> None:
    """Write the files."""
    library: Any = import_module("fbgemm_gpu.experimental.gemm.triton_gemm.fp8_gemm")
    fbgemm_fp8.quantize_fp8_per_row = library.quantize_fp8_row
    generator = torch.Generator().manual_seed(0)
    state, values = {}, {}
    for module, shape in {"model.layers.0.mlp.up_proj": (24, 16), "model.layers.0.mlp.down_proj": (16, 24)}.items():
        weight = torch.randn(shape, generator=generator).bfloat16()
        numbers, scales = library.quantize_fp8_row(weight)
        state |= {f"{module}.weight": numbers, f"{module}.weight_scale": scales.view(-1, 1)}
        values[f"{module}.weight"] = numbers.float() * scales[:, None]
    for layer, inner in enumerate((16, 24), 1):
        prefix = f"model.layers.{layer}.feed_forward.experts"
        for found, own in zip((state, values), experts(16, inner, generator), strict=True):
            found |= {f"{prefix}.{name}": tensor for name, tensor in own.items()}
    state["model.norm.weight"] = values["model.norm.weight"] = torch.ones(16)
    (DATA / NAME).mkdir(exist_ok=True)
    save_file(state, DATA / NAME / "model.safetensors")
    save_file(values, DATA / "expected" / f"{NAME}.safetensors")
    settings = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]}
    (DATA / NAME / "config.json").write_text(json.dumps({"quantization_config": settings}, indent=1) + "\n")


if __name__ == "__main__":
    main()
