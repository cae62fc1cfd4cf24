"""Names of the model that an adapter was trained on: whether it is the one that the adapter is added to.

Only last path components are compared, since models are moved and downloaded under other folders.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from weightspace.lora.config import CONFIG, Configuration

#: Suffixes of quantised or converted copies of a model, whose adapters belong to the model, too.
_COPY = re.compile(r"(-unsloth)?(-bnb)?-[48]-?bit|-(gptq|awq|gguf|fp16|bf16|hf)(-int[48])?$")

#: A folder of the Hub's cache: ``models--ORG--MODEL``.
_CACHED = re.compile(r"models--[^/]+--([^/]+)")

#: Entry of kohya's metadata with the architecture, and its values for Stable Diffusion.
VERSION_KEY = "ss_base_model_version"
_VERSION = re.compile(r"sd(?:(xl)|_?v?(\d))")

#: Characters that tell no models apart.
_FILLING = re.compile(r"[\s_.-]+")


def trained_on(configuration: Configuration) -> str | None:
    """Return the name or path of the model that an adapter was trained on, if its configuration has one."""
    name = configuration.fields.get("base_model_name_or_path")
    return name if isinstance(name, str) and model_name(name) else None


def other_base(configuration: Configuration, names: Collection[str], adapter: str, model: str) -> str | None:
    """Return a message if an adapter was trained on a model of another name, or None.

    Args:
        configuration: the adapter's.
        names: names and paths of the model that it is added to.
        adapter, model: what both are called in the message.
    """
    base = trained_on(configuration)
    known = {model_name(name) for name in names} - {""}
    if base is None or not known or model_name(base) in known:
        return None
    if any(os.path.realpath(base) == os.path.realpath(name) for name in names):
        return None
    return (
        f"The adapter {adapter} was trained on {base} (base_model_name_or_path in {CONFIG}), but is added to {model}. "
        "Is it the adapter of another model?"
    )


def model_name(path: str) -> str:
    """Return the last component of a path or Hub name in a form to compare; empty if there is none."""
    cached = _CACHED.search(path)
    name = cached[1] if cached is not None else Path(path.replace("\\", "/")).name
    name = "" if name in (".", "..") else name.partition("@")[0]
    return _FILLING.sub("-", _COPY.sub("", _FILLING.sub("-", name.lower())))


def base_version(metadata: Mapping[str, str]) -> str | None:
    """Return the architecture that a file of kohya's scripts was trained on, if its metadata has it.

    Programs write it differently: ``sdxl_v10`` and ``sdxl_`` are ``sdxl``, ``sd_v1`` and ``sd1.5`` are ``sd1``.

    Args:
        metadata: of the file.
    """
    written = metadata.get(VERSION_KEY, "").lower()
    known = _VERSION.match(written)
    if known is None:
        return written or None
    return "sdxl" if known[1] else f"sd{known[2]}"
