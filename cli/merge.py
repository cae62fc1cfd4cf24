"""``weightspace merge``: several checkpoints into one, from files to files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from weightspace.cli import commands, options
from weightspace.cli.commands import Whole
from weightspace.cli.merge_methods import check_method, is_recipe, parameter_options, parameters_of
from weightspace.cli.merge_networks import Scores, network_options, statistics_advice
from weightspace.cli.printing import echo, warn
from weightspace.cli.progress import byte_progress
from weightspace.cli.reports import echo_files, echo_report, files_of

from weightspace import WeightspaceError
from weightspace.matching.registry import MATCHINGS
from weightspace.merging import METHODS
from weightspace.merging.plan.options import ExecutionOptions, OutputOptions, ReadingOptions
from weightspace.progress import Progress
from weightspace.user_code import is_user_code

if TYPE_CHECKING:
    from weightspace.merging import Alignment, Finish, MergeReport, Reproduction

#: Sizes as people write them.
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "B": 1}

#: Exit status of a command that Ctrl-C stopped, as shells have it.
_SIGINT = 130


def _print_schema(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    """Print the JSON Schema of recipes, and end."""
    if wanted and not context.resilient_parsing:
        from weightspace.merging.recipe.json_schema import schema_text

        for line in schema_text().splitlines():
            echo(line)
        context.exit()


@commands.command("merge")
@click.argument("sources", nargs=-1, metavar="RECIPE.yml | CHECKPOINT…")
@options.output(
    "OUT.safetensors is one file, OUT.pt a torch file, anything else a Hugging Face folder.",
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
@click.option("--base", metavar="CHECKPOINT", help="The pretrained model that the others differ from.")
@click.option("--weights", metavar="W,…", help="One weight per checkpoint, as .6,.4. [equal]")
@click.option(
    "--evidence", metavar="FILE,…", help="Statistics of data, one file per checkpoint (`weightspace evidence`)."
)
@click.option(
    "--dtype", metavar="DTYPE", help="Dtype of the output: float32, float16 or bfloat16; by default that of the inputs."
)
@click.option("--out-dtype", metavar="DTYPE", help="Dtype of the output as well, under the name that recipes have.")
@click.option("--key", metavar="NAME", help='Entry of torch files with the network ("" is their top level).')
@click.option("--strip-prefix", metavar="PREFIX", help="Take PREFIX (module.) off all names that begin with it.")
@click.option("--no-strip", is_flag=True, help="Take off no prefix that one model alone has.")
@click.option(
    "--align",
    metavar="METHOD",
    shell_complete=options.completing(MATCHINGS),
    help=f"Bring networks that were trained apart into the basin of the first, or of the base, by METHOD: "
    f"{', '.join(MATCHINGS)} (`weightspace match --method`).",
)
@options.spec_source
@options.task(required=False)
@options.device("Where the networks of --task run, while tensors are merged on the CPU")
@options.seed("Seed of random masks and of the matching.")
@click.option("--dry-run", is_flag=True, help="Print the plan; write nothing, and run no code of file.py.")
@click.option(
    "--intermediate-dir", metavar="DIR", help="Keep the results of a recipe's named documents there, in float32."
)
@click.option("--reproduce", metavar="OUT", help="Make OUT again from its metadata and compare the bytes.")
@click.option(
    "--allow-code", is_flag=True, help="Let --reproduce run the file.py:function that OUT names. Read it first."
)
@click.option(
    "--schema",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_schema,
    help="Print the JSON Schema of recipes, for editors.",
)
@click.option("--lenient", is_flag=True, help="Warn of what is refused otherwise: unknown keys, missing tensors.")
@click.option("--strict", is_flag=True, help="Refuse what is a warning otherwise: settings without effect.")
@click.option("--allow-nonfinite", is_flag=True, help="Merge NaN and infinity too.")
@click.option(
    "--shard-size", metavar="SIZE", default="5GB", show_default=True, help="Size of a folder's files, at most."
)
@click.option(
    "--memory", metavar="MB", type=Whole(1, 2**40), default=256, show_default=True, help="Private memory to use, in MB."
)
@click.option("--threads", metavar="N", type=Whole(1, 1024), help="Tensors made at a time. [one per core, at most 4]")
@click.option("--hash/--no-hash", "hashes", default=True, help="Keep the inputs' SHA-256 in the metadata.")
@click.option("--fsync/--no-fsync", default=True, help="Force the output to the disk.")
@click.option(
    "--executor",
    type=click.Choice(["auto", "threads", "processes", "ray"]),
    default="auto",
    show_default=True,
    help="Where tensors are made; auto starts processes only where there is enough to merge to make up for it.",
)
@click.option("--workers", type=Whole(1, 1024), help="Workers of processes [as --threads] and of ray [2].")
@options.ray_address
@parameter_options
@options.as_json
def command(sources: tuple[str, ...], output: str | None, reproduce: str | None, as_json: bool, **said: Any) -> None:
    """Merge checkpoints of one architecture into one: a recipe (mergekit's YAML), or CHECKPOINTs and a method.

    Nothing is held in memory whole, and nothing is half-written: an interrupted merge goes on when it is called again.
    Inputs are never written over, and a file that is no checkpoint only with --force. An input that changes meanwhile
    is an error. --reproduce believes OUT what it says of itself, but runs code that it names only with --allow-code.
    MODEL+ADAPTER adds a LoRA adapter to a model. A CHECKPOINT may be a URL (hf://org/model, s3://bucket/model): it is
    brought into $WEIGHTSPACE_CACHE and stays there. Networks that were trained apart need --align, with --network,
    --task or --spec to say what they are; with --task, BatchNorm's statistics of the result are measured anew.

    \b
    Examples:
      weightspace merge recipe.yml -o merged
      weightspace merge a b -m slerp --t 0.3 -o merged
      weightspace merge a b -m ties --base pretrained --density 0.5 --weights .6,.4 -o merged
      weightspace merge a.safetensors b.safetensors --align weight-matching --task digits-mlp -o merged.safetensors
      weightspace merge hf://org/a hf://org/b -o merged --dry-run
      weightspace merge --reproduce merged
    """
    if said["allow_code"] and reproduce is None:
        raise WeightspaceError("--allow-code is for --reproduce: code that the command line or a recipe names is run.")
    _check_effects(sources, reproduce, said)
    check_method(sources, said)
    if reproduce is None and not is_recipe(sources):
        options.check_inputs(*sources, said["base"])
    unrun = _unrun(said) if said["dry_run"] else ()
    align, finish, recorded, scores = network_options(
        said, run=not unrun, scored=reproduce is None and not said["dry_run"]
    )
    if reproduce is not None:
        if sources or output is not None:
            raise WeightspaceError("--reproduce OUT takes sources and recipe from OUT. Leave out CHECKPOINTs and -o.")
        _reproduce(reproduce, align, finish, said, as_json)
        return
    if not sources or output is None:
        raise click.UsageError("Expected a recipe or checkpoints, and -o OUT.")
    with byte_progress(f"merging into {output}", shown=not said["dry_run"]) as update:
        try:
            report = _merge(sources, output, align, finish, recorded, said, update)
        except KeyboardInterrupt:
            echo(_interrupted(output), err=True)
            raise SystemExit(_SIGINT) from None
    advice = unrun
    if finish is None and not said["dry_run"]:
        advice = statistics_advice(output, report.method, 0 if is_recipe(sources) else len(sources))
    for line in advice:
        warn(line)
    report = replace(report, warnings=(*report.warnings, *advice))
    _show(report, scores, dry_run=said["dry_run"], as_json=as_json)


#: What ``--reproduce`` and the making of a merge both look at.
_OF_REPRODUCTION = (
    *("sources", "output", "reproduce", "allow_code", "align", "spec_file", "network", "example_inputs"),
    *("task", "data", "device", "seed", "memory", "threads", "as_json"),
)


def _check_effects(sources: tuple[str, ...], reproduce: str | None, said: Mapping[str, Any]) -> None:
    """Refuse options that change nothing beside the others, and sources beside a recipe."""
    recipes = [source for source in sources if is_recipe([source])]
    if recipes and len(sources) > 1:
        beside = next((source for source in sources if source not in recipes), sources[1])
        raise WeightspaceError(f"{recipes[0]} is a recipe, which names its models itself; found {beside} beside it.")
    if reproduce is not None:
        own = [parameter.name or "" for parameter in click.get_current_context().command.params]
        options.check_effect([name for name in own if name not in _OF_REPRODUCTION], "with --reproduce")
    if said["task"] is None:
        options.check_effect(("data", "device"), "without --task")
    method, is_drawn = said["method"] or "linear", said["align"] is not None or reproduce is not None
    has_seed = method not in METHODS or any(parameter.name == "seed" for parameter in METHODS[method].parameters)
    if not (is_recipe(sources) or is_drawn or has_seed):
        options.check_effect(["seed"], f"with {method}, which draws nothing, and without --align")
    if not is_recipe(sources):
        options.check_effect(["intermediate_dir"], "without a recipe of several documents")
    if said["executor"] == "threads":
        options.check_effect(["workers"], "with --executor threads; say --threads")
    if said["lenient"] and said["strict"]:
        raise WeightspaceError("--lenient and --strict contradict each other. Give one of the two.")


def _merge(
    sources: tuple[str, ...],
    output: str,
    align: Alignment | None,
    finish: Finish | None,
    recorded: dict[str, Any],
    said: dict[str, Any],
    update: Callable[[Progress], None],
) -> MergeReport:
    """Call ``merge_files`` with what the options say."""
    from weightspace.merging import merge_files

    recipe = is_recipe(sources)
    parameters = parameters_of(said)
    if recipe and align is None and options.was_given("seed"):
        raise WeightspaceError("--seed was given beside a recipe, which says its own: put `seed` under its parameters.")
    method = said["method"] or "linear"
    if not recipe and method in METHODS and any(one.name == "seed" for one in METHODS[method].parameters):
        parameters["seed"] = said["seed"]
    given = {
        "method": said["method"],
        "base": said["base"],
        "weights": options.numbers("--weights", said["weights"]),
        "parameters": parameters or None,
        "evidence": None if said["evidence"] is None else said["evidence"].split(","),
        "dtype": said["dtype"],
        "out_dtype": said["out_dtype"],
    }
    if said["no_strip"] and said["strip_prefix"] is not None:
        raise WeightspaceError("--no-strip and --strip-prefix contradict each other. Give one of the two.")
    return merge_files(
        sources[0] if recipe else sources,
        output,
        **{name: value for name, value in given.items() if value is not None},
        align=align,
        finish=finish,
        reading=ReadingOptions(said["key"], "" if said["no_strip"] else said["strip_prefix"]),
        output=OutputOptions(_size(said["shard_size"]), said["allow_nonfinite"], said["hashes"], recorded),
        execution=_execution_options(said),
        dry_run=said["dry_run"],
        lenient=said["lenient"],
        strict=said["strict"],
        warn=warn,
        on_progress=update,
    )


def _execution_options(said: Mapping[str, Any]) -> ExecutionOptions:
    """Return the options of the command that change no byte."""
    return ExecutionOptions(
        said["memory"] * 2**20,
        said["threads"],
        said["fsync"],
        said["executor"],
        said["workers"],
        said["ray_address"],
        options.forced(),
        said["intermediate_dir"],
    )


def _unrun(said: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a line for each source of code that a dry run does not load, and so cannot check."""
    named = [said[option] for option in ("task", "network") if said[option] is not None]
    lines = (f"{one} was not loaded: a dry run runs no code, and plans without it." for one in named)
    return tuple(line for one, line in zip(named, lines, strict=True) if is_user_code(one))


def _reproduce(out: str, align: Alignment | None, finish: Finish | None, said: dict[str, Any], as_json: bool) -> None:
    """Make a merge again and say whether its bytes are the same."""
    from weightspace.merging import reproduce

    with byte_progress(f"making {out} again") as update:
        found = reproduce(
            out,
            align=align,
            finish=finish,
            allow_code=said["allow_code"],
            memory=said["memory"] * 2**20,
            threads=said["threads"],
            on_progress=update,
        )
    if as_json:
        echo_report(asdict(found))
    elif found.equal:
        echo(f"{out}: the same bytes")
    if not found.equal:
        raise WeightspaceError(_difference(found))


def _difference(found: Reproduction) -> str:
    """Say what came out otherwise."""
    why = f"inputs that have changed since: {', '.join(found.changed)}" if found.changed else "the inputs are the same"
    return f"{found.out} came out otherwise: {', '.join(found.differing)} differ; {why}."


def _show(report: MergeReport, scores: Scores | None, *, dry_run: bool, as_json: bool) -> None:
    """Print what was done, or what would be."""
    files = [] if dry_run else files_of(report.out)
    if scores is not None:
        scores.warn()
    if as_json:
        figures = asdict(report)
        figures["dry_run"], figures["weight_files"] = dry_run, figures.pop("files")
        of_task: dict[str, Any] = {}
        if scores is not None:
            figures |= {"scores": scores.scores, "barriers": scores.barriers}
            of_task = {"task": scores.task.name, "split": scores.split}
        echo_report(figures, output=figures.pop("out"), files=files, **of_task)
        return
    if not dry_run:
        if scores is not None:
            scores.show()
        echo_files(files)
        return
    rows = {
        "method": report.method,
        "output": f"{report.out} ({', '.join(report.files)})",
        "tensors": f"{report.tensors:,}",
        "reads": _bytes(report.read_bytes),
        **({"fetches": _bytes(report.fetched_bytes)} if report.fetched_bytes else {}),
        "writes": _bytes(report.written_bytes),
        "memory": f"about {_bytes(report.memory)} beside the interpreter",
        "time": f"about {report.seconds:,.0f} s" if report.seconds >= 1 else "about a second",
    }
    for name, value in rows.items():
        echo(f"{name:8} {value}")


def _interrupted(output: str) -> str:
    from weightspace.merging.out_of_core.stage_folders import hidden_folder
    from weightspace.merging.out_of_core.staging import staging_folder

    kept = [str(path) for path in (staging_folder(Path(output)), hidden_folder(Path(output))) if path.exists()]
    if not kept:
        return "Stopped before anything was written."
    them = "it" if len(kept) == 1 else "them"
    places = " and ".join(kept)
    return f"Stopped. What is done is kept in {places}: the same command goes on from there; delete {them} to give up."


def _size(text: str) -> int:
    """Return a size such as 5GB in bytes."""
    number, factor = text.upper().strip(), 1
    for unit, size in _UNITS.items():
        if number.endswith(unit):
            number, factor = number.removesuffix(unit), size
            break
    try:
        size = int(float(number) * factor)
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise WeightspaceError(f"--shard-size is a size such as 5GB or 500MB, found {text!r}.")
    return size


def _bytes(count: int) -> str:
    """Return a number of bytes as people read it."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count} bytes"
