"""What stands beside the weights in a folder: the index, the configuration, the tokenizer, a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weightspace.adapters.tied_weights import untied
from weightspace.checkpoints.disk import one_line_errors, synced_file
from weightspace.checkpoints.folder import CARD, copy_companions
from weightspace.errors import CheckpointError
from weightspace.merging.engine.plan import Plan

#: The safetensors name of a dtype -> how configurations call it.
_CONFIG_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}

#: Keys under which configurations keep their number of layers.
_LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


def finish_folder(plan: Plan, parts: Path, metadata: Mapping[str, str]) -> None:
    """Write everything but the weights of a folder.

    Args:
        plan: the merge.
        parts: the folder that holds the finished weights.
        metadata: where they come from.

    Raises:
        CheckpointError: a configuration is damaged, or the disk refuses.
    """
    if plan.donor is not None:
        copy_companions(plan.donor, parts)
    if plan.tokenizer is not None and plan.tokenizer != plan.donor:
        copy_companions(plan.tokenizer, parts, tokenizer_only=True)
    _adapt_config(plan, parts / "config.json")
    if len(plan.shards) > 1:
        _write(parts / "model.safetensors.index.json", _json(_index(plan, metadata)))
    _write(parts / CARD, _card(plan, metadata))


def _index(plan: Plan, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the index of the shards."""
    places = {job.name: plan.shards[job.shard].name for job in plan.jobs}
    places |= {alias: places[owner] for alias, owner in plan.tied.items()}
    total = sum(job.info.nbytes for job in plan.jobs)
    return {"metadata": {"total_size": total, **metadata}, "weight_map": places}


def _adapt_config(plan: Plan, path: Path) -> None:
    """Make the configuration agree with the weights: their dtype, the layers of slices, a head of its own."""
    if not path.is_file():
        return
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{plan.donor}/config.json is not valid JSON ({error}).") from error
    before = dict(config)
    largest = max((job for job in plan.jobs if job.info.is_inexact), key=lambda job: job.info.nbytes, default=None)
    for key in ("torch_dtype", "dtype"):
        if key in config and largest is not None and largest.info.dtype in _CONFIG_DTYPES:
            config[key] = _CONFIG_DTYPES[largest.info.dtype]
    for key in _LAYER_KEYS:
        if key in config and plan.layers is not None:
            config[key] = plan.layers
    if plan.untied and isinstance(config, dict):
        config = untied(config)
    if config != before:
        path.unlink()
        _write(path, _json(config))


def _card(plan: Plan, metadata: Mapping[str, str]) -> str:
    """Return the model card."""
    row = plan.method
    inputs = json.loads(metadata["inputs"])
    lines = [
        "---",
        "library_name: transformers",
        "tags:",
        "- merge",
        "- weightspace",
        "---",
        "",
        f"# {plan.title}",
        "",
        f"Merged by {metadata['version']} with the method `{row.name}`"
        + (f" ({row.formula}; {row.source})." if row.formula else "."),
        "",
        "## Recipe",
        "",
        "```yaml",
        metadata["recipe"].strip(),
        "```",
        "",
        "## Files that went in",
        "",
        "| file | SHA-256 |",
        "|---|---|",
        *(f"| `{entry['name']}` | `{entry['sha256'] or 'not taken'}` |" for entry in inputs),
        "",
    ]
    return "\n".join(lines)


def _json(content: object) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> None:
    """Write a small file, over one that an interrupted run left."""
    with one_line_errors(path, "written"):
        path.unlink(missing_ok=True)
        with synced_file(path) as file:
            file.write(text.encode())
