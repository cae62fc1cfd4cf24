"""Ways to damage a file: blind ones on its bytes, and ones that keep its form and change what it says."""

from __future__ import annotations

import copy
import io
import json
import random
import re
import warnings
import zipfile
from collections.abc import Callable
from typing import Any, TypeAlias

Mutation: TypeAlias = Callable[[bytes, random.Random], bytes]

#: More digits than Python writes.
HUGE = 10**5000

#: Numbers that overflow, are none, or claim the memory.
NUMBERS = (
    *(0, -1, 1, 2**31, 2**53, 2**62, 2**63, 2**64, 10**12, 10**18, 10**30, 10**400, HUGE),
    *(0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), float("-inf")),
)
TEXTS = (
    *("", "\0", "a\0b", "\x1b[2J\x1b]52;c;aGk=\x07", "\ud800", "\u202e", "²", "9" * 5000, "x" * 50_000, "é模型🎉"),
    *("..", "../../x", "/etc/passwd", "a/b", "a\\b", "hf://x/y", "file.py:f", "a+b", "~", "%s{}", "`|<b>\n# x"),
    *("2024-01-01", "nan", "true", "null", "*", "(a+)+$", "[", "!!python/object:os.system", "base", "union"),
)
SHAPES = ([], {}, [[]], [None], [2**62] * 3, [1] * 100, {"a": {}}, [[1, 2], [3]], {"": 0}, ["a", 1, None])


def odd_value(draw: random.Random) -> Any:
    """Return a value that nobody expects."""
    kind = draw.randrange(6)
    if kind == 4:
        item = odd_scalar(draw)
        many = 3 if isinstance(item, str) and len(item) > 1000 else 300
        return [copy.deepcopy(item) for _ in range(draw.choice((1, 3, many)))]
    return nested(draw.choice((20, 200, 2000)), draw) if kind == 5 else odd_scalar(draw)


def odd_scalar(draw: random.Random) -> Any:
    """Return a number, a text, a small shape or a constant that nobody expects."""
    return copy.deepcopy(draw.choice(draw.choice((NUMBERS, TEXTS, SHAPES, (None, True, False)))))  # changed later on


def nested(depth: int, draw: random.Random) -> Any:
    """Return a list or an object of that depth."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if draw.random() < 0.5 else {"a": value}
    return value


def flipped(content: bytes, draw: random.Random) -> bytes:
    """Change some bytes."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 8)) if changed else 0):
        changed[draw.randrange(len(changed))] = draw.choice((draw.randrange(256), 0, 255, 0x80))
    return bytes(changed)


def truncated(content: bytes, draw: random.Random) -> bytes:
    """Cut the end off, or the beginning."""
    at = draw.randrange(len(content) + 1)
    return content[:at] if draw.random() < 0.8 else content[at:]


def spliced(content: bytes, draw: random.Random) -> bytes:
    """Repeat, move, insert or remove a stretch."""
    low, high = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    at = draw.randrange(len(content) + 1)
    piece = draw.choice((content[low:high], content[low:high] * 3, draw.randbytes(draw.choice((1, 8, 64))), b""))
    return content[:at] + piece + content[at:] if draw.random() < 0.6 else content[:low] + piece + content[high:]


BLIND: tuple[Mutation, ...] = (flipped, truncated, spliced)


def places_in(content: Any) -> list[tuple[Any, Any]]:
    """Return every place in a structure: the container and the key or number."""
    places: list[tuple[Any, Any]] = []
    queue = [content]
    for container in queue:
        keys = list(container) if isinstance(container, dict) else range(len(container))
        places += [(container, key) for key in keys]
        queue += [container[key] for key in keys if isinstance(container[key], dict | list)]
    return places


def changed_structure(content: Any, draw: random.Random) -> Any:
    """Change values, names and types somewhere in a structure, in place; return it, or something else in its place."""
    if draw.random() < 0.03:
        return odd_value(draw)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        places = places_in(content) if isinstance(content, dict | list) else []
        if not places:
            return content
        container, key = draw.choice(places)
        kind = draw.randrange(5)
        if kind == 0:
            del container[key]
        elif kind == 1 and isinstance(container, dict):
            container[str(draw.choice(TEXTS))] = container.pop(key)
        elif kind == 2:
            other, name = draw.choice(places)
            if name in other if isinstance(other, dict) else name < len(other):
                container[key] = copy.deepcopy(other[name]) if depth_of(other[name]) < 100 else 1
        else:
            container[key] = odd_value(draw)
    return content


def depth_of(value: Any) -> int:
    """Return how deep a value is nested."""
    depth, level = 0, [value]
    while level := [item for one in level if isinstance(one, dict | list) for item in children(one)]:
        depth += 1
    return depth


def children(container: Any) -> list[Any]:
    """Return the items of a container."""
    return list(container.values()) if isinstance(container, dict) else list(container)


def text_of(value: Any, draw: random.Random) -> str:
    """Return JSON, at times with a key twice, written without recursion."""
    pieces: list[str] = []
    stack: list[Any] = [value]
    twice = draw.random() < 0.1
    while stack:
        item = stack.pop()
        if isinstance(item, tuple):
            pieces.append(item[0])
        elif isinstance(item, dict):
            pairs = list(item.items())
            if twice and pairs and draw.random() < 0.5:
                pairs.append((pairs[0][0], draw.choice((pairs[0][1], 7))))
                twice = False  # once: in a deep structure it would double the text at every step
            stack.append(("}",))
            for number, (key, child) in reversed(list(enumerate(pairs))):
                stack += [child, (f"{',' if number else ''}{json.dumps(str(key))}:",)]
            pieces.append("{")
        elif isinstance(item, list):
            stack.append(("]",))
            for number, child in reversed(list(enumerate(item))):
                stack += [child, ("," if number else "",)]
            pieces.append("[")
        else:
            pieces.append(number_of(item) if isinstance(item, int) and not isinstance(item, bool) else json.dumps(item))
    return "".join(pieces)


