"""Lay out the output: assign tensors to shards of bounded size, with offsets."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from weightspace.checkpoints.hf_folder import WEIGHTS
from weightspace.checkpoints.metadata import TensorInfo
from weightspace.checkpoints.safetensors_header import TIED, Entry, encode_header, place_entries
from weightspace.merging.plan.gguf_output import Template, lay_out_gguf
from weightspace.merging.plan.plan import Job, Shard


def lay_out(
    jobs: Sequence[Job],
    tied: Mapping[str, str],
    metadata: Mapping[str, str],
    file: str | None,
    shard_size: int,
    template: Template | None = None,
) -> tuple[tuple[Job, ...], tuple[Shard, ...]]:
    """Return the jobs with their shards and offsets, and the shards.

    Args:
        jobs: the tensors in the order of the output.
        tied: name -> name of the tensor that it shares memory with.
        metadata: metadata of a single file; with several shards, the index holds it instead.
        file: name of the single output file, or None for a folder, which is sharded if necessary.
        shard_size: maximum number of tensor bytes per shard; a larger tensor gets a shard of its own.
        template: the template if the single output file is a GGUF file, or None.
    """
    if file is not None and template is not None:
        return lay_out_gguf(template, jobs, metadata, file)
    groups = [list(range(len(jobs)))] if file is not None else _groups(jobs, shard_size)
    single = len(groups) == 1
    placed, shards = list(jobs), []
    for number, group in enumerate(groups):
        name = file or (WEIGHTS if single else f"model-{number + 1:05}-of-{len(groups):05}.safetensors")
        entries = place_entries(
            {name: (info.dtype, info.shape) for index in group for name, info in _tensors(jobs[index])}
        )
        record = {alias: owner for alias, owner in tied.items() if owner in entries}
        header = encode_header(
            {name: entry for index in group for name, entry in _written(jobs[index], entries)},
            {"format": "pt", **(metadata if single else {}), **({TIED: json.dumps(record)} if record else {})},
        )
        for index in group:
            placed[index] = _placed(jobs[index], number, len(header), entries)
        size = len(header) + max((entry.end for entry in entries.values()), default=0)
        shards.append(Shard(name, header, size))
    return tuple(placed), tuple(shards)


def _tensors(job: Job) -> list[tuple[str, TensorInfo]]:
    """Return name and type of a job's tensor and of its scales."""
    return [(job.name, job.info), *([] if job.scales is None else [(job.scales.name, job.scales.info)])]


def _written(job: Job, entries: Mapping[str, Entry]) -> Iterator[tuple[str, Entry]]:
    """Yield names and entries of the tensors that a job writes; a stack of matrices is divided into these."""
    count = 1 if job.scales is None else len(job.scales.matrices)
    wholes = [entries[name] for name, _ in _tensors(job) for _ in range(count)]
    for index, (name, whole) in enumerate(zip(job.written, wholes, strict=True)):
        yield name, whole if count == 1 else _part(whole, index % count, count)


def _part(whole: Entry, index: int, count: int) -> Entry:
    """Return the entry of one of several matrices, or of its scales, in that of a stack of them."""
    size = (whole.end - whole.start) // count
    *leading, last = whole.shape
    shape = (math.prod(leading) // count, last) if leading else (last // count,)
    return Entry(whole.dtype, shape, whole.start + index * size, whole.start + (index + 1) * size)


def _placed(job: Job, shard: int, start: int, entries: Mapping[str, Entry]) -> Job:
    """Return a job with its place in a shard whose data start at a byte."""
    scales = job.scales and replace(job.scales, offset=start + entries[job.scales.name].start)
    return replace(job, shard=shard, offset=start + entries[job.name].start, scales=scales)


def _groups(jobs: Sequence[Job], shard_size: int) -> list[list[int]]:
    """Assign tensors to shards greedily, in order."""
    groups: list[list[int]] = [[]]
    filled = 0
    for index, job in enumerate(jobs):
        if groups[-1] and filled + job.nbytes > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(index)
        filled += job.nbytes
    return groups
