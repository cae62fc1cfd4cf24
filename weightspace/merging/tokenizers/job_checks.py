"""Check that every row that a recipe assigns to a token is available in the models that are merged."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from weightspace.errors import WeightspaceError
from weightspace.merging.plan.moved_vocabulary import MovedVocabulary
from weightspace.merging.plan.plan import Job, Member


def check_moved_jobs(
    vocabulary: MovedVocabulary, members: Sequence[Member], jobs: Sequence[Job], notice: Callable[[str], None]
) -> None:
    """Check the output tensors that have a row per token.

    Args:
        vocabulary: the output's vocabulary.
        members: the checkpoints of the merge.
        jobs: the tensors of the output.
        notice: called with a one-line message about tokens that no model has.

    Raises:
        WeightspaceError: the recipe chooses a row of a model that lacks the tensor, or a checkpoint has evidence with
            one element per weight, which cannot be reordered.
    """
    named: dict[tuple[int, ...], list[str]] = {}
    for job in jobs:
        moved = [(member, name) for member, name in job.models if vocabulary.moves(member, name)]
        if not moved:
            continue
        rows = job.models if job.fallback is None else (*job.models, job.fallback)
        present = tuple(sorted({member for member, _ in rows}))
        for token, chosen in vocabulary.chosen.items():
            if chosen.member is not None and chosen.member not in present:
                raise WeightspaceError(
                    f"The recipe takes the row of token {token} from {members[chosen.member].label}, which does not "
                    f"contribute to {job.name!r}. Expected a model whose embedding is merged."
                )
        for member, name in moved:
            _check_evidence(vocabulary, members[member], member, name)
        if vocabulary.further is not None:
            present = (*present, len(members))
        named.setdefault(present, []).append(job.name)
    for present, names in named.items():
        _warn_zero_rows(vocabulary, present, names, notice)


def _check_evidence(vocabulary: MovedVocabulary, member: Member, index: int, name: str) -> None:
    """Refuse evidence for a tensor whose rows are reordered."""
    evidence = None if member.evidence is None else member.evidence.tensors.get(name)
    if evidence is not None and evidence.shape == vocabulary.tensors[index][name]:
        raise WeightspaceError(
            f"The evidence of {member.label} for {name!r} has a row per token and cannot be reordered. Expected "
            "models that share one vocabulary: leave the tokenizer's source out of the recipe."
        )


def _warn_zero_rows(
    vocabulary: MovedVocabulary, present: Sequence[int], names: Sequence[str], notice: Callable[[str], None]
) -> None:
    """Warn of tokens whose rows are zero because no model of the tensor has them."""
    exempt = {number for number, chosen in vocabulary.chosen.items() if not chosen.default} | set(vocabulary.gaps)
    best = vocabulary.own[present[0]]
    for member in present[1:]:
        best = list(map(max, best, vocabulary.own[member]))
    unknown = [number for number, row in enumerate(best) if row < 0 and number not in exempt] if -1 in best else []
    if unknown:
        notice(
            f"{len(unknown):,} tokens of the output (the first has id {unknown[0]}) are missing from all models "
            f"that {', '.join(map(repr, names))} {'are' if names[1:] else 'is'} merged from; their rows are zero."
        )
