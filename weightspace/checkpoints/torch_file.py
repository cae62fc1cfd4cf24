"""Torch files, which are read with ``weights_only=True``, or, if that refuses objects beside the tensors, as data.

The state dict is searched at the top level and under the usual names of training scripts. Entries that aren't tensors
(an epoch, a configuration) and the optimizer are ignored; a second network beside the chosen one (an exponential moving
average, a teacher) is reported. Our files are plain dicts, as written by ``torch.save(module.state_dict(), …)``;
metadata is an additional record in the zip archive, which ``torch.load`` ignores.
"""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch

from weightspace.checkpoints.atomic_write import one_line_errors
from weightspace.checkpoints.file_format import SAFETENSORS_SUFFIX
from weightspace.checkpoints.inert_pickle import Record
from weightspace.checkpoints.inert_torch_file import load_inert
from weightspace.checkpoints.json_file import MAX_BYTES, parse_json
from weightspace.checkpoints.quantisation import check_not_quantised, find_quantised
from weightspace.checkpoints.state_dict import StateDict, check_storable, tied_names
from weightspace.checkpoints.torch_archive import check_torch_file, is_archive
from weightspace.checkpoints.zip_records import ZipError, read_directory, read_record
from weightspace.errors import CheckpointError

#: Names under which training scripts nest the state dict.
WRAPPERS = ("state_dict", "model_state_dict", "model")

#: Maximum nesting depth of a state dict.
_DEPTH = 4

_RECORD = "archive/weightspace.json"

#: Placeholder for a missing entry.
_NOTHING = object()


def read_torch(path: Path, key: str | None = None) -> tuple[StateDict, tuple[str, ...]]:
    """Read the tensors of a torch file, memory-mapped if the file's format allows it.

    Args:
        path: the file.
        key: the entry that holds the state dict, ``"model.module"`` for a nested one, ``""`` for the top level; by
            default the top level, or one of ``WRAPPERS``.

    Returns:
        The tensors by name; and a note on each choice between several networks in the file.

    Raises:
        CheckpointError: the file is damaged, needs code to be unpickled, holds no tensors, or holds several
            state dicts, or tensors in lists.
    """
    content, left = _unpickle(path)
    notes = [f"{path}: left out, since only tensors are read: objects of {', '.join(left[:3])}."] if left else []
    entries = _unwrap(content, path, notes) if key is None else _entry(content, path, key, notes)
    _check_no_lists(entries, path)
    _check_no_objects(entries, path)
    state = {name: value.detach() for name, value in entries.items() if isinstance(value, torch.Tensor)}
    check_storable(state, path)
    return state, tuple(notes)


def nesting_of(path: Path) -> tuple[str, tuple[str, ...]] | None:
    """Return the entry of a torch file that ``read_torch`` takes, and the names beside it; None if it takes all.

    Raises:
        CheckpointError: as ``read_torch``.
    """
    content, _ = _unpickle(path)
    taken = _unwrap(content, path, [])
    keys: list[str] = []
    inside = content
    while inside is not taken:
        name = next(name for name in WRAPPERS if name in inside and _holds_tensors(inside[name]))
        keys, inside = [*keys, name], inside[name]
    beside = tuple(str(name) for name in content if str(name) != keys[0]) if keys else ()
    return (".".join(keys), beside) if keys else None


def read_torch_metadata(path: Path) -> dict[str, str]:
    """Return the metadata stored by ``save_checkpoint``; empty for other files.

    Raises:
        CheckpointError: the file is missing, or its metadata is damaged.
    """
    with one_line_errors(path, "read"), open(path, "rb") as file:
        if not is_archive(file):
            return {}
        try:
            record = read_directory(file).get(_RECORD)
            text = b"{}" if record is None else read_record(file, record, MAX_BYTES)
        except ZipError as error:
            raise CheckpointError(f"{path}: the metadata cannot be read: {error}.") from error
    metadata = parse_json(text, f"{path}: the metadata")
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: the metadata must map strings to strings.")
    return metadata


