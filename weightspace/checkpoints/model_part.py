"""The model's tensors in a nested checkpoint of a training run, told from optimizer and training state by their paths.

A path is the sequence of keys that lead to a tensor: ``("state", "model", "layers.0.weight")``. The keys before the
model's own are removed from the names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from weightspace.errors import CheckpointError

#: Keys under which training scripts keep the model; see ``torch_file``.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")

#: Keys of optimizer states, and of other state of the training.
_OPTIMIZER = re.compile(r"(chained_)?(optims?|optimizers?|opt)(_\d+|_states?)?(_dict)?")
_TRAINING = re.compile(
    r"(lr_|opt_param_)?schedulers?(_state_dict)?|(grad_)?scaler|train(er|ing)?_state|data_?loader|(data_)?sampler"
    r"|(rng|random)(_states?)?|rerun_state_machine|loops|callbacks|metrics|args"
)

#: Number of entries that a line names.
_LISTED = 3


@dataclass(frozen=True)
class ModelPart:
    """The model's tensors in a checkpoint.

    Attributes:
        names: full name in the checkpoint -> name in the model.
        notes: notes on the choice, one line each.
    """

    names: dict[str, str]
    notes: tuple[str, ...]


def model_part(
    folder: Path, paths: Mapping[str, tuple[str, ...]], objects: Iterable[str], key: str | None
) -> ModelPart:
    """Return the model's tensors.

    Args:
        folder: the checkpoint as the user names it, for messages.
        paths: name of a tensor -> its path.
        objects: names of entries that aren't tensors.
        key: keys before the model's own, joined by dots; None: chosen.

    Raises:
        CheckpointError: there is no tensor of a model, or several models without a usual name.
    """
    prefix, kept = _start(folder, {name: path for name, path in paths.items() if _kind(path) is None}, key)
    notes: list[str] = []
    while key != "":
        kept = {name: path for name, path in kept.items() if path[: len(prefix)] == prefix}
        at = len(prefix)
        nested = list(dict.fromkeys(path[at] for path in kept.values() if len(path) > at + 1))
        direct = any(len(path) == at + 1 for path in kept.values())
        wrappers = [name for name in nested if name in WRAPPERS]
        if len(wrappers) == 1:
            others = [name for name in nested if name not in wrappers]
            notes += [_rival(folder, (*prefix, wrappers[0]), (*prefix, name)) for name in others]
            prefix = (*prefix, wrappers[0])
        elif nested and not direct and len(nested) == 1:
            prefix = (*prefix, nested[0])
        elif nested and not direct:
            found = ", ".join(repr(".".join((*prefix, name))) for name in nested[:5])
            raise CheckpointError(
                f'{folder} nests tensors under {found[:200]}: choose the model with key=… or --key ("" is the top '
                "level)."
            )
        else:
            break
    names = {name: ".".join(path[len(prefix) :]) for name, path in kept.items()}
    if not names:
        raise CheckpointError(f"{folder} holds no tensors of a model: found {_listed(paths) or 'none at all'}.")
    _check_distinct(folder, names)
    return ModelPart(names, (*_summary(folder, prefix, names, paths, list(objects)), *notes))


def _start(
    folder: Path, paths: dict[str, tuple[str, ...]], key: str | None
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Return the first keys to remove, and the paths to search."""
    if not key:
        return (), paths
    for path in paths.values():
        for length in range(1, len(path)):
            if ".".join(path[:length]) == key:
                return path[:length], paths
    under = {name: (key, path[0][len(key) + 1 :]) for name, path in paths.items() if path[0].startswith(f"{key}.")}
    if under:
        return (key,), under
    found = _listed(dict.fromkeys(path[0].partition(".")[0] for path in paths.values()))
    raise CheckpointError(f"{folder} has no entry {key!r}, found {found}.")


def _kind(path: tuple[str, ...]) -> str | None:
    """Return ``optimizer`` or ``training`` if a path leads there, or None."""
    keys = path[:-1] or tuple(name.partition(".")[0] for name in path)
    if any(_OPTIMIZER.fullmatch(key) for key in keys):
        return "optimizer"
    return "training" if any(_TRAINING.fullmatch(key) for key in keys) else None


def _rival(folder: Path, taken: tuple[str, ...], other: tuple[str, ...]) -> str:
    """Return the note on an entry that may be another network."""
    own, name = ".".join(taken), ".".join(other)
    return f"{folder} holds {own!r} and {name!r}: {own!r} is taken. --key {name} (key=…) takes the other."


def _summary(
    folder: Path,
    prefix: tuple[str, ...],
    names: Mapping[str, str],
    paths: Mapping[str, tuple[str, ...]],
    objects: list[str],
) -> Iterable[str]:
    """Yield notes on the tensors that are taken, and on those that are not."""
    left: dict[str, list[str]] = {}
    for name, path in paths.items():
        if name not in names:
            left.setdefault(_kind(path) or "other", []).append(name)
    parts = [f"{_count(len(left[kind]), f'{kind} tensor')}" for kind in ("optimizer", "training") if kind in left]
    parts += [f"{_count(len(left['other']), 'other tensor')} ({_listed(left['other'])})"] if "other" in left else []
    parts += [f"{_count(len(objects), 'object')} ({_listed(objects)})"] if objects else []
    under = f" under {'.'.join(prefix)!r} are taken, without that prefix" if prefix else " are taken"
    if prefix or parts:
        line = f"{folder} is a training checkpoint: its {_count(len(names), 'tensor')}{under}."
        yield f"{line} Left out: {'; '.join(parts)}." if parts else line


def _check_distinct(folder: Path, names: Mapping[str, str]) -> None:
    """Check that no two tensors have the same name in the model."""
    known: dict[str, str] = {}
    for name, short in names.items():
        if known.setdefault(short, name) != name:
            raise CheckpointError(f"{folder}: {known[short]!r} and {name!r} are both {short!r}. Choose with --key.")


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    shown = ", ".join(name[:60] for name in listed[:_LISTED])
    return shown + (f" and {len(listed) - _LISTED:,} more" if len(listed) > _LISTED else "")
