"""``merge_files``: checkpoints in, a checkpoint out, out of core and resumable."""

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
from weightspace.checkpoints.file_format import TORCH_SUFFIXES
from weightspace.checkpoints.hashing import Hashing
from weightspace.checkpoints.output_paths import check_apart, check_checkpoint_output
from weightspace.checkpoints.provenance import described
from weightspace.checkpoints.safetensors_header import encode_header, read_header
from weightspace.errors import CheckpointError, WeightspaceError
from weightspace.merging.out_of_core.output_files import finish_folder
from weightspace.merging.out_of_core.staging import Staging, is_file_name, open_staging, staging_folder
from weightspace.merging.out_of_core.worker_parts import make_elsewhere
from weightspace.merging.plan.estimates import chosen_executor, estimated_seconds, job_memory, plan_memory
from weightspace.merging.plan.inputs import check_unchanged, read_paths
from weightspace.merging.plan.options import ExecutionOptions
from weightspace.merging.plan.plan import Job, Plan
from weightspace.reprs import brief

if TYPE_CHECKING:
    from weightspace.checkpoints import StateDict
    from weightspace.merging.out_of_core.aligning import Alignment

_log = logging.getLogger(__name__)

#: Called with the bytes fetched from URLs and written to the output so far, and of how many.
OnBytes = Callable[[int, int], None]

#: Takes the merged state dict and returns one of the same names, shapes and dtypes.
Finish = Callable[["StateDict"], "StateDict"]


