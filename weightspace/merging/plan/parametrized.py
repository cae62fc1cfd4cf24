"""Jobs of parametrized weights: weight norm's magnitude and direction, spectral norm's vectors, pruning masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from weightspace.checkpoints.buffers import (
    SpectralNorm,
    WeightNorm,
    check_evidence,
    check_ties,
    effective_name,
    find_parametrizations,
    mask_of,
)
from weightspace.errors import CheckpointError
from weightspace.merging.plan.plan import Job, Kind, Member, Ref


def with_parametrizations(jobs: Sequence[Job], tied: Mapping[str, str], members: Sequence[Member]) -> list[Job]:
    """Return the jobs with the parts of parametrized weights derived from the merged weight.

    Args:
        jobs: one job per tensor, as if all tensors were independent.
        tied: name in the output -> name of the tensor that it shares memory with.
        members: the checkpoints of the merge.

    Raises:
        CheckpointError: the parts of a weight come from different models, only some of them are tied, or a model that
            a weight comes from lacks its mask.
        WeightspaceError: a parametrization is not supported, or evidence refers to a part of a weight.
    """
    made = {job.name: job for job in jobs}
    shapes = {name: job.info.shape for name, job in made.items()}
    parametrizations = find_parametrizations({**shapes, **{alias: shapes[owner] for alias, owner in tied.items()}})
    check_ties(parametrizations, tied)
    for member in members:
        if member.evidence is not None:
            check_evidence(member.label, member.evidence.tensors, parametrizations)
    for name, norm in parametrizations:
        if norm.functions[0] not in tied:
            _join(made, tied.get(name, name), norm)
    for original, mask in parametrizations.masks.items():
        if mask not in tied:
            made[mask] = _mask(made[mask], made[tied.get(original, original)], members, alone=original in tied)
    return [made[job.name] for job in jobs]


def _join(made: dict[str, Job], name: str, norm: WeightNorm | SpectralNorm) -> None:
    """Replace the jobs of a weight and its parts by jobs that derive the parts from the merged weight."""
    weight, parts = made[name], [made[part] for part in norm.functions]
    if {job.kind for job in (weight, *parts)} == {"copy"} and len({job.inputs[0][0] for job in (weight, *parts)}) == 1:
        return
    for job in (weight, *parts):
        if not job.merges or job.info.dtype == "C64" or _owners(job) != _owners(weight):
            raise CheckpointError(
                f"{job.name!r} is a part of the weight {effective_name(name)!r} under weight norm or spectral norm, "
                f"and not every model has it as real numbers. Expected {', '.join((name, *norm.functions))} in all."
            )
    if isinstance(norm, WeightNorm):
        companions = (parts[0].models,)
        made[name] = replace(weight, kind="direction", companions=companions)
        made[parts[0].name] = _following(parts[0], weight, "magnitude", companions)
        return
    by_part = {"left": norm.left, "right": norm.right, "value": norm.value}
    companions = tuple(() if part is None else made[part].models for part in by_part.values())
    for part, tensor in by_part.items():
        if tensor is not None:
            made[tensor] = replace(_following(made[tensor], weight, "vector", companions), part=part)


def _mask(job: Job, pruned: Job, members: Sequence[Member], *, alone: bool) -> Job:
    """Return the job of a pruned tensor's mask, on which all models and the base must agree.

    Args:
        job: the mask's job, as if the mask were an independent tensor.
        pruned: the job of the pruned tensor.
        members: the checkpoints of the merge.
        alone: whether the pruned tensor shares memory with another tensor while the mask does not.

    Raises:
        CheckpointError: a model or the base has no such mask.
    """
    if pruned.kind == "copy" and job.kind == "copy" and job.inputs[0][0] == pruned.inputs[0][0]:
        return job
    refs = job.models if alone else tuple((index, mask_of(name)) for index, name in pruned.models)
    for index, name in refs:
        if name not in members[index].contents.tensors:
            raise CheckpointError(
                f"{job.name!r} is a pruning mask that {members[index].label} lacks, and only networks with the same "
                "masks can be merged. Call torch.nn.utils.prune.remove on every pruned model first."
            )
    return replace(job, kind="mask", inputs=refs, base=None, weights=(1.0,) * len(refs), arguments={})


def _following(job: Job, weight: Job, kind: Kind, companions: tuple[tuple[Ref, ...], ...]) -> Job:
    """Return the job of a tensor that is derived from a merged weight."""
    return replace(
        job,
        kind=kind,
        inputs=weight.inputs,
        base=weight.base,
        weights=weight.weights,
        arguments=weight.arguments,
        follows=weight.name,
        companions=companions,
    )


def _owners(job: Job) -> list[int]:
    """Return the members that a job reads from."""
    return [member for member, _ in job.models]
