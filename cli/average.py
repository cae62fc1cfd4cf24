"""``weightspace average``: average the last checkpoints of a training run."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from weightspace.cli import commands, networks, options
from weightspace.cli.commands import Choice, Whole
from weightspace.cli.merge_networks import advice_on_statistics
from weightspace.cli.merge_report import interrupted_line, plan_rows, size_of
from weightspace.cli.printing import echo, plain, print_table, warn
from weightspace.cli.progress import byte_progress, live_table
from weightspace.cli.reports import echo_files, echo_report, files_of
from weightspace.cli.soup_table import check_reports

from weightspace import WeightspaceError
from weightspace.searching.lm_eval import PREFIX, path_score

if TYPE_CHECKING:
    from weightspace.merging import MergeReport
    from weightspace.runs import RunCheckpoint, WindowScores
    from weightspace.tasks.protocol import Task


@commands.command("average")
@click.argument("run", metavar="RUN")
@click.option("--last", type=Whole(1, 10**6), metavar="N", help="Average the last N checkpoints. [all]")
@click.option("--window", metavar="A:B", help="Average those from step A to step B; either may be left out.")
@click.option(
    "--every", type=Whole(1, 10**18), metavar="N", help="Keep those at least N steps apart, back from the last."
)
@click.option(
    "--schedule",
    metavar="SCHEDULE",
    default="uniform",
    show_default=True,
    help="Weights: uniform, ema:DECAY, wsm:linear, wsm:cosine, wsm:1-sqrt (the learning-rate decay that the average "
    "approximates), or a file with one number per checkpoint.",
)
@click.option("--pattern", metavar="NAME", help="Names to take, such as 'epoch=*-step={step}.ckpt'. [any with a step]")
@options.task(required=False)
@options.score
@options.mode
@click.option("--best", is_flag=True, help="Write the average with the best score, not that of all.")
@options.device("Device that the networks of --task run on")
@options.cache
@click.option(
    "--report", "reports", multiple=True, metavar="FILE", help="Plot or save the scores: .png, .svg, .pdf or .json."
)
@options.output("Checkpoint to write (.safetensors, .pt, .dcp, or a Hugging Face folder).")
@click.option("--dtype", metavar="DTYPE", help="Dtype of the output. [that of the checkpoints]")
@click.option("--key", metavar="NAME", help="Entry of the torch files or DCP folders that holds the model.")
@click.option(
    "--lenient",
    is_flag=True,
    help="Copy tensors that some checkpoints lack from the first that has them, with a warning.",
)
@click.option("--allow-nonfinite", is_flag=True, help="Accept NaN and infinite values.")
@click.option("--dry-run", is_flag=True, help="Print the plan; write and score nothing.")
@click.option("--shard-size", metavar="SIZE", default="5GB", show_default=True, help="Maximum size of an output file.")
@click.option(
    "--memory", metavar="MB", type=Whole(1, 2**40), default=256, show_default=True, help="Memory budget, in MB."
)
@click.option(
    "--threads", metavar="N", type=Whole(1, 1024), help="Tensors averaged at a time. [one per core, at most 4]"
)
@click.option("--hash/--no-hash", "hashes", default=True, help="Record the checkpoints' SHA-256 in the metadata.")
@click.option("--fsync/--no-fsync", default=True, help="Flush the output to disk before finishing.")
@click.option(
    "--executor",
    type=Choice(["auto", "threads", "processes"]),
    default="auto",
    show_default=True,
    help="Execution backend; auto starts processes only if the run is large enough to benefit.",
)
@options.as_json
def command(run: str, task: str | None, data: Path | None, output: str, as_json: bool, **opts: Any) -> None:
    """Average the last checkpoints of the training run in the folder RUN, out of core.

    The steps are read from the names: step_1000.safetensors, checkpoint-1000, epoch=3-step=1200.ckpt, iter_0001000.
    With --task or --score, the averages of the last one, two, three … checkpoints are scored; --report plots them and
    --best writes the best average. --task also recomputes BatchNorm statistics. Rerun an interrupted call to resume it.

    \b
    Examples:
      weightspace average run --last 10 -o average.safetensors
      weightspace average run --window 10000:20000 --every 1000 --schedule wsm:1-sqrt -o averaged
      weightspace average run --last 8 --task digits-mlp --best --report windows.png -o best.safetensors
      weightspace average run --score 'python score.py {model}' --mode min --best -o best.safetensors
    """
    scores = _check(task, opts)
    by_command = None if opts["score"] is None else path_score(opts["score"], opts["device"])
    check_reports(opts["reports"])
    window = _window(opts["window"])
    options.check_inputs(run)
    for path in (output, *opts["reports"]):
        options.check_apart(path, task)
    from weightspace.runs import find_checkpoints, schedule_weights
    from weightspace.runs.checkpoints import check_output

    found = find_checkpoints(run, last=opts["last"], window=window, every=opts["every"], pattern=opts["pattern"])
    schedule_weights(opts["schedule"], len(found))
    for path in (output, *opts["reports"]):
        options.check_apart(path, *(checkpoint.path for checkpoint in find_checkpoints(run, pattern=opts["pattern"])))
    check_output(found, output)
    judge = None if opts["dry_run"] else networks.load_any_task(task, data, device=opts["device"])
    windows = None
    scorer = judge or by_command
    if scores and scorer is not None and not opts["dry_run"]:
        windows = _scored(found, scorer, opts)
        found = found[-windows.best :] if opts["best"] else found
    report = _averaged(found, output, judge, opts)
    _show(report, found, windows, opts, as_json=as_json)


def _averaged(found: Sequence[RunCheckpoint], output: str, task: Task | None, opts: dict[str, Any]) -> MergeReport:
    """Write the average."""
    from weightspace.runs import average_run

    with byte_progress(f"averaging into {output}", shown=not opts["dry_run"]) as update:
        try:
            report = average_run(
                found,
                output,
                schedule=opts["schedule"],
                task=task,
                dtype=opts["dtype"],
                **_groups(opts),
                dry_run=opts["dry_run"],
                lenient=opts["lenient"],
                warn=warn,
                on_progress=update,
            )
        except KeyboardInterrupt:
            echo(interrupted_line(output), err=True)
            raise SystemExit(130) from None
    if task is None and not opts["dry_run"]:
        for line in advice_on_statistics(output, "linear", len(found)):
            warn(line)
    return report


def _check(task: str | None, opts: dict[str, Any]) -> bool:
    """Check that the options are consistent; return whether windows are scored."""
    if task is not None and opts["score"] is not None:
        raise WeightspaceError("--task and --score both score the averages. Give one of the two.")
    if opts["score"] is not None:
        options.check_effect(["cache"], "with --score, whose scores are not cached")
    if task is None:
        by_device = (opts["score"] or "").startswith(PREFIX)
        options.check_effect(["data", "cache", *([] if by_device else ["device"])], "without --task")
    if task is None and opts["score"] is None:
        options.check_effect(["best", "reports", "mode"], "without --task or --score")
        return False
    return True


def _window(text: str | None) -> tuple[int | None, int | None]:
    """Return the bounds of ``A:B``."""
    if text is None:
        return None, None
    match = re.fullmatch(r"(\d{0,18}):(\d{0,18})", text)
    if match is None or text == ":":
        raise WeightspaceError(f"--window must be two steps such as 1000:2000, 1000: or :2000; found {text!r}.")
    first, end = (int(part) if part else None for part in match.groups())
    if first is not None and end is not None and first > end:
        raise WeightspaceError(f"--window {text}: the first step is after the last one.")
    return first, end


def _groups(opts: dict[str, Any]) -> dict[str, Any]:
    """Return the option groups of a merge."""
    from weightspace.merging.plan.options import ExecutionOptions, OutputOptions, ReadingOptions

    memory = opts["memory"] * 2**20
    return {
        "reading": ReadingOptions(opts["key"]),
        "output": OutputOptions(
            size_of(opts["shard_size"]), hashes=opts["hashes"], allow_nonfinite=opts["allow_nonfinite"]
        ),
        "execution": ExecutionOptions(memory, opts["threads"], opts["fsync"], opts["executor"], force=options.forced()),
    }


def _scored(
    found: Sequence[RunCheckpoint], score: Task | Callable[[Path], float], opts: dict[str, Any]
) -> WindowScores:
    """Score the windows, and draw or save the scores."""
    from weightspace.merging.plan.options import ReadingOptions
    from weightspace.runs import score_windows

    with live_table(("checkpoints", "score")) as show:
        windows = score_windows(
            found,
            score,
            schedule=opts["schedule"],
            mode=opts["mode"],
            cache=opts["cache"],
            reading=ReadingOptions(opts["key"]),
            on_progress=lambda at: show((f"{at.index}/{at.total}", f"{at.value:.4f}")),
        )
    for path in opts["reports"]:
        if Path(path).suffix.lower() == ".json":
            windows.save(path)
        else:
            from weightspace.plots import draw_windows

            draw_windows(windows, path)
    return windows


def _show(
    report: MergeReport,
    found: Sequence[RunCheckpoint],
    windows: WindowScores | None,
    opts: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    """Print the report of an average, or its plan."""
    from weightspace.runs import schedule_weights

    steps = [checkpoint.step for checkpoint in found]
    weights = schedule_weights(opts["schedule"], len(found))
    files = [] if opts["dry_run"] else [*files_of(report.out), *(opts["reports"] if windows is not None else ())]
    if as_json:
        figures = asdict(report)
        figures["dry_run"], figures["weight_files"] = opts["dry_run"], figures.pop("files")
        figures |= {"steps": steps, "weights": weights, "schedule": opts["schedule"]}
        figures |= {} if windows is None else {"windows": {**plain(windows), "best": windows.best}}
        echo_report(figures, output=figures.pop("out"), files=files)
        return
    if windows is not None:
        _print_windows(windows)
    if opts["dry_run"]:
        for name, value in plan_rows(report).items():
            echo(f"{name:8} {value}")
    if len(steps) > 1:
        echo(f"{len(steps)} checkpoints, from step {steps[0]} to {steps[-1]}, weights {_listed(weights)}")
    elif windows is None or not opts["best"]:
        echo(f"1 checkpoint, step {steps[0]}: there is nothing to average it with")
    echo_files(files)


def _print_windows(windows: WindowScores) -> None:
    """Print the scores of all windows, and the best window."""
    rows = [
        (str(number), str(step), *(f"{values[number - 1]:.4f}" for values in windows.scores.values()))
        for number, step in enumerate(windows.first_steps, start=1)
    ]
    named = [name if name == windows.objective else f"{name} {windows.objective}" for name in windows.scores]
    print_table(("checkpoints", "from step", *named), rows)
    first = windows.first_steps[windows.best - 1]
    if windows.best == 1:
        echo(f"best: the last checkpoint alone (step {first})")
    else:
        echo(f"best: the last {windows.best} checkpoints (from step {first})")


def _listed(weights: Sequence[float]) -> str:
    """Return weights as text."""
    if min(weights) == max(weights):
        return f"{weights[0]:.4g} each"
    shown = [f"{weight:.4g}" for weight in weights]
    return ", ".join(shown if len(shown) <= 8 else [*shown[:3], "…", *shown[-3:]])
