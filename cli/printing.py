"""Printing of results: tables for people, plain values for JSON."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from weightspace.cli import waiting

from weightspace.escaping import escaped, one_line


def echo(line: str | Path = "", *, err: bool = False) -> None:
    """Print a line, with control characters and line breaks in names escaped; ``err`` prints to stderr."""
    waiting.end()
    click.echo(escaped(str(line)), err=err)


def warn(line: str) -> None:
    """Print a warning on stderr as one line."""
    waiting.end()
    click.echo(f"Warning: {one_line(line)}", err=True)


def echo_json(content: Any) -> None:
    """Print one JSON object without NaN on a line; unprintable characters are escaped, other Unicode is kept."""
    waiting.end()
    text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    click.echo("".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in text))


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: with rules on a terminal, otherwise as aligned text."""
    waiting.end()
    if on_terminal():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table()
        for name in head:
            table.add_column(Text(escaped(name)), overflow="fold")  # wrap long names instead of truncating them
        for row in rows:
            table.add_row(*(Text(escaped(cell)) for cell in row))
        Console().print(table)
        return
    lines = [[escaped(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for row in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def on_terminal() -> bool:
    """Return whether stdout is a terminal."""
    return sys.stdout.isatty()


def plain(value: Any) -> Any:
    """Convert dataclasses to plain JSON values; NaN and infinity become null."""
    if hasattr(value, "__dataclass_fields__"):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
