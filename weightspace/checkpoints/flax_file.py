"""Arrays of a flax file: names, dtypes, shapes and places, from its structure alone; nothing is unpickled.

``flax.serialization.to_bytes`` writes a tree of maps in MessagePack. An array is an extension of type 1 (a scalar of
type 3), which contains a list of the shape, the name of the dtype, and the bytes in row-major order. An array of more
than a gigabyte is a map with its shape and chunks. Names are the keys on the way to an array, joined by dots.

Source: https://github.com/google/flax/blob/main/flax/serialization.py
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightspace.checkpoints.metadata import CheckpointMetadata, Piece, Place, TensorInfo
from weightspace.checkpoints.msgpack_items import Item, MsgpackFile
from weightspace.checkpoints.safetensors_header import ITEMSIZES

#: numpy's name of a dtype -> that of safetensors.
_DTYPES = {
    **{"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "complex64": "C64", "bool": "BOOL"},
    **{f"{sign}int{bits}": f"{sign.upper() or 'I'}{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **{"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0"},
}

#: Types of extensions that hold arrays.
_ARRAYS = (1, 3)

#: Key of the map of an array in chunks.
_CHUNKED = "__msgpack_chunked_array__"

#: Entries of a training state that belong to the optimiser, if there are parameters beside them.
_PARAMETERS, _STATE = "params", ("opt_state", "step")

#: Maximum nesting of maps, number of dimensions, and number of entries in the file.
_DEPTH, _DIMENSIONS, _ENTRIES = 64, 32, 2**22


@dataclass(frozen=True)
class _Array:
    """An array: dtype, shape, and where its bytes start."""

    info: TensorInfo
    start: int


def flax_contents(path: Path) -> CheckpointMetadata:
    """Return the metadata of a flax file.

    Raises:
        CheckpointError: it is damaged, has no arrays, or has one with an unknown dtype or the name of another one.
    """
    file = MsgpackFile(path)
    try:
        return _Tree(file).contents()
    finally:
        file.close()


class _Tree:
    """The tree of a file."""

    def __init__(self, file: MsgpackFile) -> None:
        self.file = file
        self.tensors: dict[str, TensorInfo] = {}
        self.pieces: dict[str, tuple[Piece, ...]] = {}
        self.others: list[str] = []
        self.entries = 0

    def contents(self) -> CheckpointMetadata:
        """Return the metadata of all arrays."""
        top, path = self.file.item(0), self.file.path
        if top.kind != "map":
            raise self.file.error(f"begins with a {top.kind}, expected the map of a flax file")
        end = self.visit((), top, 0)
        if end != self.file.size:
            raise self.file.error(f"has {self.file.size - end:,} bytes after its map")
        heads = {name.partition(".")[0] for name in self.tensors}
        gone = [name for name in self.tensors if _PARAMETERS in heads and name.partition(".")[0] in _STATE]
        tensors = {name: info for name, info in self.tensors.items() if name not in set(gone)}
        if not tensors:
            raise self.file.error("has no arrays, expected those of a model")
        left = [f"{len(gone):,} arrays of the optimiser ({gone[0]}, …)"] if gone else []
        left += [f"{len(self.others):,} entries that are no arrays ({self.others[0]}, …)"] if self.others else []
        notes = [f"{path}: read under the names and in the layout of flax."]
        notes += [f"{path}: left out: {'; '.join(left)}."] if left else []
        places = {name: self.pieces[name][0].place for name in tensors if len(self.pieces[name]) == 1}
        pieces = {name: self.pieces[name] for name in tensors if len(self.pieces[name]) > 1}
        return CheckpointMetadata(path, (path,), tensors, {}, places, notes=tuple(notes), pieces=pieces)

    def visit(self, keys: tuple[str, ...], item: Item, depth: int) -> int:
        """Record the arrays of an item, and return the offset of the byte after it."""
        if depth > _DEPTH:
            raise self.file.error(f"is nested more than {_DEPTH} levels deep")
        name = ".".join(keys)
        if item.kind not in ("map", "list"):
            if item.kind == "extension" and item.value in _ARRAYS:
                array = self.array(item, name)
                self.add(name, array.info, [(array.start, array.info.numel)])
            elif item.kind != "value" or item.value is not None:
                self.others.append(name)
            return item.stop
        if item.kind == "map" and item.value and self.file.item(item.start)[:2] == ("text", _CHUNKED):
            return self.chunked(name, item)
        at = item.start
        for number in range(item.value):
            key = str(number)
            if item.kind == "map":
                found = self.file.item(at)
                if found.kind not in ("text", "value") or found.value is None:
                    raise self.file.error(
                        f"has a key in {name or 'its map'!r} that is neither a short text nor a number"
                    )
                key, at = str(found.value), found.stop
            self.count()
            at = self.visit((*keys, key), self.file.item(at), depth + 1)
        return at

    def array(self, item: Item, name: str) -> _Array:
        """Return the array in an extension."""
        whole = self.file.item(item.start)
        if (whole.kind, whole.value) != ("list", 3):
            raise self.file.error(f"has the array {name!r} without shape, dtype and bytes")
        dims = self.file.item(whole.start)
        at, shape = dims.start, []
        for _ in range(self.number(dims.value if dims.kind == "list" else -1, name, _DIMENSIONS)):
            dim = self.file.item(at)
            shape.append(self.number(dim.value if dim.kind == "value" else -1, name, 2**62))
            at = dim.stop
        dtype = self.file.item(at)
        content = self.file.item(dtype.stop)
        known = _DTYPES.get(dtype.value if dtype.kind == "text" else "")
        if known is None:
            raise self.file.error(f"has the array {name!r} of dtype {str(dtype.value)[:40]}, which cannot be merged")
        info = TensorInfo(known, tuple(shape))
        size = math.prod(shape) * ITEMSIZES[known]
        if content.kind != "bytes" or content.stop - content.start != size or content.stop != item.stop:
            raise self.file.error(
                f"has {content.stop - content.start:,} bytes of {name!r}, expected {size:,} for the shape {info.shape}"
            )
        return _Array(info, content.start)

    def chunked(self, name: str, item: Item) -> int:
        """Record an array in chunks, and return the offset of the byte after its map."""
        fields: dict[str, list[Item]] = {}
        at = item.start
        for _ in range(item.value):
            key = self.file.item(at)
            value = self.file.item(key.stop)
            entries = list(self.entries_of(value, name)) if value.kind == "map" else []
            fields[str(key.value)] = entries
            at = entries[-1].stop if entries else value.stop
        if not fields.get("chunks") or not fields.get("shape"):
            raise self.file.error(f"has the array {name!r} in chunks without its shape or its chunks")
        shape = tuple(self.number(one.value if one.kind == "value" else -1, name, 2**62) for one in fields["shape"])
        arrays = [self.array(one, name) for one in fields["chunks"]]
        dtypes = {array.info.dtype for array in arrays}
        if len(dtypes) > 1 or sum(array.info.numel for array in arrays) != math.prod(shape):
            raise self.file.error(f"has chunks of {name!r} that do not fit its shape {shape}")
        self.add(name, TensorInfo(dtypes.pop(), shape), [(array.start, array.info.numel) for array in arrays])
        return at

    def entries_of(self, item: Item, name: str) -> Iterator[Item]:
        """Yield the entries of a map with the keys 0, 1, 2, …, in this order."""
        found: dict[str, Item] = {}
        at = item.start
        for _ in range(item.value):
            self.count()
            key = self.file.item(at)
            value = self.file.item(key.stop)
            if value.kind in ("map", "list"):
                raise self.file.error(f"has the array {name!r} in chunks that are no arrays")
            found[str(key.value)], at = value, value.stop
        if list(found) != [str(number) for number in range(item.value)]:
            raise self.file.error(f"has chunks of {name!r} that are not numbered in order from 0")
        yield from found.values()

    def add(self, name: str, info: TensorInfo, parts: list[tuple[int, int]]) -> None:
        """Record an array: its name, and the offset and number of elements of each part."""
        if name in self.tensors:
            raise self.file.error(f"has two arrays of the name {name!r}")
        first, pieces = 0, []
        for start, count in parts:
            pieces.append(Piece(Place(self.file.path, start), (first,), (count,)))
            first += count
        self.tensors[name], self.pieces[name] = info, tuple(pieces)

    def count(self) -> None:
        """Count an entry."""
        self.entries += 1
        if self.entries > _ENTRIES:
            raise self.file.error(f"has more than {_ENTRIES:,} entries")

    def number(self, value: Any, name: str, most: int) -> int:
        """Return a size after checking it."""
        if type(value) is not int or not 0 <= value <= most:
            raise self.file.error(f"has the array {name!r} with the size {str(value)[:40]}")
        return value
