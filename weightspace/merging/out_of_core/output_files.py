"""Files beside the weights of an output folder: index, configuration, tokenizer, model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightspace.checkpoints.atomic_write import one_line_errors, synced_file
from weightspace.checkpoints.companion_files import copy_companions, find_companions
from weightspace.checkpoints.hf_folder import CARD, PROVENANCE
from weightspace.checkpoints.json_file import json_document
from weightspace.merging.out_of_core.chat_templates import write_template
from weightspace.merging.out_of_core.model_card import model_card
from weightspace.merging.plan.plan import Plan, Shard
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
        copy_companions(plan.donor, parts, plan.companions, tokenizer=False if own_tokenizer else None)
    if plan.tokenizer is not None and own_tokenizer:
        copy_companions(plan.tokenizer, parts, find_companions(plan.tokenizer).copied, tokenizer=True)
    if plan.vocabulary is not None and plan.vocabulary.extended is not None:
        write_extended(parts, plan.vocabulary.folder, plan.vocabulary.extended)
    if plan.chat_template is not None:
        write_template(parts, plan.chat_template)
    for name, text in plan.configurations.items():
        if (parts / name).is_file():
            _write(parts / name, text)
    for folder, shards in plan.shard_groups.items():
        if len(shards) > 1:
            stem = shards[0].name.rpartition("/")[2].partition("-")[0]
            _write(parts / folder / f"{stem}.safetensors.index.json", json_document(_index(plan, shards, metadata)))
    if set(plan.shard_groups) != {""}:
        _write(parts / PROVENANCE, json_document(dict(metadata)))
    _write(parts / CARD, model_card(plan, parts, metadata))


def _index(plan: Plan, shards: Sequence[Shard], metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the index of the shards of a folder."""
    prefix = shards[0].prefix
    names = {id(shard): shard.name.rpartition("/")[2] for shard in shards}
    jobs = [job for job in plan.jobs if id(plan.shards[job.shard]) in names]
    places = {name: names[id(plan.shards[job.shard])] for job in jobs for name in job.written}
    places |= {alias: places[owner] for alias, owner in plan.tied.items() if owner in places}
    size = sum(job.nbytes for job in jobs)
    return {
        "metadata": {"total_size": size, **metadata},
        "weight_map": {name.removeprefix(prefix): place for name, place in places.items()},
    }


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
            (folder / shard.name).parent.mkdir(exist_ok=True)
            with open(folder / shard.name, "wb") as file:
                file.write(shard.header)
                file.truncate(shard.size)
