"""Choice of the stack of layers that a recipe's ``layer_range`` refers to.

A vision-language model has two stacks, and so does an encoder-decoder. ``layer_range`` refers to the text model's
stack where names or configuration identify it; otherwise the recipe has to name one (``stack:``) or is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from weightspace.errors import WeightspaceError
from weightspace.merging.config.towers import is_language_model, named_tower, tower, words
from weightspace.merging.slices.layer_index import Layers
from weightspace.suggestions import closest

#: A stack with less than this share of the tensors of the largest one is a head or a stem.
_SMALL = 0.2

#: Endings of the names of sibling stacks whose layers are whole.
_WHOLE = ("_blocks", "layers", "layer")

#: Number of stacks that an error lists, and of characters of each name.
_LISTED, _WIDTH = 4, 60


def choose_stack(
    layers: Layers,
    model: str,
    *,
    asked: str | None = None,
    text_layers: int | None = None,
    layer_range: tuple[int, int] = (0, 2),
) -> str:
    """Return the stack that ``layer_range`` refers to.

    Args:
        layers: the model's layers.
        model: its name in errors.
        asked: the recipe's ``stack``: the path of a stack, or a part of it that no other stack has.
        text_layers: number of layers of the text model in the configuration, where that has towers.
        layer_range: a range of the recipe, for the example in errors.

    Raises:
        WeightspaceError: there is no such stack, or the choice is ambiguous.
    """
    stacks = layers.stacks
    if asked is not None:
        chosen = _named_stack(layers, model, asked)
        _check_whole(layers, model, chosen)
        return chosen
    candidates = _candidates(layers)
    if len(candidates) > 1 and text_layers is not None and not _are_sides(candidates):
        matching = [stack for stack in candidates if stacks[stack] == text_layers]
        candidates = matching if len(matching) == 1 else candidates
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise WeightspaceError(
            f"Slices need a stack of numbered layers in the tensor names; {model} has none. Merge it whole."
        )
    first, end = layer_range
    example = max((stack for stack in candidates if "#" not in stack), key=layers.size, default=candidates[0])
    raise WeightspaceError(
        f"{model} has {len(candidates)} stacks of layers that layer_range could refer to: "
        f"{_listing(stacks, candidates)}. Choose one, as in `layer_range: [{first}, {end}]` with "
        f"`stack: {_short(example, 2 * _WIDTH)}`."
    )


def _candidates(layers: Layers) -> list[str]:
    """Return the candidate stacks: those of the text model, else of any tower."""
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
    """Check that a stack holds whole layers, unlike XLM's separate lists of attentions and feed-forwards."""
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
            f"{model} splits its layers between {_listing(stacks, [stack, *beside])}. Slices need a stack of whole "
            "layers; merge the models whole."
        )


def _large(layers: Layers, stacks: Sequence[str]) -> list[str]:
    """Return the stacks that are not small relative to the largest one."""
    largest = max((layers.size(stack) for stack in stacks), default=0)
    return [stack for stack in stacks if layers.size(stack) >= _SMALL * largest]


def _are_sides(stacks: Sequence[str]) -> bool:
    """Return whether the stacks are the encoder and the decoder of one model, which number their layers alike."""
    return any("encoder" in stack for stack in stacks) and any("decoder" in stack for stack in stacks)


def _named_stack(layers: Layers, model: str, asked: str) -> str:
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
            f"stack: {_short(asked)} could be {_listing(stacks, parts)} in {model}; expected the full path of one."
        )
    close = closest(asked, stacks)
    guess = "" if close is None else f" Did you mean {_short(close)}?"
    raise WeightspaceError(
        f"{model} has no stack of layers {_short(asked)!r}; it has {_listing(stacks, list(stacks))}.{guess}"
    )


def _listing(stacks: Mapping[str, int], names: Sequence[str]) -> str:
    """Format stacks with their numbers of layers; of many, only those with the most layers."""
    shown = sorted(names, key=lambda name: -stacks[name])[:_LISTED] if len(names) > _LISTED else names
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    listed = ", ".join(f"{_short(name)} ({stacks[name]} layers)" for name in shown)
    return f"{listed or 'none'}{more}"


def _short(name: str, width: int = _WIDTH) -> str:
    """Format a name for errors: only the end of a long one, escaped if it is not printable."""
    shown = name if len(name) <= width else f"…{name[1 - width :]}"
    return (shown if shown.isprintable() else ascii(shown)) or "(top level)"
