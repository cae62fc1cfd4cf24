"""Remove prefixes (``module.``, ``_orig_mod.``, ``model.``) that all names of a model have and other models lack.

The same network may be saved as ``layers.0.weight``; as ``module.layers.0.weight`` by ``DistributedDataParallel``; as
``_orig_mod.layers.0.weight`` by ``torch.compile``; or as ``model.layers.0.weight`` by a wrapper class. If only parts of
a network are compiled or wrapped, ``_orig_mod`` appears inside the names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence

from weightspace.checkpoints.metadata import CheckpointMetadata

#: Prefixes added by training wrappers.
_WRAPPERS = ("module.", "_orig_mod.")

#: Training wrappers inside names: ``torch.compile``, sharding and activation checkpointing.
_INNER = re.compile(r"(?<=\.)(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+")


def strip_prefixes(
    contents: Sequence[CheckpointMetadata],
    labels: Sequence[str],
    *,
    strip: str | None,
    notice: Callable[[str], None],
) -> list[CheckpointMetadata]:
    """Return the checkpoints with prefixes removed so that their names agree.

    Args:
        contents: metadata of the models.
        labels: names of the models in messages.
        strip: prefix to remove from all names that start with it; ``""`` removes none; None removes prefixes that all
            names of one model have and the other models lack.
        notice: called with a one-line message about each prefix that is removed.

    Raises:
        CheckpointError: two names of a model become the same.
    """
    if strip and not any(name.startswith(strip) for model in contents for name in model.tensors):
        notice(f"--strip-prefix has no effect: no name of any model starts with {strip!r}.")
    if strip is not None:
        return [model.without_prefix(strip) if strip else model for model in contents]
    prefixes = _prefixes([list(model.tensors) for model in contents])
    for prefix, label in zip(prefixes, labels, strict=True):
        if prefix:
            notice(
                f"{label}: all names start with {prefix!r}, unlike those of the other models; the prefix is removed. "
                "--no-strip keeps it."
            )
    bare = [model.without_prefix(prefix) if prefix else model for model, prefix in zip(contents, prefixes, strict=True)]
    return _without_inner_wrappers(bare, labels, notice)


def without_inner_wrappers(name: str) -> str:
    """Return a name without training wrappers inside it: ``0.weight`` for ``0._orig_mod.weight``."""
    return _INNER.sub("", name)


def _without_inner_wrappers(
    models: Sequence[CheckpointMetadata], labels: Sequence[str], notice: Callable[[str], None]
) -> list[CheckpointMetadata]:
    """Remove training wrappers inside names if some models have them and others lack them."""
    short = [{name: without_inner_wrappers(name) for name in model.tensors} for model in models]
    wrapped = {bare for names in short for name, bare in names.items() if bare != name}
    if not wrapped or not any(not wrapped.isdisjoint(model.tensors) for model in models):
        return list(models)
    result = []
    for model, label, names in zip(models, labels, short, strict=True):
        inside = next((name for name, bare in names.items() if bare != name), None)
        if inside is not None:
            notice(f"{label}: {inside!r} is {names[inside]!r} in other models; the wrapper is removed from all names.")
        result.append(model if inside is None else model.under_names(names, "the wrappers of training"))
    return result


def suggested_prefix(name: str, names: Iterable[str]) -> str:
    """Return the prefix by which a name differs from one of ``names``, or ``""``."""
    for other in names:
        longer, shorter = (other, name) if len(other) > len(name) else (name, other)
        if longer.endswith(f".{shorter}"):
            return longer.removesuffix(shorter)
    return ""


def _prefixes(models: Sequence[Sequence[str]]) -> list[str]:
    """Return the prefix to remove from the names of each model."""
    if len({frozenset(names) for names in models}) < 2:
        return [""] * len(models)
    wrappers = [_wrapper(names) for names in models]
    if len(set(wrappers)) == 1:
        wrappers = [""] * len(models)
    bare = [_stripped(names, wrapper) for names, wrapper in zip(models, wrappers, strict=True)]
    return [wrapper + _lacking(index, bare) for index, wrapper in enumerate(wrappers)]


def _wrapper(names: Sequence[str]) -> str:
    """Return the training wrappers that all names start with."""
    prefix = ""
    while wrapper := next((one for one in _WRAPPERS if all(name.startswith(prefix + one) for name in names)), ""):
        prefix += wrapper
    return prefix


def _lacking(index: int, models: Sequence[set[str]]) -> str:
    """Return the prefix that all names of a model have, no other name has, and whose removal makes names agree."""
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
    """Return the dotted prefixes that all names share, shortest first."""
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
    """Return the largest number of names shared with another model."""
    return max((len(names & other) for other in others), default=0)
