"""``weightspace regmean-plusplus``: merge checkpoints layer by layer on the data of their tasks."""

from __future__ import annotations

from pathlib import Path

import click
from weightspace.cli import commands, networks, options
from weightspace.cli.progress import progress
from weightspace.cli.reports import echo_files, echo_report, files_of, note_flat


@commands.command("regmean-plusplus")
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINT…")
@options.task(several="one for each CHECKPOINT, in their order, or one for all")
@options.reduce(0.95, "the products of inputs")
@options.examples("of each task")
@options.device("Device that the networks run on")
@options.output("Checkpoint to write (.safetensors, .pt, or a folder).")
@options.as_json
def command(
    checkpoints: tuple[str, ...],
    tasks: tuple[str, ...],
    data: Path | None,
    reduce: float,
    examples: int,
    seed: int,
    device: str,
    output: str,
    as_json: bool,
) -> None:
    """Merge CHECKPOINTs by RegMean, each layer on the inputs that it will read in the merged network (RegMean++).

    Give each model the data that it was trained for. Weights of linear layers and convolutions are merged so; all other
    tensors are means.

    \b
    Example:
      weightspace regmean-plusplus maths.safetensors code.safetensors \\
        --task data.py:maths --task data.py:code -o merged.safetensors
    """
    options.check_inputs(*checkpoints)
    options.check_tasks(tasks, checkpoints, "checkpoints")
    from weightspace.checkpoints import load_checkpoint, provenance, save_checkpoint
    from weightspace.merging import regmean_plusplus
    from weightspace.tasks import check_device

    options.check_apart(output, *checkpoints, *tasks)
    check_device(device)
    found = networks.load_tasks(tasks, data, len(checkpoints))
    with progress("layers") as update:
        state = regmean_plusplus(
            found,
            [load_checkpoint(checkpoint) for checkpoint in checkpoints],
            reduce=reduce,
            examples=examples,
            seed=seed,
            device=device,
            on_progress=lambda at: update(at.index, at.total, at.name or ""),
        )
    opts = {"tasks": list(tasks), "reduce": reduce, "examples": examples, "seed": seed}
    metadata = provenance(list(checkpoints), "regmean-plusplus", opts)
    save_checkpoint(state, output, metadata=metadata, companions_from=checkpoints[0])
    note_flat(output, checkpoints[0])
    files = files_of(output)
    if as_json:
        echo_report(opts, output=output, files=files)
        return
    echo_files(files)
