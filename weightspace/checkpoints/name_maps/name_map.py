"""Name maps: rules that relate the tensors of a network on two sides, read from YAML.

The format is documented in docs/pages/how-to/name-maps.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightspace.checkpoints.name_maps.pattern import Pattern
from weightspace.errors import WeightspaceError
from weightspace.suggestions import unknown

#: Keys of a map, and of a rule besides the two sides.
_KEYS = ("about", "sides", "to", "complete", "left_out", "model_types", "variants", "tables", "rules")
_OPTIONS = ("dim", "sizes", "groups", "each", "transpose", "ones")

#: Groups of one element per part: the parts are interleaved.
INTERLEAVED = "interleaved"


@dataclass(frozen=True)
class Rule:
    """Tensors on one side, and the same elements on the other.

    A side has one pattern, or one for each part that the tensor of the other side, the fused one, is made of.

    Attributes:
        sides: the patterns of both sides.
        dim: dimension along which the parts follow each other, in the parts' orientation.
        sizes: relative sizes of the parts: numbers, or keys of the configuration.
        groups: number of groups that the fused dimension is divided into, each with a share of every part: a number, a
            key of the configuration, or ``interleaved``.
        each: field that counts the tensors stacked along a new first dimension of the fused one, or None.
        transpose: whether the last two dimensions of the fused tensor are swapped.
        ones: number of further dimensions of size 1 at the end, on the second side.
    """

    sides: tuple[tuple[Pattern, ...], tuple[Pattern, ...]]
    dim: int = 0
    sizes: tuple[int | str, ...] = ()
    groups: int | str = 1
    each: str | None = None
    transpose: bool = False
    ones: int = 0

    @property
    def fused(self) -> int:
        """The side of the fused tensor: the one with one pattern, if the other has parts; else the first."""
        first, _ = self.sides
        return 1 if len(first) > 1 or any(self.each in pattern.fields for pattern in first) else 0

    @property
    def renames(self) -> bool:
        """Whether it changes names only."""
        parts = self.sides[1 - self.fused]
        return len(parts) == 1 and self.each is None and not (self.transpose or self.ones)


@dataclass(frozen=True)
class NameMap:
    """A name map.

    Attributes:
        title: its name, for messages.
        sides: the names of its two sides.
        rules: what corresponds to what.
        to: the side that all models are brought to; None: that of the base, or else of the first model.
        left_out: for each side, patterns of tensors that have no counterpart on the other and are left out.
        model_types: values of ``model_type`` in configurations that it is for; empty: any.
        complete: whether every tensor must be matched; otherwise the others keep their names.
        variants: for each side, the built-in map whose second side is another spelling of it, or None; its first side
            is the one that the rules have.
        content: the map as data.
    """

    title: str
    sides: tuple[str, str]
    rules: tuple[Rule, ...]
    to: int | None
    left_out: tuple[tuple[Pattern, ...], tuple[Pattern, ...]]
    model_types: tuple[str, ...]
    complete: bool
    variants: tuple[str | None, str | None]
    content: Mapping[str, Any]


def parse_name_map(content: Any, title: str) -> NameMap:
    """Return the map that parsed YAML describes.

    Args:
        content: the content.
        title: name of the map in messages.

    Raises:
        WeightspaceError: it isn't a valid map; the message names the key.
    """
    top = _mapping(content, title)
    _check_keys(top, _KEYS, title)
    sides = top.get("sides")
    if not (isinstance(sides, list) and len(sides) == 2 and all(_is_word(side) for side in sides)):
        raise WeightspaceError(
            f"{title}: sides must be the names of the two sides, such as [fused, split]; found {sides!r}."
        )
    if sides[0] == sides[1] or set(sides) & set(_OPTIONS):
        raise WeightspaceError(f"{title}: sides must be two distinct words other than {', '.join(_OPTIONS)}.")
    tables = {
        name: _table(words, f"{title}: tables.{name}")
        for name, words in _mapping(top.get("tables") or {}, title).items()
    }
    rules = top.get("rules")
    if not isinstance(rules, list) or not rules:
        raise WeightspaceError(f"{title}: rules must be a list of mappings.")
    parsed = tuple(_rule(rule, sides, tables, f"{title}: rules[{number}]") for number, rule in enumerate(rules))
    complete = top.get("complete", False)
    if not isinstance(complete, bool):
        raise WeightspaceError(f"{title}: complete must be true or false, found {complete!r}.")
    to = top.get("to")
    if to is not None and to not in sides:
        raise unknown(f"side of the map {title}:", str(to), sides)
    left = _mapping(top.get("left_out") or {}, f"{title}: left_out")
    _check_keys(left, sides, f"{title}: left_out")
    gone = [
        tuple(_pattern(text, {}, None, title) for text in _texts(left[side], f"{title}: left_out.{side}"))
        if side in left
        else ()
        for side in sides
    ]
    variants = _mapping(top.get("variants") or {}, f"{title}: variants")
    _check_keys(variants, sides, f"{title}: variants")
    types = _texts(top["model_types"], f"{title}: model_types") if "model_types" in top else []
    side = None if to is None else sides.index(to)
    return NameMap(
        title=title,
        sides=(sides[0], sides[1]),
        rules=parsed,
        to=side,
        left_out=(gone[0], gone[1]),
        model_types=tuple(types),
        complete=complete,
        variants=(variants.get(sides[0]), variants.get(sides[1])),
        content=dict(top),
    )


def _rule(content: Any, sides: Sequence[str], tables: Mapping[str, Mapping[str, str]], where: str) -> Rule:
    """Return a rule."""
    rule = _mapping(content, where)
    _check_keys(rule, (*sides, *_OPTIONS), where)
    each = rule.get("each")
    words = ({name: {word: word for word in table} for name, table in tables.items()}, tables)
    patterns = [
        tuple(_pattern(text, words[number], each, where) for text in _texts(rule.get(side), f"{where}.{side}"))
        for number, side in enumerate(sides)
    ]
    if min(map(len, patterns)) > 1:
        raise WeightspaceError(f"{where}: one of {' and '.join(sides)} must be a single name; both are lists.")
    made = Rule(
        (patterns[0], patterns[1]),
        _number(rule, "dim", 0, where, least=0),
        tuple(rule.get("sizes") or ()),
        rule.get("groups", 1),
        each,
        bool(rule.get("transpose", False)),
        _number(rule, "ones", 0, where, least=0),
    )
    _check_rule(made, rule, where)
    return made


def _check_rule(rule: Rule, content: Mapping[str, Any], where: str) -> None:
    """Check that a rule is one-to-one, and that its options have a meaning."""
    parts = rule.sides[1 - rule.fused]
    counted = {rule.each} if rule.each else set()
    fields = {frozenset(pattern.fields) - counted for side in rule.sides for pattern in side}
    if len(fields) > 1:
        raise WeightspaceError(
            f"{where} is not one-to-one: all names must have the same fields, found "
            f"{' and '.join(str(sorted(one)) for one in fields)}."
        )
    whole = rule.sides[rule.fused][0]
    if rule.each is not None and (rule.each in whole.fields or any(rule.each not in one.fields for one in parts)):
        raise WeightspaceError(
            f"{where}: the field {{{rule.each}}} of each must be in all names of one side, and in none of the other."
        )
    if len({one.text for one in parts}) != len(parts):
        raise WeightspaceError(f"{where} is not one-to-one: a name comes twice.")
    sizes, groups = rule.sizes, rule.groups
    if sizes and (len(sizes) != len(parts) or not all(_is_count(size) for size in sizes)):
        raise WeightspaceError(f"{where}.sizes must have a number or a key of the configuration for each part.")
    if not _is_count(groups):
        raise WeightspaceError(f"{where}.groups must be a number, a key of the configuration, or {INTERLEAVED}.")
    idle = [key for key in ("dim", "sizes", "groups") if key in content and len(parts) == 1]
    if idle:
        raise WeightspaceError(f"{where}.{idle[0]} has no effect: neither side is a list of parts.")
    if rule.ones and (len(parts) > 1 or rule.each or rule.transpose):
        raise WeightspaceError(f"{where}.ones cannot be combined with parts, each or transpose.")


def _texts(value: Any, where: str) -> list[str]:
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) and text for text in texts):
        raise WeightspaceError(
            f"{where} must be a name with fields such as {{layer}}, or a list of them; found {value!r}."
        )
    return texts


def _pattern(text: str, words: Mapping[str, Mapping[str, str]], each: Any, where: str) -> Pattern:
    if each is not None and not _is_word(each):
        raise WeightspaceError(f"{where}.each must be the name of a field, found {each!r}.")
    try:
        return Pattern(text, words, each)
    except WeightspaceError as error:
        raise WeightspaceError(f"{where}: {error}") from None


def _table(content: Any, where: str) -> dict[str, str]:
    """Return a table of words: first side -> second side."""
    table = _mapping(content, where)
    if not table or not all(isinstance(word, str) and word for word in table.values()):
        raise WeightspaceError(f"{where} must map the words of one side to those of the other.")
    words: dict[str, str] = {}
    for one, other in table.items():
        if other in words:
            raise WeightspaceError(f"{where} is not one-to-one: {words[other]!r} and {one!r} both become {other!r}.")
        words[other] = one
    return dict(table)


def _mapping(content: Any, where: str) -> dict[str, Any]:
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise WeightspaceError(f"{where} must be a mapping of keys to values, found {type(content).__name__}.")
    return content


def _check_keys(content: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in content:
        if key not in known:
            raise unknown(f"key of {where}:", key, known)


def _number(content: Mapping[str, Any], key: str, default: int, where: str, *, least: int) -> int:
    value = content.get(key, default)
    if type(value) is not int or not least <= value <= 8:
        raise WeightspaceError(f"{where}.{key} must be an integer from {least} to 8, found {value!r}.")
    return value


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and value.isidentifier()


def _is_count(value: Any) -> bool:
    return (type(value) is int and 0 < value < 2**20) or (isinstance(value, str) and bool(value))
