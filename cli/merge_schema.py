"""``weightspace merge --schema``: the JSON Schema of recipes."""

from __future__ import annotations

import click
from weightspace.cli.printing import echo


def _print_schema(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Print the JSON Schema of recipes and exit."""
    if wanted and not context.resilient_parsing:
        from weightspace.merging.recipe.json_schema import schema_text

        for line in schema_text().splitlines():
            echo(line)
        context.exit()


schema_option = click.option(
    "--schema",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_schema,
    help="Print the JSON Schema of recipes, for editors.",
)
