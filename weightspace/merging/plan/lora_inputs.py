"""A LoRA adapter on top of a checkpoint, from headers: whether it fits, and what the two together hold.

Tensors that share memory in the model are set apart where the adapter changes only one of them, as PEFT has it when
a network runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from weightspace.checkpoints.metadata import CheckpointMetadata, TensorInfo
from weightspace.errors import CheckpointError
from weightspace.lora.adapter import Adapter
from weightspace.lora.config import CONFIG
from weightspace.lora.locate import located
from weightspace.lora.model_config import read_config
from weightspace.lora.tied_weights import (
    has_unknown_head,
    head_scale,
    hidden_ties,
    is_declared_tied,
    is_head,
    is_token_embedding,
    tied_embedding,
)
from weightspace.merging.plan.plan import Member
from weightspace.merging.plan.promotion import promoted
from weightspace.merging.plan.tied_heads import shapes_of
from weightspace.suggestions import closest


def adapted(member: Member, adapter: Adapter) -> Member:
    """Return the member with the adapter on top.

    Args:
        member: a model.
        adapter: for it.

    Raises:
        CheckpointError: the model lacks a tensor that the adapter changes, has several that it may be, or has it in
            another shape or of another kind; or it is not known which tensor is tied to one that the adapter changes.
    """
    stored = member.contents
    shapes, config = shapes_of(stored), read_config(stored.path)
    hidden = hidden_ties(config, shapes)
    everything = {**shapes, **{name: shapes[owner] for name, owner in hidden.items()}}
    adapter = _without_repeated(located(adapter, everything, config, member.source), hidden)
    borrowed = _borrowed(member, adapter, hidden, config)
    known = {**stored.tensors, **{name: stored.tensors[owner] for name, owner in borrowed.items()}}
    tensors = dict(known)
    for target in adapter.targets:
        if target not in known:
            raise _missing(member, adapter, target)
        tensors[target] = _fitted(member, adapter, target, known[target])
    contents = replace(stored, tensors=tensors, tied=_kept_ties(stored, adapter))
    scales = _scales(member, adapter, borrowed, config)
    return replace(member, contents=contents, adapter=adapter, stored=stored, borrowed=borrowed, scales=scales)


def _without_repeated(adapter: Adapter, hidden: Mapping[str, str]) -> Adapter:
    """Return an adapter without the factors that repeat those of an embedding, for weights without a tensor.

    Args:
        adapter: an extracted one says which those are.
        hidden: weights of the model that have no tensor -> the one that they share.
    """
    left_out = {name for name in adapter.repeated if hidden.get(name) in adapter.factors}
    return replace(adapter, factors={name: own for name, own in adapter.factors.items() if name not in left_out})


def _borrowed(member: Member, adapter: Adapter, hidden: Mapping[str, str], config: dict[str, Any]) -> dict[str, str]:
    """Return the weights that get a tensor of their own -> the one that they start from.

    Args:
        member: the model.
        adapter: changes some of its weights, but not what is tied to them.
        hidden: weights of the model that have no tensor -> the one that they share.
        config: of the model.

    Raises:
        CheckpointError: what is tied to a changed weight is not known, or cannot be set apart.
    """
    stored, shapes = member.contents, shapes_of(member.contents)
    targets = set(adapter.targets)
    borrowed = {}
    for target in adapter.targets:
        if target not in stored.tensors and target not in hidden and is_declared_tied(config) is not False:
            embedding = tied_embedding(shapes, target, next(iter(adapter.shapes(target)), None))
            if embedding is not None:
                borrowed[target] = embedding
    for name, names in [*_groups(borrowed).items(), *_groups(hidden).items()]:
        if targets & names and not _is_repeated(adapter, targets & names, name):
            _check_tying(adapter, sorted(targets & names), sorted(names - targets))
            _check_stacks(member, adapter, targets, names)
            borrowed |= hidden  # nothing is tied any more, so that every name needs a tensor
    embeddings = [target for target in adapter.targets if is_token_embedding(target)]
    if embeddings and not any(map(is_head, borrowed)) and has_unknown_head(config, shapes):
        raise CheckpointError(
            f"{member.source}: {adapter.path} changes {embeddings[0]!r}, and the head of {stored.path} is tied to it "
            "without a tensor of its own; expected one. Save the model with tie_word_embeddings false first."
        )
    return borrowed


def _is_repeated(adapter: Adapter, changed: set[str], owner: str) -> bool:
    """Return whether an adapter changes tied weights together: their owner, and the others by the same factors."""
    return owner in changed and bool(adapter.repeated) and changed - {owner} <= adapter.repeated


def _scales(member: Member, adapter: Adapter, borrowed: Mapping[str, str], config: dict[str, Any]) -> dict[str, float]:
    """Return what the heads that are set apart are multiplied by, where that isn't 1.

    Raises:
        CheckpointError: it isn't known.
    """
    heads = [name for name in borrowed if is_head(name)]
    scale = head_scale(config, member.contents.tensors) if heads else 1.0
    if scale is None:
        raise CheckpointError(
            f"{member.source}: {adapter.path} sets {heads[0]!r} apart from {borrowed[heads[0]]!r}, but "
            f"a tied head of {member.contents.path} works on a scale of its own, which isn't known. Merge it into its "
            "model with PEFT first."
        )
    return {} if scale == 1 else dict.fromkeys(heads, scale)


def _check_stacks(member: Member, adapter: Adapter, targets: set[str], names: set[str]) -> None:
    """Refuse an embedding that encoder and decoder share, where the adapter changes it for one of them alone.

    Older transformers have one module for both, so that two tensors would not be two there.
    """
    stacks = set(filter(is_token_embedding, names))
    if len(stacks) > 1 and targets & stacks and not targets >= stacks:
        raise CheckpointError(
            f"{member.source}: {adapter.path} changes {min(targets & stacks)!r} and not {min(stacks - targets)!r}, "
            f"which share a tensor in {member.contents.path}; expected all of them. Merge it into its model with PEFT "
            "first."
        )


def _missing(member: Member, adapter: Adapter, target: str) -> CheckpointError:
    """Return the error for a target that the model lacks."""
    close = closest(target, member.contents.tensors)
    guess = "" if close is None else f" Did you mean {close!r}?"
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


def _kept_ties(stored: CheckpointMetadata, adapter: Adapter) -> dict[str, str]:
    """Return the tied names of a model, without those that the adapter changes alone."""
    targets = set(adapter.targets)
    owners = _groups(stored.tied)
    changed = {owner for owner, names in owners.items() if targets & names}
    for owner in sorted(changed):
        _check_tying(adapter, sorted(targets & owners[owner]), sorted(owners[owner] - targets))
    tied: dict[str, str] = {}
    for owner, names in owners.items():
        together = targets >= names and _is_repeated(adapter, names, owner)
        rest = [name for name in stored.tensors if name in names and (together or name not in targets)]
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
