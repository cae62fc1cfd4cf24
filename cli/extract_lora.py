"""``weightspace extract-lora``: a LoRA adapter out of a fine-tuned checkpoint."""

from __future__ import annotations

from dataclasses import asdict

import click
from weightspace.cli import commands, options
from weightspace.cli.printing import echo
from weightspace.cli.progress import progress
from weightspace.cli.reports import echo_files, echo_report, files_of


@commands.command("extract-lora")
@click.argument("base")
@click.argument("model")
@click.option("--rank", type=click.IntRange(min=1), default=16, show_default=True, help="Rank of the factors.")
@click.option(
    "--fan-in-fan-out",
    is_flag=True,
    help="Linear layers keep their weights as (in, out), as GPT-2's do; not needed where BASE has a config.json.",
)
@click.option(
    "--lenient",
    is_flag=True,
    help="Leave out what differs and PEFT has no factors for (norms, biases); keep the files' names for families whose "
    "modules transformers renames by unknown rules.",
)
@options.seed("Seed of the iteration that finds the singular vectors of large matrices.")
@options.device("Where the decompositions run")
@options.output("Folder of the adapter to write, as PEFT reads it.", kind="adapter")
@options.as_json
def command(
    base: str,
    model: str,
    rank: int,
    fan_in_fan_out: bool,
    lenient: bool,
    seed: int,
    device: str,
    output: str,
    as_json: bool,
) -> None:
    """Extract the LoRA adapter that is nearest to the difference of MODEL from BASE.

    \b
    Examples:
      weightspace extract-lora base tuned --rank 16 -o adapter
      weightspace merge base+adapter -m passthrough -o tuned-again
    """
    options.check_inputs(base, model)
    from weightspace.lora import extract_lora_files
    from weightspace.tasks import check_device

    check_device(device)
    options.check_apart(output, base, model)
    with progress(f"extracting into {output}") as update:
        report = extract_lora_files(
            base,
            model,
            output,
            rank=rank,
            fan_in_fan_out=fan_in_fan_out,
            lenient=lenient,
            seed=seed,
            device=device,
            on_progress=lambda at: update(at.index, at.total, f"{at.index:,} of {at.total:,} tensors"),
        )
    if as_json:
        echo_report({"energy": report.energy, **asdict(report)}, output=output, files=files_of(output))
        return
    worst = max(report.errors, key=lambda name: report.errors[name])
    echo(f"{len(report.errors):,} tensors, {report.energy:.2%} of the squared difference")
    echo(f"relative error {report.error:.4g}; largest {report.errors[worst]:.4g} ({worst})")
    if report.left_out:
        echo(f"left out: {', '.join(report.left_out)}")
    echo_files(files_of(output))
