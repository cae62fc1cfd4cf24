"""``weightspace adamerging``: merge fine-tunes with coefficients learned on unlabelled inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from weightspace.cli import commands, networks, options
from weightspace.cli.commands import Choice, Whole
from weightspace.cli.printing import echo, plain, print_table
from weightspace.cli.progress import live_table
from weightspace.cli.reports import echo_files, echo_report, files_of, note_flat

if TYPE_CHECKING:
    from weightspace.progress import Progress
    from weightspace.soups import AdaMerged
    from weightspace.tasks import Task

#: Names of the options in ``AdaMergingOptions``.
_OPTIONS = ("start", "steps", "learning_rate", "split", "seed", "density")

#: Number of rows that show the progress.
_SHOWN = 20


@commands.command("adamerging")
@click.argument("checkpoints", nargs=-1, required=True, metavar="CKPT...")
@click.option("--base", required=True, metavar="CKPT", help="Pretrained model of the fine-tunes.")
@options.task(several="the entropies of several are averaged")
@click.option(
    "--per",
    type=Choice(["tensor", "layer", "model"]),
    default="tensor",
    show_default=True,
    help="Granularity of the coefficients.",
)
@click.option("--ties", is_flag=True, help="Take the task vectors of TIES, trimmed and of one sign (AdaMerging++).")
@click.option(
    "--density",
    type=click.FloatRange(0, 1),
    default=0.2,
    show_default=True,
    help="Fraction of each task vector to keep (--ties).",
)
@click.option(
    "--start", type=click.FloatRange(0, 1), default=0.3, show_default=True, help="Initial value of all coefficients."
)
@click.option("--steps", type=Whole(0, 10**9), default=500, show_default=True, help="Steps of Adam.")
@click.option(
    "--learning-rate",
    type=click.FloatRange(min=0, min_open=True),
    default=1e-3,
    show_default=True,
    help="Learning rate of Adam.",
)
@click.option(
    "--split",
    type=Choice(["train", "validation", "test"]),
    default="validation",
    show_default=True,
    help="Split of the inputs; labels are never used.",
)
@options.seed("Seed of the order of the batches of --split train.")
@options.device("Device to run the network on")
@options.soup_statistics
@options.output("Checkpoint to write (.safetensors, .pt, or a folder).")
@options.as_json
def command(
    checkpoints: tuple[str, ...],
    base: str,
    tasks: tuple[str, ...],
    data: Path | None,
    output: str,
    device: str,
    as_json: bool,
    **opts: Any,
) -> None:
    """Merge fine-tunes CKPT... of --base with coefficients that make predictions on unlabelled inputs certain.

    The coefficients of the task vectors, from 0 to 1, minimise the entropy of the predictions on the inputs of the
    tasks. The tables compare the scores with those of the initial coefficients, and list the learned ones.

    \b
    Examples:
      weightspace adamerging a.pt b.pt --base base.pt --task digits-mlp -o merged.safetensors
      weightspace adamerging a.pt b.pt --base base.pt --task digits-mlp --per model --ties -o merged.safetensors
      weightspace adamerging a.pt b.pt --base base.pt --task math.py:task --task code.py:task -o merged.safetensors
    """
    if not opts["ties"]:
        options.check_effect(["density"], "without --ties")
    options.check_inputs(*checkpoints, base)
    options.check_apart(output, *checkpoints, base, *tasks)
    loaded = [networks.load_any_task(name, data, device=device) for name in tasks]
    found = [task for task in loaded if task is not None]
    merged = _merged(checkpoints, base, found, opts)
    _save(merged, output, checkpoints, base, {"tasks": [task.name for task in found], **opts})
    if as_json:
        fields = {"coefficients": merged.coefficients, "entropies": merged.entropies, "scores": merged.scores}
        echo_report({"models": checkpoints, **plain(fields)}, output=output, files=files_of(output))
        return
    _show(merged, checkpoints, found)
    echo_files(files_of(output))


def _merged(checkpoints: Sequence[str], base: str, tasks: Sequence[Task], opts: dict[str, Any]) -> AdaMerged:
    """Learn the coefficients, showing every few steps."""
    from weightspace.soups import AdaMergingOptions, adamerging

    chosen = AdaMergingOptions(**{name: opts[name] for name in _OPTIONS})
    given = {name: opts[name] for name in ("per", "ties", "statistics")}
    with live_table(("step", "entropy")) as show:
        return adamerging(checkpoints, base, tasks, **given, options=chosen, on_progress=_shown(show))


def _shown(show: Callable[[Sequence[str]], None]) -> Callable[[Progress], None]:
    """Return a function that shows every few steps."""

    def on_progress(at: Progress) -> None:
        if at.index == at.total or (at.index - 1) % max(1, at.total // _SHOWN) == 0:
            show((f"{at.index}/{at.total}", f"{at.value:.4f}"))

    return on_progress


def _show(merged: AdaMerged, checkpoints: Sequence[str], tasks: Sequence[Task]) -> None:
    """Print the scores and the coefficients."""
    columns = [(task, split) for task in tasks for split in ("validation", "test")]
    several = len(tasks) > 1
    head = [f"{f'{task.name} ' if several else ''}{split} {task.objective}" for task, split in columns]
    rows = [
        [name, *(f"{scores[task.name][split][task.objective]:.4f}" for task, split in columns)]
        for name, scores in merged.scores.items()
    ]
    print_table(("coefficients", *head), rows)
    print_table(
        ("coefficient", *checkpoints),
        [[group or "model", *(f"{value:.4f}" for value in values)] for group, values in merged.coefficients.items()],
    )
    if merged.entropies:
        echo(f"entropy: {merged.entropies[0]:.4f} before the first step, {merged.entropies[-1]:.4f} before the last")


def _save(merged: AdaMerged, output: str, checkpoints: Sequence[str], base: str, parameters: dict[str, Any]) -> None:
    """Write the network with its provenance."""
    from weightspace import save_checkpoint
    from weightspace.checkpoints import provenance
    from weightspace.checkpoints.fetching import fetched_path

    inputs = [fetched_path(path) for path in (base, *checkpoints)]
    note_flat(output, inputs[0])
    metadata = provenance(inputs, "adamerging", {**parameters, "coefficients": merged.coefficients})
    save_checkpoint(merged.state, output, metadata=metadata, companions_from=inputs[0])
