"""Checks of the tensors of a merge whose rows are moved by token: are all rows there that they are to get?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from weightspace.errors import WeightspaceError
from weightspace.merging.plan.moved_vocabulary import MovedVocabulary
from weightspace.merging.plan.plan import Job, Member


def check_moved_jobs(
    vocabulary: MovedVocabulary, members: Sequence[Member], jobs: Sequence[Job], notice: Callable[[str], None]
) -> None:
    """Check the tensors of the output that have a row per token.

    Args:
        vocabulary: of the merge.
        members: the checkpoints.
        jobs: the tensors of the output.
        notice: takes a line about tokens that no model has.

    Raises:
        WeightspaceError: a row that the recipe chooses is of a model that lacks the tensor; or a checkpoint has
            evidence with an element per weight, which is not moved.
    """
    looked: set[tuple[int, ...]] = set()
    for job in jobs:
        moved = [(member, name) for member, name in job.models if vocabulary.moves(member, name)]
        if not moved:
            continue
        present = tuple(sorted({member for member, _ in job.models}))
        for token, chosen in vocabulary.chosen.items():
            if chosen.member is not None and chosen.member not in present:
                raise WeightspaceError(
                    f"The row of the token with id {token} is to come from {members[chosen.member].label}, which has "
                    f"no part in {job.name!r}. Expected a model whose embedding is merged."
                )
        for member, name in moved:
            _check_evidence(vocabulary, members[member], member, name)
        if vocabulary.further is not None:
            present = (*present, len(members))
        if present not in looked:
            looked.add(present)
            _tell_unknown(vocabulary, present, job.name, notice)


def _check_evidence(vocabulary: MovedVocabulary, member: Member, index: int, name: str) -> None:
    """Refuse evidence about rows that are moved."""
    evidence = None if member.evidence is None else member.evidence.tensors.get(name)
    if evidence is not None and evidence.shape == vocabulary.tensors[index][name]:
        raise WeightspaceError(
            f"The evidence of {member.label} for {name!r} has a row per token, and is not moved with them. Expected "
            "models with one vocabulary: leave the tokenizer's source out of the recipe."
        )


def _tell_unknown(
    vocabulary: MovedVocabulary, present: Sequence[int], name: str, notice: Callable[[str], None]
) -> None:
    """Tell of tokens whose rows are zero, because none of the models of a tensor has them."""
    aside = {number for number, chosen in vocabulary.chosen.items() if not chosen.default} | set(vocabulary.gaps)
    columns = zip(*(vocabulary.own[member] for member in present), strict=True)
    unknown = [number for number, rows in enumerate(columns) if max(rows) < 0 and number not in aside]
    if unknown:
        notice(
            f"{len(unknown):,} tokens of the output (the first has id {unknown[0]}) are in none of the models that "
            f"{name!r} is merged from: their rows are zero."
        )
