"""Merge plans: every output tensor with its sources, weights, parameters and file offset, as data.

A plan is made from headers, holds no tensor and needs no torch; it can be printed, compared and sent elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from weightspace.checkpoints.metadata import CheckpointMetadata, TensorInfo
from weightspace.merging.methods import Method
from weightspace.merging.plan.moved_vocabulary import MovedVocabulary

if TYPE_CHECKING:
    from weightspace.lora.adapter import Adapter, Factors

#: A tensor of a member: its index in ``Plan.members``, and the tensor's name there.
Ref: TypeAlias = tuple[int, str]

#: ``merge``: by the method. ``agree``: integers, copied where all models have the same. ``copy``: of the first one.
#: ``largest``: a counter. ``direction`` and ``magnitude``: of a merged weight under weight norm. ``vector``: a singular
#: vector of a merged weight under spectral norm. ``mask``: of pruned weights, copied where all models have the same.
Kind: TypeAlias = Literal["merge", "agree", "copy", "largest", "direction", "magnitude", "vector", "mask"]


@dataclass(frozen=True)
class Member:
    """A checkpoint that takes part.

    Attributes:
        source: as the user wrote it.
        label: the shortest end of its path that no other member has; errors and random masks know it by this.
        contents: its tensors, the adapter on top.
        adapter: a LoRA adapter that is added on the fly, or None.
        evidence: statistics of data for it, or None.
        stored: its tensors as they are in its files, where the adapter makes others of them; else None.
        borrowed: tensor without one of its own in the files -> the one that it was tied to, and starts from.
        scales: those of them that are multiplied by a number, because a tied head works on another scale.
        dtypes: tensor -> the dtype that it counts as where dtypes are promoted, where that is not the one of its file.
        plan: how its tensors are computed when they are read, where it is a result that lies in no file; else None.
    """

    source: str
    label: str
    contents: CheckpointMetadata
    adapter: Adapter | None = None
    evidence: CheckpointMetadata | None = None
    stored: CheckpointMetadata | None = None
    borrowed: Mapping[str, str] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)
    plan: Plan | None = None

    @property
    def inputs(self) -> tuple[tuple[Path, tuple[Path, ...]], ...]:
        """What it is read from: a path and its files, of the model, of the adapter and of the evidence."""
        own = (None if self.plan is not None else self.contents, self.adapter, self.evidence)
        below = () if self.plan is None else self.plan.inputs
        return (*below, *((part.path, part.files) for part in own if part is not None))

    @property
    def files(self) -> tuple[Path, ...]:
        """The files of all of these."""
        return tuple(file for _, files in self.inputs for file in files)

    @property
    def untied(self) -> bool:
        """Whether the adapter sets tensors apart that share memory in the model."""
        return bool(self.borrowed) or (self.stored is not None and self.stored.tied != self.contents.tied)


@dataclass(frozen=True, slots=True)
class Job:
    """One tensor of the output.

    Attributes:
        name: its name there.
        kind: how it is made.
        inputs: the models' tensors.
        base: the base's, or None.
        weights: one per model.
        arguments: keyword arguments of the method.
        info: dtype and shape in the output.
        shard: the file that it goes to.
        offset: its first byte there.
        follows: the tensor of the output that it follows from, for magnitudes and vectors; ``inputs`` are that one's.
        companions: tensors beside the inputs, one per model, the base last: the magnitudes of directions; of vectors
            all left ones, all right ones and all values, as far as there are any.
        layer: its layer in its stack, counted from 0, and their number; None outside the layers.
        part: which of a spectral norm's tensors a vector is: ``left``, ``right`` or ``value``.
    """

    name: str
    kind: Kind
    inputs: tuple[Ref, ...]
    base: Ref | None
    weights: tuple[float, ...]
    arguments: Mapping[str, Any]
    info: TensorInfo
    shard: int = 0
    offset: int = 0
    follows: str = ""
    companions: tuple[tuple[Ref, ...], ...] = ()
    part: str = ""
    layer: tuple[int, int] | None = None

    @property
    def models(self) -> tuple[Ref, ...]:
        """The models' tensors, and the base's behind them."""
        return self.inputs if self.base is None else (*self.inputs, self.base)

    @property
    def refs(self) -> tuple[Ref, ...]:
        """Everything that is read for it."""
        return (*self.models, *(ref for refs in self.companions for ref in refs))

    @property
    def merges(self) -> bool:
        """Whether the method is used for it."""
        return self.kind in ("merge", "largest", "direction", "magnitude", "vector")


@dataclass(frozen=True)
class Shard:
    """One file of the output: its name, its header without digests, and its size in bytes."""

    name: str
    header: bytes
    size: int


@dataclass(frozen=True)
class Plan:
    """A merge from files to files.

    Attributes:
        method: the row of the table.
        members: the checkpoints that take part.
        jobs: the tensors of the output, in its order.
        tied: name in the output -> the name that it shares memory with; no jobs of their own.
        shards: the files of the output.
        metadata: where the output comes from, without the digests of the inputs.
        finite: refuse NaN and infinity.
        title: what the output is called.
        donor: the folder that configuration and tokenizer come from, or None.
        tokenizer: another folder that the tokenizer comes from, or None.
        configurations: what files of the donor say in the output, by name, where that is something else.
        companions: files beside the weights that come from donor and tokenizer, as paths relative to the folder.
        notices: lines about what was decided on the way; the model card repeats them.
        chat_template: Jinja in the place of the tokenizer's own template, or None.
        identity: everything that decides the output's bytes; an unfinished run goes on only where it is the same.
        stamps: size and time of change, in nanoseconds, of every file that is read.
        hashes: keep the SHA-256 of the inputs in the metadata.
        vocabulary: how rows are moved by token before they are merged; None: they are merged by their index.
    """

    method: Method
    members: tuple[Member, ...]
    jobs: tuple[Job, ...]
    tied: Mapping[str, str]
    shards: tuple[Shard, ...]
    metadata: Mapping[str, str]
    finite: bool
    identity: str
    title: str
    donor: Path | None = None
    tokenizer: Path | None = None
    configurations: Mapping[str, str] = field(default_factory=dict)
    companions: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    chat_template: str | None = None
    stamps: Mapping[Path, tuple[int, int]] = field(default_factory=dict)
    hashes: bool = True
    vocabulary: MovedVocabulary | None = None

    @cached_property
    def by_name(self) -> Mapping[str, Job]:
        """The jobs by the name of their tensor."""
        return {job.name: job for job in self.jobs}

    @cached_property
    def parametrized(self) -> frozenset[str]:
        """The names of the weights that other tensors of the output follow from."""
        return frozenset(job.follows for job in self.jobs if job.follows)

    @property
    def digest(self) -> str:
        """SHA-256 of the identity."""
        return hashlib.sha256(self.identity.encode()).hexdigest()

    @property
    def inputs(self) -> tuple[tuple[Path, tuple[Path, ...]], ...]:
        """What all members are read from; each once, where some of them are computed."""
        return inputs_of(self.members)

    @property
    def input_files(self) -> tuple[Path, ...]:
        """The files that are read, each once."""
        files = [file for member in self.members for file in member.files]
        return tuple(dict.fromkeys(files))

    @property
    def read_bytes(self) -> int:
        """Bytes of all sources of all tensors, each counted once a use."""
        return sum(self._source_bytes(ref) for job in self.jobs for ref in job.refs)

    @property
    def written_bytes(self) -> int:
        """Bytes of the output's files of weights."""
        return sum(shard.size for shard in self.shards)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the output's tensors."""
        return sum(job.info.nbytes for job in self.jobs)

    def made(self, name: str) -> Job:
        """Return the job of a tensor of the output, of the one that it is tied to where it has none of its own."""
        return self.by_name[self.tied.get(name, name)]

    def info(self, ref: Ref) -> TensorInfo:
        """Return dtype and shape of a source."""
        member, name = ref
        return self.members[member].contents.tensors[name]

    def factors(self, ref: Ref) -> Factors | None:
        """Return what an adapter adds to a source, if one does."""
        member, name = ref
        adapter = self.members[member].adapter
        return None if adapter is None else adapter.factors.get(name)

    def _source_bytes(self, ref: Ref) -> int:
        """Return the bytes that are read for a source: its elements, and an adapter's factors."""
        factors, member = self.factors(ref), self.members[ref[0]]
        adapter = member.adapter
        if adapter is None and member.plan is not None:
            return sum(member.plan._source_bytes(below) for below in member.plan.made(ref[1]).refs)
        if factors is None or adapter is None:
            return self.info(ref).nbytes
        return self.info(ref).nbytes + sum(
            adapter.contents.tensors[name].nbytes for name in (factors.a_name, factors.b_name)
        )


def inputs_of(members: Iterable[Member]) -> tuple[tuple[Path, tuple[Path, ...]], ...]:
    """Return what members are read from, a path and its files each; each once, where some members are computed."""
    known = list(members)
    entries = [entry for member in known for entry in member.inputs]
    return tuple(dict.fromkeys(entries) if any(member.plan is not None for member in known) else entries)
