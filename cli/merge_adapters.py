"""``weightspace merge-adapters``: merge several LoRA adapters of one model into one, in any formats."""

from __future__ import annotations

from dataclasses import asdict

import click
from weightspace.cli import commands, options
from weightspace.cli.commands import Choice
from weightspace.cli.printing import echo
from weightspace.cli.progress import progress
from weightspace.cli.reports import echo_files, echo_report, files_of

from weightspace.lora.formats.module import ADAPTER_FORMATS


@commands.command("merge-adapters")
@click.argument("adapters", nargs=-1, required=True, metavar="ADAPTER…")
@click.option(
    "-m", "--method", default="knots", show_default=True, metavar="METHOD", help="Method: knots, core_space or linear."
)
@click.option(
    "--inner",
    metavar="METHOD",
    help="Method to merge the coordinates: ties, task_arithmetic, dare_ties, … [ties]",
)
@click.option(
    "--weights",
    metavar="W,…",
    help="One weight per adapter, such as .6,.4. [linear: 1 / number of adapters, which is the mean; else as --inner]",
)
@click.option("--density", metavar="D", help="Fraction kept by the inner method; one value, or one per adapter.")
@click.option("--lambda", "lambda_", type=float, metavar="L", help="Scaling factor of the merged difference.")
@click.option("--normalize/--no-normalize", default=None, help="Divide by the sum of the weights in the inner method.")
@click.option("--seed", type=int, help="Seed of the inner method's random masks.")
@click.option("--rank", type=click.IntRange(min=1), metavar="R", help="Reduce larger ranks to this one. [not reduced]")
@click.option(
    "--format",
    "written",
    type=Choice(list(ADAPTER_FORMATS)),
    metavar="FORMAT",
    help="Format to write: peft (a folder), kohya or diffusers (a file). [that of the inputs]",
)
@options.output("Folder or .safetensors file to write the adapter to.", kind=None)
@options.as_json
def command(
    adapters: tuple[str, ...],
    method: str,
    inner: str | None,
    weights: str | None,
    density: str | None,
    lambda_: float | None,
    normalize: bool | None,
    seed: int | None,
    rank: int | None,
    written: str | None,
    output: str,
    as_json: bool,
) -> None:
    """Merge LoRA ADAPTERs of one model into one.

    ADAPTERs are folders of PEFT, or files of kohya, LyCORIS (LoCon, LoHa, LoKr) or diffusers; ranks may differ.

    knots and core_space merge the adapters' coordinates in a shared space by another method (--inner); linear is their
    weighted sum, whose rank is the sum of their ranks.

    \b
    Examples:
      weightspace merge-adapters a b -m core_space --inner ties --density .5 --weights .5,.5 -o merged
      weightspace merge-adapters a b -m linear --weights 1,-1 -o difference
      weightspace merge-adapters style.safetensors face.safetensors -m linear --rank 16 -o both.safetensors
      weightspace merge base+merged -m passthrough -o model
    """
    options.check_writable(output, "checkpoint" if output.lower().endswith(".safetensors") else "adapter")
    options.check_inputs(*adapters)
    from weightspace.merging import merge_adapters

    options.check_apart(output, *adapters)
    densities = options.numbers("--density", density)
    opts = {"normalize": normalize, "seed": seed}
    with progress(f"merging into {output}"):
        report = merge_adapters(
            adapters,
            output,
            method=method,
            inner=inner,
            weights=options.numbers("--weights", weights),
            density=densities[0] if densities is not None and len(densities) == 1 else densities,
            lambda_=lambda_,
            rank=rank,
            format=written,
            force=options.forced(),
            parameters={name: value for name, value in opts.items() if value is not None},
        )
    if as_json:
        figures = asdict(report)
        echo_report(figures, output=figures.pop("out"), files=files_of(output))
        return
    low, high = min(report.ranks.values()), max(report.ranks.values())
    padded = "" if report.format == "peft" else f", all written as rank {max(high, 1)}, filled up with zeros"
    ranks = f"rank {low}" if low == high else f"ranks {low} to {high}{padded}"
    worst = max(report.errors, key=report.errors.__getitem__, default=None)
    error = "" if worst is None else f", relative error up to {report.errors[worst]:.2g} ({worst})"
    echo(f"{len(report.ranks):,} tensors, {ranks}{error}")
    echo_files(files_of(output))
