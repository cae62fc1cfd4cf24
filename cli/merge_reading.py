"""Options of ``weightspace merge`` on reading the checkpoints: keys, prefixes, components and name maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from weightspace import WeightspaceError
from weightspace.merging.plan.options import ReadingOptions

_OPTIONS = (
    click.option(
        "--key",
        metavar="NAME",
        help='Entry of the torch files or DCP folders that holds the model ("" is the top level).',
    ),
    click.option(
        "--strip-prefix", metavar="PREFIX", help="Strip PREFIX (module.) from tensor names that start with it."
    ),
    click.option("--no-strip", is_flag=True, help="Don't strip a prefix that only one model has."),
    click.option(
        "--component",
        "components",
        multiple=True,
        metavar="NAME",
        help="Merge only this component of the folders, such as unet (diffusers) or 2_Dense (sentence-transformers), "
        "and copy the others; may be repeated. [all]",
    ),
    click.option(
        "--names",
        multiple=True,
        metavar="MAP[=SIDE]",
        help="Bring all models to the names and layout of the base or first model (or to SIDE) by a name map: a "
        "built-in one, or a YAML file; may be repeated.",
    ),
)


def reading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def reading_of(opts: Mapping[str, Any]) -> ReadingOptions:
    """Return how the inputs are read.

    Raises:
        WeightspaceError: two options contradict each other.
    """
    if opts["no_strip"] and opts["strip_prefix"] is not None:
        raise WeightspaceError("--no-strip and --strip-prefix contradict each other. Give one of the two.")
    prefix = "" if opts["no_strip"] else opts["strip_prefix"]
    return ReadingOptions(opts["key"], prefix, components=opts["components"] or None, names=opts["names"] or None)
