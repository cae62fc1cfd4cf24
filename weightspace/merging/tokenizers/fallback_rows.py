"""The base's embedding, whose rows tokens get that a model lacks, whether or not the method takes a base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from weightspace.errors import CheckpointError
from weightspace.merging.plan.moved_vocabulary import MovedVocabulary
from weightspace.merging.plan.plan import Job, Member, Ref
from weightspace.merging.plan.tied_heads import counterpart


def with_fallbacks(
    jobs: Sequence[Job], bases: Sequence[str | None], vocabulary: MovedVocabulary, members: Sequence[Member]
) -> list[Job]:
    """Return the jobs with the base's tensor where some of its rows are used for tokens that a model lacks.

    Args:
        jobs: the tensors of the output.
        bases: source of the base for each of them, or None.
        vocabulary: the output's vocabulary.
        members: the checkpoints of the merge, with reordered rows.

    Raises:
        CheckpointError: the base's tensor has rows of another size, or is tied to the embedding and scaled.
    """
    index = {member.source: number for number, member in enumerate(members)}
    needed: dict[tuple[frozenset[int], int], bool] = {}
    found = []
    for job, source in zip(jobs, bases, strict=True):
        if source is None or not any(vocabulary.moves(member, name) for member, name in job.models):
            found.append(job)
            continue
        base, models = index[source], frozenset(member for member, _ in job.models)
        if (models, base) not in needed:
            needed[models, base] = _is_needed(vocabulary, models, base)
        fallback = _tensor(job, base, members) if needed[models, base] else None
        if fallback is not None:
            _check_shape(job, fallback, members)
        found.append(replace(job, fallback=fallback))
    return found


def _is_needed(vocabulary: MovedVocabulary, models: frozenset[int], base: int) -> bool:
    """Return whether some model gets a row of the base."""
    chosen = vocabulary.chosen
    if any(choice.member == base for choice in chosen.values()):
        return True
    columns = zip(vocabulary.own[base], *(vocabulary.own[member] for member in sorted(models)), strict=True)
    for token, (own, *rows) in enumerate(columns):
        choice = chosen.get(token)
        is_open, forced = choice is None or choice.default, choice is not None and choice.force
        if own >= 0 and is_open and (forced or min(rows) < 0):
            return True
    return False


def _tensor(job: Job, base: int, members: Sequence[Member]) -> Ref | None:
    """Return the base's tensor of the job's name, or the one that it is tied to; None if it has neither."""
    listed = next((ref for ref in job.models if ref[0] == base), None)
    if listed is not None:
        return listed
    if job.name in members[base].contents.tensors:
        return base, job.name
    tied = counterpart(members[base], job.name, job.info.shape)
    return None if tied is None else (base, tied)


def _check_shape(job: Job, fallback: Ref, members: Sequence[Member]) -> None:
    """Refuse rows of the base that do not fit those of the models."""
    base, name = fallback
    first, other = members[job.inputs[0][0]].title, members[base].title
    found = members[base].contents.tensors[name].shape
    if found != job.info.shape:
        raise CheckpointError(
            f"{job.name!r} has shape {job.info.shape} in {first} and {found} in {other}, whose rows are used for "
            "tokens that a model lacks. Expected one shape: choose another base_model."
        )
