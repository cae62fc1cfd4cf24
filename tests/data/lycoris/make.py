"""Make the fixtures of this folder with LyCORIS 4.1.3 (``pip install lycoris-lora``): ``python make.py``.

The expected weights are what each module's forward pass computes for unit inputs, not what LyCORIS exports.
"""

from pathlib import Path

import torch
from lycoris.modules.full import FullModule
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from safetensors.torch import save_file
from torch import Tensor, nn

HERE = Path(__file__).parent

DORA = {"weight_decompose": True}
KINDS = {
    "locon": (LoConModule, {"lora_dim": 2, "alpha": 1}),
    "locon_tucker": (LoConModule, {"lora_dim": 2, "alpha": 3, "use_tucker": True}),
    "locon_rs": (LoConModule, {"lora_dim": 2, "alpha": 1, "rs_lora": True}),
    "loha": (LohaModule, {"lora_dim": 2, "alpha": 3}),
    "loha_tucker": (LohaModule, {"lora_dim": 2, "alpha": 1, "use_tucker": True}),
    "lokr": (LokrModule, {"lora_dim": 2, "alpha": 1, "factor": 2}),
    "lokr_both": (LokrModule, {"lora_dim": 1, "alpha": 3, "factor": 4, "decompose_both": True}),
    "lokr_tucker": (LokrModule, {"lora_dim": 1, "alpha": 2, "factor": 2, "use_tucker": True}),
    "lokr_full": (LokrModule, {"lora_dim": 1, "factor": 2, "full_matrix": True}),
    "full": (FullModule, {}),
    "dora": (LoConModule, {"lora_dim": 2, "alpha": 1, **DORA}),
    "dora_inputs": (LoConModule, {"lora_dim": 2, "alpha": 1, **DORA, "wd_on_out": False}),
    "loha_dora": (LohaModule, {"lora_dim": 2, "alpha": 1, **DORA}),
    "loha_dora_inputs": (LohaModule, {"lora_dim": 2, "alpha": 1, **DORA, "wd_on_out": False}),
    "lokr_dora": (LokrModule, {"lora_dim": 1, "alpha": 2, "factor": 2, **DORA}),
}


def layers() -> dict[str, nn.Module]:
    """Return a linear layer and a convolution, in float64."""
    return {"proj": nn.Linear(12, 8, bias=False).double(), "conv": nn.Conv2d(6, 8, 3, bias=False).double()}


def effective(module: nn.Module, layer: nn.Module) -> Tensor:
    """Return the weight by which a module multiplies its inputs."""
    shape = layer.weight.shape[1:]
    inputs = torch.eye(shape.numel(), dtype=torch.float64).view(-1, *shape)
    return module(inputs).reshape(shape.numel(), -1).T.reshape(layer.weight.shape)


def main() -> None:
    """Write the models, the adapter and the expected weights."""
    torch.manual_seed(0)
    model, adapter, expected = {}, {}, {}
    for kind, (module_class, options) in KINDS.items():
        for suffix, layer in layers().items():
            name = f"{kind.replace('_', '-')}.{suffix}"
            module = module_class(f"lora_unet_{name.replace('.', '_')}", layer, 1.0, **options).double().eval()
            before = layer.weight.detach().clone()
            for parameter in module.parameters():
                if parameter is not layer.weight:
                    parameter.data = parameter.data + 0.3 * torch.randn_like(parameter)
            if module_class is FullModule:
                module.weight.data = before + 0.3 * torch.randn_like(before)
                own = {"diff": module.weight.data - before}
                expected[f"{name}.weight"] = module.weight.data.clone()
            else:
                own = module.custom_state_dict()
                expected[f"{name}.weight"] = effective(module, layer).detach()
            model[f"{name}.weight"] = before
            adapter |= {f"{module.lora_name}.{key}": value.detach().clone().contiguous() for key, value in own.items()}
    for name, tensors in (("model", model), ("adapter", adapter), ("expected", expected)):
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, HERE / f"{name}.safetensors")


if __name__ == "__main__":
    main()
