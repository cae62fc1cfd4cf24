"""Checks of output paths: never over an input, nor over a file that is no earlier result of the same kind.

How a name ends says what is written there. One that ends almost like a file, or like a file of another program, is
refused: it would become a folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path

from weightspace.checkpoints.atomic_write import final_target, one_line_errors
from weightspace.checkpoints.companion_files import check_replaceable
from weightspace.checkpoints.file_format import SAFETENSORS_SUFFIX, TORCH_SUFFIXES
from weightspace.checkpoints.hf_folder import ENTRANCES
from weightspace.checkpoints.json_file import read_json
from weightspace.checkpoints.zip_records import ZipError, read_directory
from weightspace.errors import CheckpointError

#: Endings of checkpoints that are one file.
_FILES = (SAFETENSORS_SUFFIX, *TORCH_SUFFIXES)

#: Files that change what is read from a folder, beside its weights.
_READ_IN_FOLDERS = ("config.json", "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


def check_checkpoint_output(path: Path, *, again: Collection[str] = (), force: bool = False) -> None:
    """Check that a checkpoint can be written under a name: a file by its ending, else a folder.

    Args:
        path: the output.
        again: files beside the weights that a folder will hold; see ``check_replaceable``.
        force: replace a file that is no checkpoint.

    Raises:
        CheckpointError: the name ends like that of another file, or what is there is no checkpoint.
    """
    check_name(path)
    if path.suffix.lower() in _FILES:
        check_file_output(path, force=force)
    else:
        check_replaceable(path, again)


def check_named(out: str | os.PathLike[str]) -> None:
    """Check that an output has a name at all: an empty one, as of a variable that is not set, would be the folder here.

    Raises:
        CheckpointError: it has none.
    """
    name = os.fspath(out)
    if not name or "\0" in name:
        raise CheckpointError(f"The output's name is {name!r}; expected the path of a file or folder.")


def check_name(path: Path, *, folder_only: bool = False) -> None:
    """Check that an output which would become a folder is not meant to be a file.

    A folder that exists under the name may be replaced all the same.

    Args:
        path: the output.
        folder_only: what is written is a folder under any name.

    Raises:
        CheckpointError: the name ends like that of a file.
    """
    with one_line_errors(path, "written"):
        if path.is_dir():
            return
    if folder_only and path.suffix.lower() in _FILES:
        raise CheckpointError(f"{path} would be a folder; expected a name without the ending {path.suffix}.")
    meant = None if path.suffix.lower() in _FILES else meant_ending(path.name, _FILES)
    if meant is not None and folder_only:
        raise CheckpointError(f"{path} would be a folder, but its name ends like a file's. Choose another name.")
    if meant is not None:
        raise CheckpointError(
            f"{path} would be a folder, but its name ends like a file's; files end in {', '.join(_FILES)}. Did you "
            f"mean {meant}? (A folder of that name is replaced if it is there: mkdir it first.)"
        )


def check_file_output(path: Path, *, kind: str | None = None, force: bool = False) -> None:
    """Check that a file may be written: that it is free, empty, or an earlier result of its kind.

    Args:
        path: the file.
        kind: what is written; by default what the ending says (see ``recognition.KINDS``).
        force: replace whatever file is there.

    Raises:
        CheckpointError: there is a folder, a pipe or a device, or a file that is none of the kind.
    """
    with one_line_errors(path, "written"):
        target = final_target(path)
        if not os.path.lexists(target):
            return
        if not target.is_file():
            what = "a folder" if target.is_dir() else "not a regular file"
            raise CheckpointError(f"{path} is {what}; expected a file or a free name to write to.")
        if force or not target.stat().st_size or is_earlier_result(target, kind or path.suffix.lower()):
            return
    raise CheckpointError(
        f"{path} is there already and holds something else than what is to be written. Choose another name, or give "
        "force (--force) to replace it."
    )


def check_apart(out: Path, inputs: Iterable[Path]) -> None:
    """Check that an output takes the place of nothing that it is made from, through links and hard links too.

    Args:
        out: the output, a file or a folder.
        inputs: files and folders that are read; of a folder all files in it count, and those that its links lead to.

    Raises:
        CheckpointError: it does, or it would change what a folder among the inputs holds.
    """
    with one_line_errors(out, "written"):
        target = final_target(out)
        own = _identity(target)
        for path in dict.fromkeys(inputs):
            place = Path(os.path.realpath(path))
            names = (place, Path(os.path.realpath(path.parent)) / path.name)
            folder = place.is_dir()
            files = [place / name for name in sorted(os.listdir(place))] if folder else []
            same = own is not None and own in map(_identity, (place, *files))
            same = same or (folder and place in target.parents and target.is_file())  # a module's weights, say
            if same or any(target == name or target in name.parents for name in names):
                raise CheckpointError(f"{out} would replace {path}, which it is made from. Write somewhere else.")
            if folder and target.parent == place and target.name in (*ENTRANCES, *_READ_IN_FOLDERS):
                raise CheckpointError(
                    f"{out} would become a part of {path}, which it is made from. Write somewhere else."
                )


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what two names of one file have in common; None where there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


#: Endings of other files that people have around models -> which of ours is nearest in kind.
_FOREIGN = {
    ".safetensors": (
        *(".st", ".sft", ".safe", ".gguf", ".ggml", ".onnx", ".h5", ".hdf5", ".keras", ".npz", ".npy", ".tflite"),
        *(".msgpack", ".json", ".jsonl", ".yaml", ".yml", ".toml", ".xml", ".txt", ".md", ".csv", ".tsv", ".log"),
        *(".py", ".ipynb", ".html", ".png", ".jpg", ".jpeg", ".svg", ".pdf", ".index", ".mlmodel", ".parquet"),
    ),
    ".pt": (
        *(".ckpt", ".pkl", ".pickle", ".th", ".t7", ".ptl", ".joblib", ".mar", ".model", ".weights"),
        *(".zip", ".tar", ".gz", ".tgz", ".xz", ".bz2", ".zst"),
    ),
}

#: A long ending is a misspelling of ours where it is as like as this; of a short one every slip is tried instead.
_ALIKE, _LONG = 0.6, 5


def meant_ending(name: str, ours: Sequence[str]) -> str | None:
    """Return the name that was probably meant, where a name is not quite that of a file of ours.

    Args:
        name: the last part of a path, which has none of our endings.
        ours: endings, lower case, the best first.

    Returns:
        The name with an ending of ours; None where it looks like that of a folder (``Llama-3.1-8B``, ``model-v2.0``).
    """
    lower = name.lower()
    for ending in ours:
        if followed := re.search(rf"{re.escape(ending)}(?=[.~ (]|$)", lower):  # a.pt~, a.pt.tmp, only .pt
            return f"{name[: followed.start()] or 'model'}{ending}"
    stem, dot, word = lower.rpartition(".")
    meant = _meant(f".{word}", ours) if dot and word[:1].isalpha() else None
    return None if meant is None else f"{name[: len(stem)] or 'model'}{meant}"


def _meant(ending: str, ours: Sequence[str]) -> str | None:
    """Return the ending of ours that was meant by another one."""
    for meant, foreign in _FOREIGN.items():
        if ending in foreign:
            return meant
    for known in ours:
        long = len(known) > _LONG
        if _alike(ending, known) if long else _is_slip(ending, known):
            return known
    return None


def _alike(ending: str, known: str) -> bool:
    return SequenceMatcher(None, ending, known).ratio() >= _ALIKE


def _is_slip(ending: str, known: str) -> bool:
    """Return whether a short ending has its letters in another order, one of them twice, or one more at the end."""
    if sorted(ending) == sorted(known) and ending != known:
        return True
    doubled = {known[: at + 1] + known[at:] for at in range(1, len(known))}
    return ending in doubled or (len(ending) == len(known) + 1 and ending.startswith(known))


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
