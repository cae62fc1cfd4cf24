"""``weightspace soup``: one network out of many fine-tunes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from weightspace.cli import options
from weightspace.cli.printing import echo, plain, print_table
from weightspace.cli.progress import live_table
from weightspace.cli.soup_table import check_reports, lines_of, notes_of, table_of, trial_row, write_reports

from weightspace import WeightspaceError

if TYPE_CHECKING:
    from weightspace.checkpoints import StateDict
    from weightspace.soups import SoupReport


@click.command("soup")
@click.argument("checkpoints", nargs=-1, required=True, metavar="CKPT...")
@options.task(required=False)
@click.option(
    "--recipe",
    type=click.Choice(["uniform", "greedy", "learned", "model_stock", "wise-ft"]),
    default="greedy",
    show_default=True,
    help="Mean of all; those that help; learned coefficients; Model Stock, between --base and the mean; the line from "
    "the first (pretrained) to the second.",
)
@click.option("--compare", is_flag=True, help="Score all recipes and the logit ensemble, whatever is written.")
@click.option(
    "--tie",
    type=click.Choice(["accept", "reject"]),
    default="accept",
    show_default=True,
    help="greedy: what becomes of an ingredient that changes nothing.",
)
@click.option(
    "--replacement", is_flag=True, help="greedy: an ingredient may be taken several times; each round takes the best."
)
@click.option("--base", metavar="CKPT", help="model_stock: the pretrained model that all were fine-tuned from.")
@click.option(
    "--per",
    type=click.Choice(["tensor", "layer", "model"]),
    default="tensor",
    show_default=True,
    help="learned: what has coefficients of its own.",
)
@click.option("--positions", metavar="P,P,…", help="wise-ft: positions on the line. [0,.1,…,1]")
@options.mode
@options.soup_statistics
@options.cache
@options.execution("Ingredients or positions to score")
@options.gpus
@options.output("Checkpoint to write (.safetensors, .pt, or a folder).")
@click.option(
    "--report", "reports", multiple=True, metavar="FILE", help="Picture (.png, .svg, .pdf) or .json; may be repeated."
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
    **said: Any,
) -> None:
    """Make one network out of fine-tunes CKPT... of one model, without more to run than one.

    Validation data choose; test data are shown beside them, and so are the best single model by validation data and by
    test data (an oracle, which nobody may pick). "networks" counts the ingredients. Every evaluation is kept: whatever
    is killed goes on where it was.

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
    for path in (output, *reports):
        options.check_apart(path, *checkpoints, task, said["base"])
    if said["base"] is None and recipe == "model_stock":
        raise WeightspaceError("--recipe model_stock starts at the pretrained model. Give --base.")
    if said["base"] is not None and recipe == "wise-ft":
        raise WeightspaceError("--recipe wise-ft takes the pretrained model as the first checkpoint, and no --base.")
    if said["base"] is not None and recipe != "model_stock" and not said["compare"]:
        raise WeightspaceError(f"--recipe {recipe} has no use for --base. Expected --recipe model_stock, or --compare.")
    if said["replacement"] and recipe != "greedy" and not said["compare"]:
        raise WeightspaceError(f"--recipe {recipe} has no --replacement. Expected --recipe greedy, or --compare.")
    found = options.load_any_task(task, data)
    if found is None:
        _mean(checkpoints, recipe, output, reports, said, as_json=as_json)
        return
    if recipe == "wise-ft":
        _line(checkpoints, found, output, reports, said, as_json=as_json)
        return
    kept: dict[str, StateDict] = {}

    def keep(name: str, state: StateDict) -> None:
        if name == recipe:
            kept[name] = state

    report = _compared(checkpoints, found, None if said["compare"] else (recipe,), said, keep)
    row = next(row for row in report.rows if row.name == recipe)
    _save(
        kept[recipe],
        output,
        checkpoints,
        recipe,
        {"task": found.name, "ingredients": list(row.chosen)}
        | ({"base": said["base"]} if recipe == "model_stock" else {}),
    )
    write_reports(report, reports)
    if as_json:
        echo(json.dumps({"output": output, "recipe": recipe, **plain(report)}))
        return
    print_table(*table_of(report))
    for line in (*notes_of(report), *lines_of(report, recipe), *reports, output):
        echo(line)


