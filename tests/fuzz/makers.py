"""Makers of valid files of each kind in an empty folder; each returns the file to damage."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import documents
from readers import inside

import weightspace as ws
from weightspace.checkpoints.fetching import local_path
from weightspace.merging import ExecutionOptions, merge_files


def beside(name: str, make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """Return what makes one file in a folder."""
    return lambda folder: make(folder / name)


def of_model(name: str) -> Callable[[Path], Path]:
    """Return what makes models ``a`` and ``b``, of which a file of ``a`` is damaged."""

    def make(folder: Path) -> Path:
        for seed, model in enumerate(("a", "b")):
            documents.model_folder(folder / model, seed)
        return folder / "a" / name

    return make


def of_models(name: str, content: bytes) -> Callable[[Path], Path]:
    """Return what makes models that have a further file, that of one of which is damaged."""

    def make(folder: Path) -> Path:
        for seed, model in enumerate(("a", "b")):
            (documents.model_folder(folder / model, seed) / name).write_bytes(content)
        return folder / "a" / name

    return make


def recipe_of(content: dict[str, Any]) -> Callable[[Path], Path]:
    """Return what makes a recipe and its models."""

    def make(folder: Path) -> Path:
        for seed, model in enumerate(("a", "b", "base")):
            documents.model_folder(folder / model, seed)
        (folder / "recipe.yml").write_text(documents.recipe_text(content))
        return folder / "recipe.yml"

    return make


def index_file(folder: Path) -> Path:
    """Make two models, one in shards, of which the index is damaged."""
    documents.model_folder(folder / "b", 1)
    return documents.sharded_folder(folder / "a") / "model.safetensors.index.json"


def adapter_file(name: str) -> Callable[[Path], Path]:
    """Return what makes models and an adapter, of which a file is damaged."""

    def make(folder: Path) -> Path:
        for seed, model in enumerate(("a", "b")):
            documents.model_folder(folder / model, seed)
        weights = "adapter_model.bin" if name.endswith(".bin") else "adapter_model.safetensors"
        return documents.adapter_folder(folder / "adapter", weights) / name

    return make


def merged_file(folder: Path) -> Path:
    """Make a merge that can be made again."""
    for seed, model in enumerate(("a", "b")):
        ws.save_checkpoint(documents.language_model(seed), folder / f"{model}.safetensors")
    with inside(folder):
        merge_files(
            ["a.safetensors", "b.safetensors"],
            "c.safetensors",
            execution=ExecutionOptions(executor="threads", threads=1, fsync=False),
        )
    return folder / "c.safetensors"


def text_file(name: str, text: str) -> Callable[[Path], Path]:
    """Return what makes a file of text."""

    def make(folder: Path) -> Path:
        (folder / name).write_text(text)
        return folder / name

    return make


def mirror_record(folder: Path) -> Path:
    """Make a mirror of which the header is there."""
    from fsspec.implementations.memory import MemoryFileSystem

    documents.checkpoint(folder / "x.safetensors")
    system = MemoryFileSystem()
    system.put_file(str(folder / "x.safetensors"), "/x.safetensors")
    system.store["/x.safetensors"].created = datetime(2026, 1, 1, tzinfo=timezone.utc)  # the same in every run
    os.environ["WEIGHTSPACE_CACHE"] = str(folder / "cache")
    try:
        path = local_path("memory://x.safetensors")
    finally:
        del os.environ["WEIGHTSPACE_CACHE"]
    return path.parents[1] / "weightspace-mirror.json"


def evidence_file(folder: Path) -> Path:
    """Make two models, and the evidence of both, of which one is damaged."""
    for seed, model in enumerate(("a", "b")):
        state = documents.language_model(seed)
        ws.save_checkpoint(state, folder / f"{model}.safetensors")
        ws.save_checkpoint(
            {name: tensor.square() for name, tensor in state.items()}, folder / f"of-{model}.safetensors"
        )
    return folder / "of-a.safetensors"


def wordnet_file(folder: Path) -> Path:
    """Make a database of two synsets."""
    (folder / "index.noun").write_text("  1 licence\ndog n 1 1 @ 1 0 00000200\nentity n 1 0 1 0 00000100\n")
    (folder / "data.noun").write_text(
        "  1 licence\n00000100 03 n 01 entity 0 000 | all there is\n"
        "00000200 05 n 01 dog 0 001 @ 00000100 n 0000 | barks\n"
    )
    return folder / "data.noun"
