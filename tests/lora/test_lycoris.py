"""LoCon, LoHa, LoKr, full differences and DoRA against the weights that LyCORIS's own modules compute."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import weightspace as ws
from weightspace.errors import CheckpointError
from weightspace.lora import read_adapter
from weightspace.merging import ExecutionOptions, merge_adapters, merge_files

DATA = Path(__file__).parents[1] / "data" / "lycoris"
ADAPTER = DATA / "adapter.safetensors"

#: Kinds that the sum of an adapter's factors can express.
LINEAR = ("locon", "locon-tucker", "locon-rs", "loha", "loha-tucker", "lokr", "lokr-both", "lokr-tucker", "lokr-full")


def applied(model: Path, adapter: Path, out: Path) -> dict[str, Tensor]:
    merge_files([f"{model}+{adapter}"], out, method="passthrough", execution=ExecutionOptions(fsync=False))
    return ws.load_checkpoint(out)


def part(names: tuple[str, ...], tmp_path: Path) -> Path:
    """Write the part of the adapter that belongs to kinds."""
    prefixes = tuple(f"lora_unet_{name}_" for name in names)
    state = {key: tensor for key, tensor in ws.load_checkpoint(ADAPTER).items() if key.startswith(prefixes)}
    ws.save_checkpoint(state, tmp_path / "part.safetensors")
    return tmp_path / "part.safetensors"


def test_each_kind_gives_the_weight_of_lycoris(tmp_path: Path) -> None:
    found = applied(DATA / "model.safetensors", ADAPTER, tmp_path / "out.safetensors")
    expected = ws.load_checkpoint(DATA / "expected.safetensors")
    assert len(expected) == 30
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-8, msg=name)  # alphas are float32


@pytest.mark.parametrize("count", [1, 7, 40])
def test_an_element_has_the_same_bits_in_every_range(count: int) -> None:
    from weightspace.checkpoints.reader import CheckpointReader
    from weightspace.lora.adapted import adapted
    from weightspace.merging.methods._tensor_stack import InMemory

    adapter, model = read_adapter(ADAPTER), ws.load_checkpoint(DATA / "model.safetensors")
    state = CheckpointReader(adapter.contents)
    for target, factors in adapter.factors.items():
        weight = model[target.removeprefix("lora_unet_").replace("_", ".", 1)]
        reader = adapted(InMemory(weight), factors, {role: state[name] for role, name in factors.names.items()})
        size = weight.numel()
        whole = reader.read(0, size)
        parts = [reader.read(start, min(start + count, size)) for start in range(0, size, count)]
        assert torch.equal(torch.cat(parts), whole), target


@pytest.mark.parametrize("kind", LINEAR)
def test_merging_one_adapter_keeps_its_change(kind: str, tmp_path: Path) -> None:
    single = part((kind,), tmp_path)
    if kind in ("loha", "lokr-both"):  # flattened kernels: only the linear layer can be written as factors
        with pytest.raises(CheckpointError, match=r"the convolution .* whose kernel is unknown"):
            merge_adapters([single], tmp_path / "x.safetensors", method="linear")
        state = ws.load_checkpoint(single)
        ws.save_checkpoint({key: tensor for key, tensor in state.items() if "_proj." in key}, single)
    merge_adapters([single], tmp_path / "m.safetensors", method="linear")
    found = applied(DATA / "model.safetensors", tmp_path / "m.safetensors", tmp_path / "a.safetensors")
    expected = applied(DATA / "model.safetensors", single, tmp_path / "b.safetensors")
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-6, msg=name)


def test_what_depends_on_the_model_is_not_merged(tmp_path: Path) -> None:
    for kind, expected in (("dora", "DoRA's magnitudes"), ("full", "full difference")):
        with pytest.raises(CheckpointError, match=expected):
            merge_adapters([part((kind,), tmp_path)], tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_product_that_is_too_large_for_memory_is_refused(tmp_path: Path) -> None:
    small = {"lora_unet_x.lokr_w1": torch.ones(1000, 1000), "lora_unet_x.lokr_w2": torch.ones(1000, 1000)}
    ws.save_checkpoint(small, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="too large to be factored"):
        merge_adapters([tmp_path / "a.safetensors"], tmp_path / "out.safetensors")


def test_norms_and_biases_are_differences(tmp_path: Path) -> None:
    model = {"n.weight": torch.ones(4), "n.bias": torch.zeros(4), "q.bias": torch.ones(3), "q.weight": torch.ones(3, 2)}
    change = {
        "lora_unet_n.w_norm": torch.arange(4.0),
        "lora_unet_n.b_norm": torch.full((4,), 2.0),
        "lora_unet_q.diff_b": torch.full((3,), -1.0),
    }
    ws.save_checkpoint(model, tmp_path / "m.safetensors")
    ws.save_checkpoint(change, tmp_path / "a.safetensors")
    found = applied(tmp_path / "m.safetensors", tmp_path / "a.safetensors", tmp_path / "out.safetensors")
    assert found["n.weight"].tolist() == [1, 2, 3, 4]
    assert found["n.bias"].tolist() == [2, 2, 2, 2]
    assert found["q.bias"].tolist() == [0, 0, 0]
    assert torch.equal(found["q.weight"], model["q.weight"])
