"""Elements of a tensor of the output, computed from its job."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from weightspace.arithmetic.dtypes import real_dtype
from weightspace.arithmetic.integers import agreed, largest
from weightspace.arithmetic.pruning import check_same_mask
from weightspace.arithmetic.spectral_norm import SpectralModel, spectral_vectors
from weightspace.arithmetic.weight_norm import EffectiveWeight, Split, split
from weightspace.checkpoints.dtypes import DTYPES
from weightspace.merging.methods._apply import merged_chunks, sound_chunks
from weightspace.merging.methods._registry import CHUNK
from weightspace.merging.methods._tensor_stack import TensorReader
from weightspace.merging.out_of_core.packing import packed
from weightspace.merging.out_of_core.quantising import quantised
from weightspace.merging.out_of_core.sources import Sources
from weightspace.merging.plan.plan import Job

#: Arguments from the method's pass over the whole model, by tensor name.
GlobalArguments = Mapping[str, Mapping[str, Any]]


def elements_of(job: Job, sources: Sources, global_arguments: GlobalArguments) -> Iterator[tuple[int, Tensor]]:
    """Yield chunks of a tensor in order, in the dtype of the output: the index of the first, and 1-D elements.

    Tensors derived from a merged weight merge that weight again, so that no job waits for another one.

    Args:
        job: a job of the sources' plan.
        sources: the checkpoints of the plan.
        global_arguments: arguments from the method's pass over the whole model, by tensor name.

    Raises:
        WeightspaceError: as the method; integers differ; a tensor holds NaN or infinity.
    """
    dtype = real_dtype(DTYPES[job.info.dtype])
    if job.kind == "direction":
        whole = _split(job, sources, global_arguments)
        for start, merged in _merged(job, sources, global_arguments, torch.float64):
            yield start, whole.direction(start, merged).to(dtype)
    elif job.kind == "magnitude":
        yield 0, _split(sources.plan.by_name[job.follows], sources, global_arguments).magnitudes().to(dtype)
    elif job.kind == "vector":
        yield 0, getattr(_vectors(job, sources, global_arguments), job.part).flatten().to(dtype)
    elif is_merged(job, sources):
        yield from _merged(job, sources, global_arguments, dtype)
    else:
        yield from ((start, elements.to(dtype)) for start, elements in _kept(job, sources))


def written_elements(job: Job, sources: Sources, global_arguments: GlobalArguments) -> Iterator[tuple[int, Tensor]]:
    """Yield what a job writes to its shard, including scales: byte offsets and 1-D elements; see ``elements_of``."""
    if job.packed is not None:
        plain = elements_of(job, sources, global_arguments)
        yield from ((job.offset + start, content) for start, content in packed(job.name, job.info, job.packed, plain))
        return
    if job.scales is None:
        for start, elements in elements_of(job, sources, global_arguments):
            yield job.offset + start * elements.itemsize, elements
        return
    wide = replace(job, info=replace(job.info, dtype="F32"), scales=None)
    columns = job.info.shape[-1]
    shape = job.info.numel // columns, columns
    ranges = quantised(shape, job.scales, lambda: elements_of(wide, sources, global_arguments))
    for start, elements, first, scales in ranges:
        yield job.offset + start, elements
        yield job.scales.offset + first * scales.itemsize, scales


def check_masks(jobs: Iterable[Job], sources: Sources) -> None:
    """Check that pruned models have the same masks before anything is merged.

    Raises:
        WeightspaceError: two masks differ.
    """
    for job in jobs:
        if job.kind == "mask":
            labels = [sources.plan.members[index].label for index, _ in job.inputs]
            first, *others = (sources.flat(ref) for ref in job.inputs)
            for label, other in zip(labels[1:], others, strict=True):
                check_same_mask(job.name, _whole(first), _whole(other), models=(labels[0], label))


def is_merged(job: Job, sources: Sources) -> bool:
    """Return whether a tensor is the method's result on the models' tensors or on the weights that they represent."""
    if job.kind == "largest":
        return job.info.is_inexact and _largest(job, sources) is None
    return job.kind in ("merge", "direction")


def _merged(
    job: Job, sources: Sources, global_arguments: GlobalArguments, dtype: torch.dtype
) -> Iterator[tuple[int, Tensor]]:
    """Yield the method's result."""
    stack = sources.stack(job)
    arguments = {**job.arguments, **global_arguments.get(job.name, {})}
    return sound_chunks(stack, merged_chunks(sources.plan.method, stack, job.weights, arguments, dtype))


def _kept(job: Job, sources: Sources) -> Iterator[tuple[int, Tensor]]:
    """Yield elements that are not merged: counters, a copy, or values on which all models agree."""
    if job.kind == "largest" and (count := _largest(job, sources)) is not None:
        yield 0, count
        return
    flats = [sources.moved(job, ref) for ref in job.inputs]
    labels = [sources.plan.members[index].label for index, _ in job.inputs]
    count = math.prod(flats[0].shape)
    for start in range(0, count, CHUNK):
        chunks = [flat.read(start, min(start + CHUNK, count)) for flat in flats]
        yield start, agreed(job.name, chunks, models=labels) if job.kind == "agree" else chunks[0]


def _largest(job: Job, sources: Sources) -> Tensor | None:
    """Return the largest counts, 1-D; None if they are not whole numbers."""
    refs = job.models if sources.plan.method.base == "end" else job.inputs
    flats = [sources.moved(job, ref) for ref in refs]
    return largest([flat.read(0, math.prod(flat.shape)) for flat in flats])


def _split(job: Job, sources: Sources, global_arguments: GlobalArguments) -> Split:
    """Return the split of a merged weight into direction and magnitude."""
    if job.name not in sources.splits:
        models = [weight for weight in sources.weights(job) if isinstance(weight, EffectiveWeight)]
        sources.splits[job.name] = split(models, lambda: _merged(job, sources, global_arguments, torch.float64))
    return sources.splits[job.name]


def _vectors(job: Job, sources: Sources, global_arguments: GlobalArguments) -> SpectralModel:
    """Return the singular vectors of a merged weight."""
    if job.follows not in sources.vectors:
        weight = sources.plan.by_name[job.follows]
        dtype = torch.float64 if weight.kind == "direction" else DTYPES[weight.info.dtype]
        merged = torch.empty(weight.info.shape, dtype=dtype)
        for start, elements in _merged(weight, sources, global_arguments, dtype):
            merged.view(-1)[start : start + len(elements)] = elements
        parts = [[_whole(sources.flat(ref)) for ref in refs] or [None] * len(job.models) for refs in job.companions]
        models = [SpectralModel(*of_model) for of_model in zip(sources.weights(weight), *parts, strict=True)]
        sources.vectors[job.follows] = spectral_vectors(merged, models)
    return sources.vectors[job.follows]


def _whole(flat: TensorReader) -> Tensor:
    return flat.read(0, math.prod(flat.shape)).view(flat.shape)
