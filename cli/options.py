"""Options shared by several commands, and checks of the paths they name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import click
from weightspace.cli.commands import Choice, Whole

from weightspace import WeightspaceError
from weightspace.matching.registry import MATCHINGS
from weightspace.parallel import EXECUTORS
from weightspace.sources import LIBRARIES, TASK_NAMES, check_network_source, check_task_name

Command = Callable[..., Any]

#: Parameters that control how networks are scored.
SCORING = ("data", "device", "dtype", "mode", "cache", "workers", "executor", "ray_address", "gpus")

#: Key in a context's ``meta`` that records whether ``--force`` was given.
_FORCE = "weightspace.force"


def completing(names: Iterable[str]) -> Callable[[click.Context, click.Parameter, str], list[Any]]:
    """Return a shell completion for an option: the names that match the prefix, or files if none does."""
    from click.shell_completion import CompletionItem

    def complete(context: click.Context, _: click.Parameter, incomplete: str) -> list[Any]:
        found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type="file")]

    return complete


def as_json(command: Command) -> Command:
    """Add ``--json``: one object on stdout."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(command)


def seed(help_text: str) -> Callable[[Command], Command]:
    """Add ``--seed``, with a help text that says what it controls."""
    whole = Whole(-(2**63), 2**63 - 1)
    return click.option("--seed", type=whole, default=0, show_default=True, help=help_text)


def examples(of: str = "") -> Callable[[Command], Command]:
    """Add ``--examples``, a number of training examples (of what, in the help text), and the seed of their order."""

    def decorate(command: Command) -> Command:
        number = click.option(
            "--examples",
            type=click.IntRange(min=1),
            default=256,
            show_default=True,
            help=f"Training examples {of}{' ' * bool(of)}to use, at most.",
        )
        return number(seed("Seed of the order of the examples.")(command))

    return decorate


def reduce(default: float, of: str) -> Callable[[Command], Command]:
    """Add ``--reduce``, the factor of the elements off the diagonal of a matrix."""
    help_text = f"Factor of the off-diagonal elements of {of}."
    return click.option("--reduce", type=click.FloatRange(0, 1), default=default, show_default=True, help=help_text)


def output(
    help_text: str, *, required: bool = True, kind: str | None = "checkpoint", several: bool = False, **settings: Any
) -> Callable[[Command], Command]:
    """Add ``-o OUT`` and ``--force``; an existing file of that name is checked before any work is done.

    Args:
        help_text: help text of ``-o``.
        required: whether the option is mandatory.
        kind: ``checkpoint`` (a file or a folder), ``adapter`` (a folder), ``spec``, or ``file`` (format by extension);
            None leaves the check to the command.
        several: whether the option may be repeated.
        settings: further settings of the option.
    """
    settings = {"metavar": "FILE" if kind == "file" else "OUT", "required": required, "help": help_text} | settings

    def checked(context: click.Context, _: click.Parameter, value: Any) -> Any:
        for path in value if several else [] if value is None else [value]:
            check_writable(path, kind)
        return value

    def decorate(command: Command) -> Command:
        named = ("-o", "--output", "outputs") if several else ("-o", "--output")
        return click.option(*named, multiple=several, callback=checked, **settings)(force(command))

    return decorate


def force(command: Command) -> Command:
    """Add ``--force``; ``forced`` reads it."""

    def remember(context: click.Context, _: click.Parameter, value: bool) -> None:
        context.meta[_FORCE] = value

    return click.option(
        "--force",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=remember,
        help="Overwrite an existing file of another kind, or a model that weightspace did not make.",
    )(command)


def forced() -> bool:
    """Return whether ``--force`` was given."""
    return bool(click.get_current_context().meta.get(_FORCE))


def check_writable(path: str | Path, kind: str | None) -> None:
    """Check that a command may write to a path; see ``output`` for the kinds."""
    from weightspace.checkpoints import output_paths as outputs

    outputs.check_named(path)
    if kind == "checkpoint":
        outputs.check_checkpoint_output(Path(path), force=forced())
    elif kind == "adapter":
        outputs.check_name(Path(path), folder_only=True)
    elif kind is not None:
        outputs.check_file_output(Path(path), kind=None if kind == "file" else kind, force=forced())


