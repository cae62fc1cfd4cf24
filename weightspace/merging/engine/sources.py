"""The tensors of a plan's members, read from their files a range at a time."""

from __future__ import annotations

from collections.abc import Sequence

from weightspace.adapters.low_rank import Adapted
from weightspace.checkpoints.dtypes import DTYPES
from weightspace.checkpoints.open_files import OpenFiles
from weightspace.checkpoints.reader import CheckpointReader
from weightspace.elementwise.precision import compute_dtype
from weightspace.merging.engine.plan import Job, Plan, Ref
from weightspace.merging.stack import Flat, InMemory, Stack


class Sources:
    """Opens each checkpoint once, and builds the stacks of jobs from them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        members, files = plan.members, OpenFiles()
        adapters = [None if member.adapter is None else member.adapter.contents for member in members]
        self.states = [CheckpointReader(member.stored or member.contents, files) for member in members]
        self.adapters = [contents and CheckpointReader(contents, files) for contents in adapters]
        self.evidence = [member.evidence and CheckpointReader(member.evidence, files) for member in members]

    def flat(self, ref: Ref) -> Flat:
        """Return a tensor, with its adapter's part added where it has one."""
        index, name = ref
        member, state = self.plan.members[index], self.adapters[index]
        if member.adapter is None or state is None:
            return _flat(self.states[index], name)
        saved, factors = member.adapter.saved.get(name), member.adapter.factors.get(name)
        flat = _flat(self.states[index], member.borrowed.get(name, name)) if saved is None else _flat(state, saved)
        if factors is None:
            return flat
        return Adapted(flat, state[factors.a_name], state[factors.b_name], factors.scale, transposed=factors.transposed)

    def stack(self, job: Job) -> Stack:
        """Return the stack of a job."""
        flats = [self.flat(ref) for ref in job.inputs]
        base = None if job.base is None else self.flat(job.base)
        out = DTYPES[job.info.dtype]
        dtypes = [flat.dtype for flat in (*flats, *([] if base is None else [base]))]
        wide = compute_dtype(dtypes if out.is_complex else [*dtypes, out])
        labels = [self.plan.members[index].label for index, _ in job.inputs]
        return Stack(
            job.name,
            flats,
            base,
            labels,
            self.plan.method.grain_of(job.arguments),
            self.plan.finite,
            wide,
            self._evidence(job),
        )

    def _evidence(self, job: Job) -> Sequence[Flat | None]:
        """Return each model's evidence about the tensor."""
        if not self.plan.method.evidence:
            return ()
        found = [self.evidence[index] for index, _ in job.inputs]
        return [
            _flat(state, name) if state is not None and name in state else None
            for state, (_, name) in zip(found, job.inputs, strict=True)
        ]


def _flat(reader: CheckpointReader, name: str) -> Flat:
    """Return a tensor to be read by range; one whose elements are not in order in a file is read whole."""
    return reader.stored(name) or InMemory(reader[name])
