"""Descriptions of the quantisation in the configuration of a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weightspace.checkpoints.json_file import read_json_object, read_optional_json_object
from weightspace.checkpoints.quantisation import quantisation_settings
from weightspace.checkpoints.quantised.format import Settings

#: Files that describe the quantisation if ``config.json`` doesn't -> its method.
_FILES = {"hf_quant_config.json": "modelopt", "quantize_config.json": "gptq", "quant_config.json": "awq"}

#: Keys of the dtype that the network computes in; and its name in configurations -> its safetensors name.
_DTYPE_KEYS = ("dtype", "torch_dtype")
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def read_settings(folder: Path) -> Settings:
    """Return the description of a folder's quantisation; its method is empty if there is none.

    Raises:
        CheckpointError: a configuration is damaged.
    """
    for key, value in quantisation_settings(read_config(folder)):
        options = value if isinstance(value, Mapping) else {}
        method = options.get("quant_method")
        known = isinstance(method, str) and bool(method)
        return Settings(str(method) if known else "unnamed", options, f"{key} in config.json")
    for name, method in _FILES.items():
        if (folder / name).is_file():
            content = read_json_object(folder / name)
            inner = content.get("quantization")
            return Settings(method, inner if isinstance(inner, Mapping) else content, name)
    return Settings()


def computing_dtype(folder: Path) -> str | None:
    """Return the safetensors name of the dtype that a folder's network computes in, if its configuration names it."""
    config = read_config(folder)
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        for key in _DTYPE_KEYS:
            if part.get(key) in _DTYPES:
                return _DTYPES[part[key]]
    return None


def read_config(folder: Path) -> Mapping[str, Any]:
    """Return the configuration of a folder, empty if it has none.

    Raises:
        CheckpointError: it is damaged.
    """
    return read_optional_json_object(folder / "config.json")


def described_weights(settings: Settings) -> list[Mapping[str, Any]]:
    """Return the description of the weights in the groups of compressed-tensors."""
    groups = settings.options.get("config_groups")
    values = groups.values() if isinstance(groups, Mapping) else ()
    weights = [value.get("weights") for value in values if isinstance(value, Mapping)]
    return [weight for weight in weights if isinstance(weight, Mapping)]


def transforms(settings: Settings) -> str | None:
    """Return the setting of compressed-tensors that transforms weights besides quantising them, or None."""
    if settings.options.get("transform_config"):
        return "transform_config"
    sparsity = settings.options.get("sparsity_config")
    if isinstance(sparsity, Mapping) and sparsity.get("format") not in (None, "dense"):
        return f"sparsity_config of format {str(sparsity['format'])[:80]!r}"
    return None
