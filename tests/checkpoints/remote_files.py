"""Checkpoints in a file system of fsspec, and the bytes that are read of it."""

import io
from collections.abc import Callable
from pathlib import Path

import torch
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

import weightspace as ws
from weightspace.checkpoints import StateDict

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


class Traffic:
    """What is read of ``memory://``, and when that fails."""

    def __init__(self) -> None:
        self.read = 0
        self.fails_after: int | None = None
        self.error: Exception = ConnectionError("the line is cut")
        self.meanwhile: Callable[[], object] = lambda: None

    def reader(self, file: MemoryFile, size: int = -1) -> bytes:
        if self.fails_after is not None and self.read + size > self.fails_after:
            raise self.error
        self.meanwhile()
        piece = io.BytesIO.read(file, size)
        self.read += len(piece)
        return piece


def state(seed: int = 0) -> StateDict:
    generator = torch.Generator().manual_seed(seed)
    return {f"layers.{layer}.weight": torch.randn(100, 100, generator=generator) for layer in range(4)}


def equal(a: StateDict, b: StateDict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def stored(path: Path) -> int:
    return path.stat().st_blocks * 512


def single(system: MemoryFileSystem, tmp_path: Path, name: str = "a.safetensors") -> str:
    ws.save_checkpoint(state(), tmp_path / name)
    system.put_file(str(tmp_path / name), f"/{name}")
    return f"memory://{name}"


def weights(path: Path) -> list[Path]:
    return sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