def number_of(value: int) -> str:
    """Return a whole number of any length."""
    return "1" + "0" * 5000 if value == HUGE else str(value)


def changed_json(content: bytes, draw: random.Random) -> bytes:
    """Change what a JSON text says."""
    return text_of(changed_structure(json.loads(content), draw), draw).encode("utf-8", "surrogatepass")


JSON: tuple[Mutation, ...] = (*BLIND, changed_json, changed_json, changed_json, changed_json)

_YAML_LINES = (
    *(
        "a: &a [*a]",
        "b: *nothing",
        "? [x]",
        "- - - -",
        "weight: foo",
        "x: !!binary aGk=",
        "--- \n---",
        "\ta: 1",
        "%YAML 9",
    ),
    *("a: &a [1,1]\nb: &b [*a,*a,*a]\nc: &c [*b,*b,*b]", "<<: *a", "<<: 1", "x: 1:2:3", "y: 0o17", "k: |\n  text", "'"),
    *("[" * 300, "{a: " * 300, "- " * 500, "a: 1e999", "z: .nan", "# \x1b[2J", "!!set {a}", "2024-01-01: 2024-01-01"),
)


def changed_yaml(content: bytes, draw: random.Random) -> bytes:
    """Put an odd line into a YAML text, or in place of one."""
    lines = content.decode().split("\n")
    at = draw.randrange(len(lines))
    indent = re.match(" *", lines[at])
    line = (indent[0] if indent else "") + draw.choice(_YAML_LINES)
    lines[at : at + draw.randrange(2)] = [line]
    return "\n".join(lines).encode()


def changed_table(content: bytes, draw: random.Random) -> bytes:
    """Change a cell or a line of a table."""
    lines = content.decode().split("\n")
    at = draw.randrange(len(lines))
    cells = lines[at].split(",")
    cells[draw.randrange(len(cells))] = draw.choice((*TEXTS[:12], '"', '"a\nb"', "1e999", "y" * 200_000, "nan", "-1"))
    lines[at] = ",".join(cells) if draw.random() < 0.9 else ",".join(cells * 3)
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def changed_line(content: bytes, draw: random.Random) -> bytes:
    """Change, add or repeat a line of a text."""
    lines = content.split(b"\n")
    at = draw.randrange(len(lines))
    line = str(draw.choice(TEXTS)).encode("utf-8", "surrogatepass")
    lines[at : at + draw.randrange(2)] = [draw.choice((line, lines[at] + b" " + line, lines[at], b"\xff\xfe"))]
    return b"\n".join(lines)


LINES: tuple[Mutation, ...] = (*BLIND, changed_line, changed_line)
TABLE: tuple[Mutation, ...] = (*BLIND, changed_table, changed_table)


def rewritten_zip(content: bytes, change: Callable[[str, bytes], list[tuple[str, bytes]]], compress: int) -> bytes:
    """Write an archive anew, its checksums right."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = [(name, archive.read(name)) for name in archive.namelist()]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compress) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about names that come twice
        for name, record in records:
            for other, changed in change(name, record):
                archive.writestr(zipfile.ZipInfo(other), changed, compress)  # not of this moment
    return buffer.getvalue()


def changed_zip(content: bytes, draw: random.Random) -> bytes:
    """Change one record of an archive, its pickle more often than others, and keep the checksums right."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
    pickles = [name for name in names if name.endswith((".pkl", ".npy"))]
    target = draw.choice(pickles) if pickles and draw.random() < 0.7 else draw.choice(names)

    def change(name: str, record: bytes) -> list[tuple[str, bytes]]:
        if name != target:
            return [(name, record)]
        kind = draw.randrange(8)
        if kind == 0:
            return []
        if kind == 1:
            return [(name, record), (name, record[:4])]
        if kind == 2:
            other = str(draw.choice(TEXTS))[:1000].encode("ascii", "replace").decode().replace("\0", "")
            return [(other or "x", record)]
        return [(name, draw.choice((flipped, truncated, spliced, with_opcodes))(record, draw))]

    return rewritten_zip(content, change, draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))


_OPCODES = (
    *(
        b"N",
        b"\x88",
        b")",
        b"]",
        b"}",
        b"(",
        b"t",
        b"\x85",
        b"\x86",
        b"\x87",
        b"R",
        b"b",
        b"Q",
        b"s",
        b"u",
        b"e",
        b"0",
        b".",
    ),
    *(
        b"K\xff",
        b"J\xff\xff\xff\xff",
        b"\x8a\x09" + b"\xff" * 8 + b"\x7f",
        b"q\x05",
        b"h\x05",
        b"X\x01\0\0\0w",
        b"\x81",
    ),
    *(b"cbuiltins\nbytearray\n", b"cos\nsystem\n", b"ctorch\nFloatStorage\n", b"ctorch._utils\n_rebuild_tensor_v2\n"),
)


def with_opcodes(content: bytes, draw: random.Random) -> bytes:
    """Put instructions into a pickle, or in place of a byte."""
    at = draw.randrange(len(content) + 1)
    piece = b"".join(draw.choice(_OPCODES) for _ in range(draw.choice((1, 1, 2, 5))))
    return content[:at] + piece + content[at + draw.randrange(2) :]


ZIP: tuple[Mutation, ...] = (*BLIND, changed_zip, changed_zip, changed_zip)
