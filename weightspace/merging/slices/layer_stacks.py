"""The stack of layers that a recipe's ``layer_range`` counts, where a model has several.

A model of vision and text has two stacks, and so has an encoder with a decoder. ``layer_range`` means the text model's
stack where names or configuration tell it; otherwise the recipe says which one (``stack:``), or is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from weightspace.errors import WeightspaceError
from weightspace.merging.config.towers import is_language_model, named_tower, tower, words
from weightspace.merging.slices.layer_index import Layers
from weightspace.suggestions import closest

#: A stack with less than this share of the tensors of the largest one beside it is a head or a stem.
_SMALL = 0.2

#: How the names of stacks end whose layers are whole, where two stand side by side.
_WHOLE = ("_blocks", "layers", "layer")

#: How many stacks an error lists, and how much of each name.
_LISTED, _WIDTH = 4, 60


def choose_stack(
    layers: Layers,
    model: str,
    *,
    asked: str | None = None,
    text_layers: int | None = None,
    layer_range: tuple[int, int] = (0, 2),
) -> str:
    """Return the stack that ``layer_range`` counts.

    Args:
        layers: of the model.
        model: what errors call it.
        asked: the recipe's ``stack``: the path of a stack, or a part of it that no other stack has.
        text_layers: how many layers the text model has by the configuration, where that has towers.
        layer_range: the range that the recipe asks for, for the example in errors.

    Raises:
        WeightspaceError: there is no such stack, or several stacks could be meant.
    """
    stacks = layers.stacks
    if asked is not None:
        chosen = _asked(layers, model, asked)
        _check_whole(layers, model, chosen)
        return chosen
    candidates = _candidates(layers)
    if len(candidates) > 1 and text_layers is not None and not _are_sides(candidates):
        told = [stack for stack in candidates if stacks[stack] == text_layers]
        candidates = told if len(told) == 1 else candidates
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise WeightspaceError(
            f"Slices need a stack of numbered layers in the names of the tensors; {model} has none. Merge it whole."
        )
    first, end = layer_range
    example = max((stack for stack in candidates if "#" not in stack), key=layers.size, default=candidates[0])
    raise WeightspaceError(
        f"{model} has {len(candidates)} stacks of layers that layer_range could mean: {_listing(stacks, candidates)}. "
        f"Say which one beside it: `layer_range: [{first}, {end}]` with `stack: {_short(example, 2 * _WIDTH)}`."
    )


def _candidates(layers: Layers) -> list[str]:
    """Return the stacks that could be meant: those of the text model, else of any tower."""
    stacks = [stack for stack, count in layers.stacks.items() if count > 1] or list(layers.stacks)
    trunk = [stack for stack in stacks if tower(stack) == "text"]
    named = [stack for stack in trunk if is_language_model(stack)]
    if len(named) == 1:
        return named
    if trunk and all("decoder" in _words(stack) and named_tower(stack.split(".")) is None for stack in trunk):
        trunk = [stack for stack in stacks if tower(stack) in ("vision", "audio", "text")]  # no text model, as in SAM
    return _large(layers, trunk or [stack for stack in stacks if tower(stack) != "stem"] or stacks)


def _words(stack: str) -> set[str]:
    """Return the words in the path of a stack."""
    return {word for component in stack.split(".") for word in words(component)}


def _check_whole(layers: Layers, model: str, stack: str) -> None:
    """Check that a stack holds its layers whole, as XLM's lists of attentions and of feed-forwards do not."""
    stacks, parent = layers.stacks, stack.rpartition(".")[0]
    beside = [
        other
        for other in _large(layers, [other for other in stacks if other.rpartition(".")[0] == parent])
        if other != stack
        and stacks[other] == stacks[stack]
        and not _are_sides([stack, other])
        and not all(own.endswith(_WHOLE) for own in (stack, other))
    ]
    if beside and stacks[stack] > 1:
        raise WeightspaceError(
            f"{model} keeps parts of its layers in {_listing(stacks, [stack, *beside])}. Slices need a stack of whole "
            "layers; merge the models whole."
        )


def _large(layers: Layers, stacks: Sequence[str]) -> list[str]:
    """Return the stacks without those that are small beside the largest one."""
    largest = max((layers.size(stack) for stack in stacks), default=0)
    return [stack for stack in stacks if layers.size(stack) >= _SMALL * largest]


def _are_sides(stacks: Sequence[str]) -> bool:
    """Return whether the stacks are the two sides of one model, which count their layers alike."""
    return any("encoder" in stack for stack in stacks) and any("decoder" in stack for stack in stacks)


def _asked(layers: Layers, model: str, asked: str) -> str:
    """Return the stack that a recipe names."""
    stacks = layers.stacks
    if asked in stacks:
        return asked
    parts = _large(layers, [stack for stack in stacks if f".{asked}." in f".{stack}."])
    front = [stack for stack in parts if f"{stack}.".startswith(f"{asked}.")]
    if len(parts) == 1 or len(front) == 1:
        return (front or parts)[0]
    if parts:
        raise WeightspaceError(
            f"stack: {_short(asked)} could be {_listing(stacks, parts)} in {model}; expected the whole path of one."
        )
    close = closest(asked, stacks)
    guess = "" if close is None else f" Did you mean {_short(close)}?"
    raise WeightspaceError(
        f"{model} has no stack of layers {_short(asked)!r}; it has {_listing(stacks, list(stacks))}.{guess}"
    )


def _listing(stacks: Mapping[str, int], names: Sequence[str]) -> str:
    """Return stacks with their numbers of layers, those with the most layers where there are many."""
    shown = sorted(names, key=lambda name: -stacks[name])[:_LISTED] if len(names) > _LISTED else names
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    listed = ", ".join(f"{_short(name)} ({stacks[name]} layers)" for name in shown)
    return f"{listed or 'none'}{more}"


def _short(name: str, width: int = _WIDTH) -> str:
    """Return a name as errors show it: its end where it is long, escaped where it cannot be printed."""
    shown = name if len(name) <= width else f"…{name[1 - width :]}"
    return (shown if shown.isprintable() else ascii(shown)) or "(the top)"
