"""The command line: parse, call the library, write. One file a command.

Results go to stdout, progress to stderr; a user's mistake is one line and exit status 2.
"""

from __future__ import annotations

import errno
import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import click

from weightspace import WeightspaceError, __version__
from weightspace.errors import WeightspaceWarning
from weightspace.escaping import one_line

#: Command -> what the list of commands says of it. The module of that name (``_`` for ``-``) has it as ``command``.
COMMANDS: Mapping[str, str] = {
    "demo": "Two networks into one basin, on real data, in a minute.",
    "train": "Train a network of a task from a seed.",
    "inspect": "Show what is in checkpoints, and what differs.",
    "spec": "Derive and verify which hidden units may be permuted.",
    "match": "Find the permutation that brings one network to another.",
    "permute": "Move the hidden units of a checkpoint.",
    "evidence": "Collect what a merge by Fisher information or by RegMean needs.",
    "merge": "Merge checkpoints into one, aligned first if asked.",
    "moe": "Build a mixture of experts from dense models.",
    "extract-lora": "Extract a LoRA adapter from a fine-tuned checkpoint.",
    "merge-adapters": "Merge LoRA adapters of one model into one.",
    "spectrum": "Show singular values, and whether two networks share their vectors.",
    "soup": "Make one network out of many fine-tunes of one model.",
    "ensemble": "Score the logit ensemble beside the soup, and predict which is better.",
    "barrier": "Measure and draw the loss along the path between networks.",
    "labels": "Decode predictions over a metric on the labels.",
}


class _Commands(click.Group):
    """Commands that are imported when they are called, and errors that are one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return importlib.import_module(f"weightspace.cli.{cmd_name.replace('-', '_')}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from weightspace.suggestions import unknown

            raise click.UsageError(str(unknown("command", args[0], COMMANDS)))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        from weightspace.cli import waiting

        waiting.begin()
        try:
            with warnings.catch_warnings(), _ending(waiting.end):
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except click.UsageError as error:
            # It repeats arguments, which may be names of files.
            raise click.UsageError(_short(one_line(error.format_message())), ctx=error.ctx) from None
        except WeightspaceError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            click.echo("Stopped.", err=True)
            ctx.exit(130)
        except OSError as error:
            if error.errno == errno.EPIPE:  # who reads the output has had enough
                raise
            line = WeightspaceError(f"{error.filename or 'The system'}: {error.strerror or error}.")
            click.echo(f"Error: {line}", err=True)
            ctx.exit(2)


@contextmanager
def _ending(end: Callable[[], None]) -> Iterator[None]:
    """Call a function when the block ends, however it does."""
    try:
        yield
    finally:
        end()


def _short(message: str) -> str:
    """Return a message without its middle where it is long."""
    return message if len(message) < 400 else f"{message[:250]} … {message[-120:]}"


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **_: Any) -> None:
    """Print a warning of the library as one line, and any other as Python does."""
    if issubclass(category, WeightspaceWarning):
        from weightspace.cli.printing import warn

        warn(str(message))
    else:
        click.echo(warnings.formatwarning(message, category, *place[:2]), err=True, nl=False)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="weightspace %(version)s")
def main() -> None:
    """Work on trained networks as points in weight space.

    Merge checkpoints, bring networks from different seeds into one basin, and measure the loss between them.
    """
