"""Write a checkpoint in Mistral's own format that a script of llm-compressor quantises to FP8, and its values.

    python make_mistral.py fp8_quantize.py

The script is ``experimental/mistral/fp8_quantize.py`` of vllm-project/llm-compressor, which has it at commit af384b6;
it needs Python 3.12, or single quotes within its f-strings. Mistral's own program for this isn't public. The values are
those that transformers, which renames ``qscale_weight``, dequantises to.
"""

import json
import runpy
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

DATA, NAME = Path(__file__).parent, "mistral"


def main(script: Path) -> None:
    """Write the files."""
    folder, weights = DATA / NAME, DATA / NAME / "consolidated.safetensors"
    folder.mkdir(exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    shapes = {"attention.wq": (16, 8), "attention.wo": (8, 16), "feed_forward.w1": (24, 8), "feed_forward.w2": (8, 24)}
    state = {f"layers.0.{name}.weight": torch.randn(own, generator=generator) for name, own in shapes.items()}
    state |= {"tok_embeddings.weight": torch.randn(12, 8, generator=generator), "norm.weight": torch.ones(8)}
    save_file({name: tensor.bfloat16() for name, tensor in state.items()}, weights)
    (folder / "params.json").write_text(json.dumps({"dim": 8, "n_layers": 1, "vocab_size": 12}))
    runpy.run_path(str(script))["process_directory"](str(folder))
    stored = load_file(weights)
    values = {}
    for name, tensor in stored.items():
        if name.endswith(".weight"):
            scale = stored.get(f"{name.removesuffix('weight')}qscale_weight")
            values[name] = (
                tensor if scale is None else Fp8Dequantize(None)._dequantize_one(tensor, scale, torch.float32)
            )
    save_file(values, DATA / "expected" / f"{NAME}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
