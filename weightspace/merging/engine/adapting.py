"""A LoRA adapter on top of a checkpoint, from headers: whether it fits, and what the two together hold.

Tensors that share memory in the model are set apart where the adapter changes only one of them, as PEFT has it when
a network runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from difflib import get_close_matches

from weightspace.adapters.adapter import Adapter
from weightspace.adapters.configuration import CONFIG
from weightspace.checkpoints.contents import Contents, TensorInfo
from weightspace.errors import CheckpointError
from weightspace.merging.engine.embedding import is_tied_by_configuration, tied_embedding
from weightspace.merging.engine.plan import Member
from weightspace.merging.engine.promotion import promoted


def adapted(member: Member, adapter: Adapter) -> Member:
    """Return the member with the adapter on top.

    Args:
        member: a model.
        adapter: for it.

    Raises:
        CheckpointError: the model lacks a tensor that the adapter changes, or has it in another shape or of another
            kind; or it is not known which tensor is tied to one that the adapter changes.
    """
    stored = member.contents
    borrowed = _borrowed(stored, adapter)
    known = {**stored.tensors, **{name: stored.tensors[owner] for name, owner in borrowed.items()}}
    tensors = dict(known)
    for target in adapter.targets:
        if target not in known:
            raise _missing(member, adapter, target)
        tensors[target] = _fitted(member, adapter, target, known[target])
    _check_hidden_ties(member, adapter, borrowed)
    tied = _kept_ties(stored, adapter)
    contents = replace(stored, tensors=tensors, tied=tied)
    return replace(member, contents=contents, adapter=adapter, stored=stored, borrowed=borrowed)


def _borrowed(stored: Contents, adapter: Adapter) -> dict[str, str]:
    """Return the heads that the adapter changes and the model has no tensor of -> their embeddings."""
    missing = [target for target in adapter.targets if target not in stored.tensors]
    found = {target: tied_embedding(stored, target) for target in missing}
    return {target: embedding for target, embedding in found.items() if embedding is not None}


def _missing(member: Member, adapter: Adapter, target: str) -> CheckpointError:
    """Return the error for a target that the model lacks."""
    close = get_close_matches(target, member.contents.tensors, n=1)
    guess = f" Did you mean {close[0]!r}?" if close else ""
    return CheckpointError(
        f"{member.source}: {adapter.path} changes {target!r}, which {member.contents.path} has no tensor of.{guess} Is "
        "this adapter for that model?"
    )


def _fitted(member: Member, adapter: Adapter, target: str, info: TensorInfo) -> TensorInfo:
    """Return dtype and shape of a tensor that the adapter changes, checked."""
    shapes = adapter.shapes(target)
    for shape in shapes:
        if shape != info.shape:
            turned = shape[::-1] == info.shape and len(shape) == 2
            hint = f" Is fan_in_fan_out in {CONFIG} right?" if turned else " Is this adapter for that model?"
            raise CheckpointError(
                f"{member.source}: {adapter.path} expects {target!r} of shape {shape}, but {member.contents.path} has "
                f"it of shape {info.shape}.{hint}"
            )
    saved = adapter.saved.get(target)
    if saved is not None:
        return TensorInfo(promoted(target, [info.dtype, adapter.contents.tensors[saved].dtype]), info.shape)
    if not info.is_inexact or info.dtype == "C64":
        raise CheckpointError(
            f"{member.source}: {target!r} is {info.dtype} in {member.contents.path}, expected floats to add an adapter "
            "to. Is the model quantised? Take the original one."
        )
    return info


def _kept_ties(stored: Contents, adapter: Adapter) -> dict[str, str]:
    """Return the tied names of a model, without those that the adapter changes alone."""
    targets = set(adapter.targets)
    owners = _groups(stored.tied)
    changed = {owner for owner, names in owners.items() if targets & names}
    for owner in sorted(changed):
        _check_tying(adapter, sorted(targets & owners[owner]), sorted(owners[owner] - targets))
    tied: dict[str, str] = {}
    for names in owners.values():
        rest = [name for name in stored.tensors if name in names and name not in targets]
        tied |= {name: rest[0] for name in rest[1:]}
    return {name: tied[name] for name in stored.tied if name in tied}


def _groups(tied: Mapping[str, str]) -> dict[str, set[str]]:
    """Return owner -> all names that share its memory."""
    groups: dict[str, set[str]] = {}
    for name, owner in tied.items():
        groups.setdefault(owner, {owner}).add(name)
    return groups


def _check_tying(adapter: Adapter, changed: Iterable[str], rest: Iterable[str]) -> None:
    """Refuse an adapter that was trained on tied weights together and holds only one of them."""
    left = list(rest)
    if adapter.configuration.tying and left:
        raise CheckpointError(
            f"{adapter.path} was trained with ensure_weight_tying, but changes {', '.join(changed)} without {left[0]}; "
            "expected both. Merge it into its model with PEFT first."
        )


def _check_hidden_ties(member: Member, adapter: Adapter, borrowed: Mapping[str, str]) -> None:
    """Refuse an embedding that is changed where a head without a tensor and a name of its own goes along."""
    for head, embedding in borrowed.items():
        if embedding not in adapter.targets:
            _check_tying(adapter, [head], [embedding])
    if borrowed:
        return
    for target in adapter.targets:
        if is_tied_by_configuration(member.contents, target):
            raise CheckpointError(
                f"{member.source}: {adapter.path} changes {target!r}, and the head of {member.contents.path} is tied "
                "to it without a tensor of its own; expected one. Save the model with tie_word_embeddings false first."
            )