def write_torch(state: StateDict, file: BinaryIO, metadata: dict[str, str], path: Path) -> None:
    """Write a plain dict of tensors to an open file; tied tensors stay tied. ``path`` is only used in errors.

    Raises:
        CheckpointError: torch cannot write the tensors.
        OSError: writing to disk fails.
    """
    tied = tied_names(state)
    plain: StateDict = {}
    for name, tensor in state.items():
        plain[name] = plain[tied[name]] if name in tied else _compact(tensor)
    try:
        torch.save(plain, file)
    except RuntimeError as error:  # torch's writer hides the error of the disk
        raise _disk_error(error) or CheckpointError(f"{path} cannot be written: is the disk full?") from error
    if metadata:
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr(zipfile.ZipInfo(_RECORD), json.dumps(metadata))


def _unpickle(path: Path) -> tuple[Any, tuple[str, ...]]:
    """Return the content of the file, with tensors on the CPU, and the classes of objects that aren't unpickled.

    No code is run.
    """
    with one_line_errors(path, "read"):
        mapped = check_torch_file(path)
        try:
            with warnings.catch_warnings():  # warnings of torch are errors here
                warnings.simplefilter("ignore")
                if path.suffix.lower() == SAFETENSORS_SUFFIX:  # torch would trust the name
                    with open(path, "rb") as file:
                        return torch.load(file, map_location="cpu", weights_only=True), ()
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped), ()
        except OSError:
            raise
        except UnpicklingError as error:
            content, classes = load_inert(path) if mapped else (None, ())
            if not isinstance(content, Mapping):
                raise CheckpointError(f"{path} cannot be read: {_reason(error)}") from error
            return content, classes
        except Exception as error:  # a damaged pickle can raise anything
            raise CheckpointError(f"{path} cannot be read: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return the reason why torch rejected a file, in one sentence."""
    code = re.search(r"(?:Unsupported global: GLOBAL|GLOBAL|class) ([\w.]+)", str(error))
    if "weights_only" in str(error) or "Weights only" in str(error):
        what = f" ({code.group(1)})" if code else ""
        return f"damaged, or it needs code to be run{what}; only tensors are read. Save its state dict alone."
    return "truncated or damaged, or not a torch file. Copy it again."


def _entry(content: Any, path: Path, key: str, notes: list[str]) -> Mapping[Any, Any]:
    """Return the state dict under ``key``, possibly nested under one of the usual names."""
    found = _at(content, key) if key else content
    if found is _NOTHING:
        names = ", ".join(map(repr, content)) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(f"{path} has no entry {key!r}, found {names[:200]}.")
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path}: {key!r} is a {type(found).__name__}, expected names and tensors.")
    if key and not any(isinstance(value, torch.Tensor) for value in found.values()):
        return _unwrap(found, path, notes, f"{key}.")
    return found


def _at(content: Any, key: str) -> Any:
    """Return the entry of nested mappings under a dotted key, or ``_NOTHING``."""
    if not isinstance(content, Mapping):
        return _NOTHING
    if key in content:
        return content[key]
    names = [name for name in content if isinstance(name, str) and key.startswith(f"{name}.")]
    ends = (_at(content[name], key.removeprefix(f"{name}.")) for name in names)
    return next((end for end in ends if end is not _NOTHING), _NOTHING)


def _unwrap(content: Any, path: Path, notes: list[str], place: str = "") -> Mapping[Any, Any]:
    """Return the single state dict in the content, or raise; add notes on networks beside it.

    ``place`` is the key of the content, followed by a dot.
    """
    for _ in range(_DEPTH):
        if not isinstance(content, Mapping):
            break
        nested = [name for name, value in content.items() if _holds_tensors(value)]
        wrappers = [name for name in nested if name in WRAPPERS]
        if len(wrappers) == 1:
            notes.extend(_rivals(content, wrappers[0], nested, path, place))
            content, place = content[wrappers[0]], f"{place}{wrappers[0]}."
            continue
        if nested:
            names = ", ".join(repr(f"{place}{_key_of(content, name)}") for name in nested[:5])
            raise CheckpointError(
                f'{path} nests tensors under {names[:200]}: choose the model with key=… or --key ("" is the top level).'
            )
        return content
    raise CheckpointError(f"{path} holds no state dict: found {type(content).__name__}, expected names and tensors.")


