"""NF4, FP4 and LLM.int8 are read as bitsandbytes reads them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import weightspace as ws
from weightspace.checkpoints import load_dequantised
from weightspace.errors import CheckpointError


def four_bit(shape: tuple[int, int] = (13, 48), *, nested: bool = False, kind: str = "nf4") -> dict[str, Tensor]:
    """Return a matrix as the library saves it, of random numbers."""
    generator = torch.Generator().manual_seed(0)
    count, blocks = shape[0] * shape[1], -(-shape[0] * shape[1] // 64)
    described: dict[str, Any] = {"quant_type": kind, "blocksize": 64, "dtype": "bfloat16", "shape": list(shape)}
    state = {
        "q.weight": torch.randint(256, (count // 2, 1), generator=generator, dtype=torch.uint8),
        "q.weight.absmax": torch.rand(blocks, generator=generator),
        "q.weight.quant_map": torch.randn(16, generator=generator),
    }
    if nested:
        described |= {"nested_blocksize": 4, "nested_dtype": "float32", "nested_offset": 0.0371}
        state["q.weight.absmax"] = torch.randint(256, (blocks,), generator=generator, dtype=torch.uint8)
        state["q.weight.nested_absmax"] = torch.rand(-(-blocks // 4), generator=generator)
        state["q.weight.nested_quant_map"] = torch.randn(256, generator=generator)
    text = torch.tensor(list(json.dumps(described).encode()), dtype=torch.uint8)
    return {**state, f"q.weight.quant_state.bitsandbytes__{kind}": text}


def one_by_one(state: dict[str, Tensor], shape: tuple[int, int]) -> Tensor:
    """Return the matrix element by element: the upper half of a byte is the first of its two numbers."""
    part = {name.removeprefix("q.weight."): tensor for name, tensor in state.items()}
    packed, found = state["q.weight"].flatten().tolist(), torch.empty(shape[0] * shape[1])
    for index in range(len(found)):
        byte, block = packed[index // 2], index // 64
        scale = part["absmax"][block]
        if "nested_absmax" in part:
            scale = part["nested_quant_map"][int(scale)] * part["nested_absmax"][block // 4] + 0.0371
        found[index] = part["quant_map"][byte // 16 if index % 2 == 0 else byte % 16] * scale
    return found.view(shape)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits(kind: str, nested: bool, tmp_path: Path) -> None:
    state = four_bit(nested=nested, kind=kind)
    ws.save_checkpoint(state, tmp_path / "a.safetensors")
    found = load_dequantised(tmp_path / "a.safetensors")
    assert found.keys() == {"q.weight"}
    assert torch.equal(found["q.weight"], one_by_one(state, (13, 48)))


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_bitsandbytes_reads_what_it_writes_alike(kind: str, nested: bool, tmp_path: Path) -> None:
    library = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(96, 320, generator=torch.Generator().manual_seed(0))
    packed, described = library.quantize_4bit(weight, quant_type=kind, compress_statistics=nested)
    parts = {f"q.weight.{name}": tensor for name, tensor in described.as_dict(packed=True).items()}
    ws.save_checkpoint({"q.weight": packed, **parts}, tmp_path / "a.safetensors")
    expected = library.dequantize_4bit(packed, described)
    assert expected.dtype == torch.float32
    assert torch.allclose(load_dequantised(tmp_path / "a.safetensors")["q.weight"], expected, rtol=1e-6, atol=1e-7)


def test_eight_bits(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(-127, 128, (6, 20), generator=generator, dtype=torch.int8)
    scales = torch.rand(6, generator=generator)
    mark = torch.tensor(0, dtype=torch.uint8)
    ws.save_checkpoint({"q.weight": numbers, "q.SCB": scales, "q.weight_format": mark}, tmp_path / "a.safetensors")
    found = load_dequantised(tmp_path / "a.safetensors")
    assert found.keys() == {"q.weight"}
    assert torch.equal(found["q.weight"], numbers.float() * scales[:, None] * 7.874015718698502e-3)
    library = pytest.importorskip("bitsandbytes.functional")
    assert torch.equal(found["q.weight"], library.int8_vectorwise_dequant(numbers, scales))
    ws.save_checkpoint({"q.weight": numbers, "q.SCB": scales, "q.weight_format": mark + 2}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="bitsandbytes 8-bit"):
        load_dequantised(tmp_path / "a.safetensors")


@pytest.mark.parametrize("damage", ["table", "scales", "description", "further"])
def test_damaged_matrices_are_refused(damage: str, tmp_path: Path) -> None:
    state = four_bit()
    if damage == "table":
        state["q.weight.quant_map"] = torch.ones(8)
    elif damage == "scales":
        state["q.weight.absmax"] = torch.ones(3)
    elif damage == "description":
        state["q.weight.quant_state.bitsandbytes__nf4"] = torch.zeros(9, dtype=torch.uint8)
    else:
        state["q.weight.shift"] = torch.ones(3)
    ws.save_checkpoint(state, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="bitsandbytes 4-bit"):
        load_dequantised(tmp_path / "a.safetensors")
