"""Write integers of compressed-tensors with an order of columns, and their values as the library computes them.

    python make_compressed_tensors.py

Needs a version of compressed-tensors that still knows ``actorder: group``; 0.13.0 made the committed files.
"""

import json
from pathlib import Path

import torch
from compressed_tensors.compressors.quantized_compressors import IntQuantizationCompressor, PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs
from safetensors.torch import save_file

DATA, NAME = Path(__file__).parent, "compressed-tensors-order"
ROWS, COLUMNS, GROUP = 12, 64, 16

#: Module -> bits, whether it is symmetric, and its compressor.
MODULES = {
    "q": (4, True, PackedQuantizationCompressor),
    "k": (4, False, PackedQuantizationCompressor),
    "v": (8, False, PackedQuantizationCompressor),
    "o": (8, False, IntQuantizationCompressor),
}


def main() -> None:
    """Write the files."""
    generator = torch.Generator().manual_seed(0)
    state, values, groups = {}, {}, {}
    for index, (module, (bits, symmetric, kind)) in enumerate(MODULES.items()):
        described = {"num_bits": bits, "symmetric": symmetric, "strategy": "group", "group_size": GROUP}
        args = QuantizationArgs.model_validate({**described, "actorder": "group"})
        weight = torch.randn(ROWS, COLUMNS, generator=generator)
        order = (torch.arange(COLUMNS) // GROUP)[torch.randperm(COLUMNS, generator=generator)].int()
        scale = torch.rand(ROWS, COLUMNS // GROUP, generator=generator) / 2 ** (bits - 3) + 0.01
        zeros = torch.randint(-3, 4, scale.shape, generator=generator).to(torch.int8)
        own = {"weight_scale": scale, "weight_g_idx": order}
        if not symmetric:
            own["weight_zero_point"] = zeros
        compressor = kind()
        arguments = {"scale": scale, "g_idx": order, "zero_point": own.get("weight_zero_point")}
        own |= compressor.compress_weight(weight, quantization_args=args, **arguments)
        values[f"{module}.weight"] = compressor.decompress_weight(own, quantization_args=args)
        state |= {f"{module}.{name}": tensor.contiguous() for name, tensor in own.items()}
        groups[f"group_{index}"] = {"targets": [module], "weights": json.loads(args.model_dump_json())}
    (DATA / NAME).mkdir(exist_ok=True)
    save_file(state, DATA / NAME / "model.safetensors")
    save_file(values, DATA / "expected" / f"{NAME}.safetensors")
    settings = {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": groups}
    (DATA / NAME / "config.json").write_text(json.dumps({"quantization_config": settings}, indent=1) + "\n")


if __name__ == "__main__":
    main()
