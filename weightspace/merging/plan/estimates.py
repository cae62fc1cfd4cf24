"""Estimate the memory and time of a merge from shapes."""

from __future__ import annotations

import math
from collections.abc import Iterable

from weightspace.arithmetic.blocks import block_size
from weightspace.checkpoints.safetensors_header import ITEMSIZES
from weightspace.merging.methods._registry import CHUNK, GATHERED
from weightspace.merging.plan.options import ExecutionOptions
from weightspace.merging.plan.plan import HELD, Job, Packed, Plan, Ref

#: Copies of a chunk that a method holds in addition to two per model: the widened base, task vectors, masks, the
#: result, and results that wait to be written.
_COPIES = 14

#: Number of elements of a quantised source, or of a tensor to quantise, in memory at a time.
_BLOCK = 4 * CHUNK

#: Maximum number of elements of a computed source that are cached.
_KEPT = 8 * CHUNK

#: Bytes of temporary copies per element of a quantised source: its parts, widened integers, and scales.
_DEQUANTISING = 24

#: Elements of a fused or split source in memory at a time, and bytes of its copies per element: the block that is
#: kept, and what is read of the parts together with what lies between.
_ASSEMBLED, _ASSEMBLING = 2**20, 24

#: Bytes of temporary copies per element of a range that is quantised.
_QUANTISING = 32

#: Bytes per number that a search gathers in float64, and copies to sort.
_SEARCHING = 16

#: Kinds computed in float64 from whole weights under weight norm or spectral norm; copies of a chunk that they hold,
#: and copies of a matrix whose singular vectors are computed.
_DERIVED, _DERIVED_COPIES, _MATRIX_COPIES = ("direction", "magnitude", "vector"), 8, 3

#: Nanoseconds of singular vectors by a Gram matrix per element of the matrix times its smaller dimension.
_SVD = 0.15

#: Approximate number of times that a computed source is read.
_PASSES = 2

#: Seconds to import torch in each process.
_START = 2.0

#: Further seconds to start worker processes.
_WORKERS = 0.8


def job_memory(plan: Plan, job: Job) -> int:
    """Return a conservative estimate of the bytes that a job needs."""
    own = _job_memory(plan, job) + sum(_factor_memory(plan, ref) for ref in job.refs)
    own += 0 if job.scales is None else _quantising_memory(job)
    own += 0 if job.packed is None else _packing_memory(job, job.packed)
    own += sum(_dequantising_memory(plan, job, ref) for ref in job.refs)
    return own + sum(_computed_memory(plan, ref) for ref in job.refs)


def _dequantising_memory(plan: Plan, job: Job, ref: Ref) -> int:
    """Return the bytes of the temporary copies of a range of a quantised, fused or split source."""
    contents, whole = plan.members[ref[0]].contents, plan.method.granularity_of(job.arguments) == "whole"
    needed = 0
    for quantised in contents.quantised_parts(ref[1]):
        numel, row = math.prod(quantised.shape), math.prod(quantised.shape[1:])
        needed = max(needed, quantised.overhead + _DEQUANTISING * (numel if whole else min(numel, max(row, _BLOCK))))
    assembled = contents.assembled.get(ref[1])
    if assembled is not None:
        numel = contents.tensors[ref[1]].numel
        block = _ASSEMBLED if assembled.is_scattered else CHUNK
        needed += _ASSEMBLING * (numel if whole else min(numel, block))
    return needed


def _quantising_memory(job: Job) -> int:
    """Return the bytes needed to quantise ranges of a tensor: whole rows of blocks, in several copies."""
    numel, shape = job.info.numel, job.info.shape
    if job.scales is None or job.scales.block == shape:
        held = 4 * numel if numel <= HELD else 0
        return held + _QUANTISING * min(numel, _BLOCK)
    return _QUANTISING * min(numel, job.scales.block[0] * shape[-1] + _BLOCK)


def _packing_memory(job: Job, packed: Packed) -> int:
    """Return the bytes needed to store ranges of a tensor in the layout of GGUF: whole heads, in several copies."""
    numel = job.info.numel
    head = numel // packed.layout.heads if packed.layout.heads else 0
    return _QUANTISING * min(numel, head + _BLOCK)


def _computed_memory(plan: Plan, ref: Ref) -> int:
    """Return the bytes needed to compute a source and cache a chunk of it."""
    index, name = ref
    stage = plan.members[index].plan
    if stage is None:
        return 0
    job = stage.made(plan.members[index].contents.renamed.get(name, name))
    kept = job.info.numel if stage.method.granularity == "whole" else min(job.info.numel, _KEPT)
    return job_memory(stage, job) + 2 * ITEMSIZES[job.info.dtype] * kept


