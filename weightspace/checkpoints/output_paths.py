"""Checks of output paths: never overwrite an input, nor a file that isn't an earlier result of the same kind.

The ending of a name decides what is written. Names that end almost like a file, or like another program's file, are
rejected, as they would become folders.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path

from weightspace.checkpoints.atomic_write import final_target, one_line_errors
from weightspace.checkpoints.companion_files import check_replaceable
from weightspace.checkpoints.dcp_record import check_dcp_replaceable
from weightspace.checkpoints.file_format import DCP_SUFFIX, GGUF_SUFFIX, SAFETENSORS_SUFFIX, TORCH_SUFFIXES
from weightspace.checkpoints.gguf.header import MAGIC
from weightspace.checkpoints.hf_folder import ENTRANCES
from weightspace.checkpoints.json_file import read_json
from weightspace.checkpoints.zip_records import ZipError, read_directory
from weightspace.errors import CheckpointError

#: Endings of checkpoints that are one file.
_FILES = (SAFETENSORS_SUFFIX, *TORCH_SUFFIXES)

#: Files beside the weights that affect what is read from a folder.
_READ_IN_FOLDERS = ("config.json", "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


#: The first line of a recipe that a search has found.
BEST_RECIPE = "# The best recipe of a search.\n"


def check_checkpoint_output(
    path: Path, *, again: Collection[str] = (), force: bool = False, gguf: bool = False
) -> None:
    """Check that a checkpoint can be written to a path: a file or a DCP folder by its ending, else a folder.

    Args:
        path: the output.
        again: files beside the weights that a folder will hold; see ``check_replaceable``.
        force: replace a file that isn't a checkpoint, and a checkpoint that this library did not make.
        gguf: whether it may be a GGUF file, which only merges write.

    Raises:
        CheckpointError: the name ends like another kind of file, or the path exists and isn't a checkpoint, or is one
            that this library did not make, such as a trained model.
    """
    suffix = path.suffix.lower()
    if gguf and suffix == GGUF_SUFFIX:
        check_file_output(path, force=force)
        return
    if suffix == DCP_SUFFIX:
        check_dcp_replaceable(path)
        return
    check_name(path)
    if path.suffix.lower() in _FILES:
        check_file_output(path, force=force)
    else:
        check_replaceable(path, again)
        if not force:
            check_made_here(path)


def check_made_here(path: Path, weights: Path | None = None) -> None:
    """Check that an existing file or folder of tensors records that this library made it.

    Args:
        path: the output.
        weights: file with the metadata; by default that of a checkpoint at ``path``.

    Raises:
        CheckpointError: it doesn't, as a trained model, or it cannot be read.
    """
    with one_line_errors(path, "written"):
        target = final_target(path)
        if not target.exists() or (target.is_dir() and not any(target.iterdir())):
            return
    from weightspace.checkpoints.stored_metadata import load_metadata  # imports torch

    try:
        metadata = load_metadata(weights or path)
    except CheckpointError:
        metadata = {}
    if not any(key.startswith("weightspace") or value.startswith("weightspace ") for key, value in metadata.items()):
        raise CheckpointError(
            f"{path} already exists, and weightspace has no record of having made it: it may be trained weights, which "
            "would be lost. Choose another name, or pass force (--force) to replace it."
        )


def check_named(out: str | os.PathLike[str]) -> None:
    """Check that an output path isn't empty, as from an unset variable: it would mean the current folder.

    Raises:
        CheckpointError: it is empty.
    """
    name = os.fspath(out)
    if not name or "\0" in name:
        raise CheckpointError(f"The output's name is {name!r}; expected the path of a file or folder.")


def check_name(path: Path, *, folder_only: bool = False) -> None:
    """Check that an output that would become a folder isn't meant to be a file.

    An existing folder of that name may be replaced nevertheless.

    Args:
        path: the output.
        folder_only: the output is a folder regardless of its name.

    Raises:
        CheckpointError: the name ends like a file.
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
            f"mean {meant}? To write a folder of that name, create it first (mkdir {path})."
        )


def check_file_output(path: Path, *, kind: str | None = None, force: bool = False) -> None:
    """Check that a file may be written: it doesn't exist, is empty, or is an earlier result of its kind.

    Args:
        path: the file.
        kind: kind of the output, a key of ``KINDS``; by default, its ending.
        force: replace any existing file.

    Raises:
        CheckpointError: the path is a folder, a pipe or a device, a file of another kind, or one of tensors that this
            library did not make.
    """
    kind = kind or path.suffix.lower()
    with one_line_errors(path, "written"):
        target = final_target(path)
        if not os.path.lexists(target):
            return
        if not target.is_file():
            what = "a folder" if target.is_dir() else "not a regular file"
            raise CheckpointError(f"{path} is {what}; expected a file or a free name to write to.")
        if force or not target.stat().st_size:
            return
        if is_earlier_result(target, kind):
            if kind in (*_FILES, GGUF_SUFFIX):
                check_made_here(path)
            return
    raise CheckpointError(
        f"{path} already exists and holds something other than the output to write. Choose another name, or pass "
        "force (--force) to replace it."
    )