def _compared(checkpoints: tuple[str, ...], task: Any, recipes: Any, said: dict[str, Any], keep: Any) -> SoupReport:
    """Make and score soups, and show every candidate as it is scored."""
    from weightspace.soups import compare_recipes
    from weightspace.tasks.objectives import task_mode

    direction = task_mode(task, said["mode"])
    with live_table(("", "candidate", "models", task.objective, "")) as show:
        return compare_recipes(
            checkpoints,
            task,
            recipes,
            tie=said["tie"],
            replacement=said["replacement"],
            base=said["base"],
            per=said["per"],
            mode=direction,
            on_trial=lambda trial: show(trial_row(trial, direction)),
            on_state=keep,
            **_evaluated(said),
        )


def _evaluated(said: dict[str, Any]) -> dict[str, Any]:
    """Return the options of how candidates are evaluated."""
    return {name: said[name] for name in ("statistics", "cache", "executor", "workers", "gpus", "ray_address")}


def _mean(
    checkpoints: tuple[str, ...],
    recipe: str,
    output: str,
    reports: tuple[str, ...],
    said: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    """Write the mean of all, or Model Stock, which need no task."""
    from weightspace import uniform_soup
    from weightspace.soups import model_stock_soup

    if recipe not in ("uniform", "model_stock") or reports or said["compare"]:
        what = (
            f"--recipe {recipe} needs" if recipe in ("greedy", "learned", "wise-ft") else "--report and --compare need"
        )
        raise WeightspaceError(f"{what} --task, which scores; without it there are --recipe uniform and model_stock.")
    base, statistics = said["base"], said["statistics"]
    if recipe == "uniform":
        state, parameters = uniform_soup(checkpoints, statistics=statistics), {}
    else:
        state, parameters = model_stock_soup(checkpoints, base, statistics=statistics), {"base": base}
    _save(state, output, checkpoints, recipe, parameters)
    echo(json.dumps({"output": output, "recipe": recipe, "names": checkpoints}) if as_json else output)


def _line(
    checkpoints: tuple[str, ...],
    task: Any,
    output: str,
    reports: tuple[str, ...],
    said: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    """Score the line between two models and write the best on it."""
    from weightspace import wise_ft
    from weightspace.soups.wise import POSITIONS
    from weightspace.tasks.objectives import task_mode

    if len(checkpoints) != 2 or reports or said["compare"]:
        raise WeightspaceError(
            f"--recipe wise-ft takes the pretrained model and one fine-tune, and has no --report or --compare; found "
            f"{len(checkpoints)} checkpoints."
        )
    positions = options.numbers("--positions", said["positions"]) or POSITIONS
    sign = -1 if task_mode(task, said["mode"]) == "min" else 1
    with live_table(("position", task.objective)) as show:
        line = wise_ft(
            *checkpoints,
            task,
            positions,
            mode=said["mode"],
            on_position=lambda position, value: show((f"{position:g}", f"{sign * value:.4f}")),
            **_evaluated(said),
        )
    _save(line.state, output, checkpoints, "wise-ft", {"task": task.name, "position": line.position})
    if as_json:
        scores = {"positions": line.positions, "scores": line.scores, "position": line.position}
        echo(json.dumps(plain({"output": output, "recipe": "wise-ft", **scores})))
        return
    rows = [
        [f"{position:g}{' ←' if position == line.position else ''}"]
        + [f"{scores[at][name]:.4f}" for scores in line.scores.values() for name in scores[at]]
        for at, position in enumerate(line.positions)
    ]
    head = ["position", *(f"{split} {name}" for split, scores in line.scores.items() for name in scores[0])]
    print_table(head, rows)
    echo(output)


def _save(state: StateDict, output: str, checkpoints: tuple[str, ...], recipe: str, parameters: dict[str, Any]) -> None:
    """Write a soup, with where it comes from."""
    from weightspace import save_checkpoint
    from weightspace.checkpoints import provenance
    from weightspace.checkpoints.fetching import fetched_path

    inputs = [fetched_path(path) for path in checkpoints]
    save_checkpoint(state, output, metadata=provenance(inputs, f"{recipe}-soup", parameters), companions_from=inputs[0])