def check_apart(output: str | Path | None, *inputs: str | Path | None) -> None:
    """Check that an output overwrites no input, not even through symbolic or hard links."""
    from weightspace.checkpoints.output_paths import check_apart
    from weightspace.checkpoints.remote import is_url

    if output is not None:
        paths = [path for one in inputs if one is not None and not is_url(one) for path in parts_of(str(one))]
        check_apart(Path(output), paths)


def parts_of(source: str) -> list[Path]:
    """Return the paths named by an input: a file or folder, the file of ``file.py:object``, ``MODEL+ADAPTER``."""
    paths = [Path(source), Path(source.rpartition(":")[0] or source), *map(Path, source.split("+"))]
    return [path for path in dict.fromkeys(paths) if os.path.lexists(path)]


def check_effect(names: Iterable[str], where: str) -> None:
    """Refuse options that were given on the command line but have no effect.

    Args:
        names: parameters of the running command that have no effect.
        where: the reason, as in ``without --plane``.
    """
    context, idle = click.get_current_context(), set(names)
    for parameter in context.command.params:
        if parameter.name in idle and was_given(parameter.name):
            spellings = [*parameter.opts, *parameter.secondary_opts]
            raise WeightspaceError(f"{'/'.join(spellings)} has no effect {where}. Leave it out.")


def was_given(name: str) -> bool:
    """Return whether an option was given on the command line."""
    return click.get_current_context().get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def check_inputs(*paths: str | None) -> None:
    """Check that checkpoints and other inputs exist, before any slow import.

    Args:
        paths: files and folders; URLs, pipes, models of the Hub, ``MODEL+ADAPTER`` and None are checked when they are
            read.
    """
    from weightspace.checkpoints.hub_cache import check_available
    from weightspace.checkpoints.hub_names import hub_model, missing_checkpoint
    from weightspace.checkpoints.remote import is_url
    from weightspace.errors import CheckpointError

    for path in paths:
        if path is None or "+" in path or is_url(path) or os.path.lexists(path):
            continue
        if (model := hub_model(path)) is None:
            raise CheckpointError(missing_checkpoint(path))
        check_available(model)


def task(*, required: bool = True, several: str = "") -> Callable[[Command], Command]:
    """Add ``--task`` and ``--data``; with ``several``, ``--task`` may be repeated, and its parameter is ``tasks``.

    Args:
        required: whether there must be a task.
        several: what several tasks are for, the end of the help text; empty for a single task.
    """

    def checked(context: click.Context, _: click.Parameter, value: Any) -> Any:
        for name in value if several else (value,):
            if name is not None:
                check_task_name(name)
        return value

    def decorate(command: Command) -> Command:
        named = click.option(
            "--task",
            *(("tasks",) if several else ()),
            metavar="TASK",
            required=required,
            multiple=bool(several),
            callback=checked,
            shell_complete=completing(TASK_NAMES),
            help=f"Task of the networks: {', '.join(TASK_NAMES)}, or your own as file.py:object"
            + (f"; {several}." if several else "."),
        )
        folder = click.option(
            "--data",
            type=click.Path(path_type=Path),
            metavar="DIR",
            help="Folder of Fashion-MNIST or, for llama-glosses, of WordNet.",
        )
        return named(folder(command))

    return decorate


def check_tasks(tasks: Sequence[str], inputs: Sequence[str], noun: str) -> None:
    """Check that there is one task for each input, or one for all."""
    if len(tasks) not in (1, len(inputs)):
        raise WeightspaceError(f"Found {len(tasks)} tasks for {len(inputs)} {noun}; expected one for each, or one.")


def device(help_text: str) -> Callable[[Command], Command]:
    """Add ``--device``, with a help text that says what it is for."""
    return click.option(
        "--device", metavar="DEVICE", default="cpu", show_default=True, help=f"{help_text}: cpu, cuda, cuda:1, mps."
    )


def dtype(command: Command) -> Command:
    """Add ``--dtype``, the precision of scoring."""
    description = "Precision to score networks in: float32, float64, bfloat16 or float16; by default their own."
    return click.option("--dtype", metavar="DTYPE", help=description)(command)


