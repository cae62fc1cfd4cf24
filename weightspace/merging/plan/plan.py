"""Merge plans: every output tensor with its sources, weights, parameters and file offset, as data.

A plan is built from headers, holds no tensors and needs no torch; it can be printed, compared and pickled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from weightspace.checkpoints.gguf.block_types import BlockType
from weightspace.checkpoints.gguf.name_maps import Layout
from weightspace.checkpoints.metadata import CheckpointMetadata, TensorInfo
from weightspace.merging.methods import Method
from weightspace.merging.plan.moved_vocabulary import MovedVocabulary

if TYPE_CHECKING:
    from weightspace.lora.adapter import Adapter, Factors

#: A tensor of a member: the member's index in ``Plan.members`` and the tensor's name.
Ref: TypeAlias = tuple[int, str]

#: ``merge``: merged by the method. ``agree``: integers that must be equal in all models. ``copy``: copied from the
#: first model. ``largest``: the maximum of counters. ``direction`` and ``magnitude``: parts of a merged weight under
#: weight norm. ``vector``: singular vector of a merged weight under spectral norm. ``mask``: pruning mask that must
#: be equal in all models.
Kind: TypeAlias = Literal["merge", "agree", "copy", "largest", "direction", "magnitude", "vector", "mask"]

#: Most elements of a matrix that is held in memory until its single scale is known; larger ones are merged twice.
HELD = 2**23


@dataclass(frozen=True)
class Member:
    """A checkpoint of a merge.

    Attributes:
        source: the source as written by the user.
        label: the shortest unique suffix of its path, used in messages and to seed random masks.
        contents: its tensors, including the adapter's changes.
        adapter: a LoRA adapter that is applied on reading, or None.
        evidence: data statistics for the model, or None.
        stored: its tensors as stored in its files, if the adapter or moved rows change them; else None.
        borrowed: tensor that the files lack -> tensor that it was tied to and is initialised from.
        scales: name -> factor of borrowed tensors, if tied heads are scaled differently.
        dtypes: name -> dtype to use for promotion, if it differs from that of the file.
        plan: plan to compute its tensors on reading, if it is an intermediate result without files; else None.
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
    def title(self) -> str:
        """Name for messages: the label, or the whole source of a model with an adapter."""
        return self.label if self.adapter is None else self.source

    @property
    def inputs(self) -> tuple[tuple[Path, tuple[Path, ...]], ...]:
        """Paths that it is read from, each with its files: the model, the adapter and the evidence."""
        own = (None if self.plan is not None else self.contents, self.adapter, self.evidence)
        below = () if self.plan is None else self.plan.inputs
        return (*below, *((part.path, part.files) for part in own if part is not None))

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that it is read from."""
        return tuple(file for _, files in self.inputs for file in files)

    @property
    def untied(self) -> bool:
        """Whether the adapter separates tensors that share memory in the model."""
        return bool(self.borrowed) or (self.stored is not None and self.stored.tied != self.contents.tied)


@dataclass(frozen=True, slots=True)
class Scales:
    """The scales of a quantised tensor of the output, written beside it.

    Attributes:
        name: name of their tensor: that of the quantised one, with an ending.
        info: its dtype and shape.
        block: rows and columns of a block that has a scale.
        matrices: names of the matrices that the quantised tensor is written as, in order, each with its own scales:
            itself, or those of a stack.
        offset: offset of its first byte in the shard.
    """

    name: str
    info: TensorInfo
    block: tuple[int, int]
    matrices: tuple[str, ...]
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Packed:
    """The form of a tensor in a GGUF output.

    Attributes:
        name: name in the file.
        kind: how its elements are stored.
        layout: how it differs from Hugging Face's layout.
        nbytes: number of its bytes.
    """

    name: str
    kind: BlockType
    layout: Layout
    nbytes: int


@dataclass(frozen=True, slots=True)
class Job:
    """One tensor of the output.

    Attributes:
        name: name in the output.
        kind: how it is computed.
        inputs: the models' tensors.
        base: the base's tensor, or None.
        weights: one per model.
        arguments: keyword arguments of the method.
        info: dtype and shape in the output.
        shard: index of its shard.
        offset: offset of its first byte in the shard.
        follows: for magnitudes and vectors, the output tensor that they are derived from; it has the same ``inputs``.
        companions: further tensors that are read, one per model with the base last: magnitudes for directions; left
            vectors, right vectors and values for vectors, as far as they exist.
        layer: index of its layer and number of layers in its stack; None outside the layers.
        part: which of spectral norm's tensors a vector is: ``left``, ``right`` or ``value``.
        fallback: the base's tensor with rows for tokens that a model lacks, also if the method takes no base; or None.
        scales: the scales that it is quantised with, in the same shard; None if it is not quantised.
        packed: its form in a GGUF output, which ``info`` is computed for; None in other outputs.
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
    fallback: Ref | None = None
    scales: Scales | None = None
    packed: Packed | None = None

    @property
    def nbytes(self) -> int:
        """Number of bytes that it writes, including scales."""
        if self.packed is not None:
            return self.packed.nbytes
        return self.info.nbytes + (0 if self.scales is None else self.scales.info.nbytes)

    @property
    def written(self) -> tuple[str, ...]:
        """Names of the tensors that it writes, including scales."""
        if self.scales is None:
            return (self.name,)
        ending = self.scales.name.removeprefix(self.name)
        return tuple(name + end for end in ("", ending) for name in self.scales.matrices)

    @property
    def models(self) -> tuple[Ref, ...]:
        """The models' tensors, followed by the base's."""
        return self.inputs if self.base is None else (*self.inputs, self.base)

    @property
    def refs(self) -> tuple[Ref, ...]:
        """All tensors that are read for it."""
        rows = () if self.fallback is None or self.fallback in self.models else (self.fallback,)
        return (*self.models, *rows, *(ref for refs in self.companions for ref in refs))

    @property
    def merges(self) -> bool:
        """Whether it is computed by the merge method."""
        return self.kind in ("merge", "largest", "direction", "magnitude", "vector")


