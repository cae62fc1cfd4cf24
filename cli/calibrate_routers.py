"""``weightspace calibrate-routers``: fit the routers of a merged mixture of experts to those of its parents."""

from __future__ import annotations

from pathlib import Path

import click
from weightspace.cli import commands, networks, options
from weightspace.cli.progress import progress
from weightspace.cli.reports import echo_files, echo_report, files_of, note_flat


@commands.command("calibrate-routers")
@click.argument("merged")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE…")
@options.task(several="one for each SOURCE, in their order, or one for all")
@click.option(
    "--routers",
    metavar="NAME,…",
    help="Module names of the routers, with * for any characters. [gate or router, beside experts]",
)
@options.reduce(0.9, "the linear system")
@options.examples("of each source")
@options.device("Device that the network runs on")
@options.output("Checkpoint to write (.safetensors, .pt, or a folder).")
@options.as_json
def command(
    merged: str,
    sources: tuple[str, ...],
    tasks: tuple[str, ...],
    data: Path | None,
    routers: str | None,
    reduce: float,
    examples: int,
    seed: int,
    device: str,
    output: str,
    as_json: bool,
) -> None:
    """Fit the routers of MERGED, a mixture of experts, to the routing of the SOURCEs that it was merged from.

    Give each source the data that it was trained for (HARC). Nothing but the routers changes.

    \b
    Example:
      weightspace merge maths code -m ties --base pretrained -o merged
      weightspace calibrate-routers merged maths code --task data.py:maths --task data.py:code -o calibrated
    """
    options.check_inputs(merged, *sources)
    options.check_tasks(tasks, sources, "sources")
    from weightspace.checkpoints import load_checkpoint, provenance, save_checkpoint
    from weightspace.devices import check_device
    from weightspace.merging import calibrate_routers

    options.check_apart(output, merged, *sources, *tasks)
    check_device(device)
    found = networks.load_tasks(tasks, data, len(sources))
    with progress(f"routers of {merged}") as update:
        state = calibrate_routers(
            load_checkpoint(merged),
            [load_checkpoint(source) for source in sources],
            found,
            routers=None if routers is None else routers.split(","),
            reduce=reduce,
            examples=examples,
            seed=seed,
            device=device,
            on_progress=lambda at: update(at.index, at.total, at.name or ""),
        )
    opts = {"tasks": list(tasks), "routers": routers, "reduce": reduce, "examples": examples, "seed": seed}
    metadata = provenance([merged, *sources], "calibrate-routers", opts)
    save_checkpoint(state, output, metadata=metadata, companions_from=merged)
    note_flat(output, merged)
    files = files_of(output)
    if as_json:
        echo_report(opts, output=output, files=files)
        return
    echo_files(files)
