"""Adapters written by hand, without PEFT: names, factors and configuration as a test wants them.

The tests import their neighbour `families` by name.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import weightspace as ws

sys.path.insert(0, str(Path(__file__).parent))

Write = Callable[..., Path]

#: What PEFT writes of a plain LoRA.
PLAIN: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "target_modules": ["q"]}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return ``write(name, tensors, **fields)``: an adapter's folder; None leaves a file out."""

    def build(name: str, tensors: dict[str, Tensor] | None, **fields: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        if tensors is not None and not tensors:
            (folder / "adapter_model.safetensors").write_bytes(b"\x08" + 7 * b"\0" + b"{}      ")
        elif tensors is not None:
            state = {f"base_model.model.{key}": tensor.contiguous() for key, tensor in tensors.items()}
            ws.save_checkpoint(state, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps({**PLAIN, **fields}))
        return folder

    return build


@pytest.fixture
def normal() -> Callable[..., Tensor]:
    """Return ``normal(*shape)``: standard normal numbers, other ones with every call."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return draw
