"""Torch files with objects beside their tensors that need code, such as those of Lightning: only the tensors are read.

The pickle is evaluated as data, and the tensors are memory-mapped where the file holds them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from weightspace.checkpoints.dtypes import DTYPES
from weightspace.checkpoints.inert_pickle import Record, TensorView, is_data
from weightspace.checkpoints.stored_torch_file import StoredTorchFile, read_stored
from weightspace.checkpoints.torch_pickle import Global

#: Maximum nesting depth of containers.
_DEPTH = 16

#: Modules whose classes torch's own unpickler knows.
_KNOWN = ("torch", "collections", "builtins", "__builtin__", "_codecs")


def load_inert(path: Path) -> tuple[Any, tuple[str, ...]]:
    """Read a torch file whose storages can be memory-mapped.

    Returns:
        The content, in which objects are ``Record``s; and the names of their classes.

    Raises:
        CheckpointError: the file is damaged, calls functions of the standard library, or nests too deep.
        OSError: it cannot be read.
    """
    classes: dict[str, None] = {}

    def allows(name: Global) -> bool:
        if name.module.partition(".")[0] not in _KNOWN:
            classes[f"{name.module}.{name.name}"] = None
        return is_data(name)

    with open(path, "rb") as file:
        stored = read_stored(file, path, allows=allows)
    memory: Any = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=path.stat().st_size)
    return _content(stored, memory, stored.value, _DEPTH, {}), tuple(classes)


def _content(
    stored: StoredTorchFile, memory: torch.UntypedStorage, value: Any, depth: int, storages: dict[str, Any]
) -> Any:
    """Return a value with tensors in place of views; containers below the maximum depth are left out."""
    if isinstance(value, TensorView):
        return _tensor(stored, memory, value, storages)
    if not isinstance(value, dict | list | tuple):
        return value
    if not depth:
        return None
    if isinstance(value, dict):
        return {name: _content(stored, memory, item, depth - 1, storages) for name, item in value.items()}
    return [_content(stored, memory, item, depth - 1, storages) for item in value]


def _tensor(
    stored: StoredTorchFile, memory: torch.UntypedStorage, view: TensorView, storages: dict[str, Any]
) -> torch.Tensor | Record:
    """Return a tensor, or, if its dtype isn't read, a record of its storage's type."""
    if view.dtype is None:
        return Record(Global("torch", view.storage.kind), ())
    if view.storage.key not in storages:
        start = stored.offsets.get(view.storage.key, 0)
        storages[view.storage.key] = memory[start : start + view.storage.nbytes]
    empty = torch.empty(0, dtype=DTYPES[view.dtype])
    return empty.set_(storages[view.storage.key], view.offset, view.shape, view.strides)