@brief
@dataclass(frozen=True)
class MergeReport:
    """What a merge did, or would do.

    Attributes:
        out: the checkpoint that it made.
        method: the method's name.
        files: names of its files of weights.
        tensors: how many tensors it has, tied names aside.
        resumed: how many of them an interrupted run had made.
        read_bytes: bytes of all sources of all tensors.
        written_bytes: bytes of the files of weights.
        memory: private bytes that the merge takes at most, roughly, beside the interpreter and its libraries.
        seconds: from the plan to the last rename; a rough estimate where nothing was done.
        warnings: what a strict reading would have refused.
        fetched_bytes: bytes that came from URLs, or would come.

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


def run_plan(
    plan: Plan,
    out: Path,
    execution: ExecutionOptions,
    *,
    align: Alignment | None = None,
    finish: Finish | None = None,
    progress: OnBytes | None = None,
) -> MergeReport:
    """Carry out a plan.

    Args:
        plan: what to do.
        out: where the output goes; what is there is replaced at the end.
        execution: how.
        align: align the sources first.
        finish: what to do to the merged network.
        progress: is told how far it is.

    Raises:
        CheckpointError: ``out`` holds something else than a checkpoint, the disk has no room or refuses, another merge
            is writing there, or an input changes meanwhile.
        WeightspaceError: the memory does not suffice; integers differ; a tensor holds NaN or infinity; as the method.
    """
    start = time.perf_counter()
    _log.info("%s, %d tensors, %d bytes into %s", plan.method.name, len(plan.jobs), plan.written_bytes, out)
    check_runnable(plan, out, execution)
    fetched = missing_bytes(plan.input_files)
    progress = _fetch(plan, fetched, progress)
    with open_staging(out, plan.digest, fsync=execution.fsync) as staging, _hashing(plan) as hashing:
        with _changes_told(plan):
            resumed = _make_tensors(_aligned(plan, align, staging), staging, execution, progress)
            digests = hashing.digests() or dict.fromkeys(plan.input_files, "")
            metadata = {**plan.metadata, **_inputs(plan, digests)}
            with one_line_errors(out, "written"):
                made = _finish(plan, staging, metadata, finish, execution)
        check_unchanged(plan.stamps)
        staging.promote(made)
    done = report(plan, out, execution, resumed=resumed, seconds=time.perf_counter() - start)
    return replace(done, fetched_bytes=fetched)


def report(
    plan: Plan, out: Path, execution: ExecutionOptions, *, resumed: int = 0, seconds: float | None = None
) -> MergeReport:
    """Return the report of a plan that was carried out, or of one that was not: then ``seconds`` are estimated."""
    return MergeReport(
        str(out),
        plan.method.name,
        tuple(shard.name for shard in plan.shards),
        len(plan.jobs),
        resumed,
        plan.read_bytes,
        plan.written_bytes,
        plan_memory(plan, execution.concurrency),
        estimated_seconds(plan, execution.concurrency) if seconds is None else seconds,
        fetched_bytes=missing_bytes(plan.input_files),
    )


def check_runnable(plan: Plan, out: Path, execution: ExecutionOptions) -> None:
    """Check what can be checked before a byte is written.

    Raises:
        CheckpointError: ``out`` cannot be replaced, or the disk has no room.
        WeightspaceError: a tensor needs more memory than there may be used.
    """
    check_checkpoint_output(out, again=plan.companions, force=execution.force)
    with one_line_errors(out, "written"):
        places = (out, staging_folder(out))
    for place in places:
        check_apart(place, (*read_paths(plan), *execution.reads))
    for job in plan.jobs:
        needed = job_memory(plan, job)
        if needed > execution.memory:
            raise WeightspaceError(
                f"{job.name!r} needs about {needed / 2**20:,.0f} MB in one chunk with method {plan.method.name!r}, but "
                f"{execution.memory / 2**20:,.0f} MB may be used. Expected --memory {needed // 2**20 + 1} (MB) or more."
            )
    _check_room(plan, out)


def _check_room(plan: Plan, out: Path) -> None:
    """Check that the disk has room for the output, beside what an interrupted run has written of it."""
    with one_line_errors(out, "written"):
        parts = staging_folder(out) / "parts"
        existing = next(folder for folder in parts.parents if folder.exists())
        free = shutil.disk_usage(existing).free
        files = os.scandir(parts) if parts.is_dir() and not parts.is_symlink() else ()
        written = sum(file.stat(follow_symlinks=False).st_blocks * 512 for file in files)
    needed = plan.written_bytes * (2 if _is_torch(out) else 1)
    needed += _fetched_beside(plan, existing)
    if needed > free + written:
        raise CheckpointError(
            f"{out} needs {needed / 1e9:,.2f} GB, but the disk has {(free + written) / 1e9:,.2f} GB free. "
            "Make room, or write somewhere else."
        )


def _fetched_beside(plan: Plan, folder: Path) -> int:
    """Return the bytes that are still to be fetched onto the disk of a folder."""
    cache = cache_folder()
    if not cache.exists() or os.stat(cache).st_dev != os.stat(folder).st_dev:
        return 0
    return missing_bytes(plan.input_files)


def _fetch(plan: Plan, missing: int, progress: OnBytes | None) -> OnBytes | None:
    """Bring the tensors that lie behind URLs; return a progress that goes on from there."""
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
    """Make the tensors that are not there yet; return how many were."""
    from weightspace.merging.out_of_core.staging import read_journals

    done = [read_journals(staging.journals(number, shard.name, shard.size)) for number, shard in enumerate(plan.shards)]
    pending = [job for job in plan.jobs if job.name not in done[job.shard]]
    written = plan.tensor_bytes - sum(job.info.nbytes for job in pending)

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
    """Make tensors where ``execution`` says."""
    if any(job.kind == "mask" for job in plan.jobs):
        from weightspace.merging.out_of_core.elements import check_masks
        from weightspace.merging.out_of_core.sources import Sources

        check_masks(plan.jobs, Sources(plan))
    global_arguments: Mapping[str, Mapping[str, Any]] = {}
    if any(plan.method.needs_global_pass(job.arguments) for job in jobs):
        from weightspace.merging.out_of_core.executor import global_pass

        global_arguments = global_pass(plan)
    execution = replace(execution, executor=chosen_executor(plan, jobs, execution))
    _log.info("%d tensors to be made, by %s", len(jobs), execution.executor)
    if execution.executor != "threads":
        make_elsewhere(plan, jobs, staging, execution, global_arguments, report)
        return
    from weightspace.merging.out_of_core.executor import make_jobs
    from weightspace.merging.out_of_core.sources import Sources

    make_jobs(jobs, range(len(plan.shards)), Sources(plan), staging, execution, global_arguments, report)


def _hashing(plan: Plan) -> Hashing:
    """Return what takes the digests of the inputs while the merge reads them."""
    return Hashing([member.files for member in plan.members] if plan.hashes else ())


def _inputs(plan: Plan, digests: Mapping[Path, str]) -> dict[str, str]:
    """Return the metadata that names the inputs."""
    return {"inputs": described(plan.inputs, digests, "", {})["inputs"]}


def _aligned(plan: Plan, align: Alignment | None, staging: Staging) -> Plan:
    """Return the plan, of aligned copies of the checkpoints if that is asked for."""
    if align is None:
        return plan
    from weightspace.merging.out_of_core.aligning import aligned

    return aligned(plan, align, staging.folder / "aligned")


@contextmanager
def _changes_told(plan: Plan) -> Iterator[None]:
    """Say of a mistake that it is one of an input that has changed meanwhile, where one has."""
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
    """Add what is known only at the end, and what stands beside the weights; return the name of the file if it is one.

    The name is that of a file in ``Staging.parts``; None: the output is the folder.
    """
    if finish is not None:
        from weightspace.merging.out_of_core.executor import rewrite

        staging.forget(fsync=execution.fsync)
        rewrite(plan, staging, finish, fsync=execution.fsync)
    staging.keep_only([shard.name for shard in plan.shards])
    if len(plan.shards) == 1:
        _fill_header(staging.parts / plan.shards[0].name, metadata, fsync=execution.fsync)
    if not is_file_name(staging.out):
        finish_folder(plan, staging.parts, metadata)
        return None
    if not _is_torch(staging.out):
        return plan.shards[0].name
    from weightspace.checkpoints import load_checkpoint, save_checkpoint

    staged = staging.parts / plan.shards[0].name
    torch_file = staged.with_suffix(staging.out.suffix)
    save_checkpoint(load_checkpoint(staged), torch_file, metadata=metadata)
    return torch_file.name


def _fill_header(path: Path, metadata: Mapping[str, str], *, fsync: bool) -> None:
    """Put the digests into the room that the header has for them."""
    header = read_header(path)
    filled = encode_header(header.entries, {**header.metadata, **metadata})
    with open(path, "r+b") as file:
        if len(filled) != header.data_start:
            raise CheckpointError(f"{path}: the header has {header.data_start} bytes, expected {len(filled)}.")
        file.write(filled)
        file.flush()
        if fsync:
            os.fsync(file.fileno())


def _is_torch(out: Path) -> bool:
    return out.suffix.lower() in TORCH_SUFFIXES
