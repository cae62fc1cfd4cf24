"""Safe reading of YAML for recipes, specs and options: plain data of bounded size and depth.

Like PyYAML's ``safe_load``, except that dates stay text, and that tags beyond the core schema, duplicate keys,
exponentially expanding aliases and numbers too long for a float are rejected.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from weightspace.checkpoints.atomic_write import one_line_errors
from weightspace.errors import WeightspaceError

#: Largest file in bytes; a spec of fifty thousand tensors has some four million.
MAX_BYTES = 4_000_000

#: Maximum nesting depth, and maximum number of items, counting those of aliases each time.
MAX_DEPTH = 50
MAX_ITEMS = 300_000

#: Maximum length of a number in characters.
_MAX_DIGITS = 300

_TAG = "tag:yaml.org,2002:"
_CORE = tuple(_TAG + name for name in ("null", "bool", "int", "float", "str", "seq", "map"))
_MERGE = _TAG + "merge"
_BRACKETS = re.compile(r"[\[\]{}]")


def read_yaml(path: Path) -> list[Any]:
    """Return the documents of a YAML file.

    Raises:
        CheckpointError: it cannot be read.
        WeightspaceError: as for ``parse_yaml``.
    """
    with one_line_errors(path, "read"):
        if path.exists() and not path.is_file():
            raise WeightspaceError(f"{path} is not a regular file; expected a YAML file.")
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    try:
        return parse_yaml(content.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise WeightspaceError(f"{path} is not valid YAML: byte {error.start:,} is not UTF-8.") from None


def parse_yaml(text: str, where: str) -> list[Any]:
    """Return the documents of YAML text; ``where`` names it in errors.

    Raises:
        WeightspaceError: it isn't valid YAML, or isn't plain data of bounded size.
    """
    try:
        if len(text) > MAX_BYTES:
            raise yaml.YAMLError(f"it has more than {MAX_BYTES:,} bytes")
        _check_brackets(text)
        _check_events(text)
        return list(yaml.load_all(text, _LOADER))
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "in ").split())
        raise WeightspaceError(f"{where} is not valid YAML: {reason}.") from None


def plain_data(content: Any, where: str) -> Any:
    """Return data that was given in Python as a YAML file would hold it; paths become text, and tuples lists.

    Raises:
        WeightspaceError: it holds something that a YAML file cannot, or as for ``parse_yaml``.
    """
    try:
        text = yaml.safe_dump(_with_text(content), sort_keys=False, allow_unicode=True)
    except yaml.YAMLError as error:
        raise WeightspaceError(
            f"{where} holds {error.args[-1]!r:.60}; expected numbers, text, lists and mappings, as in a YAML file."
        ) from None
    except RecursionError:
        raise WeightspaceError(f"{where} is nested too deeply, or a part of itself.") from None
    return parse_yaml(text, where)[0]


def _with_text(content: Any) -> Any:
    """Return data with text in place of paths, and Python's own numbers."""
    if isinstance(content, Mapping):
        return {_with_text(key): _with_text(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_with_text(value) for value in content]
    if isinstance(content, os.PathLike):
        return os.fspath(content)
    if isinstance(content, float):
        return float(content)  # numpy's float64 is one
    return content


class _PlainData:
    """Constructor of plain data that rejects duplicate keys, of which the last one would win silently."""

    def construct_mapping(self: Any, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping."""
        seen: set[Any] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                problem = f"the key {str(key)[:200]!r} comes twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)  # type: ignore[misc]

    def construct_number(self: Any, node: Any) -> int | float:
        """Return a number of bounded length."""
        text = self.construct_scalar(node)
        if len(text) > _MAX_DIGITS:
            raise yaml.MarkedYAMLError(problem=f"a number of {len(text):,} digits", problem_mark=node.start_mark)
        return self.construct_yaml_int(node) if node.tag == _TAG + "int" else self.construct_yaml_float(node)


def loader_on(base: Any) -> Any:
    """Return a loader of plain data based on one of PyYAML's."""
    resolvers = {
        first: [(tag, pattern) for tag, pattern in listed if tag != _TAG + "timestamp"]
        for first, listed in base.yaml_implicit_resolvers.items()
    }
    constructors = {tag: base.yaml_constructors[tag] for tag in (*_CORE, None)}
    constructors |= dict.fromkeys((_TAG + "int", _TAG + "float"), _PlainData.construct_number)
    tables = {"yaml_implicit_resolvers": resolvers, "yaml_constructors": constructors}
    return type("PlainLoader", (_PlainData, base), tables)


#: Based on the C parser if PyYAML was built with it, which is ten times as fast.
_LOADER = loader_on(getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _check_brackets(text: str) -> None:
    """Reject too deeply nested lists before they are parsed, which takes time quadratic in their depth."""
    depth = 0
    for bracket in _BRACKETS.finditer(text):
        depth = depth + 1 if bracket[0] in "[{" else max(0, depth - 1)
        if depth > 2 * MAX_DEPTH:
            raise yaml.YAMLError("lists are nested too deeply")


def _check_events(text: str) -> None:
    """Check depth, number of items and Unicode before anything is built; aliases count with all their content."""
    sizes: dict[str, int] = {}
    open_items: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, _LOADER):
        size, anchor = 0, getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            open_items.append((anchor, 1))
            if len(open_items) > MAX_DEPTH:
                raise yaml.YAMLError(f"lists and mappings are nested more than {MAX_DEPTH} deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_items.pop()
        elif isinstance(event, yaml.AliasEvent):
            if anchor not in sizes:
                raise yaml.YAMLError(f"the alias {anchor!r} is undefined, or refers to a part of itself")
            size, anchor = sizes[anchor], None
        elif isinstance(event, yaml.ScalarEvent):
            event.value.encode()  # unpaired surrogates cannot be encoded
            if "\0" in event.value:
                raise yaml.YAMLError("a string holds a null byte")
            size = 1
        if anchor is not None and size:
            sizes[anchor] = size
        above, count = open_items[-1]
        open_items[-1] = (above, count + size)
        if count + size > MAX_ITEMS:
            raise yaml.YAMLError(f"it has more than {MAX_ITEMS:,} items, counting those of aliases each time")