def _factor_memory(plan: Plan, ref: Ref) -> int:
    """Return the bytes of an adapter's widened factors and of a block of their product."""
    factors = plan.factors(ref)
    if factors is None:
        return 0
    rows = factors.shape[0]
    columns = math.prod(factors.shape[1:])
    held = 2 * factors.rank * (rows + columns)
    adapter = plan.members[ref[0]].adapter
    if factors.product != "low-rank" and adapter is not None:
        held = 3 * held + 3 * sum(adapter.contents.tensors[name].numel for name in factors.names.values())
    decomposition = 0 if factors.axis is None else 4 * CHUNK + 3 * factors.shape[factors.axis]
    return 8 * (held + max(columns, CHUNK) + decomposition)


def _job_memory(plan: Plan, job: Job) -> int:
    """Return the bytes that a job needs, without the factors of adapters."""
    shape = plan.info(job.inputs[0]).shape
    if job.kind not in _DERIVED:
        itemsize = max(4, *(ITEMSIZES[plan.info(ref).dtype] for ref in job.refs))
        wide = job.info.dtype == "F32" or job.scales is not None
        if wide and plan.method.doubles and plan.method.granularity != "whole":
            itemsize = 8  # computed in float64
        return _merge_memory(plan, job, shape, itemsize)
    chunks = _merge_memory(plan, job, shape, 8) + 8 * CHUNK * _DERIVED_COPIES
    return chunks + (8 * math.prod(shape) * _MATRIX_COPIES if job.kind == "vector" else 0)


def _merge_memory(plan: Plan, job: Job, shape: tuple[int, ...], itemsize: int) -> int:
    """Return the bytes needed to merge a tensor."""
    models, numel = len(job.models), math.prod(shape)
    if plan.method.evidence == "gram" and len(shape) > 1:
        width = numel // max(1, shape[0])
        return 8 * (width * width * (len(job.inputs) + 4) + numel * (models + 3))
    if plan.method.granularity == "whole" and job.merges:
        copies = (models + 1) * plan.method.whole_copies + plan.method.whole_fixed
        return itemsize * numel * copies + _squares_memory(plan, models, shape)
    gathered = _SEARCHING * min(numel, GATHERED) * plan.method.searches
    if _by_slices(plan, job):
        row = math.prod(shape[1:]) if len(shape) > 1 else numel
        return gathered + itemsize * min(numel, max(row, CHUNK)) * (2 * models + plan.method.copies)
    stored = 0
    if job.merges and plan.method.stored_chunks:
        sizes = [ITEMSIZES[info.dtype] for info in (job.info, *map(plan.info, job.refs))]
        stored = min(numel, CHUNK * plan.method.stored_chunks) * sum(sizes)
    chunks = min(numel, CHUNK) * (2 * models + _COPIES) + min(numel, block_size(models)) * (models + 1)
    return gathered + stored + itemsize * chunks


def _squares_memory(plan: Plan, models: int, shape: tuple[int, ...]) -> int:
    """Return the bytes of the Gram matrices of a method that decomposes matrices, and of their eigenvectors."""
    if len(shape) != 2:
        return 0
    rows, columns = shape
    joined = {"smaller": min(shape), "rows": min(rows, models * columns)}
    side = joined.get(plan.method.squares_of, max(joined["rows"], min(columns, models * rows)))
    return 8 * side * side * plan.method.squares


def _by_slices(plan: Plan, job: Job) -> bool:
    """Return whether a job processes its tensor slice by slice."""
    return job.merges and plan.method.granularity_of(job.arguments) == "slices"


def plan_memory(plan: Plan, threads: int) -> int:
    """Return the bytes that the largest jobs need together, one per thread."""
    return sum(sorted((job_memory(plan, job) for job in plan.jobs), reverse=True)[:threads])


def estimated_seconds(plan: Plan, threads: int) -> float:
    """Return the approximate run time, from the method's cost per element on a laptop's core."""
    return _START + _work(plan, plan.jobs) / threads


def chosen_executor(plan: Plan, jobs: Iterable[Job], execution: ExecutionOptions) -> str:
    """Return the executor of a merge; ``auto`` selects processes only if they save more time than they take to start.

    Args:
        plan: the plan.
        jobs: the tensors that are still to be computed.
        execution: execution options; ``workers`` selects processes, and ``ray_address`` selects Ray.
    """
    if execution.executor != "auto":
        return execution.executor
    if execution.ray_address is not None:
        return "ray"
    if execution.workers is not None:
        return "processes"
    saved = _work(plan, jobs) * (1 - 1 / execution.concurrency)
    return "processes" if saved > _WORKERS else "threads"


def _work(plan: Plan, jobs: Iterable[Job]) -> float:
    """Return the core seconds that the jobs need."""
    nanoseconds = 0.0
    for job in jobs:
        info = plan.info(job.inputs[0])
        nanoseconds += info.numel * len(job.models) * plan.method.cost
        stages = [(plan.members[index].plan, name) for index, name in job.models]
        nanoseconds += sum(
            1e9 * _PASSES * _work(stage, [stage.made(name)]) for stage, name in stages if stage is not None
        )
        if plan.method.granularity == "whole" and job.merges and len(info.shape) > 1:
            rows = info.shape[0]
            columns = info.numel // max(1, rows)
            nanoseconds += info.numel * len(job.inputs) * min(rows, columns) * _SVD
    return nanoseconds / 1e9
