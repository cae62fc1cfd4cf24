"""``weightspace merge``: merge several checkpoints into one, from files to files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from weightspace.cli import commands, options
from weightspace.cli.commands import Choice, Whole
from weightspace.cli.merge_differences import check_reports, report_differences
from weightspace.cli.merge_least_squares import check_least_squares, least_squares_option
from weightspace.cli.merge_methods import (
    check_device_effect,
    check_method,
    device_of,
    dtype_options,
    is_recipe,
    parameter_options,
    parameters_of,
)
from weightspace.cli.merge_networks import advice_on_statistics, network_options
from weightspace.cli.merge_reading import reading_of, reading_options
from weightspace.cli.merge_report import difference_line, interrupted_line, note_resumed, plan_rows, size_of
from weightspace.cli.merge_schema import schema_option
from weightspace.cli.merge_scores import Scores
from weightspace.cli.merge_verification import check_configured, check_verifiable, verification_line, verified
from weightspace.cli.printing import echo, warn
from weightspace.cli.progress import byte_progress
from weightspace.cli.reports import echo_files, echo_report, files_of, note_flat

from weightspace import WeightspaceError
from weightspace.matching.registry import MATCHINGS
from weightspace.merging import METHODS
from weightspace.merging.plan.options import ExecutionOptions, OutputOptions
from weightspace.progress import Progress
from weightspace.user_code import is_user_code

if TYPE_CHECKING:
    from weightspace.merging import Alignment, Finish, MergeReport, SourceDifferences

#: Exit status of a command stopped by Ctrl-C, as in shells.
_SIGINT = 130


@commands.command("merge")
@click.argument("sources", nargs=-1, metavar="RECIPE.yml | CHECKPOINT…")
@options.output(
    "Output: OUT.safetensors is one file, OUT.pt a torch file (a flat state dict), OUT.gguf a GGUF file with the "
    "tokenizer of an input, OUT.dcp a distributed checkpoint of torch, anything else a Hugging Face folder.",
    required=False,
    kind=None,
)
@click.option(
    "-m",
    "--method",
    metavar="METHOD",
    shell_complete=options.completing(METHODS),
    help=f"Method: {', '.join(METHODS)}, or your own as file.py:function. [linear]",
)
@click.option("--base", metavar="CHECKPOINT", help="The pretrained model that the others were fine-tuned from.")
@click.option("--weights", metavar="W,…", help="One weight per checkpoint, such as .6,.4. [equal]")
@click.option("--evidence", metavar="FILE,…", help="Data statistics, one file per checkpoint (`weightspace evidence`).")
@dtype_options
@reading_options
@click.option(
    "--align",
    metavar="METHOD",
    shell_complete=options.completing(MATCHINGS),
    help=f"Align independently trained networks to the first one, or to the base, by METHOD: "
    f"{', '.join(MATCHINGS)} (`weightspace match --method`).",
)
@least_squares_option
@options.spec_source
@options.task(required=False)
@options.device("Device for the networks of --task, and for methods that decompose or multiply matrices")
@options.seed("Seed of random masks and of the matching.")
@click.option("--dry-run", is_flag=True, help="Print the plan; write nothing, and run no custom code.")
@click.option(
    "--report",
    "reports",
    multiple=True,
    metavar="FILE",
    help="First compare the sources layer by layer and write that: a picture (.png, .svg, .pdf), .json, .csv, or - for "
    "the table alone; may be repeated.",
)
@click.option(
    "--report-threshold",
    metavar="X",
    type=click.FloatRange(min=0),
    default=0.01,
    show_default=True,
    help="Differences above X times the root mean square of the base's tensor count as changes.",
)
@click.option("--verify", is_flag=True, help="Load the output in transformers, compare names and shapes, and run it.")
@click.option(
    "--intermediate-dir", metavar="DIR", help="Keep the results of a recipe's named documents there, in float32."
)
@click.option("--reproduce", metavar="OUT", help="Rerun the merge recorded in OUT's metadata and compare the bytes.")
@click.option(
    "--allow-code", is_flag=True, help="Let --reproduce run the custom code named in OUT's metadata. Read it first."
)
@schema_option
@click.option("--lenient", is_flag=True, help="Turn some errors into warnings: unknown keys, missing tensors.")
@click.option("--strict", is_flag=True, help="Turn some warnings into errors: settings without effect.")
@click.option("--allow-nonfinite", is_flag=True, help="Accept NaN and infinite values.")
@click.option(
    "--shard-size",
    metavar="SIZE",
    default="5GB",
    show_default=True,
    help="Maximum size of a file in an output folder.",
)
@click.option(
    "--memory", metavar="MB", type=Whole(1, 2**40), default=256, show_default=True, help="Memory budget, in MB."
)
@click.option("--threads", metavar="N", type=Whole(1, 1024), help="Tensors merged at a time. [one per core, at most 4]")
@click.option("--hash/--no-hash", "hashes", default=True, help="Record the inputs' SHA-256 in the metadata.")
@click.option("--fsync/--no-fsync", default=True, help="Flush the output to disk before finishing.")
@click.option(
    "--executor",
    type=Choice(["auto", "threads", "processes", "ray"]),
    default="auto",
    show_default=True,
    help="Execution backend; auto starts processes only if the merge is large enough to benefit.",
)
@click.option("--workers", type=Whole(1, 1024), help="Number of workers for processes [as --threads] and ray [2].")
@options.ray_address
@parameter_options
@options.as_json
def command(sources: tuple[str, ...], output: str | None, reproduce: str | None, as_json: bool, **opts: Any) -> None:
    """Merge checkpoints of one architecture, from a recipe (mergekit's YAML) or from CHECKPOINTs and a method.

    Merging is out of core and atomic: rerun an interrupted merge to resume it. Inputs are never overwritten, and other
    files and models that weightspace did not make only with --force; an input that changes meanwhile is an error.
    --reproduce OUT reruns the merge recorded in OUT's metadata; custom code named there runs only with --allow-code.

    MODEL+ADAPTER applies a LoRA adapter to a model. A CHECKPOINT may be a URL (hf://org/model, s3://bucket/model); it
    is downloaded to $WEIGHTSPACE_CACHE and kept there. Independently trained networks need --align, and --network,
    --task or --spec for their architecture. --task scores models and result, and recomputes BatchNorm statistics.

    \b
    Examples:
      weightspace merge recipe.yml -o merged
      weightspace merge a b -m ties --base pretrained --density 0.5 --weights .6,.4 -o merged
      weightspace merge a.safetensors b.safetensors --align weight-matching --task digits-mlp -o merged.safetensors
      weightspace merge a.safetensors b.safetensors --align full --task vit-fashion -o merged.safetensors
      weightspace merge hf://org/a hf://org/b -o merged --dry-run
      weightspace merge recipe.yml -o merged --report layers.png --verify
      weightspace merge --reproduce merged
    """
    if opts["allow_code"] and reproduce is None:
        raise WeightspaceError("--allow-code is for --reproduce; code named by -m or by a recipe needs no flag.")
    _check_effects(sources, output, reproduce, opts)
    check_method(sources, opts)
    _check_base(sources, output, opts)
    if reproduce is None and not is_recipe(sources):
        options.check_inputs(*sources, opts["base"])
    unrun = _unrun(opts) if opts["dry_run"] else ()
    align, finish, recorded, scores = network_options(
        opts, run=not unrun, scored=reproduce is None and not opts["dry_run"], reproduced=reproduce
    )
    if reproduce is not None:
        if sources or output is not None:
            raise WeightspaceError("--reproduce OUT reads sources and recipe from OUT. Leave out CHECKPOINTs and -o.")
        _reproduce(reproduce, align, finish, opts, as_json)
        return
    if not sources or output is None:
        raise click.UsageError("Expected a recipe or checkpoints, and -o OUT.")
    differences, written = _differences(sources, opts, shown=not as_json)
    if scores is not None and align is None:
        scores.of_models(sources[0] if is_recipe(sources) else sources, _planned(sources, opts))
    with byte_progress(f"merging into {output}", shown=not opts["dry_run"]) as update:
        try:
            report = _merge(sources, output, align, finish, recorded, opts, update)
        except KeyboardInterrupt:
            echo(interrupted_line(output), err=True)
            raise SystemExit(_SIGINT) from None
    if not (opts["dry_run"] or is_recipe(sources) or opts["key"]):
        note_flat(output, sources[0])
    advice = unrun
    if finish is None and not opts["dry_run"]:
        advice = advice_on_statistics(output, report.method, 0 if is_recipe(sources) else len(sources))
    for line in advice:
        warn(line)
    report = replace(report, warnings=(*report.warnings, *advice))
    found = {"differences": differences} if differences is not None else {}
    if opts["verify"]:
        found["verification"] = verified(output)
    _show(report, scores, found, written, dry_run=opts["dry_run"], as_json=as_json)


#: Options that ``--reproduce`` shares with an ordinary merge.
_OF_REPRODUCTION = (
    *("sources", "output", "reproduce", "allow_code", "align", "spec_file", "network", "example_inputs"),
    *("task", "data", "device", "seed", "memory", "threads", "as_json", "least_squares"),
)


def _check_effects(
    sources: tuple[str, ...], output: str | None, reproduce: str | None, opts: Mapping[str, Any]
) -> None:
    """Refuse options that have no effect given the others, and sources next to a recipe."""
    recipes = [source for source in sources if is_recipe([source])]
    if recipes and len(sources) > 1:
        beside = next((source for source in sources if source not in recipes), sources[1])
        raise WeightspaceError(f"{recipes[0]} is a recipe, which names its own models; also found {beside}.")
    if reproduce is not None:
        own = [parameter.name or "" for parameter in click.get_current_context().command.params]
        options.check_effect([name for name in own if name not in _OF_REPRODUCTION], "with --reproduce")
    if opts["task"] is None:
        options.check_effect(["data"], "without --task")
        check_device_effect(sources, reproduce, opts)
    method, is_drawn = opts["method"] or "linear", opts["align"] is not None or reproduce is not None
    has_seed = method not in METHODS or any(parameter.name == "seed" for parameter in METHODS[method].parameters)
    if not (is_recipe(sources) or is_drawn or has_seed):
        options.check_effect(["seed"], f"with {method}, which is deterministic, and without --align")
    if not is_recipe(sources):
        options.check_effect(["intermediate_dir"], "without a multi-document recipe")
    if opts["executor"] == "threads":
        options.check_effect(["workers"], "with --executor threads; use --threads")
    check_reports(opts["reports"], sources, opts)
    check_least_squares(sources, reproduce, opts)
    if opts["verify"]:
        check_verifiable(output or "", dry_run=opts["dry_run"])
        check_configured(sources, opts["base"])
    if opts["lenient"] and opts["strict"]:
        raise WeightspaceError("--lenient and --strict contradict each other. Give one of the two.")


def _check_base(sources: tuple[str, ...], output: str | None, opts: Mapping[str, Any]) -> None:
    """Refuse a base without effect, or warn of one that only gives the files beside the weights."""
    method = opts["method"] or "linear"
    if opts["base"] is None or is_recipe(sources) or method not in METHODS or METHODS[method].base != "none":
        return
    if output is not None and Path(output).suffix.lower() not in ("", ".gguf"):
        options.check_effect(["base"], f"with {method}, which has no base; list it among the CHECKPOINTs to merge it")
    line = f"--base {opts['base']} only gives configuration, tokenizer and other files: {method} has no base."
    if opts["strict"]:
        raise WeightspaceError(f"{line} Leave it out, or leave --strict out.")
    warn(line)


def _merge(
    sources: tuple[str, ...],
    output: str,
    align: Alignment | None,
    finish: Finish | None,
    recorded: dict[str, Any],
    opts: dict[str, Any],
    update: Callable[[Progress], None],
) -> MergeReport:
    """Call ``merge_files`` with the options of the command line."""
    from weightspace.merging import merge_files

    if is_recipe(sources) and align is None and options.was_given("seed"):
        raise WeightspaceError("--seed doesn't apply to a recipe: put `seed` under its parameters.")
    given = _given(sources, opts)
    if align is not None:
        align = replace(align, on_progress=update)
    return merge_files(
        sources[0] if is_recipe(sources) else sources,
        output,
        **given,
        align=align,
        finish=finish,
        reading=reading_of(opts),
        output=OutputOptions(
            size_of(opts["shard_size"]), opts["allow_nonfinite"], opts["hashes"], recorded, device_of(sources, opts)
        ),
        execution=_execution_options(opts),
        dry_run=opts["dry_run"],
        lenient=opts["lenient"],
        strict=opts["strict"],
        warn=warn,
        on_progress=update,
    )


def _given(sources: tuple[str, ...], opts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that describe the merge itself."""
    parameters, method = parameters_of(opts), opts["method"] or "linear"
    seeded = method in METHODS and any(one.name == "seed" for one in METHODS[method].parameters)
    if seeded and not is_recipe(sources):
        parameters["seed"] = opts["seed"]
    given = {
        "method": opts["method"],
        "base": opts["base"],
        "weights": options.numbers("--weights", opts["weights"]),
        "parameters": parameters or None,
        "evidence": None if opts["evidence"] is None else opts["evidence"].split(","),
        "dtype": opts["dtype"],
        "out_dtype": opts["out_dtype"],
        "quantise": opts["quantise"],
    }
    return {name: value for name, value in given.items() if value is not None}


def _differences(
    sources: tuple[str, ...], opts: Mapping[str, Any], *, shown: bool
) -> tuple[SourceDifferences | None, list[str]]:
    """Report how the sources differ where that is asked for; return it with the files."""
    if not opts["reports"]:
        return None, []
    of = sources[0] if is_recipe(sources) else sources
    given = _planned(sources, opts)
    return report_differences(of, opts["reports"], opts["report_threshold"], given, shown=shown)


def _planned(sources: tuple[str, ...], opts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that say what is merged and how it is read."""
    strictness = {name: opts[name] for name in ("allow_nonfinite", "lenient")}
    return {**_given(sources, opts), "reading": reading_of(opts), **strictness}


def _execution_options(opts: Mapping[str, Any]) -> ExecutionOptions:
    """Return the options that don't change the output."""
    return ExecutionOptions(
        opts["memory"] * 2**20,
        opts["threads"],
        opts["fsync"],
        opts["executor"],
        opts["workers"],
        opts["ray_address"],
        options.forced(),
        opts["intermediate_dir"],
    )


def _unrun(opts: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a line for each source of custom code, which a dry run neither loads nor checks."""
    named = [opts[option] for option in ("task", "network") if opts[option] is not None]
    lines = (f"{one} was not loaded: a dry run runs no custom code, and plans without it." for one in named)
    return tuple(line for one, line in zip(named, lines, strict=True) if is_user_code(one))


def _reproduce(out: str, align: Alignment | None, finish: Finish | None, opts: dict[str, Any], as_json: bool) -> None:
    """Rerun a merge and report whether the bytes are the same."""
    from weightspace.merging import reproduce

    with byte_progress(f"reproducing {out}") as update:
        found = reproduce(
            out,
            align=align,
            finish=finish,
            allow_code=opts["allow_code"],
            memory=opts["memory"] * 2**20,
            threads=opts["threads"],
            on_progress=update,
        )
    if as_json:
        echo_report(asdict(found))
    elif found.equal:
        echo(f"{out}: the same bytes")
    if not found.equal:
        raise WeightspaceError(difference_line(found))


def _show(
    report: MergeReport,
    scores: Scores | None,
    found: Mapping[str, Any],
    written: Sequence[str],
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Print the report of a merge, or the plan of a dry run."""
    files = [*([] if dry_run else files_of(report.out)), *written]
    if scores is not None:
        scores.warn()
    if as_json:
        figures = asdict(report)
        figures["dry_run"], figures["weight_files"] = dry_run, figures.pop("files")
        figures |= found
        of_task: dict[str, Any] = {}
        if scores is not None:
            figures |= {"scores": scores.scores} | ({"barriers": scores.barriers} if scores.target else {})
            of_task = {"task": scores.task.name, "split": scores.split}
        echo_report(figures, output=figures.pop("out"), files=files, **of_task)
        return
    if not dry_run:
        if scores is not None:
            scores.show()
        if "verification" in found:
            echo(verification_line(found["verification"]))
        note_resumed(report)
        echo_files(files)
        return
    for name, value in plan_rows(report).items():
        echo(f"{name:8} {value}")
    echo_files(files)
