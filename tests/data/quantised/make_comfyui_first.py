"""Write files in ComfyUI's first FP8 format that convert_to_quant quantises, and their values as it dequantises them.

    pip install convert_to_quant==1.1.5
    python make_comfyui_first.py

ComfyUI itself only reads this format, and later versions of convert_to_quant do not write it. The second file also has
scales of the activations, and an empty mark, as files of text encoders do.
"""

import tempfile
from pathlib import Path

import torch
from convert_to_quant.comfy.quant_ops import TensorCoreFP8Layout
from convert_to_quant.formats.fp8_conversion import convert_to_fp8_scaled
from safetensors.torch import load_file, save_file

DATA = Path(__file__).parent


def main() -> None:
    """Write the files."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"attn.qkv.weight": (24, 16), "attn.qkv.bias": (24,), "mlp.fc.weight": (8, 24), "norm.weight": (8,)}
    state = {f"blocks.0.{name}": torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.safetensors"
        save_file(state, source)
        for name, has_activations in (("comfyui-first", False), ("comfyui-first-activations", True)):
            (DATA / name).mkdir(exist_ok=True)
            target = DATA / name / "model.safetensors"
            options = {"include_input_scale": has_activations, "no_learned_rounding": True, "scaling_mode": "tensor"}
            convert_to_fp8_scaled(str(source), str(target), False, {}, 16, 0, **options)
            stored = load_file(target)
            values = {key: stored[key] for key in state}
            for key in (key for key in state if stored[key].dtype == torch.float8_e4m3fn):
                scale = stored[f"{key.removesuffix('weight')}scale_weight"]
                values[key] = TensorCoreFP8Layout.dequantize(stored[key], scale, torch.float32)
            save_file(values, DATA / "expected" / f"{name}.safetensors")


if __name__ == "__main__":
    main()
