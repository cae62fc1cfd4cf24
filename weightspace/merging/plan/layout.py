"""Lay out the output: assign tensors to shards of bounded size, with offsets."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from weightspace.checkpoints.components import Component, owner_of
from weightspace.checkpoints.metadata import TensorInfo
from weightspace.checkpoints.safetensors_header import TIED, Entry, encode_header, place_entries
from weightspace.errors import CheckpointError
from weightspace.merging.plan.gguf_output import Template, lay_out_gguf
from weightspace.merging.plan.plan import Job, Shard


def lay_out(
    jobs: Sequence[Job],
    tied: Mapping[str, str],
    metadata: Mapping[str, str],
    file: str | None,
    shard_size: int,
    template: Template | None = None,
    components: Sequence[Component] = (),
) -> tuple[tuple[Job, ...], tuple[Shard, ...]]:
    """Return the jobs with their shards and offsets, and the shards.

    Args:
        jobs: the tensors in the order of the output.
        tied: name -> name of the tensor that it shares memory with.
        metadata: metadata of a single file; with several shards, the index holds it instead.
        file: name of the single output file, or None for a folder, which is sharded if necessary.
        shard_size: maximum number of tensor bytes per shard; a larger tensor gets a shard of its own.
        template: the template if the single output file is a GGUF file, or None.
        components: the components of an output folder; empty if its tensors are in the folder itself.

    Raises:
        CheckpointError: a tensor belongs to no component.
    """
    if file is not None and template is not None:
        return lay_out_gguf(template, jobs, metadata, file)
    placed, shards = list(jobs), []
    for part in [_Part("model", "", list(range(len(jobs))))] if file is not None else _parts(jobs, components):
        groups = [part.jobs] if file is not None else _groups(jobs, part.jobs, shard_size)
        for number, group in enumerate(groups):
            numbered = "" if len(groups) == 1 else f"-{number + 1:05}-of-{len(groups):05}"
            entries = place_entries(
                {name: (info.dtype, info.shape) for index in group for name, info in _tensors(jobs[index])}
            )
            written = {name: entry for index in group for name, entry in _written(jobs[index], entries)}
            header = _header(written, tied, part.prefix, metadata if len(groups) == 1 else {})
            for index in group:
                placed[index] = _placed(jobs[index], len(shards), len(header), entries)
            size = len(header) + max((entry.end for entry in entries.values()), default=0)
            shards.append(Shard(file or f"{part.path}{numbered}.safetensors", header, size, part.prefix))
    return tuple(placed), tuple(shards)


class _Part(NamedTuple):
    """A component of the output: start of the paths of its files, prefix of its names, and indices of its jobs."""

    path: str
    prefix: str
    jobs: list[int]


def _parts(jobs: Sequence[Job], components: Sequence[Component]) -> list[_Part]:
    """Return the components of an output folder with their jobs.

    Raises:
        CheckpointError: a tensor belongs to no component.
    """
    if not components:
        return [_Part("model", "", list(range(len(jobs))))]
    owned: dict[str, list[int]] = {one.prefix: [] for one in components}
    for index, job in enumerate(jobs):
        owner = owner_of(job.name, components)
        if owner is None:
            known = ", ".join(one.name for one in components)
            raise CheckpointError(
                f"{job.name!r} belongs to no component of the output folder: {known}. Write to a file: "
                "-o OUT.safetensors."
            )
        owned[owner.prefix].append(index)
    parts = [_Part(f"{one.path}{one.weights.stem}", one.prefix, owned[one.prefix]) for one in components]
    return [part for part in parts if part.jobs] or parts[:1]


def _header(entries: dict[str, Entry], tied: Mapping[str, str], prefix: str, metadata: Mapping[str, str]) -> bytes:
    """Return the header of a shard without the prefix of its names, with the names of tied tensors."""
    short = {name.removeprefix(prefix): entry for name, entry in entries.items()}
    names = {alias.removeprefix(prefix): owner for alias, owner in tied.items() if owner.startswith(prefix)}
    record = {alias: own for alias, owner in names.items() if (own := owner.removeprefix(prefix)) in short}
    return encode_header(short, {"format": "pt", **metadata, **({TIED: json.dumps(record)} if record else {})})


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
    offsets = [start + entries[name].start for name, _ in _tensors(job)]
    scales = job.scales and replace(job.scales, offset=offsets[1])
    return replace(job, shard=shard, offset=offsets[0], scales=scales)


def _groups(jobs: Sequence[Job], indices: Sequence[int], shard_size: int) -> list[list[int]]:
    """Assign tensors to shards greedily, in order."""
    groups: list[list[int]] = [[]]
    filled = 0
    for index in indices:
        if groups[-1] and filled + jobs[index].nbytes > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(index)
        filled += jobs[index].nbytes
    return groups
