"""``weightspace evidence``: data statistics for Fisher and RegMean merging."""

from __future__ import annotations

from pathlib import Path

import click
from weightspace.cli import commands, options
from weightspace.cli.printing import echo
from weightspace.cli.progress import progress
from weightspace.cli.reports import echo_files, echo_report, files_of


@commands.command("evidence")
@click.argument("checkpoint")
@click.option(
    "--kind", required=True, metavar="KIND", help="Statistics: gram (for merge -m regmean) or fisher (for -m fisher)."
)
@options.task()
@options.examples()
@options.device("Device that the network runs on")
@options.output("File to write (.safetensors).")
@options.as_json
def command(
    checkpoint: str,
    kind: str,
    task: str,
    data: Path | None,
    examples: int,
    seed: int,
    device: str,
    output: str,
    as_json: bool,
) -> None:
    """Collect the statistics of a CHECKPOINT's own data for RegMean or Fisher merging.

    \b
    Examples:
      weightspace evidence a.safetensors --task digits-mlp --kind fisher -o a-fisher.safetensors
      weightspace merge a.safetensors b.safetensors -m fisher --evidence a-fisher.safetensors,b-fisher.safetensors -o m
    """
    options.check_inputs(checkpoint)
    from weightspace.checkpoints import load_checkpoint, provenance, save_checkpoint
    from weightspace.devices import check_device
    from weightspace.evidence import collect_evidence
    from weightspace.zoo import load_task

    options.check_apart(output, checkpoint, task)
    check_device(device)
    found = load_task(task, data=data)
    with progress(f"{kind} of {checkpoint}") as update:
        state = collect_evidence(
            found,
            load_checkpoint(checkpoint),
            kind,
            examples=examples,
            seed=seed,
            device=device,
            on_progress=lambda at: update(at.index, at.total, f"{at.index:,} examples"),
        )
    opts = {"task": found.name, "kind": kind, "examples": examples, "seed": seed}
    save_checkpoint(state, output, metadata=provenance([checkpoint], "evidence", opts))
    if as_json:
        figures = {"tensors": len(state), **opts}
        echo_report(figures, output=output, files=files_of(output), task=found.name, split="train")
        return
    echo(f"{len(state):,} tensors")
    echo_files(files_of(output))
