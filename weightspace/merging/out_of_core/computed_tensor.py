"""A tensor of an intermediate result, computed range by range whenever it is read: nothing of it is ever written."""

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
    """A ``TensorReader`` of what a job makes; one chunk of it is kept, since chunks are read in order.

    Its bits are those that the job would write: chunks begin where they begin in a merge to files.
    """

    def __init__(self, job: Job, sources: JobSources) -> None:
        """Prepare to compute.

        Args:
            job: a tensor of a plan without a pass over the whole model, of the kinds ``merge``, ``copy`` and ``agree``,
                or a counter of whole numbers.
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
        """Return the elements from ``start`` up to ``stop``, 1-D; not to be modified.

        Raises:
            WeightspaceError: as the method; integers differ; a tensor holds NaN or infinity.
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
        """Compute chunks up to the one that holds an element; begin anew where that isn't the next one."""
        if at != self._start + len(self._values) or at == 0:
            self._chunks = self._chunks_from(at)
        while True:
            start, values = next(self._chunks)
            if at < start + len(values):
                self._start, self._values = start, values.to(self.dtype, copy=True)
                return

    def _chunks_from(self, at: int) -> Iterator[tuple[int, Tensor]]:
        """Return the chunks from the one on that holds an element, or from one before it."""
        job, sources = self._job, self._sources
        if job.kind != "merge":
            return self._kept(at - at % CHUNK)
        stack = sources.stack(job)
        if self._merged is None:
            self._merged = MergedTensor(sources.plan.method, stack, job.weights, job.arguments, self.dtype)
        return sound_chunks(stack, self._merged.chunks(at - at % self._merged.span))

    def _kept(self, first: int) -> Iterator[tuple[int, Tensor]]:
        """Yield what is no merge: the largest counter, a copy, or what all models agree on."""
        job, plan = self._job, self._sources.plan
        refs = job.models if job.kind == "largest" and plan.method.base == "end" else job.inputs
        flats = [self._sources.flat(ref) for ref in refs]
        labels = [plan.members[index].label for index, _ in refs]
        combined: Callable[[list[Tensor]], Tensor] = {
            "agree": lambda chunks: agreed(job.name, chunks, models=labels),
            "largest": lambda chunks: _largest(chunks),
        }.get(job.kind, lambda chunks: chunks[0])
        count = math.prod(flats[0].shape)
        for start in range(first, count, CHUNK):
            yield start, combined([flat.read(start, min(start + CHUNK, count)) for flat in flats])


def _largest(counts: list[Tensor]) -> Tensor:
    """Return the largest of counters that are whole numbers."""
    found = largest(counts)
    return counts[0] if found is None else found