def _rivals(content: Mapping[Any, Any], taken: str, nested: Sequence[Any], path: Path, place: str) -> Iterator[str]:
    """Yield a note for each other entry that holds another copy of the chosen network."""
    own = _last_names(content[taken])
    for name in nested:
        if name != taken and isinstance(name, str) and not own.isdisjoint(_last_names(content[name])):
            key = f"{place}{_key_of(content, name)}"
            line = f"{path} holds {place + taken!r} and {key!r}: {place + taken!r} is taken."
            yield f"{line} --key {key} (key=…) takes the other."


def _key_of(content: Mapping[Any, Any], name: Any) -> str:
    """Return the key of the tensors under a name, extended by nested names as long as there is only one."""
    key, inside = str(name), content[name]
    for _ in range(_DEPTH):
        nested = [other for other, value in inside.items() if isinstance(other, str) and _holds_tensors(value)]
        if len(nested) != 1 or any(isinstance(value, torch.Tensor) for value in inside.values()):
            break
        key, inside = f"{key}.{nested[0]}", inside[nested[0]]
    return key


def _last_names(value: Any, depth: int = _DEPTH) -> set[tuple[str, tuple[int, ...]]]:
    """Return the last part of each tensor's name, and its shape, in nested mappings."""
    names: set[tuple[str, tuple[int, ...]]] = set()
    for name, item in value.items():
        if isinstance(item, torch.Tensor) and isinstance(name, str):
            names.add((name.rpartition(".")[2], tuple(item.shape)))
        elif isinstance(item, Mapping) and depth:
            names |= _last_names(item, depth - 1)
    return names


def _holds_tensors(value: Any, depth: int = _DEPTH) -> bool:
    """Return whether nested mappings contain a tensor."""
    if not isinstance(value, Mapping) or not depth:
        return False
    return any(isinstance(item, torch.Tensor) or _holds_tensors(item, depth - 1) for item in value.values())


def _check_no_lists(entries: Mapping[Any, Any], path: Path) -> None:
    """Reject a state dict with tensors in lists or tuples, mostly packed weights, which would be lost."""
    for name, value in entries.items():
        if not _lists_tensors(value):
            continue
        last = str(name).rpartition(".")[2]
        check_not_quantised(str(path), find_quantised({last: ("I8", 0)}))
        raise CheckpointError(
            f"{path}: {str(name)[:80]!r} holds tensors in a {type(value).__name__}, expected names and tensors: they "
            "would be lost. Save only the state dict, or choose one in the file with key=… or --key."
        )


def _check_no_objects(entries: Mapping[Any, Any], path: Path) -> None:
    """Reject a state dict with objects in it, such as tensors of another library's class, which would be lost."""
    for name, value in entries.items():
        if isinstance(value, Record) and str(name).rpartition(".")[2] != "_extra_state":
            raise CheckpointError(
                f"{path}: {str(name)[:80]!r} is an object of {'.'.join(value.kind)[:80]}, which needs code to be run; "
                "only tensors are read. Save its state dict alone."
            )


def _lists_tensors(value: Any, depth: int = _DEPTH) -> bool:
    """Return whether nested lists and tuples contain a tensor."""
    if not isinstance(value, list | tuple) or not depth:
        return False
    return any(isinstance(item, torch.Tensor) or _lists_tensors(item, depth - 1) for item in value)


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor on the CPU with a storage of exactly its size, since torch saves whole storages."""
    plain = tensor.detach().cpu()
    return plain if plain.untyped_storage().nbytes() == plain.nbytes else plain.clone()


def _disk_error(error: BaseException | None) -> OSError | None:
    """Return the ``OSError`` behind an error, if there is one."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
