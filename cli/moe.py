"""``weightspace moe``: build a mixture of experts from dense models, from files to files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from weightspace.cli import commands, options
from weightspace.cli.commands import Whole
from weightspace.cli.merge_report import plan_rows, size_of
from weightspace.cli.merge_verification import check_verifiable, verification_line, verified
from weightspace.cli.printing import echo, warn
from weightspace.cli.progress import byte_progress
from weightspace.cli.reports import echo_files, echo_report, files_of

from weightspace import WeightspaceError
from weightspace.merging.plan.options import ExecutionOptions, OutputOptions

if TYPE_CHECKING:
    from weightspace.merging import LoadVerification, MergeReport


@commands.command("moe")
@click.argument("recipe", metavar="RECIPE.yml")
@options.output("Hugging Face folder to write.", kind="checkpoint")
@options.seed("Seed for random routers and noise.")
@click.option("--dry-run", is_flag=True, help="Print the plan; write nothing.")
@click.option("--verify", is_flag=True, help="Load the output in transformers, check names and shapes, and run it.")
@click.option("--lenient", is_flag=True, help="Warn about unknown keys and differing token ids instead of refusing.")
@click.option("--strict", is_flag=True, help="Refuse keys without effect instead of warning about them.")
@click.option("--allow-nonfinite", is_flag=True, help="Accept NaN and infinity.")
@click.option(
    "--shard-size", metavar="SIZE", default="5GB", show_default=True, help="Maximum size of each weight file."
)
@click.option(
    "--memory", metavar="MB", type=Whole(1, 2**40), default=256, show_default=True, help="Private memory to use, in MB."
)
@click.option(
    "--threads", metavar="N", type=Whole(1, 1024), help="Tensors computed in parallel. [one per core, at most 4]"
)
@click.option("--hash/--no-hash", "hashes", default=True, help="Record the inputs' SHA-256 in the metadata.")
@click.option("--fsync/--no-fsync", default=True, help="Flush the output to disk.")
@options.as_json
def command(recipe: str, output: str, as_json: bool, **opts: Any) -> None:
    """Build a mixture of experts from dense models, given a mergekit-moe recipe.

    All tensors except the experts come from the base; the MLPs of each expert's model become one expert per layer.
    Supported outputs are Mixtral, DeepSeek MoE, Qwen MoE and Qwen3 MoE, built from Llama, Mistral, Qwen2 and Qwen3.
    Prompts run through the base layer by layer (pip install 'weightspace[transformers]'); no model is loaded into
    memory as a whole. Run the command again to resume an interrupted build.

    \b
    Examples:
      weightspace moe experts.yml -o mixture
      weightspace moe experts.yml -o mixture --verify
      weightspace moe random.yml -o mixture --seed 3 --json
    """
    options.check_inputs(recipe)
    if opts["lenient"] and opts["strict"]:
        raise WeightspaceError("--lenient and --strict contradict each other. Give one of the two.")
    if opts["verify"]:
        check_verifiable(output, dry_run=opts["dry_run"])
    _check_seed(recipe)
    from weightspace.merging.moe.build import build_moe

    with byte_progress(f"building {output}", shown=not opts["dry_run"]) as update:
        report = build_moe(
            recipe,
            output,
            seed=opts["seed"],
            output=OutputOptions(size_of(opts["shard_size"]), opts["allow_nonfinite"], opts["hashes"]),
            execution=ExecutionOptions(opts["memory"] * 2**20, opts["threads"], opts["fsync"], force=options.forced()),
            dry_run=opts["dry_run"],
            lenient=opts["lenient"],
            strict=opts["strict"],
            warn=warn,
            on_progress=update,
        )
    found = verified(output) if opts["verify"] else None
    _show(report, found, dry_run=opts["dry_run"], as_json=as_json)


def _check_seed(recipe: str) -> None:
    """Refuse --seed if nothing is random."""
    from weightspace.merging.moe.recipe import read_mixture_recipe

    if options.was_given("seed") and not read_mixture_recipe(Path(recipe), warn=_drop, ignored=_drop).draws:
        raise WeightspaceError(f"--seed has no effect: {recipe} has no random routers and no noise. Leave it out.")


def _drop(line: str) -> None:
    """Ignore a warning that the build reports again."""


def _show(report: MergeReport, found: LoadVerification | None, *, dry_run: bool, as_json: bool) -> None:
    """Print the report of a build or a dry run."""
    files = [] if dry_run else files_of(report.out)
    if as_json:
        figures = asdict(report)
        figures["dry_run"], figures["weight_files"] = dry_run, figures.pop("files")
        if found is not None:
            figures["verification"] = found
        echo_report(figures, output=figures.pop("out"), files=files)
    elif dry_run:
        for name, value in plan_rows(report).items():
            echo(f"{name:8} {value}")
    else:
        if found is not None:
            echo(verification_line(found))
        echo_files(files)
