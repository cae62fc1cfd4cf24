"""Models of a few layers, and recipes of slices of them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

import weightspace as ws
from weightspace.checkpoints import StateDict
from weightspace.merging import ExecutionOptions, merge_files


class Workshop:
    """Writes models and recipes of slices, and merges them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def model(self, name: str, state: StateDict, config: Mapping[str, Any] | None = None) -> None:
        """Save a model: a folder where it has a configuration, else a file."""
        ws.save_checkpoint(state, self.folder / (name if config is not None else f"{name}.safetensors"))
        if config is not None:
            (self.folder / name / "config.json").write_text(json.dumps(config))

    def path(self, name: str) -> str:
        return str(self.folder / name if (self.folder / name).is_dir() else self.folder / f"{name}.safetensors")

    def merge(self, *slices: tuple, out: str = "out.safetensors", **recipe: Any) -> StateDict:
        """Merge slices, each a model (or some) with a first layer and an end, and keys beside the range."""
        base = recipe.pop("base", None)
        options = recipe.pop("options", {})
        content = {
            "merge_method": "passthrough",
            "slices": [{"sources": self._sources(*one)} for one in slices],
            **recipe,
        }
        content |= {"base_model": self.path(base)} if base else {}
        (self.folder / "recipe.yml").write_text(yaml.safe_dump(content))
        self.report = merge_files(
            self.folder / "recipe.yml", self.folder / out, execution=ExecutionOptions(fsync=False), **options
        )
        return ws.load_checkpoint(self.folder / out)

    def _sources(self, models: str, first: int, end: int, *keys: Mapping[str, Any]) -> list[dict[str, Any]]:
        more = [dict(key) for key in keys] or [{}] * len(models)
        return [
            {"model": self.path(model), "layer_range": [first, end], **more[index % len(more)]}
            for index, model in enumerate(models)
        ]

    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "out" / "config.json").read_text())


def stack(path: str, layers: int, value: float, *parts: str, width: int = 2) -> StateDict:
    """Return layers whose elements are their value and their number."""
    names = parts or ("attn.weight", "mlp.weight")
    return {f"{path}.{i}.{part}": torch.full((width, width), value + i) for i in range(layers) for part in names}


def full(value: float, *names: str, width: int = 2) -> StateDict:
    return {name: torch.full((3, width), value) for name in names}


def first(state: StateDict, name: str) -> float:
    return float(state[name].flatten()[0])


def order(state: StateDict, path: str, part: str = "mlp.weight") -> list[float]:
    """Return the first elements of a stack's layers."""
    found = []
    while f"{path}.{len(found)}.{part}" in state:
        found.append(first(state, f"{path}.{len(found)}.{part}"))
    return found


def llama(value: float, layers: int = 3, width: int = 2) -> StateDict:
    outside = full(value, "model.embed_tokens.weight", "lm_head.weight", width=width)
    return {
        **outside,
        **stack("model.layers", layers, value, width=width),
        "model.norm.weight": torch.full((width,), value),
    }
