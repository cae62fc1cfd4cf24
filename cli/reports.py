"""Reports of commands: one JSON object whose first keys are the same for all commands, or the files written.

The keys are documented in docs/pages/formats/json.md. ``SCHEMA`` is incremented when a key is renamed, removed, or
changes its meaning, but not for new keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from weightspace.cli.commands import is_quiet
from weightspace.cli.printing import echo, echo_json, plain

#: Version of the keys.
SCHEMA = 1


def files_of(*outputs: str | Path | None) -> list[str]:
    """Return the files of outputs: a file itself, or all files of a folder, sorted."""
    files: list[str] = []
    for output in outputs:
        if output is not None:
            path = Path(output)
            below = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [output]
            files += map(str, below)
    return list(dict.fromkeys(files))


def echo_report(
    figures: Mapping[str, Any],
    *,
    output: str | Path | None = None,
    files: Iterable[str | Path] = (),
    task: str | None = None,
    split: str | None = None,
) -> None:
    """Print the JSON object of a command.

    Args:
        figures: the results, under the command's own keys.
        output: the value of ``-o``, the first one if it is repeated.
        files: every file that was written.
        task: name of the task.
        split: the data split of all figures; None if there is none, or several, which are then keys.
    """
    head = {
        "schema": SCHEMA,
        "command": _command(),
        "output": None if output is None else str(output),
        "files": [str(file) for file in files],
        "task": task,
        "split": split,
    }
    echo_json(head | {name: plain(value) for name, value in figures.items() if name not in head})


def echo_files(files: Iterable[str | Path]) -> None:
    """Print the files that were written, one per line, at the end of a command's output."""
    for file in files:
        echo(file)


def note_flat(output: str | Path | None, source: str | Path) -> None:
    """Say on stderr that a torch file is a flat state dict where the first input has its own in an entry."""
    from weightspace.checkpoints.fetching import local_path
    from weightspace.checkpoints.file_format import TORCH_SUFFIXES, file_format

    if output is None or Path(output).suffix.lower() not in TORCH_SUFFIXES or is_quiet() or "+" in str(source):
        return
    path = local_path(source)
    if not path.is_file() or file_format(path) != "torch":
        return
    from weightspace.checkpoints.torch_file import nesting_of

    nesting = nesting_of(path)
    if nesting is not None:
        entry, others = nesting
        beside = f" beside {', '.join(map(repr, others[:3]))}{', …' * (len(others) > 3)}" if others else ""
        left = ", and nothing else is copied" if others else ""
        echo(
            f"{output} is a flat state dict: {source} has its own under {entry!r}{beside}{left}. Give it to "
            "load_state_dict as it is.",
            err=True,
        )


def _command() -> str:
    """Return the name of the running command without that of the program, such as ``labels build``."""
    names = []
    context: click.Context | None = click.get_current_context()
    while context is not None and context.parent is not None:
        names.append(context.info_name or "")
        context = context.parent
    return " ".join(reversed(names))
