"""``weightspace transplant``: replace a model's vocabulary with that of another model."""

from __future__ import annotations

from dataclasses import asdict

import click
from weightspace.cli import commands, options
from weightspace.cli.commands import Choice
from weightspace.cli.printing import echo, warn
from weightspace.cli.reports import echo_files, echo_report, files_of


@commands.command("transplant")
@click.argument("model")
@click.option(
    "--tokenizer",
    required=True,
    metavar="OTHER",
    help="Folder of the donor model; --method subword needs only its tokenizer.",
)
@click.option(
    "--method",
    type=Choice(["omp", "nearest", "subword"]),
    default="omp",
    show_default=True,
    help="How to compute rows for tokens that MODEL lacks: orthogonal matching pursuit or nearest neighbours among "
    "shared tokens in OTHER's embedding, or the mean of the subwords into which MODEL splits the token.",
)
@click.option(
    "--neighbours",
    "-k",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Maximum number of shared tokens per approximated row; not with --method subword.",
)
@options.output("Folder to write.", kind="checkpoint")
@options.as_json
def command(model: str, tokenizer: str, method: str, neighbours: int, output: str, as_json: bool) -> None:
    """Replace MODEL's vocabulary with OTHER's: shared tokens keep their rows, new tokens get approximated ones.

    \b
    Examples:
      weightspace transplant model --tokenizer other -o out
      weightspace transplant model --tokenizer other --method subword -o out
    """
    if method == "subword":
        options.check_effect(["neighbours"], "with --method subword")
    options.check_inputs(model, tokenizer)
    options.check_apart(output, model, tokenizer)
    from weightspace.merging.plan.options import ExecutionOptions
    from weightspace.merging.transplant import transplant

    report = transplant(
        model,
        tokenizer,
        output,
        method=method,  # pyright: ignore[reportArgumentType]
        neighbours=neighbours,
        execution=ExecutionOptions(force=options.forced()),
    )
    for line in report.warnings:
        warn(line)
    if as_json:
        echo_report(asdict(report), output=output, files=files_of(output))
        return
    echo(f"{report.tokens:,} tokens: {report.shared:,} shared, {report.approximated:,} by {report.method}")
    echo_files(files_of(output))
