"""``weightspace ensemble``: compare the logit ensemble of networks with their soup."""

from __future__ import annotations

import random
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from weightspace.cli import commands, networks, options
from weightspace.cli.printing import echo, plain, print_table
from weightspace.cli.progress import live_table, progress
from weightspace.cli.reports import echo_files, echo_report, files_of
from weightspace.cli.soup_table import PICTURES, notes_of, table_of, trial_row

from weightspace import WeightspaceError

if TYPE_CHECKING:
    from weightspace.soups import SoupAgainstEnsemble


@commands.command("ensemble")
@click.argument("checkpoints", nargs=-1, required=True, metavar="CKPT...")
@options.task()
@click.option(
    "--pairs",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Number of pairs for which to predict soup versus ensemble; a random sample if there are more.",
)
@options.seed("Seed of the sample of pairs.")
@options.mode
@options.device("Device to score networks on")
@options.dtype
@options.soup_statistics
@options.cache
@options.execution("Networks to score")
@options.gpus
@options.output("Plot of the predictions (.png, .svg, .pdf).", required=False, kind="file")
@options.as_json
def command(
    checkpoints: tuple[str, ...],
    task: str,
    data: Path | None,
    pairs: int,
    seed: int,
    output: str | None,
    as_json: bool,
    **opts: Any,
) -> None:
    """Compare the logit ensemble of networks CKPT... with the best single network and with their soup.

    With --pairs, predict the loss difference between soup and ensemble of pairs from the curvature of the loss and the
    spread of the logits, and print it next to the measured one.

    \b
    Examples:
      weightspace ensemble runs/*.pt --task digits-mlp
      weightspace ensemble runs/*.pt --task digits-mlp --pairs 20 -o predictions.png
    """
    _check(checkpoints, pairs, output)
    if not pairs:
        options.check_effect(["seed"], "without --pairs")
    options.check_inputs(*checkpoints)
    from weightspace.soups import compare_recipes
    from weightspace.tasks.objectives import task_mode

    options.check_apart(output, *checkpoints, task)
    found = networks.load_placed(task, data, device=opts.pop("device"), dtype=opts.pop("dtype"))
    opts["mode"] = direction = task_mode(found, opts["mode"])
    with live_table(("", "candidate", "models", found.objective, "")) as show:
        opts["on_progress"] = lambda trial: show(trial_row(trial, direction))
        report = compare_recipes(checkpoints, found, ("uniform", "ensemble"), **opts)
    drawn = list(combinations(checkpoints, 2))
    drawn = sorted(random.Random(seed).sample(drawn, pairs)) if pairs < len(drawn) else drawn
    measured = _measured(drawn, found, opts["statistics"]) if pairs else []
    figures = _agreement(measured)
    if output is not None:
        from weightspace.plots import draw_predictions

        draw_predictions(measured, output, title=found.name)
    if as_json:
        listed = [
            {"a": a, "b": b, "difference": pair.difference, **plain(pair)}
            for (a, b), pair in zip(drawn, measured, strict=False)
        ]
        found_of = {**plain(report), "pairs": listed, "agreement": figures}
        echo_report(found_of, output=output, files=files_of(output), task=found.name)
        return
    print_table(*table_of(report))
    for line in notes_of(report):
        echo(line)
    if measured:
        print_table(("pair", "soup − ensemble", "predicted", "soup", "ensemble"), _rows(drawn, measured))
    if figures is not None:
        echo(f"correlation {figures.correlation:.3f}, same sign in {figures.sign:.1%} of {figures.pairs} pairs")
    echo_files(files_of(output))


def _check(checkpoints: tuple[str, ...], pairs: int, output: str | None) -> None:
    """Check that the options fit together, before anything is loaded."""
    if len(checkpoints) < 2:
        raise WeightspaceError(f"An ensemble needs at least two networks; found {len(checkpoints)}.")
    if output is not None and not pairs:
        raise WeightspaceError("-o plots predictions for pairs; give their number with --pairs.")
    if output is not None and Path(output).suffix.lower() not in PICTURES:
        raise WeightspaceError(f"{output} isn't an image file ({', '.join(PICTURES)}).")


def _measured(drawn: list[tuple[str, str]], task: Any, statistics: Any) -> list[SoupAgainstEnsemble]:
    """Score soup and ensemble of every pair, and predict the difference."""
    from weightspace.soups import soup_against_ensemble

    measured = []
    with progress("pairs") as update:
        for number, (a, b) in enumerate(drawn, start=1):
            measured.append(soup_against_ensemble(a, b, task, statistics=statistics))
            update(number, len(drawn), f"{number}/{len(drawn)}")
    return measured


def _agreement(measured: list[SoupAgainstEnsemble]) -> Any:
    """Return the agreement of the predictions, or None with fewer than three pairs."""
    from weightspace.soups import agreement

    return agreement(measured) if len(measured) > 2 else None


def _rows(drawn: list[tuple[str, str]], measured: list[SoupAgainstEnsemble]) -> list[list[str]]:
    return [
        [f"{a} {b}", *(f"{value:.4f}" for value in (pair.difference, pair.predicted, pair.soup, pair.ensemble))]
        for (a, b), pair in zip(drawn, measured, strict=False)
    ]
