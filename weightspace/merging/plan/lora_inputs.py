"""Check from headers that a LoRA adapter matches a checkpoint, and list the tensors of the two combined.

If the adapter changes only one of several tensors that share memory in the model, they are untied, which is how PEFT
runs the network.
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
    """Return the member with the adapter applied.

    Args:
        member: a model.
        adapter: an adapter for the model.

    Raises:
        CheckpointError: a target of the adapter is missing from the model, is ambiguous, or has another shape or kind;
            or it is unknown which tensor is tied to a target.
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
    """Return an adapter without factors for tied weights that repeat those of the embedding.

    Args:
        adapter: the adapter; extracted adapters record which factors are repeated.
        hidden: weight that the model's files lack -> tensor that it is tied to.
    """
    left_out = {name for name in adapter.repeated if hidden.get(name) in adapter.factors}
    return replace(adapter, factors={name: own for name, own in adapter.factors.items() if name not in left_out})


def _borrowed(member: Member, adapter: Adapter, hidden: Mapping[str, str], config: dict[str, Any]) -> dict[str, str]:
    """Return, for each weight that the adapter unties, the tensor that it is initialised from.

    Args:
        member: the model.
        adapter: the adapter.
        hidden: weight that the model's files lack -> tensor that it is tied to.
        config: the model's configuration.

    Raises:
        CheckpointError: the weights tied to a target are unknown, or cannot be untied.
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
            borrowed |= hidden  # nothing stays tied, so every name needs a tensor
    embeddings = [target for target in adapter.targets if is_token_embedding(target)]
    if embeddings and not any(map(is_head, borrowed)) and has_unknown_head(config, shapes):
        raise CheckpointError(
            f"{member.source}: {adapter.path} changes {embeddings[0]!r}, and the head of {stored.path} is tied to it "
            "and has no tensor; expected one. Save the model with tie_word_embeddings false first."
        )
    return borrowed


def _is_repeated(adapter: Adapter, changed: set[str], owner: str) -> bool:
    """Return whether an adapter changes tied weights jointly, by the same factors."""
    return owner in changed and bool(adapter.repeated) and changed - {owner} <= adapter.repeated


def _scales(member: Member, adapter: Adapter, borrowed: Mapping[str, str], config: dict[str, Any]) -> dict[str, float]:
    """Return head -> factor for heads that the adapter unties, if the factor isn't 1.

    Raises:
        CheckpointError: the factor is unknown.
    """
    heads = [name for name in borrowed if is_head(name)]
    scale = head_scale(config, member.contents.tensors) if heads else 1.0
    if scale is None:
        raise CheckpointError(
            f"{member.source}: {adapter.path} unties {heads[0]!r} from {borrowed[heads[0]]!r}, but "
            f"{member.contents.path} scales tied heads by an unknown factor. Merge the adapter into its model with "
            "PEFT first."
        )
    return {} if scale == 1 else dict.fromkeys(heads, scale)


def _check_stacks(member: Member, adapter: Adapter, targets: set[str], names: set[str]) -> None:
    """Refuse an adapter that changes a shared embedding only for the encoder or only for the decoder.

    Older releases of transformers have a single module for both, so two tensors would not be loaded separately.
    """
    stacks = set(filter(is_token_embedding, names))
    if len(stacks) > 1 and targets & stacks and not targets >= stacks:
        raise CheckpointError(
            f"{member.source}: {adapter.path} changes {min(targets & stacks)!r} and not {min(stacks - targets)!r}, "
            f"which share a tensor in {member.contents.path}; expected all of them. Merge the adapter into its model "
            "with PEFT first."
        )


def _missing(member: Member, adapter: Adapter, target: str) -> CheckpointError:
    """Return the error for a target that the model lacks."""
    close = closest(target, member.contents.tensors)
    guess = "" if close is None else f" Did you mean {close!r}?"
    return CheckpointError(
        f"{member.source}: {adapter.path} changes {target!r}, which {member.contents.path} lacks.{guess} Does this "
        "adapter belong to that model?"
    )


def _fitted(member: Member, adapter: Adapter, target: str, info: TensorInfo) -> TensorInfo:
    """Return the dtype and shape of a tensor that the adapter changes, after checking them."""
    shapes = adapter.shapes(target)
    for shape in shapes:
        if shape != info.shape:
            turned = shape[::-1] == info.shape and len(shape) == 2
            hint = f" Is fan_in_fan_out in {CONFIG} right?" if turned else " Does this adapter belong to that model?"
            raise CheckpointError(
                f"{member.source}: {adapter.path} expects {target!r} of shape {shape}, but {member.contents.path} has "
                f"it of shape {info.shape}.{hint}"
            )
    saved = adapter.saved.get(target)
    if saved is not None:
        return TensorInfo(promoted(target, [info.dtype, adapter.contents.tensors[saved].dtype]), info.shape)
    if not info.is_inexact or info.dtype == "C64":
        raise CheckpointError(
            f"{member.source}: {target!r} is {info.dtype} in {member.contents.path}, expected a floating-point tensor "
            "to apply an adapter to. Is the model quantised? Use the original model."
        )
    return info


def _kept_ties(stored: CheckpointMetadata, adapter: Adapter) -> dict[str, str]:
    """Return a model's ties without those that the adapter breaks."""
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
    """Return owner -> all names that share memory with it."""
    groups: dict[str, set[str]] = {}
    for name, owner in tied.items():
        groups.setdefault(owner, {owner}).add(name)
    return groups


def _check_tying(adapter: Adapter, changed: Iterable[str], rest: Iterable[str]) -> None:
    """Refuse an adapter that was trained with tied weights but holds only some of them."""
    left = list(rest)
    if adapter.configuration.tying and left:
        raise CheckpointError(
            f"{adapter.path} was trained with ensure_weight_tying, but changes {', '.join(changed)} without {left[0]}; "
            "expected both. Merge the adapter into its model with PEFT first."
        )
