"""``weightspace search``: search the values in a recipe for the merge with the best score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from weightspace.cli import commands, networks, options
from weightspace.cli.commands import Choice, Whole
from weightspace.cli.printing import echo, plain, print_table, warn
from weightspace.cli.progress import byte_progress, live_table
from weightspace.cli.reports import echo_files, echo_report, files_of
from weightspace.cli.soup_table import PICTURES

from weightspace import WeightspaceError
from weightspace.searching.engines import ENGINES
from weightspace.searching.lm_eval import PREFIX, path_score

if TYPE_CHECKING:
    from weightspace.progress import Progress
    from weightspace.searching import CommandScore, LmEvalScore, SearchReport
    from weightspace.tasks import Task

#: Files of ``--report`` besides pictures: all trials, or the best recipe.
_SAVED = (".json", ".yml", ".yaml")


@commands.command("search")
@click.argument("recipe", metavar="RECIPE")
@click.option(
    "--space",
    metavar="FILE",
    help="YAML file of searched values by place in the recipe, such as 'parameters.t: {search: [0, 1]}'.",
)
@options.task(required=False, several="several give a Pareto front")
@options.score
@options.mode
@click.option("--engine", type=Choice(list(ENGINES)), help="Search engine. [cma-es; for several tasks nsga2]")
@click.option(
    "--trials", type=Whole(1, 10**6), default=50, show_default=True, metavar="N", help="Maximum number of candidates."
)
@click.option(
    "--seconds", type=click.FloatRange(min=0, min_open=True), help="Time after which no further candidate is begun."
)
@click.option(
    "--halving",
    is_flag=True,
    help="Score all candidates on a ninth of the validation data, the best third on a third of it, and the best third "
    "of those on all of it (grid, random).",
)
@options.seed("Seed of the engine.")
@click.option(
    "--references/--no-references",
    default=True,
    show_default=True,
    help="Also score the single models, their mean, task arithmetic with ten scaling factors, and TIES: 15 more "
    "evaluations for two models and a base.",
)
@click.option(
    "--memory",
    metavar="MB",
    type=Whole(1, 2**40),
    default=256,
    show_default=True,
    help="Memory budget of merges that are written: the best one, and those for a command, in MB.",
)
@options.soup_statistics
@options.device("Device that the networks of --task and the models of lm-eval run on")
@options.cache
@options.execution("Candidates to score")
@options.gpus
@click.option("--key", metavar="NAME", help="Entry of the torch files that holds the state dict.")
@options.output("Checkpoint to write: the best merge (.safetensors, .pt, or a folder).")
@click.option(
    "--report",
    "reports",
    multiple=True,
    metavar="FILE",
    help="Plot the trials (.png, .svg, .pdf), or save them (.json) or the best recipe (.yml); may be repeated.",
)
@options.as_json
def command(
    recipe: str,
    tasks: tuple[str, ...],
    data: Path | None,
    output: str,
    reports: tuple[str, ...],
    as_json: bool,
    **opts: Any,
) -> None:
    """Search the values in RECIPE for which the merge has the best score.

    In RECIPE, {search: [0, 1]} in place of a number is a range, {choices: [ties, della]} in place of a value a list.
    Validation data decide; test scores are shown for comparison, as are simple merges of the same models. Several tasks
    give a Pareto front. Scores are cached, so an interrupted search resumes when it is called again.

    \b
    Examples:
      weightspace search recipe.yml --task digits-mlp -o best.safetensors --report search.png --report best.yml
      weightspace search recipe.yml --space space.yml --task digits-mlp --engine grid --trials 20 -o best.safetensors
      weightspace search recipe.yml --score 'python score.py {model}' --mode min --trials 30 -o best
      weightspace search recipe.yml --task math.py:task --task code.py:task -o best --report front.png
    """
    command_score = _check(tasks, reports, opts)
    options.check_inputs(recipe, opts["space"])
    for path in (output, *reports):
        options.check_apart(path, recipe, opts["space"], *tasks)
    from weightspace.searching.output_check import check_folder
    from weightspace.searching.references import models_named_in

    for path in (output, *reports):
        options.check_apart(path, *models_named_in(recipe))
        check_folder(Path(path))
    _check_output(recipe, output, opts)
    loaded = [networks.load_any_task(name, data, device=opts["device"]) for name in tasks]
    found = [task for task in loaded if task is not None]
    report = _searched(recipe, command_score or found, opts)
    _write(report, output, found, opts)
    _save(report, reports)
    _show(report, output, reports, as_json=as_json)


def _check(tasks: Sequence[str], reports: Sequence[str], opts: Mapping[str, Any]) -> CommandScore | LmEvalScore | None:
    """Check that the options are consistent; return the command that scores, if there is one."""
    if bool(tasks) == (opts["score"] is not None):
        raise WeightspaceError("A search needs either --task or --score, to score the merges. Give one of the two.")
    if not tasks:
        options.check_effect(["data", "statistics", "halving", "gpus"], "without --task")
        if not opts["score"].startswith(PREFIX):
            options.check_effect(["device"], "with a command")
    for path in reports:
        if Path(path).suffix.lower() not in (*PICTURES, *_SAVED):
            raise WeightspaceError(
                f"{path} is neither an image ({', '.join(PICTURES)}) nor a .json or .yml file. Give another suffix."
            )
        options.check_writable(path, "file")
    return None if opts["score"] is None else path_score(opts["score"], opts["device"])


def _check_output(recipe: str, output: str, opts: Mapping[str, Any]) -> None:
    """Check that the best merge can be written before anything is scored."""
    from weightspace.merging import ExecutionOptions, ReadingOptions
    from weightspace.searching.output_check import check_output
    from weightspace.searching.search import space_of

    execution = ExecutionOptions(opts["memory"] * 2**20, force=options.forced())
    check_output(space_of(recipe, opts["space"]), output, ReadingOptions(opts["key"]), execution)


def _searched(recipe: str, score: CommandScore | LmEvalScore | list[Task], opts: Mapping[str, Any]) -> SearchReport:
    """Run the search, showing every trial."""
    from weightspace import search
    from weightspace.merging import ReadingOptions
    from weightspace.searching import SearchOptions
    from weightspace.soups.evaluation import Place

    names = ("engine", "trials", "seconds", "halving", "seed", "references", "statistics", "cache")
    place = Place(opts["executor"], opts["workers"], opts["gpus"], opts["ray_address"])
    with live_table(("trial", "score", *(["data"] if opts["halving"] else []))) as show:
        return search(
            recipe,
            score,
            space=opts["space"],
            mode=opts["mode"],
            options=SearchOptions(**{name: opts[name] for name in names}, place=place, memory=opts["memory"] * 2**20),
            reading=ReadingOptions(opts["key"]),
            on_progress=_shown(show, halving=opts["halving"]),
        )


def _shown(show: Callable[[Sequence[str]], None], *, halving: bool) -> Callable[[Progress], None]:
    """Return a function that shows a trial, with the part of the validation data that halving scores it on."""

    def on_progress(trial: Progress) -> None:
        score = "impossible" if trial.value is None else f"{trial.value:.4f}"
        part = (f"on {trial.details['share']:.0%} of the data",) if halving else ()
        show((f"{trial.index}/{trial.total}", score, *part))

    return on_progress


def _write(report: SearchReport, output: str, tasks: Sequence[Task], opts: Mapping[str, Any]) -> None:
    """Write the best merge."""
    from weightspace.merging import ExecutionOptions, ReadingOptions, merge_files
    from weightspace.merging.recipe.parse import parse_recipe
    from weightspace.searching.candidates import statistics_of

    recipe = parse_recipe(report.recipe, "the best recipe", ignored=lambda line: None)
    finish = statistics_of(tasks[0], opts["statistics"]) if tasks else None
    with byte_progress(f"merging into {output}") as update:
        merge_files(
            recipe,
            output,
            reading=ReadingOptions(opts["key"]),
            execution=ExecutionOptions(opts["memory"] * 2**20, force=options.forced()),
            finish=finish,
            warn=warn,
            on_progress=update,
        )


def _save(report: SearchReport, paths: Sequence[str]) -> None:
    """Plot or save the search."""
    for path in paths:
        if Path(path).suffix.lower() in _SAVED:
            report.save(path)
        else:
            from weightspace.plots import draw_search

            draw_search(report, path)


def _show(report: SearchReport, output: str, reports: Sequence[str], *, as_json: bool) -> None:
    """Print the table of the search and the best values."""
    files = files_of(output, *reports)
    if as_json:
        echo_report(plain(report), output=output, files=files, task=next(iter(report.objectives)))
        return
    splits = [(task, split) for task, scores in report.rows[-1].scores.items() for split in scores]
    several = len(report.objectives) > 1
    head = [f"{f'{task} ' if several else ''}{split} {report.objectives[task]}" for task, split in splits]
    rows = [
        [row.name, row.note, *(f"{row.scores[task][split][report.objectives[task]]:.4f}" for task, split in splits)]
        for row in report.rows
    ]
    print_table(("merge", "", *head), rows)
    if several:
        _show_front(report)
    for name, value in report.trials[report.best].values.items():
        echo(f"{name}: {value}")
    impossible = [trial for trial in report.trials if trial.error]
    if impossible:
        echo(f"{len(impossible)} of {len(report.trials)} trials were impossible, the first one: {impossible[0].error}")
    if report.unreferenced:
        echo(f"no simple merges to compare with: {report.unreferenced}")
    if report.gain is not None:
        gain = report.gain
        echo(f"gain over {report.compared}: {gain.value:+.4f}, 95 % interval {gain.low:+.4f} to {gain.high:+.4f}")
    echo_files(files)


def _show_front(report: SearchReport) -> None:
    """Print the Pareto front."""
    echo("Pareto front on the validation data:")
    rows = [
        [str(index + 1), *(f"{score:.4f}" for score in report.trials[index].scores.values())] for index in report.front
    ]
    print_table(("trial", *report.objectives), rows)
