"""``weightspace soup``: average many fine-tunes into one network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from weightspace.cli import commands, networks, options
from weightspace.cli.commands import Choice
from weightspace.cli.printing import echo, plain, print_table
from weightspace.cli.progress import live_table
from weightspace.cli.reports import echo_files, echo_report, files_of, note_flat
from weightspace.cli.soup_table import (
    advice_of,
    check_reports,
    lines_of,
    notes_of,
    objective_of,
    table_of,
    trial_row,
    worse_than_single,
    write_reports,
)

from weightspace import WeightspaceError

if TYPE_CHECKING:
    from weightspace.checkpoints import StateDict
    from weightspace.soups import SoupReport


@commands.command("soup")
@click.argument("checkpoints", nargs=-1, required=True, metavar="CKPT...")
@options.task(required=False)
@click.option(
    "--recipe",
    type=Choice(["uniform", "greedy", "learned", "model_stock", "wise-ft"]),
    default="greedy",
    show_default=True,
    help="Mean of all (uniform) or of those that help (greedy), learned coefficients, Model Stock (between --base and "
    "the mean), or the best point on the line from the first (pretrained) to the second (wise-ft).",
)
@click.option("--compare", is_flag=True, help="Score all recipes and the logit ensemble, not only the one written.")
@click.option(
    "--tie",
    type=Choice(["accept", "reject"]),
    default="accept",
    show_default=True,
    help="Whether to accept an ingredient that doesn't change the score (greedy).",
)
@click.option("--replacement", is_flag=True, help="Allow repeated ingredients: each round adds the best one (greedy).")
@click.option("--base", metavar="CKPT", help="Pretrained model of the fine-tunes (model_stock).")
@click.option(
    "--per",
    type=Choice(["tensor", "layer", "model"]),
    default="tensor",
    show_default=True,
    help="Granularity of the coefficients (learned).",
)
@click.option("--positions", metavar="P,P,…", help="Positions on the line (wise-ft). [0,.1,…,1]")
@options.mode
@options.device("Device to score networks on")
@options.dtype
@options.soup_statistics
@options.cache
@options.execution("Ingredients or positions to score")
@options.gpus
@options.output("Checkpoint to write (.safetensors, .pt, or a folder).")
@click.option(
    "--report",
    "reports",
    multiple=True,
    metavar="FILE",
    help="Plot (.png, .svg, .pdf) or .json; may be repeated.",
)
@options.as_json
def command(
    checkpoints: tuple[str, ...],
    task: str | None,
    data: Path | None,
    recipe: str,
    output: str,
    reports: tuple[str, ...],
    as_json: bool,
    **opts: Any,
) -> None:
    """Average fine-tunes CKPT... of one model into one network.

    Selection uses validation data only. Test scores are shown for comparison, as are the best single models on
    validation and on test data (the latter is an oracle, not for selection). The column "networks" counts ingredients.
    Evaluations are cached, so an interrupted run resumes when it is called again.

    \b
    Examples:
      weightspace soup runs/*.pt --task digits-mlp -o soup.pt
      weightspace soup runs/*.pt --task digits-mlp --compare -o soup.pt --report soup.png --report soup.json
      weightspace soup runs/*.pt --recipe uniform -o soup.safetensors
      weightspace soup runs/*.pt --task digits-mlp --replacement -o soup.pt
      weightspace soup runs/*.pt --recipe model_stock --base pretrained.pt -o soup.pt
      weightspace soup pretrained.pt tuned.pt --task digits-mlp --recipe wise-ft -o soup.pt
    """
    check_reports(reports)
    _check(checkpoints, recipe, task, reports, opts)
    options.check_inputs(*checkpoints)
    for path in (output, *reports):
        options.check_apart(path, *checkpoints, task, opts["base"])
    found = networks.load_any_task(task, data, device=opts.pop("device"), dtype=opts.pop("dtype"))
    if found is None:
        _mean(checkpoints, recipe, output, opts, as_json=as_json)
        return
    if recipe == "wise-ft":
        _line(checkpoints, found, output, opts, as_json=as_json)
        return
    kept: dict[str, StateDict] = {}

    def keep(name: str, state: StateDict) -> None:
        if name == recipe:
            kept[name] = state

    report = _compared(checkpoints, found, None if opts["compare"] else (recipe,), opts, keep)
    row = next(row for row in report.rows if row.name == recipe)
    base = {"base": opts["base"]} if recipe == "model_stock" else {}
    _save(kept[recipe], output, checkpoints, recipe, {"task": found.name, "ingredients": list(row.chosen), **base})
    write_reports(report, reports)
    files = files_of(output, *reports)
    if as_json:
        told = {"worse_than_single": worse_than_single(report, recipe), "advice": advice_of(report, recipe)}
        echo_report({"recipe": recipe, **plain(report), **told}, output=output, files=files, task=found.name)
        return
    print_table(*table_of(report))
    for line in (*notes_of(report), *lines_of(report, recipe)):
        echo(line)
    echo_files(files)


def _check(
    checkpoints: tuple[str, ...], recipe: str, task: str | None, reports: tuple[str, ...], opts: dict[str, Any]
) -> None:
    """Check that the options fit together, before anything is loaded."""
    base, compared = opts["base"], opts["compare"]
    if task is None and (recipe not in ("uniform", "model_stock") or reports or compared):
        needs = (
            f"--recipe {recipe} needs" if recipe in ("greedy", "learned", "wise-ft") else "--report and --compare need"
        )
        raise WeightspaceError(f"{needs} --task to score networks; --recipe uniform and model_stock work without one.")
    if recipe == "wise-ft" and len(checkpoints) != 2:
        raise WeightspaceError(
            f"--recipe wise-ft takes the pretrained model and one fine-tune; found {len(checkpoints)} checkpoints."
        )
    if recipe == "wise-ft" and (reports or compared):
        raise WeightspaceError("--recipe wise-ft doesn't support --report or --compare. Leave them out.")
    if base is None and recipe == "model_stock":
        raise WeightspaceError("--recipe model_stock needs the pretrained model. Give --base.")
    if base is not None and recipe == "wise-ft":
        raise WeightspaceError("--recipe wise-ft takes the pretrained model as the first checkpoint, not as --base.")
    if base is not None and recipe != "model_stock" and not compared:
        raise WeightspaceError(f"--recipe {recipe} doesn't use --base. Expected --recipe model_stock, or --compare.")
    for name, owner in (("tie", "greedy"), ("replacement", "greedy"), ("per", "learned")):
        if recipe != owner and not compared:
            options.check_effect([name], f"with --recipe {recipe}, only with {owner} or --compare")
    if recipe != "wise-ft":
        options.check_effect(["positions"], f"with --recipe {recipe}, only with wise-ft")
    if task is None:
        options.check_effect(options.SCORING, "without --task")


def _compared(checkpoints: tuple[str, ...], task: Any, recipes: Any, opts: dict[str, Any], keep: Any) -> SoupReport:
    """Make and score soups, showing every candidate when it is scored."""
    from weightspace.soups import compare_recipes
    from weightspace.tasks.objectives import task_mode

    direction = task_mode(task, opts["mode"])
    with live_table(("", "candidate", "models", task.objective, "")) as show:
        return compare_recipes(
            checkpoints,
            task,
            recipes,
            tie=opts["tie"],
            replacement=opts["replacement"],
            base=opts["base"],
            per=opts["per"],
            mode=direction,
            on_progress=lambda trial: show(trial_row(trial, direction)),
            on_state=keep,
            **_evaluated(opts),
        )


def _evaluated(opts: dict[str, Any]) -> dict[str, Any]:
    """Return the options that control how candidates are evaluated."""
    return {name: opts[name] for name in ("statistics", "cache", "executor", "workers", "gpus", "ray_address")}


def _mean(
    checkpoints: tuple[str, ...],
    recipe: str,
    output: str,
    opts: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    """Write the mean of all checkpoints, or Model Stock, neither of which needs a task."""
    from weightspace import uniform_soup
    from weightspace.soups import model_stock_soup

    base, statistics = opts["base"], opts["statistics"]
    if recipe == "uniform":
        state, parameters = uniform_soup(checkpoints, statistics=statistics), {}
    else:
        state, parameters = model_stock_soup(checkpoints, base, statistics=statistics), {"base": base}
    _save(state, output, checkpoints, recipe, parameters)
    if as_json:
        echo_report({"recipe": recipe, "names": checkpoints}, output=output, files=files_of(output))
    else:
        echo_files(files_of(output))


def _line(
    checkpoints: tuple[str, ...],
    task: Any,
    output: str,
    opts: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    """Score the line between two models and write its best point."""
    from weightspace import wise_ft
    from weightspace.soups.wise_ft import POSITIONS
    from weightspace.tasks.objectives import task_mode

    positions = options.numbers("--positions", opts["positions"]) or POSITIONS
    pretrained, finetuned = checkpoints
    direction = task_mode(task, opts["mode"])
    with live_table(("position", task.objective)) as show:
        line = wise_ft(
            pretrained,
            finetuned,
            task,
            positions,
            mode=opts["mode"],
            on_progress=lambda at: show((f"{at.details['position']:g}", f"{objective_of(at, direction):.4f}")),
            **_evaluated(opts),
        )
    _save(line.state, output, checkpoints, "wise-ft", {"task": task.name, "position": line.position})
    if as_json:
        scores = {"positions": line.positions, "scores": line.scores, "position": line.position}
        echo_report({"recipe": "wise-ft", **scores}, output=output, files=files_of(output), task=task.name)
        return
    rows = [
        [f"{position:g}{' ←' if position == line.position else ''}"]
        + [f"{scores[at][name]:.4f}" for scores in line.scores.values() for name in scores[at]]
        for at, position in enumerate(line.positions)
    ]
    head = ["position", *(f"{split} {name}" for split, scores in line.scores.items() for name in scores[0])]
    print_table(head, rows)
    echo_files(files_of(output))


def _save(state: StateDict, output: str, checkpoints: tuple[str, ...], recipe: str, parameters: dict[str, Any]) -> None:
    """Write a soup with its provenance."""
    from weightspace import save_checkpoint
    from weightspace.checkpoints import provenance
    from weightspace.checkpoints.fetching import fetched_path

    inputs = [fetched_path(path) for path in checkpoints]
    note_flat(output, inputs[0])
    save_checkpoint(state, output, metadata=provenance(inputs, f"{recipe}-soup", parameters), companions_from=inputs[0])
