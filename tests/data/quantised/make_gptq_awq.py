"""Write matrices that are packed by gptqmodel (GPTQ) and autoawq (AWQ), and their values as the libraries compute them.

    pip download --no-deps --no-binary :all: gptqmodel autoawq; tar xf …
    python make_gptq_awq.py gptqmodel-7.7.0 autoawq-0.2.9

The functions that pack and unpack are taken from the sources, since the libraries themselves are built with CUDA.
"""

import ast
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

DATA = Path(__file__).parent
OUTPUTS, INPUTS, GROUP = 32, 64, 16


def functions(path: Path, names: tuple[str, ...], **known: object) -> types.SimpleNamespace:
    """Return functions of a source file by name, without importing it; methods of any class among them.

    Args:
        path: the file.
        names: of the functions, and of constants that they need.
        known: names that they use.
    """
    wanted = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name in names:
            node.returns = None
            for argument in (*node.args.args, *node.args.kwonlyargs):
                argument.annotation = None
            wanted.append(node)
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) in names:
            wanted.append(node)
    module = ast.Module(wanted, type_ignores=[])
    space = dict(known)
    exec(compile(module, str(path), "exec"), space)
    return types.SimpleNamespace(**{name: space[name] for name in names})


class Layer(nn.Module):
    """What gptqmodel's functions read of a quantised layer."""

    planar, pack_dtype, pack_dtype_bits, REQUIRES_FORMAT_V2 = False, torch.int32, 32, True
    pack_np_math_dtype, pack_np_dtype, dequant_dtype, enable_wf_unsqueeze = np.uint32, np.int32, torch.int16, True

    def __init__(self, bits: int, library: types.SimpleNamespace) -> None:
        super().__init__()
        self.bits, self.pack_factor, self.maxq, self.in_features = bits, 32 // bits, 2**bits - 1, INPUTS
        self._init_wf_unsqueeze_buffers = lambda: library._init_wf_unsqueeze_buffers(self)
        self._wf_device = lambda: torch.device("cpu")
        self._dequantize_from_codes = lambda *args, **options: library._dequantize_from_codes(self, *args, **options)

    def qzero_format(self, format: int) -> None:
        """Note the format."""


def quantised(bits: int, group_of: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a random matrix, and scales and zero points of its groups, of shape ``(outputs, groups)``."""
    weight = torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(seed))
    weight[:, group_of == 1] = weight[:, group_of == 1].abs()  # whose zero points are 0
    grouped = torch.stack([weight[:, group_of == group] for group in range(INPUTS // GROUP)], dim=1)
    low, high = grouped.amin(2).clamp(max=0), grouped.amax(2).clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).half().float()
    return weight, scale, (-low / scale).round().clamp(0, 2**bits - 1)


def write(name: str, settings: dict, state: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Write a folder, and the values that are expected of it."""
    (DATA / name).mkdir(exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, DATA / name / "model.safetensors")
    save_file({key: tensor.contiguous() for key, tensor in values.items()}, DATA / "expected" / f"{name}.safetensors")
    (DATA / name / "config.json").write_text(json.dumps({"quantization_config": settings}, indent=1) + "\n")


def write_gptq(source: Path) -> None:
    """Write matrices of 4 and 8 bits, in order and in that of activations, in both formats of GPTQ."""
    linear, model = source / "gptqmodel/nn_modules/qlinear/__init__.py", source / "gptqmodel/utils/model.py"
    log = types.SimpleNamespace(debug=print, warning=print, info=types.SimpleNamespace(once=print))
    shared = {"t": torch, "torch": torch, "np": np, "nn": nn, "transformers": transformers, "_ConvNd": _ConvNd}
    shared |= {"os": types.SimpleNamespace(getenv=lambda name: None), "env_flag": lambda name: True, "log": log}
    names = ("pack_block", "dequantize_weight", "_dequantize_from_codes", "_init_wf_unsqueeze_buffers")
    library = functions(linear, (*names, "_torch_right_shift"), **shared)
    convert = functions(model, ("convert_gptq_v2_to_v1_format_module",), BaseQuantLinear=Layer, **shared)
    for bits in (4, 8):
        for form in ("gptq", "gptq_v2"):
            state, values = {}, {}
            for seed, module in enumerate(("q", "k")):
                group_of = torch.arange(INPUTS) // GROUP
                if module == "k":
                    group_of = group_of[torch.randperm(INPUTS, generator=torch.Generator().manual_seed(seed))]
                weight, scale, zeros = quantised(bits, group_of, seed)
                layer, dense = Layer(bits, library), nn.Linear(INPUTS, OUTPUTS, bias=False)
                dense.weight.data = weight
                library.pack_block(layer, dense, scale, zeros, group_of.int())
                layer.scales = layer.scales.float()
                values[f"{module}.weight"] = library.dequantize_weight(layer).T
                if form == "gptq":
                    convert.convert_gptq_v2_to_v1_format_module(
                        layer, types.SimpleNamespace(bits=bits, pack_dtype=torch.int32)
                    )
                parts = {"qweight": layer.qweight, "qzeros": layer.qzeros, "g_idx": layer.g_idx}
                parts["scales"] = layer.scales.half()
                state |= {f"{module}.{part}": tensor for part, tensor in parts.items()}
            settings = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": True, "sym": False}
            settings |= {"checkpoint_format": form, "meta": {"quantizer": ["gptqmodel:7.7.0"]}}
            write(f"gptq-{bits}-bits{form.removeprefix('gptq').replace('_', '-')}", settings, state, values)


def write_awq(source: Path) -> None:
    """Write a matrix of 4 bits in the GEMM layout of AWQ."""
    known = {"torch": torch, "get_best_device": lambda: "cpu"}
    gemm = functions(
        source / "awq/modules/linear/gemm.py", ("from_linear",), classmethod=lambda method: method, **known
    )
    packing = source / "awq/utils/packing_utils.py"
    names = ("AWQ_ORDER", "AWQ_REVERSE_ORDER", "unpack_awq", "reverse_awq_order", "dequantize_gemm")
    library = functions(packing, names, **known)

    def empty(w_bit: int, group: int, inputs: int, outputs: int, bias: bool, device: torch.device) -> object:
        return types.SimpleNamespace(w_bit=w_bit, in_features=inputs, bias=None)

    weight, scale, zeros = quantised(4, torch.arange(INPUTS) // GROUP, 2)
    dense = nn.Linear(INPUTS, OUTPUTS, bias=False)
    dense.weight.data = weight
    layer = gemm.from_linear(empty, dense, 4, GROUP, scales=scale.T, zeros=zeros.T)
    parts = {"qweight": layer.qweight, "qzeros": layer.qzeros, "scales": layer.scales}
    values = library.dequantize_gemm(layer.qweight, layer.qzeros, layer.scales.float(), 4, GROUP).T
    settings = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    write("awq", settings, {f"q.{name}": tensor for name, tensor in parts.items()}, {"q.weight": values})


if __name__ == "__main__":
    write_gptq(Path(sys.argv[1]))
    write_awq(Path(sys.argv[2]))
