"""Write matrices that FBGEMM quantises to FP8 as transformers saves them, and their values as torch multiplies them.

    pip install fbgemm-gpu-genai
    python make_fbgemm.py

Version 1.9.0 made the committed files, with its function for CPUs. Its own function for the inverse needs a GPU, so the
values are numbers times scales in float32.
"""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

DATA, NAME = Path(__file__).parent, "fbgemm"


def main() -> None:
    """Write the files."""
    library: Any = import_module("fbgemm_gpu.experimental.gemm.triton_gemm.fp8_gemm")
    generator = torch.Generator().manual_seed(0)
    state, values = {}, {}
    for module, shape in {"model.layers.0.mlp.up_proj": (24, 16), "model.layers.0.mlp.down_proj": (16, 24)}.items():
        weight = torch.randn(shape, generator=generator).bfloat16()
        numbers, scales = library.quantize_fp8_row(weight)
        state |= {f"{module}.weight": numbers, f"{module}.weight_scale": scales.view(-1, 1)}
        values[f"{module}.weight"] = numbers.float() * scales[:, None]
    state["model.norm.weight"] = values["model.norm.weight"] = torch.ones(16)
    (DATA / NAME).mkdir(exist_ok=True)
    save_file(state, DATA / NAME / "model.safetensors")
    save_file(values, DATA / "expected" / f"{NAME}.safetensors")
    settings = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]}
    (DATA / NAME / "config.json").write_text(json.dumps({"quantization_config": settings}, indent=1) + "\n")


if __name__ == "__main__":
    main()
