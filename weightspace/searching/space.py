"""Search spaces: the values in a recipe that are to be searched, and recipes with chosen values in their place.

A value is searched if a mapping stands in its place: ``{search: [0, 1]}`` is a range, ``{choices: [ties, della]}`` a
list. A range may have ``log: true`` and ``integer: true``. Places with the same ``name`` share one value.
"""

from __future__ import annotations

import copy
import math
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import yaml

from weightspace.errors import WeightspaceError
from weightspace.searching.bounds import check_bounds
from weightspace.searching.idle import drop_idle
from weightspace.suggestions import closest

#: Position of a value in parsed YAML: keys and indices from the top.
Place: TypeAlias = tuple["str | int", ...]
#: A value for each dimension, by name.
Values: TypeAlias = Mapping[str, Any]

#: Keys of a mapping that stands for a searched value; the first two say which kind it is.
_KINDS, _OPTIONS = ("search", "choices"), ("log", "integer", "name")

#: A number that YAML 1.1 reads as text, since it lacks a point or the exponent's sign.
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d{1,3}")

_STEP = re.compile(r"([^.\[\]]+)((?:\[\d+\])*)")


@dataclass(frozen=True)
class Dimension:
    """One searched value.

    Attributes:
        name: its name in tables: that given by the user, or its place in the recipe.
        low, high: the bounds of a range, both included.
        log: whether the logarithm is searched uniformly.
        integer: whether values are integers.
        choices: the values of a list instead; empty for a range.
    """

    name: str
    low: float = 0.0
    high: float = 1.0
    log: bool = False
    integer: bool = False
    choices: tuple[Any, ...] = ()

    def at(self, share: float) -> Any:
        """Return the value at a position from 0 to 1 along the range or the list."""
        if self.choices:
            return self.choices[min(int(share * len(self.choices)), len(self.choices) - 1)]
        if self.integer:
            return min(int(self.high), math.floor(self._along(share, self.low, self.high + 1)))
        return min(self.high, max(self.low, self._along(share, self.low, self.high)))

    def _along(self, share: float, low: float, high: float) -> float:
        return low * (high / low) ** share if self.log else low + share * (high - low)

    def grid(self, points: int) -> list[Any]:
        """Return this number of values evenly spaced along the range, bounds included; all values of a list."""
        if self.choices:
            return list(self.choices)
        if points == 1:
            return [self.at(0.5)]
        values = [self._along(index / (points - 1), self.low, self.high) for index in range(points)]
        values = [min(self.high, max(self.low, value)) for value in values]
        return list(dict.fromkeys(round(value) if self.integer else value for value in values))


@dataclass(frozen=True)
class SearchSpace:
    """A recipe with searched values.

    Attributes:
        documents: the parsed YAML documents of the recipe, with searched values as they were written.
        where: the recipe's name in errors.
        dimensions: the searched values.
        places: the document's index and the place of every occurrence -> name of the dimension.
    """

    documents: tuple[Any, ...]
    where: str
    dimensions: tuple[Dimension, ...]
    places: Mapping[tuple[int, Place], str]

    def chosen(self, values: Values) -> list[Any]:
        """Return the documents of the recipe with the given values, by name of the dimension, in their places.

        Parameters that only methods have that were not chosen are left out.
        """
        documents = copy.deepcopy(list(self.documents))
        for (index, place), name in self.places.items():
            _put(documents[index], place, values[name])
        choices = {dimension.name: dimension.choices for dimension in self.dimensions}
        for (index, place), name in self.places.items():
            if place and place[-1] == "merge_method":
                drop_idle(_at(documents[index], place[:-1]), choices[name])
        return documents

    def written(self, values: Values) -> str:
        """Return the recipe with the given values as YAML."""
        return yaml.safe_dump_all(self.chosen(values), sort_keys=False, allow_unicode=True)


