"""Operators on tensors that combine several, applied part by part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from weightspace.symmetry.rules.axis_algebra import concat, fixed, product
from weightspace.symmetry.rules.call import Axes, Call, Parts, Rule, dims_of, fixed_like, one_shape, pointwise
from weightspace.symmetry.rules.operators import CUTS, NORMALISATIONS, PASS_THROUGH, REARRANGEMENTS, VIEWS
from weightspace.symmetry.rules.reductions import ordered, reduce
from weightspace.symmetry.rules.slicing import cat, start_of
from weightspace.symmetry.rules.views import place_in_view


def follow(call: Call, apply: Rule) -> Any:
    """Return the result of an operator on each part, or None if there are no parts or it sees them united.

    Args:
        call: the operator and its arguments.
        apply: its rule.
    """
    held = {name: value for name, value in call.args.items() if isinstance(value, Parts)}
    if apply is cat:
        return _cat(call, apply)
    if not held:
        return None
    first = next(iter(held.values()))
    if call.name in CUTS:
        return _cut_apart(call, first, apply)
    if call.name in VIEWS:
        return _view(call, first, apply)
    if call.name in REARRANGEMENTS or _goes_along_others(call, first, apply):
        return _each(call, held, apply)
    places = {parts.place - len(parts.sizes) for parts in held.values()}
    counts = {len(parts.alternatives) for parts in held.values()}
    if not treats_alike(call.name, apply) or len(places) * len(counts) > 1:
        return None
    return _each(call, held, apply, place=next(iter(places)))


def treats_alike(name: str, apply: Rule) -> bool:
    """Return whether an operator treats every unit alike, or leaves it unchanged."""
    return apply is pointwise or name in PASS_THROUGH


def _goes_along_others(call: Call, parts: Parts, apply: Rule) -> bool:
    """Return whether an operator combines, normalises or orders units of axes other than that of the parts."""
    rank = len(parts.sizes)
    if call.name not in NORMALISATIONS and (apply not in (ordered, reduce) or isinstance(call.shape, list)):
        return False
    if "normalized_shape" in call.args:
        return parts.place < rank - len(call.args["normalized_shape"])
    dims = next((call.args[name] for name in ("dim", "dims") if name in call.args), None)
    return parts.place not in dims_of(dims, rank)


def _cat(call: Call, apply: Rule) -> Parts | None:
    """Concatenate tensors with equal numbers of parts along an axis other than theirs."""
    tensors = call.args["tensors"]
    if not all(isinstance(tensor, Parts) for tensor in tensors):
        return None
    kinds = {(parts.place, len(parts.sizes), len(parts.alternatives)) for parts in tensors}
    place, rank, count = next(iter(kinds))
    if len(kinds) > 1 or call.args["dim"] % rank == place:
        return None
    marker = tensors[0].marker
    each = [[parts.alternatives[number] for parts in tensors] for number in range(count)]
    joined = [apply(replace(call, args={**call.args, "tensors": axes})) for axes in each]
    return Parts(marker, tuple((*axes[:place], marker, *axes[place + 1 :]) for axes in joined))


def _each(call: Call, held: Mapping[str, Parts], apply: Rule, place: int | None = None) -> Any:
    """Apply a rule to each part; ``place`` is the marker's final position from the right, if it isn't merely moved."""
    marker = next(iter(held.values())).marker
    results = [_first(apply(_with(call, held, number))) for number in range(marker.size)]
    if place is not None:
        results = [(*axes[:place], marker, *(axes[place + 1 :] if place < -1 else ())) for axes in results]
    parts = Parts(marker, tuple(results))
    return [parts, *map(fixed_like, call.shape[1:])] if isinstance(call.shape, list) else parts


def _with(call: Call, held: Mapping[str, Parts], number: int) -> Call:
    return replace(call, args={**call.args, **{name: parts.alternatives[number] for name, parts in held.items()}})


def _first(result: Any) -> Axes:
    return result[0] if isinstance(result, list) else result


def _cut_apart(call: Call, parts: Parts, apply: Rule) -> Any:
    """Select some of the parts, or cut each along another axis."""
    place = parts.place
    if call.args["dim"] % len(parts.sizes) != place:
        each = [apply(_with(call, {"self": parts}, number)) for number in range(len(parts.alternatives))]
        if isinstance(call.shape, list):
            return [Parts(parts.marker, tuple(pieces)) for pieces in zip(*each, strict=True)]
        return Parts(parts.marker, tuple(each))
    if call.name in ("select", "unbind"):
        picked = [(*axes[:place], *axes[place + 1 :]) for axes in parts.alternatives]
        return picked if call.name == "unbind" else picked[call.args["index"]]
    if not isinstance(call.shape, list):
        start, step = start_of(call, len(parts.alternatives)), call.args["step"]
        return _some(parts, range(start, start + step * call.shape[place], step))
    return list(_cut_in(parts, [shape[place] for shape in call.shape]))


def _cut_in(parts: Parts, sizes: Sequence[int]) -> Iterator[Parts | Axes]:
    start = 0
    for size in sizes:
        yield _some(parts, range(start, start + size))
        start += size


def _some(parts: Parts, numbers: range) -> Parts | Axes:
    """Return some of the parts, in order; a single one is an ordinary tensor."""
    marker, place = fixed(len(numbers)), parts.place
    kept = [parts.alternatives[number] for number in numbers]
    marked = [(*axes[:place], marker, *axes[place + 1 :]) for axes in kept]
    return Parts(marker, tuple(marked)) if len(marked) > 1 else marked[0]


def _view(call: Call, parts: Parts, apply: Rule) -> Any:
    """View the parts in another shape that keeps them apart, or concatenates them."""
    place, first = parts.place, parts.alternatives[0]
    shape = list(one_shape(call))
    flat = parts.marker.size * product(*first[place + 1 :]).size
    if [*parts.sizes[:place], flat] == shape:
        return (*first[:place], concat(*(product(*axes[place + 1 :]) for axes in parts.alternatives)))
    viewed = place_in_view(parts.sizes, place, shape)
    return None if viewed is None else _each(call, {"self": parts}, apply, place=viewed - len(shape))
