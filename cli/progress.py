"""Progress on stderr: a live bar on a terminal, otherwise one final line."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from weightspace.cli import waiting
from weightspace.cli.commands import is_quiet
from weightspace.cli.printing import echo

from weightspace.escaping import escaped
from weightspace.progress import Progress
from weightspace.reprs import size

#: Callback of a progress bar: amount done, total, and text to show.
Update = Callable[[int, int, str], None]


@contextmanager
def progress(label: str) -> Iterator[Update]:
    """Show the progress and remaining time of a long call, and its duration at the end."""
    waiting.end()
    if is_quiet():
        yield lambda done, total, text: None
        return
    start, last = time.perf_counter(), [""]

    def close() -> None:
        summary = f": {last[0]}" if last[0] else ""
        echo(f"{label}{summary} ({time.perf_counter() - start:.1f} s)", err=True)

    if not sys.stderr.isatty():
        yield lambda done, total, text: last.__setitem__(0, text)
        close()
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        shown = bar.add_task(escaped(label), total=None, text="")

        def update(done: int, total: int, text: str) -> None:
            last[0] = text
            bar.update(shown, completed=done, total=total or None, text=escaped(text))

        yield update
    close()


@contextmanager
def live_table(head: Sequence[str]) -> Iterator[Callable[[Sequence[str]], None]]:
    """Show rows on stderr as they arrive: a growing table on a terminal, otherwise one line each."""
    waiting.end()
    if is_quiet():
        yield lambda row: None
        return
    if not sys.stderr.isatty():
        yield lambda row: echo("  ".join(row), err=True)
        return
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    table = Table(*head)
    with Live(table, console=Console(stderr=True), vertical_overflow="visible"):
        yield lambda row: table.add_row(*(Text(escaped(cell)) for cell in row))


def _at(event: Progress) -> str:
    """Return the progress of an alignment, such as ``b.safetensors, step 20/250``."""
    total = f"/{event.total}" if event.total else ""
    return f"{event.name}, {event.stage} {event.index}{total}"


@contextmanager
def byte_progress(label: str, *, shown: bool = True) -> Iterator[Callable[[Progress], None]]:
    """Show bytes, rate and remaining time: live on a terminal, otherwise in one final line.

    On a terminal, events of other stages (the sweeps or steps of an alignment) are shown beside the label.
    """
    waiting.end()
    shown = shown and not is_quiet()
    start, seen = time.perf_counter(), [0, 0]

    def note(event: Progress) -> None:
        if event.stage == "bytes":
            seen[:] = event.index, event.total

    if not shown or not sys.stderr.isatty():
        yield note
    else:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(escaped(label), total=None)

            def update(event: Progress) -> None:
                note(event)
                if event.stage == "bytes":
                    bar.update(task, completed=event.index, total=event.total, description=escaped(label))
                else:
                    bar.update(task, description=escaped(f"{label}: {_at(event)}"))

            yield update
    if shown:
        seconds = time.perf_counter() - start
        rate = f", {size(int(seen[1] / max(seconds, 1e-9)))}/s" if seen[1] else ""
        echo(f"{label}: {size(seen[1])} ({seconds:.1f} s{rate})", err=True)
