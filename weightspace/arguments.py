"""Arguments of the public functions, checked by their annotations, with one-line errors.

``@checked`` looks at parameters annotated as states, tasks, specs, permutations, curves, networks, names or paths, and
detects a path instead of weights, a state dict instead of a list, and swapped arguments. It only checks kinds; contents
are checked by the functions.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from weightspace.errors import CheckpointError, WeightspaceError

Function = TypeVar("Function", bound=Callable[..., Any])

_STATE, _STATES, _TASK, _SPEC = "a state dict", "a list of state dicts", "a task", "a permutation spec"
_SYMMETRY, _ANY_SPEC, _ELEMENT = "a symmetry spec", "a spec", "an element of a symmetry"
_PERMUTATION, _CURVE, _MODULE, _PATH, _TEXT = "a permutation", "a curve", "a module", "a path", "a name"
_SOURCE, _SOURCES = "a path or a state dict", "a list of paths or state dicts"
_SCORE = "a task, or a function of a state dict"
#: Only found, never expected: the content of a training file, and a mapping with non-tensor values.
_TRAINING, _MIXED = "a training checkpoint", "a mapping with other values than tensors"
_CURVES = "a mapping of labels to curves"
_STEP, _STEPS = "a checkpoint of a run", "a list of checkpoints of a run"
_CLASS = "a class"

#: Annotation -> expected kind; ``| None`` allows None as well.
_KINDS: Mapping[str, str] = {
    "StateDict": _STATE,
    "Sequence[StateDict]": _STATES,
    "Task": _TASK,
    "PermutationSpec": _SPEC,
    "SymmetrySpec": _SYMMETRY,
    "PermutationSpec | SymmetrySpec": _ANY_SPEC,
    "Permutation": _PERMUTATION,
    "Curve": _CURVE,
    "Mapping[str, Curve]": _CURVES,
    "nn.Module": _MODULE,
    "StrPath": _PATH,
    "str | Path": _PATH,
    "str | os.PathLike[str]": _PATH,
    "Source": _SOURCE,
    "Sequence[Source]": _SOURCES,
    "Score | Task": _SCORE,
    "Sequence[RunCheckpoint]": _STEPS,
    "str": _TEXT,
}

#: Annotation of a class that groups options.
_GROUP = re.compile(r"(\w+Options)( \| None)?$")

#: Kind -> the kinds accepted for it.
_SERVING: Mapping[str, tuple[str, ...]] = {
    _SOURCE: (_PATH, _STATE),
    _TEXT: (_PATH,),
    _SCORE: (_TASK,),
    _ANY_SPEC: (_SPEC, _SYMMETRY),
}

#: Kind of a list -> kind of its items.
_PARTS: Mapping[str, str] = {_STATES: _STATE, _SOURCES: _SOURCE, _STEPS: _STEP}

#: Expected kind, found kind -> advice.
_CURES: Mapping[tuple[str, str], str] = {
    (_STATE, _PATH): "Load it first: ws.load_checkpoint({value}).",
    (_STATES, _PATH): "Load them first, [ws.load_checkpoint(path), …], or call ws.merge_files.",
    (_STATES, _STATE): "Give them as a list, [a, b].",
    (_STATE, _STATES): "Give one of them.",
    (_SOURCES, _PATH): "Give a list, [{value}, …].",
    (_SOURCES, _STATE): "Give them as a list, [a, b].",
    (_TEXT, _STATE): "Put networks into one list, [a, b]; the pretrained model is base=….",
    (_STATE, _MODULE): "Give its state_dict().",
    (_STATES, _MODULE): "Give their state dicts as a list, [a.state_dict(), b.state_dict()].",
    (_SCORE, _PATH): "Load it first: ws.load_task({value}).",
    (_TASK, _PATH): "Load it first: ws.load_task({value}).",
    (_SPEC, _PATH): "Load it first: ws.PermutationSpec.load({value}).",
    (_PERMUTATION, _PATH): "Load it first: ws.Permutation.load({value}, spec).",
    (_CURVE, _PATH): "Load it first: ws.Curve.load({value}).",
    (_MODULE, _STATE): "Load it into a network first: module.load_state_dict(state).",
    (_CURVES, _CURVE): 'Give it a label: {{"linear": curve}}.',
    (_SPEC, _MODULE): "Derive it first: ws.derive_spec(module, example_args).",
    (_SPEC, _SYMMETRY): "Derive one with permutations only, ws.derive_spec(module, example_args) without symmetry=….",
    (_SYMMETRY, _SPEC): 'Derive one with ws.derive_spec(module, example_args, symmetry="full").',
    (_SYMMETRY, _MODULE): 'Derive it first: ws.derive_spec(module, example_args, symmetry="full").',
    (_SYMMETRY, _PATH): "Load it first: ws.SymmetrySpec.load({value}).",
    (_ANY_SPEC, _MODULE): "Derive it first: ws.derive_spec(module, example_args).",
    (_STEPS, _PATH): "Find them first: weightspace.runs.find_checkpoints({value}).",
    (_STEPS, _STATE): "Find them first: weightspace.runs.find_checkpoints(folder).",
    (_MODULE, _CLASS): "Make an object of it.",
    (_PERMUTATION, "a Matching"): "Give its permutation: matching.permutation.",
    (_PERMUTATION, _ELEMENT): "Its apply moves a folded checkpoint.",
}


def checked(function: Function) -> Function:
    """Check the kinds of a function's arguments before it is called.

    Raises:
        WeightspaceError: an argument is of another kind (CheckpointError if weights were expected); raised by the
            returned function.
    """
    signature = inspect.signature(function)
    expected = {
        name: (_KINDS[annotation.removesuffix(" | None")], annotation.endswith(" | None"))
        for name, parameter in signature.parameters.items()
        if (annotation := str(parameter.annotation)).removesuffix(" | None") in _KINDS
    }
    groups = {name: match[1] for name, p in signature.parameters.items() if (match := _GROUP.match(str(p.annotation)))}
    required = [name for name, parameter in signature.parameters.items() if parameter.default is parameter.empty]
    order = f"The order is {function.__name__}({', '.join(required)})." if len(required) > 1 else ""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:  # wrong number of arguments: Python's error is clear
            return function(*args, **kwargs)
        for name, group in groups.items():
            _check_group(f"{function.__name__}: {name}", given.get(name), group)
        for name, (kind, optional) in expected.items():
            if name not in given or (optional and given[name] is None):
                continue
            if (wrong := _wrong(name, given[name], kind)) is not None:
                place, found, culprit = wrong
                swapped = any(other == found and _kind_of(given.get(at)) == kind for at, (other, _) in expected.items())
                cure = "" if swapped else _CURES.get((kind, found), "").format(value=repr(given[name])[:80])
                cure = _entries(culprit) or cure or order
                error = CheckpointError if kind in (_STATE, *_PARTS) else WeightspaceError
                raise error(f"{function.__name__}: {place} is {found}; expected {kind}. {cure}".rstrip())
        return function(*args, **kwargs)

    return call  # pyright: ignore[reportReturnType]


def _check_group(place: str, value: Any, group: str) -> None:
    """Check that an argument is an object of the class that groups options, or None."""
    if value is not None and all(one.__name__ != group for one in type(value).__mro__):
        own = ", ".join(f"{name}={entry!r:.20}" for name, entry in value.items()) if isinstance(value, dict) else "…"
        raise WeightspaceError(f"{place} is {_with_article(value)}; expected {group}({own}).")


def _wrong(name: str, value: Any, kind: str) -> tuple[str, str, Any] | None:
    """Return the argument (or part of it) of the wrong kind, its kind, and its value; None if all are right."""
    found = _kind_of(value)
    if kind in _PARTS and isinstance(value, list | tuple):
        parts = (_wrong(f"{name}[{number}]", part, _PARTS[kind]) for number, part in enumerate(value))
        return next((part for part in parts if part is not None), None)
    if found == kind or found in _SERVING.get(kind, ()) or (kind == _CURVES and found == _STATE and not value):
        return None
    looks_like_nothing = found not in _KINDS.values()
    if looks_like_nothing and (
        (kind == _TASK and any(hasattr(value, one) for one in ("score", "batches", "loss")))
        or (kind == _SCORE and callable(value))
        or (kind in _PARTS and hasattr(value, "__iter__"))
    ):
        return None
    return name, found, value


def _entries(value: Any) -> str:
    """Describe a mapping's entries that hold state dicts, or its first non-tensor value; empty for other values."""
    if not isinstance(value, Mapping):
        return ""
    if holding := [repr(name) for name, entry in value.items() if _holds_tensors(entry)]:
        verb = "entry" if len(holding) == 1 else "entries"
        return f"Tensors are in its {verb} {', '.join(holding[:4])}: give the one of the network."
    other = next((name for name, entry in value.items() if not _is_tensor(entry)), None)
    if other is None:
        return ""
    cure = " Convert it: torch.from_numpy(array)." if type(value[other]).__name__ == "ndarray" else ""
    return f"Its entry {other!r} is {_kind_of(value[other])}.{cure}"


