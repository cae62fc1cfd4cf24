"""Prefixes before every name of a model (``module.``, ``_orig_mod.``, ``model.``), taken off where others lack them.

The same network is saved as ``layers.0.weight``, as ``module.layers.0.weight`` from ``DistributedDataParallel``, as
``_orig_mod.layers.0.weight`` from ``torch.compile``, or as ``model.layers.0.weight`` from a class that wraps it. Where
only parts of a network are compiled or wrapped, ``_orig_mod`` stands inside the names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence

from weightspace.checkpoints.metadata import CheckpointMetadata

#: Wrappers of training, which no network is built of.
_WRAPPERS = ("module.", "_orig_mod.")

#: Those of them that no part of a network is called either: of ``torch.compile``, sharding, activation checkpointing.
_INNER = re.compile(r"(?<=\.)(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+")


def strip_prefixes(
    contents: Sequence[CheckpointMetadata],
    labels: Sequence[str],
    *,
    strip: str | None,
    notice: Callable[[str], None],
) -> list[CheckpointMetadata]:
    """Return checkpoints whose names agree.

    Args:
        contents: of the models.
        labels: how lines about them call them.
        strip: a prefix to take off every name that begins with it; ``""`` takes none off; None takes off what all
            names of a model have and those of the others lack.
        notice: takes a line about each prefix that was taken off.

    Raises:
        CheckpointError: two names of a model become one.
    """
    if strip and not any(name.startswith(strip) for model in contents for name in model.tensors):
        notice(f"No name of any model begins with {strip!r}: --strip-prefix takes nothing off.")
    if strip is not None:
        return [model.without_prefix(strip) if strip else model for model in contents]
    prefixes = _prefixes([list(model.tensors) for model in contents])
    for prefix, label in zip(prefixes, labels, strict=True):
        if prefix:
            notice(
                f"{label}: all names begin with {prefix!r}, which those of the other models lack; it is taken off. "
                "--no-strip keeps it."
            )
    bare = [model.without_prefix(prefix) if prefix else model for model, prefix in zip(contents, prefixes, strict=True)]
    return _without_inner_wrappers(bare, labels, notice)


def without_inner_wrappers(name: str) -> str:
    """Return a name without the wrappers of training inside it, as ``0.weight`` of ``0._orig_mod.weight``."""
    return _INNER.sub("", name)


def _without_inner_wrappers(
    models: Sequence[CheckpointMetadata], labels: Sequence[str], notice: Callable[[str], None]
) -> list[CheckpointMetadata]:
    """Return models without wrappers inside names, where a tensor has them in one model and not in another."""
    short = [{name: without_inner_wrappers(name) for name in model.tensors} for model in models]
    wrapped = {bare for names in short for name, bare in names.items() if bare != name}
    if not wrapped or not any(not wrapped.isdisjoint(model.tensors) for model in models):
        return list(models)
    result = []
    for model, label, names in zip(models, labels, short, strict=True):
        inside = next((name for name, bare in names.items() if bare != name), None)
        if inside is not None:
            notice(f"{label}: {inside!r} is {names[inside]!r} in other models; what wraps it is taken off all names.")
        result.append(model if inside is None else model.under_names(names, "the wrappers of training"))
    return result


def suggested_prefix(name: str, names: Iterable[str]) -> str:
    """Return the prefix by which a name of another model differs from one of ``names``, or ``""``."""
    for other in names:
        longer, shorter = (other, name) if len(other) > len(name) else (name, other)
        if longer.endswith(f".{shorter}"):
            return longer.removesuffix(shorter)
    return ""


def _prefixes(models: Sequence[Sequence[str]]) -> list[str]:
    """Return the prefix to take off the names of each model."""
    if len({frozenset(names) for names in models}) < 2:
        return [""] * len(models)
    wrappers = [_wrapper(names) for names in models]
    if len(set(wrappers)) == 1:
        wrappers = [""] * len(models)
    bare = [_stripped(names, wrapper) for names, wrapper in zip(models, wrappers, strict=True)]
    return [wrapper + _lacking(index, bare) for index, wrapper in enumerate(wrappers)]


def _wrapper(names: Sequence[str]) -> str:
    """Return the wrappers of training that all names begin with."""
    prefix = ""
    while wrapper := next((one for one in _WRAPPERS if all(name.startswith(prefix + one) for name in names)), ""):
        prefix += wrapper
    return prefix


def _lacking(index: int, models: Sequence[set[str]]) -> str:
    """Return the prefix that all names of one model have, no name of the others has, and that makes names agree."""
    others = [names for number, names in enumerate(models) if number != index]
    best, agreeing = "", _agreeing(models[index], others)
    for prefix in _common_prefixes(models[index]):
        apart = [names for names in others if not all(name.startswith(prefix) for name in names)]
        if any(name.startswith(prefix) for names in apart for name in names):
            continue
        count = _agreeing(_stripped(models[index], prefix), apart)
        if count > agreeing:
            best, agreeing = prefix, count
    return best


def _common_prefixes(names: Collection[str]) -> list[str]:
    """Return the dotted prefixes that all names begin with, the shortest first."""
    prefixes: list[str] = []
    parts = [name.split(".") for name in names]
    for depth in range(min(map(len, parts)) - 1):
        if len({part[depth] for part in parts}) > 1:
            break
        prefixes.append(".".join(parts[0][: depth + 1]) + ".")
    return prefixes


def _stripped(names: Collection[str], prefix: str) -> set[str]:
    return {name.removeprefix(prefix) for name in names}


def _agreeing(names: set[str], others: Sequence[set[str]]) -> int:
    """Return how many names another model has as well."""
    return max((len(names & other) for other in others), default=0)
