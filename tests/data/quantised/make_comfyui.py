"""Write matrices that ComfyUI's library comfy-kitchen quantises, and their values as it dequantises them.

    pip install comfy-kitchen
    python make_comfyui.py

Version 0.2.40 made the committed files. Tensors are named as ComfyUI saves them: those of the layout, and a description
of the layer. ``comfyui-header`` has the descriptions in the header, as ComfyUI's first such files do.
"""

import json
from pathlib import Path

import torch
from comfy_kitchen.tensor import QuantizedTensor
from safetensors.torch import save_file
from torch import Tensor

DATA = Path(__file__).parent

#: Format -> comfy-kitchen's layout and its options. All but FP8 are refused.
FORMATS = {
    "float8_e4m3fn": ("TensorCoreFP8Layout", {"dtype": torch.float8_e4m3fn}),
    "float8_e5m2": ("TensorCoreFP8Layout", {"dtype": torch.float8_e5m2}),
    "nvfp4": ("TensorCoreNVFP4Layout", {}),
    "mxfp8": ("TensorCoreMXFP8Layout", {}),
}


def quantised(form: str, weight: Tensor, layer: str) -> tuple[dict[str, Tensor], Tensor]:
    """Return the tensors of a layer, and the values of its matrix in float32."""
    layout, options = FORMATS[form]
    tensor = QuantizedTensor.from_float(weight, layout, **options)
    parts = {
        f"{layer}.weight{key}": value
        for key, value in tensor.layout_cls.state_dict_tensors(tensor._qdata, tensor._params).items()
    }
    return parts, tensor.dequantize()


def main() -> None:
    """Write the files."""
    generator = torch.Generator().manual_seed(0)
    names = {"blocks.0.attn.qkv": "float8_e4m3fn", "blocks.0.mlp.fc": "float8_e5m2"}
    state, values = {"blocks.0.norm.weight": torch.randn(8, generator=generator)}, {}
    for layer, form in names.items():
        parts, values[f"{layer}.weight"] = quantised(form, torch.randn(24, 16, generator=generator), layer)
        state |= parts
    values["blocks.0.norm.weight"] = state["blocks.0.norm.weight"]
    marks = {layer: {"format": form, "full_precision_matrix_mult": True} for layer, form in names.items()}
    header = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": marks})}
    tensors = {f"{layer}.comfy_quant": bytes_of(json.dumps(mark)) for layer, mark in marks.items()}
    for name, more, metadata in (("comfyui", tensors, None), ("comfyui-header", {}, header)):
        (DATA / name).mkdir(exist_ok=True)
        save_file({**state, **more}, DATA / name / "model.safetensors", metadata=metadata)
        save_file(values, DATA / "expected" / f"{name}.safetensors")
    for form in ("nvfp4", "mxfp8"):
        (DATA / "refused").mkdir(exist_ok=True)
        parts, _ = quantised(form, torch.randn(128, 128, generator=generator), "q")
        marks = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": {"q": {"format": form}}})}
        save_file(parts, DATA / "refused" / f"comfyui-{form}.safetensors", metadata=marks)


def bytes_of(text: str) -> Tensor:
    """Return text as a tensor of bytes."""
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


if __name__ == "__main__":
    main()
