"""``weightspace labels``: predictions by a metric on the labels instead of ``argmax``."""

from __future__ import annotations

import click
from weightspace.cli.labels_build import build
from weightspace.cli.labels_locus import cover, locus, next_
from weightspace.cli.labels_predict import evaluate, predict
from weightspace.cli.labels_sets import sets


class _Subcommands(click.Group):
    """Subcommands, each with its whole first sentence in the help."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, below.get_short_help_str(limit=1000)) for name, below in self.commands.items()])


@click.group("labels", cls=_Subcommands)
def command() -> None:
    """Decode probabilities with a metric on the labels: the Fréchet mean instead of argmax.

    Classes are given by name, not by number; a list of names is a file with one name per line, a JSON list, or a,b,c.
    Every subcommand has --json.

    \b
    Examples:
      weightspace labels build --parents tree.csv -o tree.safetensors
      weightspace labels predict tree.safetensors logits.npy --logits --observed classes.txt
      weightspace labels evaluate tree.safetensors logits.npy --logits --observed classes.txt --truth truth.txt
      weightspace labels sets tree.safetensors test.npy --observed classes.txt --calibration val.npy --truth val.txt
      weightspace labels locus tree.safetensors --observed cat,dog -o locus.png
      weightspace labels next tree.safetensors --observed cat,dog -n 3
    """


for _command in (build, predict, evaluate, sets, locus, cover, next_):
    command.add_command(_command)