@dataclass(frozen=True)
class Shard:
    """An output file.

    Attributes:
        name: its path relative to the output folder.
        header: its header, without digests.
        size: its size in bytes.
        prefix: start of the names of its tensors that is left out in the file.
    """

    name: str
    header: bytes
    size: int
    prefix: str = ""

    @property
    def folder(self) -> str:
        """The folder that it is in, relative to the output folder."""
        return self.name.rpartition("/")[0]


@dataclass(frozen=True)
class Plan:
    """A merge from files to files.

    Attributes:
        method: the merge method.
        members: the checkpoints of the merge.
        jobs: the tensors of the output, in order.
        tied: name in the output -> name of the tensor that it shares memory with; tied names have no jobs.
        shards: the files of the output.
        metadata: provenance of the output, without the digests of the inputs.
        finite: refuse NaN and infinity.
        title: title of the output's model card.
        donor: folder that the configuration and tokenizer are copied from, or None.
        tokenizer: folder that the tokenizer is copied from instead, or None.
        configurations: file name -> new text, for configuration files of the donor that change in the output.
        companions: non-weight files copied from donor and tokenizer, as paths relative to the folder.
        notices: one-line messages about decisions, repeated in the model card.
        chat_template: Jinja template that replaces that of the tokenizer, or None.
        identity: everything that determines the output's bytes; an interrupted run resumes only if it is unchanged.
        stamps: size and modification time, in nanoseconds, of every file that is read.
        hashes: record the SHA-256 of the inputs in the metadata.
        vocabulary: how embedding rows are reordered by token before merging; None: rows are merged by index.
        device: where matrices are decomposed and multiplied.
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
    device: str = "cpu"

    @cached_property
    def shard_groups(self) -> Mapping[str, Sequence[Shard]]:
        """Folder, relative to the output folder -> its shards, which an index lists if there are several."""
        groups: dict[str, list[Shard]] = {}
        for shard in self.shards:
            groups.setdefault(shard.folder, []).append(shard)
        return groups

    @cached_property
    def by_name(self) -> Mapping[str, Job]:
        """Tensor name -> job."""
        return {job.name: job for job in self.jobs}

    @cached_property
    def parametrized(self) -> frozenset[str]:
        """Names of the weights that other output tensors are derived from."""
        return frozenset(job.follows for job in self.jobs if job.follows)

    @property
    def digest(self) -> str:
        """SHA-256 of the identity."""
        return hashlib.sha256(self.identity.encode()).hexdigest()

    @property
    def inputs(self) -> tuple[tuple[Path, tuple[Path, ...]], ...]:
        """Paths that all members are read from, each with its files; without duplicates if some are computed."""
        return inputs_of(self.members)

    @property
    def input_files(self) -> tuple[Path, ...]:
        """All files that are read, without duplicates."""
        files = [file for member in self.members for file in member.files]
        return tuple(dict.fromkeys(files))

    @property
    def read_bytes(self) -> int:
        """Bytes of all sources of all tensors, counted once per use."""
        return sum(self._source_bytes(ref) for job in self.jobs for ref in job.refs)

    @property
    def written_bytes(self) -> int:
        """Bytes of the output's weight files."""
        return sum(shard.size for shard in self.shards)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the output's tensors."""
        return sum(job.nbytes for job in self.jobs)

    def made(self, name: str) -> Job:
        """Return the job of an output tensor, or of the tensor that it is tied to."""
        return self.by_name[self.tied.get(name, name)]

    def info(self, ref: Ref) -> TensorInfo:
        """Return the dtype and shape of a source."""
        member, name = ref
        return self.members[member].contents.tensors[name]

    def factors(self, ref: Ref) -> Factors | None:
        """Return the factors that an adapter adds to a source, or None."""
        member, name = ref
        adapter = self.members[member].adapter
        return None if adapter is None else adapter.factors.get(name)

    def _source_bytes(self, ref: Ref) -> int:
        """Return the bytes that are read for a source, including an adapter's factors."""
        factors, member = self.factors(ref), self.members[ref[0]]
        adapter = member.adapter
        if adapter is None and member.plan is not None:
            return sum(member.plan._source_bytes(below) for below in member.plan.made(ref[1]).refs)
        contents = member.stored or member.contents
        own = contents.stored_bytes(ref[1]) if ref[1] in contents.tensors else self.info(ref).nbytes
        if factors is None or adapter is None:
            return own
        return own + sum(adapter.contents.tensors[name].nbytes for name in factors.names.values())


def inputs_of(members: Iterable[Member]) -> tuple[tuple[Path, tuple[Path, ...]], ...]:
    """Return the paths that members are read from, each with its files; without duplicates if some are computed."""
    known = list(members)
    entries = [entry for member in known for entry in member.inputs]
    return tuple(dict.fromkeys(entries) if any(member.plan is not None for member in known) else entries)
