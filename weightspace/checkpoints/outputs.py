"""Where results may be written: never over what they are made from, nor over what is no earlier result of the kind.

How a name ends says what is written there. One that ends almost like a file, or like a file of another program, is
refused: it would become a folder.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path

from weightspace.checkpoints.companions import check_replaceable
from weightspace.checkpoints.disk import final_target, one_line_errors
from weightspace.checkpoints.endings import meant_ending
from weightspace.checkpoints.file_format import SAFETENSORS_SUFFIX, TORCH_SUFFIXES
from weightspace.checkpoints.folder import ENTRANCES
from weightspace.checkpoints.recognition import is_earlier_result
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
