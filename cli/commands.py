"""Shared behaviour of all commands: grouped help, ``--quiet``, ``-v``, and integers shown without bounds."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

#: Title of a group in the help -> names of its parameters. All others are listed first, as ``Options``.
_GROUPS: dict[str, tuple[str, ...]] = {
    "Networks and data": (
        "task",
        "tasks",
        "data",
        "network",
        "example_inputs",
        "spec_file",
        "split",
        "evidence",
        "device",
    ),
    "Inputs": ("key", "strip_prefix", "no_strip", "lenient", "strict", "allow_nonfinite"),
    "Execution": (
        *("executor", "workers", "ray_address", "gpus", "threads", "memory", "hashes", "fsync", "cache"),
        *("intermediate_dir", "reproduce", "allow_code", "verify", "dry_run"),
    ),
    "Output": (
        *("output", "outputs", "reports", "report_threshold", "merged", "out_dtype", "quantise", "shard_size", "force"),
        *("as_json", "quiet", "verbose", "help", "_click_default_help"),
    ),
}
#: Title of the group of method parameters, and the prefix of their names.
_PARAMETERS, _PREFIX = "Parameters of methods", "parameter_"

#: Key in a context's ``meta`` that records whether ``--quiet`` was given.
_QUIET = "weightspace.quiet"


class Whole(click.ParamType):
    """An integer with bounds that the help doesn't show."""

    name = "integer"

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse and check the number."""
        number = click.INT.convert(value, param, ctx)
        if not self.least <= number <= self.most:
            bound = f"at least {self.least}" if number < self.least else f"at most {self.most}"
            self.fail(f"{value} is not {bound}.", param, ctx)
        return number


if TYPE_CHECKING:
    _Choice = click.Choice[str]
else:  # click 8.1 has no type parameter
    _Choice = click.Choice


class Choice(_Choice):
    """One of several words, with the one that was probably meant in the error."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check the word."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            from weightspace.suggestions import closest

            close = closest(str(value), self.choices)
            if close is None:
                raise
            self.fail(f"{error.message} Did you mean {close!r}?", param, ctx)


class Command(click.Command):
    """A command with grouped options, ``--quiet`` and ``-v``."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the command's own parameters and the shared ones."""
        *own, help_option = super().get_params(ctx)
        return [*own, _quiet(), _verbose(), help_option]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, one section per group."""
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in ("Options", _PARAMETERS, *_GROUPS)}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)) is not None:
                sections[_group_of(parameter.name or "")].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def command(name: str, **settings: Any) -> Any:
    """Declare a command, as ``click.command`` does."""
    return click.command(name, cls=Command, **settings)


def is_quiet() -> bool:
    """Return whether ``--quiet`` was given to the running command."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_QUIET))


def _group_of(name: str) -> str:
    if name.startswith(_PREFIX):
        return _PARAMETERS
    return next((title for title, names in _GROUPS.items() if name in names), "Options")


def _quiet() -> click.Option:
    def remember(context: click.Context, _: click.Parameter, value: bool) -> None:
        context.meta[_QUIET] = value

    return click.Option(
        ["-q", "--quiet"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=remember,
        help="Hide progress, but not warnings and errors.",
    )


@contextmanager
def _logging(level: int) -> Iterator[None]:
    """Log the library's messages to stderr."""
    logger, handler = logging.getLogger("weightspace"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(relativeCreated)7d ms  %(name)s: %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _verbose() -> click.Option:
    def listen(context: click.Context, _: click.Parameter, value: int) -> None:
        if value:
            context.with_resource(_logging(logging.INFO if value == 1 else logging.DEBUG))

    return click.Option(
        ["-v", "--verbose"],
        count=True,
        is_eager=True,
        expose_value=False,
        callback=listen,
        help="Log to stderr; -vv logs more.",
    )
