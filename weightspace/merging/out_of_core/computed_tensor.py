"""Tensors of intermediate results that are computed in ranges on reading and never written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from weightspace.arithmetic.dtypes import real_dtype
from weightspace.arithmetic.integers import agreed, largest
from weightspace.checkpoints.dtypes import DTYPES
from weightspace.merging.methods._apply import MergedTensor, sound_chunks
from weightspace.merging.methods._registry import CHUNK
from weightspace.merging.methods._tensor_stack import TensorReader, TensorStack
from weightspace.merging.plan.plan import Job, Plan, Ref


class JobSources(Protocol):
    """The checkpoints of a plan, as ``Sources`` opens them."""

    plan: Plan

    def flat(self, ref: Ref) -> TensorReader:
        """Return a tensor of a checkpoint."""
        ...

    def stack(self, job: Job) -> TensorStack:
        """Return the stack of a job."""
        ...


class ComputedTensor:
    """A ``TensorReader`` for a job's result. It caches one chunk, since chunks are read in order.

    The result is bit-identical to what the job would write: chunks have the same boundaries as in a merge to files.
    """

    def __init__(self, job: Job, sources: JobSources) -> None:
        """Prepare to compute.

        Args:
            job: a job of kind ``merge``, ``copy`` or ``agree``, or an integer counter, of a plan without global pass.
            sources: the plan's checkpoints.
        """
        dtype = DTYPES[job.info.dtype]
        self.dtype = real_dtype(dtype)
        self.shape = (*job.info.shape, 2) if dtype.is_complex else job.info.shape
        self._job, self._sources = job, sources
        self._merged: MergedTensor | None = None
        self._chunks: Iterator[tuple[int, Tensor]] = iter(())
        self._start, self._values = 0, torch.empty(0, dtype=self.dtype)

    def read(self, start: int, stop: int) -> Tensor:
        """Return the elements ``start:stop`` as a 1-D tensor, which must not be modified.

        Raises:
            WeightspaceError: integers differ, a tensor holds NaN or infinity, or the method raises it.
        """
        parts: list[Tensor] = []
        at = start
        while at < stop:
            if not self._start <= at < self._start + len(self._values):
                self._advance(at)
            parts.append(self._values[at - self._start : stop - self._start])
            at += len(parts[-1])
        return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else self._values[:0]

    def _advance(self, at: int) -> None:
        """Compute chunks up to the one that holds element ``at``; restart if that isn't the next one."""
        if at != self._start + len(self._values) or at == 0:
            self._chunks = self._chunks_from(at)
        while True:
            start, values = next(self._chunks)
            if at < start + len(values):
                self._start, self._values = start, values.to(self.dtype, copy=True)
                return

    def _chunks_from(self, at: int) -> Iterator[tuple[int, Tensor]]:
        """Return the chunks starting with the one that holds element ``at``, or an earlier one."""
        job, sources = self._job, self._sources
        if job.kind != "merge":
            return self._unmerged(at - at % CHUNK)
        stack = sources.stack(job)
        if self._merged is None:
            self._merged = MergedTensor(sources.plan.method, stack, job.weights, job.arguments, self.dtype)
        return sound_chunks(stack, self._merged.chunks(at - at % self._merged.span))

    def _unmerged(self, first: int) -> Iterator[tuple[int, Tensor]]:
        """Yield chunks of a tensor that the method does not merge: a counter, a copy, or equal integers."""
        job, plan = self._job, self._sources.plan
        refs = job.models if job.kind == "largest" and plan.method.base == "end" else job.inputs
        flats = [self._sources.flat(ref) for ref in refs]
        labels = [plan.members[index].label for index, _ in refs]
        combine: Callable[[list[Tensor]], Tensor] = {
            "agree": lambda chunks: agreed(job.name, chunks, models=labels),
            "largest": lambda chunks: _largest(chunks),
        }.get(job.kind, lambda chunks: chunks[0])
        count = math.prod(flats[0].shape)
        for start in range(first, count, CHUNK):
            yield start, combine([flat.read(start, min(start + CHUNK, count)) for flat in flats])


def _largest(counts: list[Tensor]) -> Tensor:
    """Return the elementwise maximum of integer counters."""
    maximum = largest(counts)
    return counts[0] if maximum is None else maximum
