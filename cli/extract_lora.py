"""``weightspace extract-lora``: extract a LoRA adapter from a fine-tuned checkpoint."""

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
    help="Linear weights are stored as (in, out), like GPT-2's; not needed if BASE has a config.json.",
)
@click.option(
    "--lenient",
    is_flag=True,
    help="Leave out differences that have no factors, norms and biases too; keep the files' names for model families "
    "whose module renaming in transformers is unknown.",
)
@options.seed("Seed of the iterative SVD of large matrices.")
@options.device("Device to decompose on")
@options.output("Folder to write the adapter to, in PEFT's format.", kind="adapter")
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
    """Extract the LoRA adapter that best approximates the difference MODEL − BASE.

    Norms that moved, and biases beside factors, are kept whole and exact in the adapter (PEFT's modules_to_save and
    bias). `merge-adapters` and some other programs refuse such adapters; --lenient writes factors alone, without them.

    \b
    Examples:
      weightspace extract-lora base tuned --rank 16 -o adapter
      weightspace merge base+adapter -m passthrough -o tuned-again
    """
    options.check_inputs(base, model)
    from weightspace.devices import check_device
    from weightspace.lora import extract_lora_files

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
            force=options.forced(),
            on_progress=lambda at: update(at.index, at.total, f"{at.index:,} of {at.total:,} tensors"),
        )
    if as_json:
        echo_report({"energy": report.energy, **asdict(report)}, output=output, files=files_of(output))
        return
    worst = max(report.errors, key=lambda name: report.errors[name])
    echo(f"{len(report.errors):,} tensors, {report.energy:.2%} of the squared norm of the difference")
    echo(f"relative error {report.error:.4g}; largest {report.errors[worst]:.4g} ({worst})")
    if report.saved:
        echo(f"kept whole: {len(report.saved):,} norms and biases ({report.saved[0]}{', …' * (len(report.saved) > 1)})")
    if report.left_out:
        echo(f"left out: {', '.join(report.left_out)}")
    echo_files(files_of(output))
