"""Read the tensors of a plan's members from their files, in ranges."""

from __future__ import annotations

from collections.abc import Sequence

from weightspace.arithmetic.dtypes import compute_dtype
from weightspace.arithmetic.pruning import PrunedTensor
from weightspace.arithmetic.spectral_norm import SpectralModel
from weightspace.arithmetic.weight_norm import EffectiveWeight, Split
from weightspace.checkpoints.buffers import effective_name, mask_of
from weightspace.checkpoints.dtypes import DTYPES
from weightspace.checkpoints.open_files import OpenFiles
from weightspace.checkpoints.reader import CheckpointReader
from weightspace.lora.adapted import adapted
from weightspace.lora.low_rank import Scaled
from weightspace.merging.methods._tensor_stack import InMemory, TensorReader, TensorStack
from weightspace.merging.out_of_core.computed_tensor import ComputedTensor
from weightspace.merging.plan.plan import Job, Plan, Ref
from weightspace.merging.tokenizers.moved_rows import RowSources, moved_rows


class Sources:
    """The opened checkpoints of a plan, and the tensor stacks of its jobs."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        members, files = plan.members, OpenFiles()
        self._files = files
        adapters = [None if member.adapter is None else member.adapter.contents for member in members]
        self.states = [CheckpointReader(member.stored or member.contents, files) for member in members]
        self.stages = [None if member.plan is None else Sources(member.plan) for member in members]
        self.adapters = [contents and CheckpointReader(contents, files) for contents in adapters]
        self.evidence = [member.evidence and CheckpointReader(member.evidence, files) for member in members]
        #: Results shared by several jobs, by tensor: magnitude and direction of merged weights, and singular vectors.
        self.splits: dict[str, Split] = {}
        self.vectors: dict[str, SpectralModel] = {}
        self._row_sources: dict[tuple[tuple[int, ...], int | None], RowSources] = {}

    def moved(self, job: Job, ref: Ref) -> TensorReader:
        """Return a tensor as ``flat`` does, with embedding rows reordered to the output's token ids."""
        vocabulary, (index, name) = self.plan.vocabulary, ref
        if vocabulary is None or not vocabulary.moves(index, name):
            return self.flat(ref)
        fallback = job.fallback
        refs = {own: (own, other) for own, other in (*((fallback,) if fallback else ()), *job.models)}
        members = tuple(sorted(refs))
        readers = {own: self.flat(refs[own]) for own in members} | {index: self.flat(ref)}
        if vocabulary.further is not None:
            members = (*members, len(self.plan.members))
            readers[members[-1]] = _flat(CheckpointReader(vocabulary.further, self._files), name)
        base = None if fallback is None else fallback[0]
        if (members, base) not in self._row_sources:
            self._row_sources[members, base] = RowSources(vocabulary, members, base)
        return moved_rows(self._row_sources[members, base], readers, index, vocabulary.tensors[index][name])

    def flat(self, ref: Ref) -> TensorReader:
        """Return a reader of a tensor, with the adapter's update added if there is one."""
        index, name = ref
        member, state = self.plan.members[index], self.adapters[index]
        if member.adapter is None or state is None:
            return self._own(index, name)
        saved, factors = member.adapter.saved.get(name), member.adapter.factors.get(name)
        flat = self._own(index, member.borrowed.get(name, name)) if saved is None else _flat(state, saved)
        if factors is not None:
            flat = adapted(flat, factors, {role: state[tensor] for role, tensor in factors.names.items()})
        return Scaled(flat, member.scales[name]) if name in member.scales else flat

    def _own(self, index: int, name: str) -> TensorReader:
        """Return a reader of a member's tensor without its adapter, stored or computed."""
        stage, plan = self.stages[index], self.plan.members[index].plan
        if stage is None or plan is None:
            return _flat(self.states[index], name)
        made = self.states[index].contents.renamed.get(name, name)
        return ComputedTensor(plan.made(made), stage)

    def weights(self, job: Job) -> list[TensorReader]:
        """Return readers of the models' and the base's tensors to merge; directions are replaced by full weights."""
        flats = [self.moved(job, ref) for ref in job.models]
        mask = self.plan.by_name.get(mask_of(job.name))
        if mask is not None and mask.kind == "mask" and job.info.dtype != "C64":
            return [PrunedTensor(flat, self.flat(mask.inputs[0]), flat.dtype) for flat in flats]
        if job.kind != "direction":
            return flats
        magnitudes = [self.flat(ref) for ref in job.companions[0]]
        labels = [self.plan.members[index].label for index, _ in job.models]
        return [
            EffectiveWeight(*pair, name=job.name, model=label, finite=self.plan.finite)
            for pair, label in zip(zip(magnitudes, flats, strict=True), labels, strict=True)
        ]

    def stack(self, job: Job) -> TensorStack:
        """Return the tensor stack of a job."""
        everything = self.weights(job)
        flats, base = everything[: len(job.inputs)], everything[-1] if job.base is not None else None
        out = DTYPES[job.info.dtype]
        dtypes = [flat.dtype for flat in everything]
        wide = compute_dtype(dtypes if out.is_complex else [*dtypes, out])
        labels = [self.plan.members[index].label for index, _ in job.inputs]
        return TensorStack(
            job.name,
            flats,
            base,
            labels,
            self.plan.method.granularity_of(job.arguments),
            self.plan.finite,
            wide,
            evidence=self._evidence(job),
            layer=job.layer,
            device=self.plan.device if self.plan.method.on_device else "cpu",
        )

    def _evidence(self, job: Job) -> Sequence[TensorReader | None]:
        """Return each model's evidence for the tensor."""
        if not self.plan.method.evidence:
            return ()
        return [self._evidence_of(job, index, name) for index, name in job.inputs]

    def _evidence_of(self, job: Job, index: int, name: str) -> TensorReader | None:
        """Return a model's evidence for a tensor, or for the parametrized weight that the tensor is part of."""
        state = self.evidence[index]
        names = (name, effective_name(name)) if job.name in self.plan.parametrized else (name,)
        known = next((known for known in names if state is not None and known in state), None)
        return None if state is None or known is None else _flat(state, known)


def _flat(reader: CheckpointReader, name: str) -> TensorReader:
    """Return a reader of a tensor; tensors whose elements are not contiguous in the file are loaded whole."""
    return reader.stored(name) or InMemory(reader[name])
