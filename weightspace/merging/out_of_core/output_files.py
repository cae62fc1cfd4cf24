"""Files beside the weights of an output folder: index, configuration, tokenizer, model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weightspace.checkpoints.atomic_write import one_line_errors, synced_file
from weightspace.checkpoints.companion_files import copy_companions
from weightspace.checkpoints.hf_folder import CARD
from weightspace.checkpoints.quantisation import QUANTISATION_FILES
from weightspace.merging.out_of_core.chat_templates import write_template
from weightspace.merging.out_of_core.model_card import model_card
from weightspace.merging.plan.plan import Plan
from weightspace.merging.tokenizers.tokenizer_files import write_extended


def finish_folder(plan: Plan, parts: Path, metadata: Mapping[str, str]) -> None:
    """Write all files of a folder except the weights.

    Args:
        plan: the plan of the merge.
        parts: the folder with the finished weights.
        metadata: their provenance.

    Raises:
        CheckpointError: writing fails.
    """
    own_tokenizer = plan.tokenizer is not None and plan.tokenizer != plan.donor
    if plan.donor is not None:
        copy_companions(plan.donor, parts, tokenizer=False if own_tokenizer else None)
        for name in QUANTISATION_FILES:  # of a donor that is dequantised
            (parts / name).unlink(missing_ok=True)
    if plan.tokenizer is not None and own_tokenizer:
        copy_companions(plan.tokenizer, parts, tokenizer=True)
    if plan.vocabulary is not None and plan.vocabulary.extended is not None:
        write_extended(parts, plan.vocabulary.folder, plan.vocabulary.extended)
    if plan.chat_template is not None:
        write_template(parts, plan.chat_template)
    for name, text in plan.configurations.items():
        if (parts / name).is_file():
            _write(parts / name, text)
    if len(plan.shards) > 1:
        _write(parts / "model.safetensors.index.json", _json(_index(plan, metadata)))
    _write(parts / CARD, model_card(plan, parts, metadata))


def _index(plan: Plan, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the index of the shards."""
    places = {name: plan.shards[job.shard].name for job in plan.jobs for name in job.written}
    places |= {alias: places[owner] for alias, owner in plan.tied.items()}
    return {"metadata": {"total_size": plan.tensor_bytes, **metadata}, "weight_map": places}


def _json(content: object) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _write(path: Path, text: str) -> None:
    """Write a small file, replacing one that an interrupted run left."""
    with one_line_errors(path, "written"):
        path.unlink(missing_ok=True)
        with synced_file(path) as file:
            file.write(text.encode())


def write_skeleton(plan: Plan, folder: Path) -> None:
    """Write a folder without weights from which the next merge can be planned.

    Args:
        plan: the merge that would make it.
        folder: a path that does not exist yet.

    Raises:
        CheckpointError: writing fails.
    """
    with one_line_errors(folder, "written"):
        folder.mkdir(parents=True)
        finish_folder(plan, folder, plan.metadata)
        for shard in plan.shards:
            with open(folder / shard.name, "wb") as file:
                file.write(shard.header)
                file.truncate(shard.size)
