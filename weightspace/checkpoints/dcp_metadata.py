"""The ``.metadata`` of a distributed checkpoint (torch.distributed.checkpoint, DCP): a pickle, read as plain data.

Source:
    ``torch/distributed/checkpoint/metadata.py`` and ``filesystem.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightspace.checkpoints.inert_pickle import TORCH_DTYPES, Record, read_pickle
from weightspace.checkpoints.torch_pickle import Global, TorchPickleError, check_memory
from weightspace.errors import CheckpointError

#: The file's name.
METADATA = ".metadata"

#: Largest file, and upper bound on the memory of its objects, in bytes: some two million shards.
_MAX_SIZE, _MAX_MEMORY = 2**28, 2**33

#: Modules and names that occur in these files.
_MODULES = ("torch.distributed.checkpoint.", "torch.distributed._shard.", "megatron.core.", "pathlib")
_NAMES = frozenset(
    {
        *(("torch", name) for name in (*TORCH_DTYPES, "complex128", "Size", "strided", "contiguous_format")),
        *(("torch.serialization", "_get_layout"), ("collections", "OrderedDict"), ("collections", "defaultdict")),
        *(("builtins", "dict"), ("builtins", "list"), ("builtins", "set"), ("builtins", "getattr")),
    }
)


@dataclass(frozen=True, slots=True)
class Item:
    """The location of a stored chunk: name of its file, offset, and length in bytes."""

    file: str
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class DcpTensor:
    """A tensor of a distributed checkpoint.

    Attributes:
        dtype: torch's name of its dtype.
        shape: its shape.
        chunks: offsets and sizes of its chunks.
    """

    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


@dataclass(frozen=True)
class DcpMetadata:
    """The content of ``.metadata``.

    Attributes:
        tensors: name -> tensor.
        objects: names of the entries that aren't tensors.
        paths: name -> keys that lead to the entry in the saved state dict.
        items: (name, offsets of a chunk) -> location of the chunk.
    """

    tensors: Mapping[str, DcpTensor]
    objects: tuple[str, ...]
    paths: Mapping[str, tuple[str, ...]]
    items: Mapping[tuple[str, tuple[int, ...]], Item]


def read_dcp_metadata(folder: Path) -> DcpMetadata:
    """Read the metadata of a distributed checkpoint.

    Raises:
        CheckpointError: it is damaged, or has objects that don't belong there.
        OSError: it cannot be read.
    """
    path = folder / METADATA
    with open(path, "rb") as file:
        content = file.read(_MAX_SIZE + 1)
    try:
        check_memory(content, _MAX_SIZE, _MAX_MEMORY)
        content = _fields(read_pickle(content, allows=_is_allowed).value, "Metadata")
        entries = _checked(content.get("state_dict_metadata"), dict)
        tensors = {name: _tensor(entry) for name, entry in entries.items() if _is(entry, "TensorStorageMetadata")}
        objects = tuple(str(name) for name in entries if name not in tensors)
        if not all(isinstance(name, str) for name in entries):
            raise TorchPickleError("an entry's name isn't text")
        paths = _paths(content.get("planner_data"), tensors)
        items = dict(map(_item, _checked(content.get("storage_data"), dict).items()))
        return DcpMetadata(tensors, objects, paths, items)
    except TorchPickleError as error:
        raise CheckpointError(f"{path} cannot be read: {error}. {error.hint}") from error


def _is_allowed(name: Global) -> bool:
    return tuple(name) in _NAMES or name.module.startswith(_MODULES)


def _is(value: Any, name: str) -> bool:
    return isinstance(value, Record) and value.kind.name == name


def _fields(value: Any, name: str) -> dict[str, Any]:
    """Return the fields of an object of a class of that name."""
    if not _is(value, name) or not isinstance(value.state, dict):
        found = value.kind.name[:80] if isinstance(value, Record) else type(value).__name__
        raise TorchPickleError(f"found {found}, expected torch's {name}")
    return value.state


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TorchPickleError(f"found {type(value).__name__}, expected {kind.__name__}")
    return value


def _sizes(value: Any) -> tuple[int, ...]:
    """Return a size or an offset."""
    sizes = tuple(_checked(value, tuple))
    if not all(type(size) is int and 0 <= size < 2**62 for size in sizes) or len(sizes) > 64:
        raise TorchPickleError("a size isn't a tuple of whole numbers")
    return sizes


def _tensor(entry: Any) -> DcpTensor:
    """Return a tensor's description."""
    fields = _fields(entry, "TensorStorageMetadata")
    properties = fields.get("properties")
    state = properties.state if isinstance(properties, Record) else None
    dtype = state[0] if isinstance(state, tuple) and state else state.get("dtype") if isinstance(state, dict) else None
    if not isinstance(dtype, Global) or dtype.module != "torch":
        raise TorchPickleError("a tensor has no dtype")
    shape = _sizes(fields.get("size"))
    chunks = [_fields(chunk, "ChunkStorageMetadata") for chunk in _checked(fields.get("chunks"), list)]
    boxes = tuple((_sizes(chunk.get("offsets")), _sizes(chunk.get("sizes"))) for chunk in chunks)
    if any(len(offsets) != len(shape) or len(sizes) != len(shape) for offsets, sizes in boxes):
        raise TorchPickleError(f"a chunk has another number of axes than its tensor of shape {shape}")
    return DcpTensor(dtype.name, shape, boxes)


def _paths(planned: Any, tensors: Mapping[str, DcpTensor]) -> dict[str, tuple[str, ...]]:
    """Return the paths of tensors; a tensor without one is at the top level."""
    known = planned if isinstance(planned, dict) else {}
    paths: dict[str, tuple[str, ...]] = {}
    for name in tensors:
        path = known.get(name)
        parts = path if isinstance(path, tuple) and all(type(part) in (str, int) for part in path) else ()
        paths[name] = tuple(map(str, parts)) or (name,)
    return paths


def _item(entry: tuple[Any, Any]) -> tuple[tuple[str, tuple[int, ...]], Item]:
    """Return the location of a chunk, or of an entry that isn't a tensor."""
    index, info = _fields(entry[0], "MetadataIndex"), _fields(entry[1], "_StorageInfo")
    name, file, start, length = index.get("fqn"), *(info.get(key) for key in ("relative_path", "offset", "length"))
    offset = index.get("offset")
    if not isinstance(name, str) or not isinstance(file, str) or type(start) is not int or type(length) is not int:
        raise TorchPickleError("a chunk has no location")
    if Path(file).name != file or file in ("", "..") or "\0" in file or min(start, length) < 0:
        raise TorchPickleError(f"it places {name[:80]!r} in {file[:80]!r}; expected the name of a file beside it")
    if info.get("transform_descriptors"):
        raise TorchPickleError(
            f"{name[:80]!r} is compressed or encrypted ({info['transform_descriptors']!s:.80})",
            "Load it with torch, and save it again without extensions.",
        )
    return (name, () if offset is None else _sizes(offset)), Item(file, start, length)
