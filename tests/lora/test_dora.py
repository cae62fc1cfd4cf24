"""DoRA of PEFT's folders, folded into models of linear layers, convolutions and embeddings, against PEFT's own fold."""

import json
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn

import weightspace as ws
from weightspace.errors import CheckpointError
from weightspace.lora.adapted import Decomposed
from weightspace.merging import ExecutionOptions, merge_adapters, merge_files
from weightspace.merging.methods._tensor_stack import InMemory

Normal = Callable[..., Tensor]


class Net(nn.Module):
    """A layer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.c, self.e = nn.Linear(5, 3), nn.Conv2d(4, 6, 3), nn.Embedding(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.q(x)


@pytest.mark.parametrize("rslora", [False, True])
def test_dora_is_what_peft_folds_it_to(rslora: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Net()
    ws.save_checkpoint(net.state_dict(), tmp_path / "m.safetensors")
    targets = ["q", "c", "e"]
    model = peft.get_peft_model(
        net, peft.LoraConfig(r=2, lora_alpha=3, use_dora=True, use_rslora=rslora, target_modules=targets)
    )
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "a")
    with torch.no_grad():
        expected = model.merge_and_unload().state_dict()
    source = f"{tmp_path}/m.safetensors+{tmp_path}/a"
    merge_files([source], tmp_path / "out.safetensors", method="passthrough", execution=ExecutionOptions(fsync=False))
    found = ws.load_checkpoint(tmp_path / "out.safetensors")
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-5, atol=1e-6, msg=name)
    with pytest.raises(CheckpointError, match="DoRA's magnitudes"):
        merge_adapters([tmp_path / "a"], tmp_path / "merged")


def test_magnitudes_of_layers_stored_as_in_out_belong_to_the_outputs(normal: Normal, tmp_path: Path) -> None:
    """The configuration of GPT-2 decides how its weights are stored, whatever the adapter's says."""
    state = {"h.0.attn.c_attn.weight": normal(4, 6)}
    ws.save_checkpoint(state, tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    a, b, magnitude = normal(2, 4), normal(6, 2), normal(6).abs()
    module = "base_model.model.h.0.attn.c_attn"
    (tmp_path / "a").mkdir()
    tensors = {"lora_A.weight": a, "lora_B.weight": b, "lora_magnitude_vector": magnitude}
    tensors = {f"{module}.{name}": tensor for name, tensor in tensors.items()}
    ws.save_checkpoint(tensors, tmp_path / "a" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "use_dora": True}
    changed = state["h.0.attn.c_attn.weight"] + (b @ a).T
    for turned in (False, True):
        (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({**config, "fan_in_fan_out": turned}))
        merge_files([f"{tmp_path}/m+{tmp_path}/a"], tmp_path / "out", method="passthrough")
        found = ws.load_checkpoint(tmp_path / "out")["h.0.attn.c_attn.weight"]
        torch.testing.assert_close(found, magnitude * changed / changed.norm(dim=0))


@pytest.mark.parametrize("axis", [0, 1])
def test_the_norms_along_the_axis_are_the_magnitudes(axis: int, normal: Normal) -> None:
    weight, magnitude = normal(6, 5, 3), normal((6, 5)[axis]).abs()
    found = Decomposed(InMemory(weight), magnitude, axis).read(0, 90).view(6, 5, 3)
    torch.testing.assert_close(found.transpose(0, axis).flatten(1).norm(dim=1), magnitude)


def test_a_row_of_zeros_stays_zero() -> None:
    found = Decomposed(InMemory(torch.tensor([[0.0, 0.0], [3.0, 4.0]])), torch.tensor([2.0, 10.0]), 0).read(0, 4)
    assert found.tolist() == [0, 0, 6, 8]


def test_dora_of_fused_experts_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    prefix = "base_model.model.m.experts"
    state = {f"{prefix}.lora_A.weight": torch.ones(4, 3), f"{prefix}.lora_B.weight": torch.ones(5, 4)}
    ws.save_checkpoint(state, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "use_dora": True, "target_parameters": ["m.experts.down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="DoRA of the parameter"):
        merge_adapters([folder], tmp_path / "out")