def _is_tensor(value: Any) -> bool:
    return all(hasattr(value, name) for name in ("shape", "dtype", "is_floating_point"))  # numpy's arrays lack the last


def _holds_tensors(value: Any) -> bool:
    """Return whether a value is a mapping with tensors, possibly nested."""
    return isinstance(value, Mapping) and any(_is_tensor(one) or _holds_tensors(one) for one in value.values())


def _kind_of(value: Any) -> str:
    """Return the kind of a value, for errors."""
    if isinstance(value, str | os.PathLike):
        return _PATH
    if isinstance(value, type):
        return _CLASS
    if isinstance(value, Mapping):
        if not isinstance(value, dict) or all(map(_is_tensor, value.values())):
            return _STATE  # values of other mappings may be read lazily from a file
        if value and all(_kind_of(one) == _CURVE for one in value.values()):
            return _CURVES
        return _TRAINING if any(map(_holds_tensors, value.values())) else _MIXED
    if callable(getattr(value, "state_dict", None)):
        return _MODULE
    if isinstance(value, list | tuple):
        return _STATES if value and all(isinstance(one, Mapping) for one in value) else f"a {type(value).__name__}"
    parts = (
        (_PERMUTATION, ("indices", "spec")),
        (_ELEMENT, ("maps", "spec")),
        (_SYMMETRY, ("groups", "axes", "kinds")),
        (_SPEC, ("groups", "axes")),
        (_CURVE, ("positions", "loss", "split")),
        (_TASK, ("network", "score")),
        (_STEP, ("path", "step")),
    )
    for kind, attributes in parts:
        if all(hasattr(type(value), one) or one in getattr(value, "__dict__", ()) for one in attributes):
            return kind
    return "None" if value is None else _with_article(value)


def _with_article(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
