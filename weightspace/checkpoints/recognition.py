"""Whether a file that is there already is an earlier result of the kind that is to be written in its place.

Only its beginning is looked at, and nothing in it is believed: the question is what would be lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from weightspace.checkpoints.json_file import read_json
from weightspace.checkpoints.zip_directory import ZipError, read_directory
from weightspace.errors import CheckpointError

#: Bytes of a beginning, and of the largest table or report that is looked at whole.
_BEGINNING, _WHOLE = 4096, 2**26

#: What pickles, zip archives and the old files of torch begin with.
_PICKLE, _ZIP = b"\x80", b"PK\x03\x04"

#: Keys that tell our JSON files: curves, matrices, planes, reports of soups, predictions.
_OBJECTS = (
    {"positions", "loss", "split", "statistics"},
    {"models", "barrier", "baseline"},
    {"models", "model_loss", "x", "y"},
    {"task", "objective", "names", "rows"},
    {"ids", "names", "expected_cost"},
)

#: First lines of our tables.
_HEADS = (b"position,loss,accuracy,", b"a,b,barrier,", b"model,x,y,loss,", b"row,id,label,expected_cost")


def is_earlier_result(path: Path, kind: str) -> bool:
    """Return whether a file is of a kind.

    Args:
        path: a regular file.
        kind: a key of ``KINDS``; any other is a kind of nothing.

    Raises:
        OSError: the file cannot be read.
    """
    return kind in KINDS and KINDS[kind](path)


def _begins(*beginnings: bytes) -> Callable[[Path], bool]:
    return lambda path: _beginning(path).startswith(beginnings)


def _beginning(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(_BEGINNING)


def _is_safetensors(path: Path) -> bool:
    """Return whether a length and an object follow each other, as in every header."""
    beginning = _beginning(path)
    return len(beginning) > 9 and int.from_bytes(beginning[:8], "little") <= 2**32 and beginning[8:9] == b"{"


def _is_torch(path: Path) -> bool:
    """Return whether a file is a pickle, or an archive with one."""
    beginning = _beginning(path)
    if not beginning.startswith(_ZIP):
        return beginning.startswith(_PICKLE)
    try:
        with open(path, "rb") as file:
            return any(name.rpartition("/")[2] == "data.pkl" for name in read_directory(file))
    except ZipError:
        return False


def _is_object(path: Path) -> bool:
    """Return whether a JSON file is one of ours, by its keys."""
    if path.stat().st_size > _WHOLE:
        return False
    try:
        content = read_json(path)
    except CheckpointError:
        return False
    return isinstance(content, dict) and any(keys <= content.keys() for keys in _OBJECTS)


#: Ending, or name of what is written under any ending -> whether a file is one.
KINDS: Mapping[str, Callable[[Path], bool]] = {
    ".safetensors": _is_safetensors,
    **dict.fromkeys((".pt", ".pth", ".bin"), _is_torch),
    ".json": _is_object,
    ".csv": _begins(*_HEADS),
    ".npy": _begins(b"\x93NUMPY"),
    ".png": _begins(b"\x89PNG\r\n\x1a\n"),
    ".svg": lambda path: b"<svg" in _beginning(path),
    ".pdf": _begins(b"%PDF-"),
    "spec": lambda path: b"weightspace_spec:" in _beginning(path),
}
