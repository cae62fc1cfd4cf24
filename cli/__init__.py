"""The command line: parse, call the library, write. One file per command.

Results go to stdout, progress to stderr; a user error is one line and exit status 2.
"""

from __future__ import annotations

import errno
import gc
import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

import click

from weightspace import WeightspaceError, __version__
from weightspace.errors import WeightspaceWarning
from weightspace.escaping import one_line

#: Command -> its line in the list of commands. The module of that name (``_`` for ``-``) defines it as ``command``.
COMMANDS: Mapping[str, str] = {
    "demo": "Align and merge two networks on real data, in a minute.",
    "train": "Train a network on a task from a seed.",
    "inspect": "Show the contents of checkpoints and compare them.",
    "spec": "Derive and verify a network's permutation symmetries.",
    "match": "Find the permutation that aligns one network to another.",
    "permute": "Permute the hidden units of a checkpoint.",
    "evidence": "Collect the data statistics for Fisher or RegMean merging.",
    "merge": "Merge checkpoints, optionally aligning them first.",
    "regmean-plusplus": "Merge checkpoints layer by layer on the data of their tasks.",
    "transplant": "Give a model another model's vocabulary.",
    "moe": "Build a mixture of experts from dense models.",
    "calibrate-routers": "Fit the routers of a merged mixture of experts to those of its parents.",
    "extract-lora": "Extract a LoRA adapter from a fine-tuned checkpoint.",
    "merge-adapters": "Merge LoRA adapters of one model into one.",
    "spectrum": "Show singular values, and compare the singular vectors of two networks.",
    "soup": "Average many fine-tunes of one model into one network.",
    "adamerging": "Merge with coefficients learned on unlabelled inputs.",
    "search": "Search for the best merge by validation data.",
    "average": "Average the last checkpoints of a training run.",
    "ensemble": "Compare the logit ensemble with the soup, and predict which is better.",
    "barrier": "Measure and plot the loss barrier between networks.",
    "labels": "Decode predictions with a metric on the labels.",
}


#: New objects between two garbage collections; by default 700. Commands read files of many small objects, and end soon.
_COLLECTION_THRESHOLD = 50_000


class _OneLineUsageError(click.UsageError):
    """A usage error that prints as one line: the message, which repeats arguments, and the command that helps."""

    def __init__(self, error: click.UsageError) -> None:
        super().__init__(_short(one_line(error.format_message()).strip()), ctx=error.ctx)

    def show(self, file: IO[Any] | None = None) -> None:
        end = "" if self.message.endswith((".", "?", "!", "…", ")")) else "."
        hint = f" Try '{self.ctx.command_path} --help'." if self.ctx else ""
        click.echo(f"Error: {self.message}{end}{hint}", file=file, err=file is None)


#: Raised where a group needs a command, to show its help; in click 8.1 that is no error.
_ShowsHelp: Any = getattr(click.exceptions, "NoArgsIsHelpError", ())


class _Commands(click.Group):
    """Group that imports commands when they are called and prints errors as one line."""

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

            raise click.UsageError(str(unknown("command", args[0], COMMANDS)), ctx=ctx)
        return super().resolve_command(ctx, args)

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _one_line_usage_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        from weightspace.cli import waiting

        waiting.begin()
        try:
            with (
                _one_line_usage_errors(),
                _rare_garbage_collection(),
                warnings.catch_warnings(),
                _ending(waiting.end),
            ):
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except WeightspaceError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            click.echo("Stopped.", err=True)
            ctx.exit(130)
        except OSError as error:
            if error.errno == errno.EPIPE:  # the reader closed the pipe
                raise
            line = WeightspaceError(f"{error.filename or 'The system'}: {error.strerror or error}.")
            click.echo(f"Error: {line}", err=True)
            ctx.exit(2)


@contextmanager
def _one_line_usage_errors() -> Iterator[None]:
    """Make usage errors within the block print as one line."""
    try:
        yield
    except _ShowsHelp:
        raise
    except click.UsageError as error:
        raise _OneLineUsageError(error) from None


@contextmanager
def _rare_garbage_collection() -> Iterator[None]:
    """Collect cyclic garbage less often within the block: reading vocabularies takes half as long again otherwise."""
    before = gc.get_threshold()
    gc.set_threshold(_COLLECTION_THRESHOLD, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


@contextmanager
def _ending(end: Callable[[], None]) -> Iterator[None]:
    """Call a function when the block ends, even by an exception."""
    try:
        yield
    finally:
        end()


def _short(message: str) -> str:
    """Return a message, with the middle elided if it is long."""
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

    Merge checkpoints, align networks trained from different seeds, and measure the loss barriers between them.
    """