def read_space(documents: Sequence[Any], where: str, further: Any = None, further_where: str = "") -> SearchSpace:
    """Return the search space of a recipe.

    Args:
        documents: the parsed YAML documents of the recipe.
        where: the recipe's name in errors.
        further: searched values by place in the last document, such as ``models[0].parameters.weight``, which
            replace those of the recipe.
        further_where: their name in errors.

    Raises:
        WeightspaceError: nothing is searched, a range or list is invalid, or a place is not in the recipe.
    """
    documents = [_unshared(document) for document in documents]
    if further is not None:
        _check_mapping(further, further_where)
        for path, node in further.items():
            if not _is_node(node):
                raise WeightspaceError(
                    f"{further_where}: {path} is {node!r:.60}; expected a range {{search: [low, high]}} or a list "
                    "{choices: [a, b]}."
                )
            _put(documents[-1], _place_of(str(path), documents[-1], where, further_where), node)
    dimensions: dict[str, Dimension] = {}
    places: dict[tuple[int, Place], str] = {}
    for index, document in enumerate(documents):
        for place, node in _nodes(document, ()):
            title = _title(place) if len(documents) == 1 else f"[{index}].{_title(place)}"
            dimension = _dimension(node, title, where)
            values = dimension.choices or (dimension.low, dimension.high)
            check_bounds(document, place, values, f"{where}: {title}")
            if dimensions.setdefault(dimension.name, dimension) != dimension:
                raise WeightspaceError(
                    f"{where}: {title} and another place share the name {dimension.name!r}, but not the range. Give "
                    "both the same range, or different names."
                )
            places[index, place] = dimension.name
    if not dimensions:
        raise WeightspaceError(
            f"{where} has nothing to search. Write a range in place of a number, such as weight: {{search: [0, 1]}}, "
            f"or give the places in a file with --space.{_hint(documents)}"
        )
    return SearchSpace(tuple(documents), where, tuple(dimensions.values()), places)


def _hint(content: Any) -> str:
    """Return a hint at the first key that is nearly one of a searched value's; empty if there is none."""
    values = content.values() if isinstance(content, Mapping) else content if isinstance(content, list) else ()
    near = [(key, closest(str(key), _KINDS)) for key in content] if isinstance(content, Mapping) else []
    hints = (f" Did you mean {guess!r} by {key!r}?" for key, guess in near if guess and isinstance(content[key], list))
    return next(hints, "") or next(filter(None, map(_hint, values)), "")


def _unshared(content: Any) -> Any:
    """Return a copy in which no two places are the same object, as YAML's aliases are."""
    if isinstance(content, Mapping):
        return {key: _unshared(value) for key, value in content.items()}
    return [_unshared(value) for value in content] if isinstance(content, list) else copy.deepcopy(content)


def _check_mapping(content: Any, where: str) -> None:
    if not isinstance(content, Mapping) or not content:
        raise WeightspaceError(
            f"{where} must map places in the recipe to ranges, such as parameters.t: {{search: [0, 1]}}; found "
            f"{content!r:.60}."
        )


def _is_node(node: Any) -> bool:
    return isinstance(node, Mapping) and any(kind in node for kind in _KINDS)


def _nodes(content: Any, place: Place) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    """Yield the searched values of a document with their places."""
    if _is_node(content):
        yield place, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _nodes(value, (*place, key))
    elif isinstance(content, list):
        for index, value in enumerate(content):
            yield from _nodes(value, (*place, index))


