"""Run a merge plan out of core; interrupted runs resume."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightspace.cache import cache_folder
from weightspace.checkpoints.atomic_write import one_line_errors
from weightspace.checkpoints.fetching import fetch, missing_bytes
from weightspace.checkpoints.file_format import DCP_SUFFIX, TORCH_SUFFIXES
from weightspace.checkpoints.gguf.metadata import header_with_metadata
from weightspace.checkpoints.hashing import Hashing
from weightspace.checkpoints.output_paths import check_apart, check_checkpoint_output
from weightspace.checkpoints.provenance import described
from weightspace.checkpoints.safetensors_header import encode_header, read_header
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging.out_of_core.output_files import finish_folder
from weightspace.merging.out_of_core.staging import Staging, is_file_name, open_staging, staging_folder
from weightspace.merging.out_of_core.worker_parts import make_elsewhere
from weightspace.merging.plan.estimates import chosen_executor, estimated_seconds, job_memory, plan_memory
from weightspace.merging.plan.gguf_output import is_gguf
from weightspace.merging.plan.inputs import check_unchanged, read_paths
from weightspace.merging.plan.options import ExecutionOptions
from weightspace.merging.plan.plan import Job, Plan
from weightspace.progress import Progress
from weightspace.reprs import brief, size

if TYPE_CHECKING:
    from weightspace.checkpoints import StateDict
    from weightspace.merging.out_of_core.aligning import Alignment

_log = logging.getLogger(__name__)

#: Called with the bytes fetched from URLs and written to the output so far, and with their total.
OnBytes = Callable[[int, int], None]

#: Maps the merged state dict to one of the same names, shapes and dtypes.
Finish = Callable[["StateDict"], "StateDict"]


@brief
@dataclass(frozen=True)
class MergeReport:
    """Report of a merge, or of a dry run.

    Attributes:
        out: the output checkpoint.
        method: the method's name.
        files: names of its weight files.
        tensors: number of its tensors, without tied names.
        resumed: number of tensors that an interrupted run had already completed.
        read_bytes: bytes of all sources of all tensors.
        written_bytes: bytes of the weight files.
        memory: approximate peak memory in bytes, in addition to the interpreter and its libraries.
        seconds: run time without planning; a rough estimate for a dry run.
        warnings: one-line warnings; a strict merge refuses most of them.
        fetched_bytes: bytes that were, or for a dry run would be, downloaded.
        tokens: number of the output's tokens if rows are moved by token, otherwise 0.
        new_tokens: number of those that are added to the tokenizer.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> for seed in (0, 1):
        ...     state = {"w": torch.randn(8, 8, generator=torch.Generator().manual_seed(seed))}
        ...     ws.save_checkpoint(state, f"{seed}.safetensors")
        >>> report = ws.merge_files(["0.safetensors", "1.safetensors"], "merged.safetensors", dry_run=True)
        >>> report.method, report.tensors, report.read_bytes
        ('linear', 1, 512)
    """

    out: str
    method: str
    files: tuple[str, ...]
    tensors: int
    resumed: int
    read_bytes: int
    written_bytes: int
    memory: int
    seconds: float
    warnings: tuple[str, ...] = ()
    fetched_bytes: int = 0
    tokens: int = 0
    new_tokens: int = 0


def run_plan(
    plan: Plan,
    out: Path,
    execution: ExecutionOptions,
    *,
    align: Alignment | None = None,
    finish: Finish | None = None,
    progress: OnBytes | None = None,
) -> MergeReport:
    """Run a plan.

    Args:
        plan: the plan.
        out: path of the output; an existing checkpoint is replaced at the end.
        execution: execution options.
        align: alignment of the sources before the merge.
        finish: function to apply to the merged network.
        progress: called with the bytes done and their total.

    Raises:
        CheckpointError: ``out`` holds something other than a checkpoint, the disk is full or writing fails, another
            merge is writing there, or an input changes during the merge.
        WeightspaceError: the memory limit is too low, integers differ, a tensor holds NaN or infinity, or the method
            raises it.
    """
    start = time.perf_counter()
    _log.info("%s, %d tensors, %d bytes into %s", plan.method.name, len(plan.jobs), plan.written_bytes, out)
    check_runnable(plan, out, execution)
    _check_finish(plan, finish)
    fetched = missing_bytes(plan.input_files)
    progress = _fetch(plan, fetched, progress)
    hashed = [member.files for member in plan.members] if plan.hashes else ()
    with open_staging(out, plan.digest, fsync=execution.fsync) as staging, Hashing(hashed) as hashing:
        with _reporting_changed_inputs(plan):
            resumed = _make_tensors(_aligned(plan, align, staging), staging, execution, progress)
            digests = hashing.digests() or dict.fromkeys(plan.input_files, "")
            metadata = {**plan.metadata, "inputs": described(plan.inputs, digests, "", {})["inputs"]}
            with one_line_errors(out, "written"):
                made = _finish(plan, staging, metadata, finish, execution)
        check_unchanged(plan.stamps)
        staging.promote(made)
    done = report(plan, out, execution, resumed=resumed, seconds=time.perf_counter() - start)
    return replace(done, fetched_bytes=fetched)


def bytes_reporter(on_progress: Callable[[Progress], None] | None) -> OnBytes | None:
    """Return a callback that turns counts of bytes into progress events."""
    if on_progress is None:
        return None
    return lambda done, total: on_progress(Progress("bytes", done, total))


def _check_finish(plan: Plan, finish: Finish | None) -> None:
    """Check that ``finish`` can replace the merged network.

    Raises:
        WeightspaceError: the output is quantised, or a GGUF file.
    """
    if finish is not None and any(job.packed is not None for job in plan.jobs):
        raise WeightspaceError(
            "The statistics of a network in a GGUF file cannot be recomputed. Leave --task out, or write safetensors."
        )
    if finish is not None and any(job.scales is not None for job in plan.jobs):
        raise WeightspaceError(
            "The statistics of a quantised network cannot be recomputed. Merge with a dtype (--dtype) and "
            "without quantise first, and quantise the result with `merge -m passthrough`."
        )


def report(
    plan: Plan, out: Path, execution: ExecutionOptions, *, resumed: int = 0, seconds: float | None = None
) -> MergeReport:
    """Return the report of a plan. If ``seconds`` is None, the run time is estimated."""
    vocabulary = plan.vocabulary
    extended = None if vocabulary is None else vocabulary.extended
    return MergeReport(
        str(out),
        plan.method.name,
        (out.name,) if _is_converted(out) else tuple(shard.name for shard in plan.shards),
        sum(len(job.written) for job in plan.jobs),
        resumed,
        plan.read_bytes,
        plan.written_bytes,
        plan_memory(plan, execution.concurrency),
        estimated_seconds(plan, execution.concurrency) if seconds is None else seconds,
        fetched_bytes=missing_bytes(plan.input_files),
        tokens=0 if vocabulary is None else vocabulary.tokens - len(vocabulary.gaps),
        new_tokens=0 if extended is None else extended.new,
    )


def check_runnable(plan: Plan, out: Path, execution: ExecutionOptions) -> None:
    """Check output path, memory and disk space before anything is written.

    Raises:
        CheckpointError: ``out`` cannot be replaced, or the disk is too small.
        WeightspaceError: a tensor needs more memory than the limit.
    """
    with one_line_errors(out, "written"):
        places = (out, staging_folder(out))
    for place in places:
        check_apart(place, (*read_paths(plan), *execution.reads))
    again = (*plan.companions, *(shard.name for shard in plan.shards))
    check_checkpoint_output(out, again=again, force=execution.force, gguf=True)
    for job in plan.jobs:
        needed = job_memory(plan, job)
        if needed > execution.memory:
            raise WeightspaceError(
                f"{job.name!r} needs about {needed / 2**20:,.0f} MB in one chunk with method {plan.method.name!r}, but "
                f"{execution.memory / 2**20:,.0f} MB may be used. Expected --memory {needed // 2**20 + 1} (MB) or more."
            )
    _check_room(plan, out)


def _check_room(plan: Plan, out: Path) -> None:
    """Check that the disk has space for the output, counting what an interrupted run has already written."""
    with one_line_errors(out, "written"):
        parts = staging_folder(out) / "parts"
        existing = next(folder for folder in parts.parents if folder.exists())
        free = shutil.disk_usage(existing).free
        files = os.scandir(parts) if parts.is_dir() and not parts.is_symlink() else ()
        written = sum(file.stat(follow_symlinks=False).st_blocks * 512 for file in files)
    needed = plan.written_bytes * (2 if _is_converted(out) else 1)
    needed += _fetched_beside(plan, existing)
    if needed > free + written:
        raise CheckpointError(
            f"{out} needs {size(needed)}, but the disk has {size(free + written)} free. "
            "Make room, or write somewhere else."
        )


def _fetched_beside(plan: Plan, folder: Path) -> int:
    """Return the bytes that are still to be downloaded to the disk of a folder."""
    cache = cache_folder()
    if not cache.exists() or os.stat(cache).st_dev != os.stat(folder).st_dev:
        return 0
    return missing_bytes(plan.input_files)


def _fetch(plan: Plan, missing: int, progress: OnBytes | None) -> OnBytes | None:
    """Download the tensors at URLs; return a progress callback that continues from there."""
    if not missing or progress is None:
        fetch(plan.input_files)
        return progress
    total, done = missing + plan.tensor_bytes, 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        progress(min(done, missing), total)

    fetch(plan.input_files, report=count)
    return lambda written, _: progress(missing + written, total)


def _make_tensors(plan: Plan, staging: Staging, execution: ExecutionOptions, progress: OnBytes | None) -> int:
    """Compute the missing tensors; return the number of tensors that were already complete."""
    from weightspace.merging.out_of_core.staging import read_journals

    done = [read_journals(staging.journals(number, shard.name, shard.size)) for number, shard in enumerate(plan.shards)]
    pending = [job for job in plan.jobs if job.name not in done[job.shard]]
    written = plan.tensor_bytes - sum(job.nbytes for job in pending)

    def count(more: int) -> None:
        nonlocal written
        written += more
        if progress is not None:
            progress(written, plan.tensor_bytes)

    count(0)
    with one_line_errors(staging.out, "written"):
        _make(plan, pending, staging, execution, count)
    return len(plan.jobs) - len(pending)


def _make(
    plan: Plan, jobs: Sequence[Job], staging: Staging, execution: ExecutionOptions, report: Callable[[int], None]
) -> None:
    """Run jobs with the executor of ``execution``."""
    if any(job.kind == "mask" for job in plan.jobs):
        from weightspace.merging.out_of_core.elements import check_masks
        from weightspace.merging.out_of_core.sources import Sources

        check_masks(plan.jobs, Sources(plan))
    global_arguments: Mapping[str, Mapping[str, Any]] = {}
    if any(plan.method.needs_global_pass(job.arguments) for job in jobs):
        from weightspace.merging.out_of_core.executor import global_pass

        global_arguments = global_pass(plan)
    execution = replace(execution, executor=chosen_executor(plan, jobs, execution))
    _log.info("%d tensors to make, executor %s", len(jobs), execution.executor)
    if execution.executor != "threads":
        make_elsewhere(plan, jobs, staging, execution, global_arguments, report)
        return
    from weightspace.merging.out_of_core.executor import make_jobs
    from weightspace.merging.out_of_core.sources import Sources

    make_jobs(jobs, range(len(plan.shards)), Sources(plan), staging, execution, global_arguments, report)


def _aligned(plan: Plan, align: Alignment | None, staging: Staging) -> Plan:
    """Return the plan, reading aligned copies of the checkpoints if an alignment is given."""
    if align is None:
        return plan
    from weightspace.merging.out_of_core.aligning import aligned

    return aligned(plan, align, staging.folder / "aligned")


@contextmanager
def _reporting_changed_inputs(plan: Plan) -> Iterator[None]:
    """Raise an error about a changed input instead of the error that it caused."""
    try:
        yield
    except WeightspaceError as error:
        try:
            check_unchanged(plan.stamps)
        except CheckpointError as changed:
            raise changed from changed.__cause__ or error
        raise


def _finish(
    plan: Plan, staging: Staging, metadata: Mapping[str, str], finish: Finish | None, execution: ExecutionOptions
) -> str | None:
    """Write the final metadata and the non-weight files.

    Returns:
        The name in ``Staging.parts`` of the output file, or None if the output is a folder of all parts.
    """
    if finish is not None:
        from weightspace.merging.out_of_core.executor import rewrite

        staging.forget(fsync=execution.fsync)
        rewrite(plan, staging, finish, fsync=execution.fsync)
    staging.keep_only([shard.name for shard in plan.shards])
    for group in plan.shard_groups.values():
        if len(group) == 1:
            _fill_header(staging.parts / group[0].name, metadata, fsync=execution.fsync)
    if not is_file_name(staging.out):
        finish_folder(plan, staging.parts, metadata)
        return None
    if not _is_converted(staging.out):
        return plan.shards[0].name
    from weightspace.checkpoints import load_checkpoint, save_checkpoint
    from weightspace.checkpoints.dcp_output import write_dcp

    staged = staging.parts / plan.shards[0].name
    state = load_checkpoint(staged)
    if staging.out.suffix.lower() == DCP_SUFFIX:
        write_dcp(state, staging.parts, metadata)
        staged.unlink()
        return None
    torch_file = staged.with_suffix(staging.out.suffix)
    save_checkpoint(state, torch_file, metadata=metadata)
    return torch_file.name


def _fill_header(path: Path, metadata: Mapping[str, str], *, fsync: bool) -> None:
    """Write the digests into the space that the header reserves for them."""
    if is_gguf(path):
        start, filled = header_with_metadata(path, metadata)
    else:
        header = read_header(path)
        start, filled = header.data_start, encode_header(header.entries, {**header.metadata, **metadata})
    with open(path, "r+b") as file:
        if len(filled) != start:
            raise CheckpointError(f"{path}: the header has {start} bytes, expected {len(filled)}.")
        file.write(filled)
        file.flush()
        if fsync:
            os.fsync(file.fileno())


def _is_converted(out: Path) -> bool:
    """Return whether an output is converted from a safetensors file at the end."""
    return out.suffix.lower() in (*TORCH_SUFFIXES, DCP_SUFFIX)