def network(command: Command) -> Command:
    """Add ``--network`` and ``--input``."""

    def checked(context: click.Context, _: click.Parameter, value: str | None) -> str | None:
        if value is not None:
            check_network_source(value)
        return value

    source = click.option(
        "--network",
        metavar="SOURCE",
        callback=checked,
        shell_complete=completing([f"{library}:" for library in LIBRARIES]),
        help="Network: torchvision:resnet18, timm:…, open_clip:…, transformers:FOLDER or file.py:callable; append "
        "builder options after commas (torchvision:resnet18,num_classes=10).",
    )
    given = click.option(
        "--input",
        "example_inputs",
        multiple=True,
        metavar="[NAME=]SIZES[:DTYPE[:BELOW]]",
        help="Example input, if it cannot be inferred: 1,3,32,32, or by name input_ids=1,16:int64:30522; may be "
        "repeated.",
    )
    return source(given(command))


def spec_source(command: Command) -> Command:
    """Add ``--spec``, ``--network`` and ``--input``; the network of ``--task`` is an alternative."""
    file = click.option("--spec", "spec_file", metavar="FILE", help="Spec file written by `weightspace spec`.")
    return file(network(command))


def matching(help_text: str) -> Callable[[Command], Command]:
    """Add ``--matching METHOD``; ``networks.matched`` applies it."""
    listed = f"{help_text} METHOD: {', '.join(MATCHINGS)}."
    return click.option("--matching", type=Choice(list(MATCHINGS)), metavar="METHOD", help=listed)


def ray_address(command: Command) -> Command:
    """Add ``--ray-address``."""
    return click.option(
        "--ray-address", metavar="ADDRESS", help="Address of a running Ray cluster, such as auto or 10.0.0.1:6379."
    )(command)


def execution(help_text: str) -> Callable[[Command], Command]:
    """Add ``--workers``, with a help text that says what each does, ``--executor`` and ``--ray-address``."""

    def decorate(command: Command) -> Command:
        workers = click.option(
            "--workers", type=click.IntRange(min=1), default=1, show_default=True, help=f"{help_text} at a time."
        )
        executor = click.option(
            "--executor",
            type=Choice(list(EXECUTORS)),
            default="processes",
            show_default=True,
            help="Execution backend; a single worker runs in this process.",
        )
        return workers(executor(ray_address(command)))

    return decorate


def gpus(command: Command) -> Command:
    """Add ``--gpus``."""
    return click.option(
        "--gpus",
        type=click.FloatRange(min=0),
        default=0.0,
        show_default=True,
        help="GPUs needed to score one network; may be fractional.",
    )(command)


def cache(command: Command) -> Command:
    """Add ``--no-cache``."""
    return click.option(
        "--cache/--no-cache", default=True, help="Cache evaluations in $WEIGHTSPACE_CACHE and reuse them."
    )(command)


def score(command: Command) -> Command:
    """Add ``--score``, a command or the tasks of lm-evaluation-harness."""
    return click.option(
        "--score",
        metavar="COMMAND",
        help="Command that scores the checkpoint {model}; the last number that it prints is the score, of which the "
        "highest is the best without --mode min. Or lm-eval:TASKS, tasks of lm-evaluation-harness.",
    )(command)


def mode(command: Command) -> Command:
    """Add ``--mode``, the direction of a task's objective."""
    return click.option(
        "--mode",
        type=Choice(["min", "max"]),
        help="Whether to minimise or maximise the task's objective.  [default: inferred from the task or the "
        "objective's name]",
    )(command)


def header(command: Command) -> Command:
    """Add ``--header`` and ``--no-header`` for tables."""
    return click.option(
        "--header/--no-header",
        default=None,
        help="Whether the first line of a .csv or .tsv is a header.  [default: detected]",
    )(command)


def soup_statistics(command: Command) -> Command:
    """Add ``--statistics``, the BatchNorm statistics of averaged networks."""
    return click.option(
        "--statistics",
        type=Choice(["auto", "none", "reset"]),
        default="auto",
        show_default=True,
        help="BatchNorm statistics of averaged networks: recomputed (reset) or averaged (none); auto resets if there "
        "is training data.",
    )(command)


def numbers(option: str, text: str | None) -> list[float] | None:
    """Parse an option's comma-separated numbers, ``.6,.4``; return None if it was not given."""
    if text is None:
        return None
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise WeightspaceError(f"{option} takes comma-separated numbers, such as .6,.4; found {text!r}.") from None
