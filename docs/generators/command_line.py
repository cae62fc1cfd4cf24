"""The command line reference: the help of every command, written by click with a Markdown formatter."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from weightspace import cli

#: An option in running text.
_OPTION = re.compile(r"(?<![\w`-])(--[a-z][a-z-]*[a-z])")


class _Markdown(click.HelpFormatter):
    """Click's help as Markdown: sections are headings, lists of options are tables."""

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        """Write the usage as a code block."""
        del prefix
        self.write(f"```text\n{prog} {args}\n```\n\n")

    def write_heading(self, heading: str) -> None:
        """Write the title of a section."""
        self.write(f"## {heading}\n\n")

    def write_paragraph(self) -> None:
        """End a paragraph."""
        self.write("\n")

    def write_text(self, text: str) -> None:
        """Write paragraphs; unwrapped ones (marked ``\\b``) are examples."""
        for paragraph in text.split("\n\n"):
            first, *lines = paragraph.strip("\n").split("\n")
            if first.strip() == "\b":
                title, *commands = lines
                block = textwrap.dedent("\n".join(commands))
                self.write(f"{title.strip()}\n\n```text\n{block}\n```\n\n")
            else:
                self.write(_escaped(" ".join(line.strip() for line in (first, *lines))) + "\n\n")

    def write_dl(self, rows: Sequence[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """Write options and their help texts as a table."""
        del col_max, col_spacing
        self.write("| option | meaning |\n|---|---|\n")
        for name, text in rows:
            self.write(f"| `{name}` | {_escaped(text)} |\n")
        self.write("\n")

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Write a section."""
        self.write_heading(name)
        yield

    @contextmanager
    def indentation(self) -> Iterator[None]:
        """Write the paragraphs of the description, which Markdown does not indent."""
        yield


def pages() -> Iterator[tuple[str, str]]:
    """Yield the path and the Markdown of every page, the overview first."""
    yield "command-line/index.md", _overview()
    context = click.Context(cli.main, info_name="weightspace")
    for name in cli.COMMANDS:
        command = cli.main.get_command(context, name)
        assert command is not None
        yield f"command-line/{name}.md", _page(command, click.Context(command, info_name=name, parent=context))


def _page(command: click.Command, context: click.Context) -> str:
    parts = [f"# `{context.command_path}`\n\n{_help(command, context)}"]
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            inner_context = click.Context(inner, info_name=name, parent=context)
            lowered = _help(inner, inner_context).replace("\n## ", "\n### ")
            parts.append(f"## `{inner_context.command_path}`\n\n{lowered}")
    return "\n".join(parts)


def _help(command: click.Command, context: click.Context) -> str:
    formatter = _Markdown()
    if isinstance(command, click.Group):  # its commands follow on the page
        command.format_usage(context, formatter)
        command.format_help_text(context, formatter)
        click.Command.format_options(command, context, formatter)
    else:
        command.format_help(context, formatter)
    return formatter.getvalue()


def _escaped(text: str) -> str:
    """Escape Markdown in a text except code in backticks, and format options as code."""
    parts = re.split(r"(`[^`]+`)", text)
    for index in range(0, len(parts), 2):
        escaped = html.escape(parts[index], quote=False)
        for sign in "|*_[":
            escaped = escaped.replace(sign, f"\\{sign}")
        parts[index] = _OPTION.sub(r"`\1`", escaped.replace("$", "&#36;"))
    return "".join(parts)


def _overview() -> str:
    rows = "\n".join(f"| [`weightspace {name}`]({name}.md) | {text} |" for name, text in cli.COMMANDS.items())
    written = Path(__file__).parents[1] / "pages" / "command-line" / "index.md"
    return written.read_text(encoding="utf-8").replace("<!-- commands -->", rows)
