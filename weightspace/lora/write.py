"""Writing of an adapter folder in PEFT's format, atomically."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from weightspace.checkpoints import StateDict, save_checkpoint
from weightspace.checkpoints.atomic_write import one_line_errors, replacing_folder, synced_file
from weightspace.checkpoints.hf_folder import CARD
from weightspace.checkpoints.json_file import json_document
from weightspace.checkpoints.output_paths import check_made_here, check_name
from weightspace.errors import CheckpointError
from weightspace.lora.adapter import PREFIX, TORCH_WEIGHTS, WEIGHTS
from weightspace.lora.config import CONFIG

#: Files that a folder may contain to be replaced.
_KNOWN = (CONFIG, WEIGHTS, TORCH_WEIGHTS, CARD)


def lora_config(ranks: Mapping[str, int], *, common: int | None = None, **fields: Any) -> dict[str, Any]:
    """Return the configuration of a plain LoRA with all scales 1.

    Args:
        ranks: module -> rank of its factors.
        common: the default rank; if not given, the most frequent one.
        fields: other fields: ``base_model_name_or_path``, ``fan_in_fan_out``, …
    """
    common = common or Counter(sorted(ranks.values())).most_common(1)[0][0]
    others = {f"^{re.escape(module)}": rank for module, rank in ranks.items() if rank != common}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": list(ranks),
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "bias": "none",
        "inference_mode": True,
        **fields,
    }


def exact_targets(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration whose targets are exactly the modules of these names.

    PEFT matches a list by name suffixes (``output`` also means ``attention.output``), but a pattern against whole
    names.
    """
    return {**config, "target_modules": "|".join(map(re.escape, config["target_modules"]))}


def factor_names(module: str, *, embedding: bool) -> tuple[str, str]:
    """Return PEFT's names of ``A`` and ``B`` of a module."""
    if embedding:
        return f"{PREFIX}{module}.lora_embedding_A", f"{PREFIX}{module}.lora_embedding_B"
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def shaped(a: Tensor, b: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Reshape matrix factors to PEFT's shapes for a target ``(out, in, *kernel)``."""
    if len(shape) == 2:
        return a.contiguous(), b.contiguous()
    return a.reshape(len(a), *shape[1:]).contiguous(), b.reshape(*b.shape, *[1] * (len(shape) - 2)).contiguous()


def check_adapter_replaceable(folder: str | os.PathLike[str]) -> None:
    """Check that only an adapter is lost when the folder is replaced.

    Raises:
        CheckpointError: it is a file, or contains something else.
    """
    path = Path(folder)
    check_name(path, folder_only=True)
    with one_line_errors(path, "written"):
        if not path.exists():
            return
        if not path.is_dir():
            raise CheckpointError(f"{path} is a file; expected a folder or a free name to write the adapter to.")
        names = sorted(file.name for file in path.iterdir())
    other = next((name for name in names if name not in _KNOWN or not (path / name).is_file()), None)
    if names and (other is not None or CONFIG not in names):
        raise CheckpointError(
            f"{path} exists and contains {other or names[0]!r}, which isn't part of an adapter and would be lost. Use "
            "a new folder, or move it away."
        )


def check_adapter_output(folder: str | os.PathLike[str], *, force: bool = False) -> None:
    """Check that only an adapter that this library made is lost; with ``force``, any adapter may be.

    Raises:
        CheckpointError: it is a file, contains something else, or is an adapter that this library did not make.
    """
    check_adapter_replaceable(folder)
    path = Path(folder)
    if not force:
        check_made_here(path, path / (WEIGHTS if (path / WEIGHTS).exists() else TORCH_WEIGHTS))


def write_adapter(
    state: StateDict,
    config: Mapping[str, Any],
    folder: str | os.PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write an adapter atomically: ``folder`` has either the old adapter or the complete new one.

    Args:
        state: PEFT's name -> factor.
        config: contents of ``adapter_config.json``.
        folder: a new folder, or that of an adapter, which is replaced.
        metadata: strings to save with the tensors, usually ``provenance(…)``.

    Raises:
        CheckpointError: the folder isn't that of an adapter, or writing fails.
    """
    path = Path(folder)
    check_adapter_replaceable(path)
    with replacing_folder(path) as staging:
        save_checkpoint(state, staging / WEIGHTS, metadata=metadata)
        with synced_file(staging / CONFIG) as file:
            file.write(json_document(dict(config)).encode())