def check_apart(out: Path, inputs: Iterable[Path]) -> None:
    """Check that an output replaces none of its inputs, not even through symbolic or hard links.

    Args:
        out: the output, a file or a folder.
        inputs: files and folders that are read, including all files in the folders and the targets of their links.

    Raises:
        CheckpointError: it would replace an input, or change the contents of an input folder.
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
    """Return an identifier shared by all names of one file, or None if there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


#: Endings of other common model files -> the closest of our endings.
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

#: Similarity from which a long ending is a misspelling of ours; short ones are compared with every possible slip.
_ALIKE, _LONG = 0.6, 5


def meant_ending(name: str, ours: Sequence[str]) -> str | None:
    """Return the probably intended name, if a name has almost one of our file endings.

    Args:
        name: the last part of a path, without any of our endings.
        ours: our endings, lower case, in order of preference.

    Returns:
        The name with one of our endings; None if it looks like a folder (``Llama-3.1-8B``, ``model-v2.0``).
    """
    lower = name.lower()
    for ending in ours:
        if followed := re.search(rf"{re.escape(ending)}(?=[.~ (]|$)", lower):  # a.pt~, a.pt.tmp, only .pt
            return f"{name[: followed.start()] or 'model'}{ending}"
    stem, dot, word = lower.rpartition(".")
    meant = _meant(f".{word}", ours) if dot and word[:1].isalpha() else None
    return None if meant is None else f"{name[: len(stem)] or 'model'}{meant}"


def _meant(ending: str, ours: Sequence[str]) -> str | None:
    """Return the one of our endings that another ending was probably meant to be, if any."""
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
    """Return whether a short ending has swapped letters, a doubled letter, or an extra one at the end."""
    if sorted(ending) == sorted(known) and ending != known:
        return True
    doubled = {known[: at + 1] + known[at:] for at in range(1, len(known))}
    return ending in doubled or (len(ending) == len(known) + 1 and ending.startswith(known))


#: Bytes read from the start of a file, and largest table or report that is read in full.
_BEGINNING, _WHOLE = 4096, 2**26

#: First bytes of pickles, zip archives and old torch files.
_PICKLE, _ZIP = b"\x80", b"PK\x03\x04"

#: Keys that identify our JSON files: curves, matrices, planes, reports of soups, predictions.
_OBJECTS = (
    {"positions", "loss", "split", "statistics"},
    {"models", "barrier", "baseline"},
    {"models", "model_loss", "x", "y"},
    {"task", "objective", "names", "rows"},
    {"ids", "names", "expected_cost"},
    {"coverage", "calibration_rows", "sets"},
    {"first_steps", "last_step", "schedule"},
    {"engine", "trials", "front"},
    {"models", "reference", "threshold", "layers"},
)

#: First lines of our tables.
_HEADS = (
    b"position,loss,accuracy,",
    b"a,b,barrier,",
    b"model,x,y,loss,",
    b"row,id,label,expected_cost",
    b"row,label\n",
    b"kind,name,elements,",
)


def is_earlier_result(path: Path, kind: str) -> bool:
    """Return whether a file is of a given kind.

    Args:
        path: a regular file.
        kind: a key of ``KINDS``; other kinds match no file.

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
    """Return whether a file starts with a length and an object, like a safetensors header."""
    beginning = _beginning(path)
    return len(beginning) > 9 and int.from_bytes(beginning[:8], "little") <= 2**32 and beginning[8:9] == b"{"


def _is_torch(path: Path) -> bool:
    """Return whether a file is a pickle, or an archive that contains one."""
    beginning = _beginning(path)
    if not beginning.startswith(_ZIP):
        return beginning.startswith(_PICKLE)
    try:
        with open(path, "rb") as file:
            return any(name.rpartition("/")[2] == "data.pkl" for name in read_directory(file))
    except ZipError:
        return False


def _is_object(path: Path) -> bool:
    """Return whether a JSON file is one of ours, judging by its keys."""
    if path.stat().st_size > _WHOLE:
        return False
    try:
        content = read_json(path)
    except CheckpointError:
        return False
    return isinstance(content, dict) and any(keys <= content.keys() for keys in _OBJECTS)


#: Ending, or name of a kind written under any ending -> test of whether a file is of that kind.
KINDS: Mapping[str, Callable[[Path], bool]] = {
    ".safetensors": _is_safetensors,
    **dict.fromkeys((".pt", ".pth", ".bin"), _is_torch),
    GGUF_SUFFIX: _begins(MAGIC),
    ".json": _is_object,
    ".csv": _begins(*_HEADS),
    ".npy": _begins(b"\x93NUMPY"),
    ".png": _begins(b"\x89PNG\r\n\x1a\n"),
    ".svg": lambda path: b"<svg" in _beginning(path),
    ".pdf": _begins(b"%PDF-"),
    "spec": lambda path: b"weightspace_spec:" in _beginning(path),
    ".yml": _begins(BEST_RECIPE.encode()),
    ".yaml": _begins(BEST_RECIPE.encode()),
}