def _title(place: Place) -> str:
    """Return a place as text: ``models[0].parameters.weight``."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).removeprefix(".")


def _place_of(path: str, document: Any, where: str, further_where: str) -> Place:
    """Return the place that a text names, which must be in a document except for its last keys.

    Raises:
        WeightspaceError: the text is malformed, or the document has no such place.
    """
    steps: list[str | int] = []
    for part in path.split("."):
        match = _STEP.fullmatch(part)
        if match is None:
            raise WeightspaceError(
                f"{further_where}: {path!r} is no place in a recipe; expected one such as models[0].parameters.weight."
            )
        steps += [match[1], *(int(index) for index in re.findall(r"\d+", match[2]))]
    at: list[Any] | Mapping[str, Any] | None = document
    for depth, step in enumerate(steps):
        if isinstance(step, int) and not (isinstance(at, list) and step < len(at)):
            raise WeightspaceError(
                f"{further_where}: {where} has no {_title(tuple(steps[: depth + 1]))}; "
                f"found {len(at) if isinstance(at, list) else 'no'} entries of {_title(tuple(steps[:depth]))}."
            )
        if isinstance(step, str) and not isinstance(at, Mapping | None):
            raise WeightspaceError(f"{further_where}: {_title(tuple(steps[:depth]))} has no keys in {where}.")
        at = at[step] if isinstance(step, int) and isinstance(at, list) else dict(at or {}).get(str(step))
    return tuple(steps)


def _at(document: Any, place: Place) -> Any:
    for step in place:
        document = document[step]
    return document


def _put(document: Any, place: Place, value: Any) -> None:
    """Set the value at a place, making the mappings that are missing on the way."""
    at = document
    for step in place[:-1]:
        if isinstance(at, dict) and at.get(step) is None:
            at[step] = {}
        at = at[step]
    at[place[-1]] = value


def _dimension(node: Mapping[str, Any], title: str, where: str) -> Dimension:
    """Return the dimension that a mapping describes.

    Raises:
        WeightspaceError: the mapping isn't a valid range or list.
    """
    name = node.get("name", title)
    if not isinstance(name, str) or not name:
        raise WeightspaceError(f"{where}: the name of {title} is {name!r}; expected a text.")
    if extra := [key for key in node if key not in (*_KINDS, *_OPTIONS)]:
        raise WeightspaceError(f"{where}: {title} has the unknown key {extra[0]!r}; expected {', '.join(_OPTIONS)}.")
    if all(kind in node for kind in _KINDS):
        raise WeightspaceError(f"{where}: {title} has both search and choices; expected one of the two.")
    if "choices" in node:
        return _list(node, name, title, where)
    return _range(node, name, title, where)


def _list(node: Mapping[str, Any], name: str, title: str, where: str) -> Dimension:
    choices = node["choices"]
    if not isinstance(choices, list) or not choices:
        raise WeightspaceError(f"{where}: the choices of {title} are {choices!r:.60}; expected a list of values.")
    if set(node) & {"log", "integer"}:
        raise WeightspaceError(f"{where}: {title} is a list of choices; log and integer are for ranges.")
    if any(_nodes(choices, ())):
        raise WeightspaceError(
            f"{where}: a choice of {title} is itself a range or a list of choices; expected values without searched "
            "ones. Search them in a recipe of their own."
        )
    unique = [choice for index, choice in enumerate(choices) if choice not in choices[:index]]
    return Dimension(name, choices=tuple(unique))


def _range(node: Mapping[str, Any], name: str, title: str, where: str) -> Dimension:
    bounds = node["search"]
    numbers = [_read_number(bound) for bound in bounds] if isinstance(bounds, list) else []
    if len(numbers) != 2 or not all(map(_is_number, numbers)) or not numbers[0] < numbers[1]:
        raise WeightspaceError(
            f"{where}: {title} has the range {bounds!r:.60}; expected two finite numbers [low, high] with low < high. "
            "A list of values is written {choices: [a, b, c]}."
        )
    flags = {key: node.get(key, False) for key in ("log", "integer")}
    if wrong := [key for key, flag in flags.items() if not isinstance(flag, bool)]:
        raise WeightspaceError(f"{where}: {wrong[0]} of {title} is {flags[wrong[0]]!r}; expected true or false.")
    low, high = map(float, numbers)
    if flags["log"] and low <= 0:
        raise WeightspaceError(f"{where}: {title} is searched by its logarithm; expected low > 0, found {low:g}.")
    if flags["integer"] and not (low.is_integer() and high.is_integer()):
        raise WeightspaceError(f"{where}: {title} is an integer; expected integer bounds, found {low:g} and {high:g}.")
    return Dimension(name, low, high, log=flags["log"], integer=flags["integer"])


def _read_number(bound: Any) -> Any:
    """Return a bound, as a number if it is one that YAML reads as text, as recipes do."""
    return float(bound) if isinstance(bound, str) and _EXPONENT.fullmatch(bound) else bound


def _is_number(value: Any) -> bool:
    """Return whether a value is a number that a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
