"""``weightspace match``: find the permutations that bring networks into one basin."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from weightspace.cli import commands, networks, options
from weightspace.cli.match_many import check_two, match_many, shown
from weightspace.cli.printing import echo
from weightspace.cli.progress import progress
from weightspace.cli.reports import echo_files, echo_report

from weightspace.matching.registry import MANY_MATCHINGS, MATCHINGS, MatchingMethod

if TYPE_CHECKING:
    from weightspace.matching import Matching
    from weightspace.matching.aligning import SymmetryMatching

_ALL = {**MATCHINGS, **MANY_MATCHINGS}

#: Value of a bare ``--method``.
_LIST = "?"


def _table() -> str:
    """Return a list of all methods with summary and source, for the help."""
    two, several = ("\n".join(_described(row) for row in table.values()) for table in (MATCHINGS, MANY_MATCHINGS))
    return f"\b\nMethods for two checkpoints:\n{two}\n\n\b\nMethods for two or more:\n{several}"


def _described(row: MatchingMethod) -> str:
    needs = "  (needs --task)" if row.needs_task else ""
    return f"  {row.name}{needs}\n    {row.summary}\n    {row.source}"


def _users(option: str) -> str:
    """Return the methods that take an option."""
    return ", ".join(row.name for row in _ALL.values() if option in row.options)


def _list_methods(context: click.Context, _: click.Parameter, method: str | None) -> str | None:
    """Print the methods if ``--method`` has no value."""
    if method == _LIST:
        click.echo(_table().replace("\b\n", ""))
        context.exit()
    return method


#: Methods whose own products are computed on ``--device``.
_ON_DEVICE = ("weight-matching",)


@commands.command("match", epilog=_table())
@click.argument("target")
@click.argument("source")
@click.argument("others", nargs=-1)
@click.option(
    "--method",
    metavar="METHOD",
    shell_complete=options.completing(_ALL),
    is_flag=False,
    flag_value=_LIST,
    callback=_list_methods,
    is_eager=True,
    help="Method, from the list below; alone, it prints the list. [weight-matching, or merge-many for three or more]",
)
@options.spec_source
@options.task(required=False)
@options.device("Device for the networks of methods that use data, and for the products of weight-matching")
@options.seed("Seed of the method's randomness: order of groups and batches, noise.")
@click.option("--restarts", type=click.IntRange(min=0), help=f"Additional random starts ({_users('restarts')}). [0]")
@click.option(
    "--max-sweeps", type=click.IntRange(min=1), help=f"Maximum passes over all groups ({_users('max_sweeps')}). [100]"
)
@click.option("--steps", type=click.IntRange(min=0), help=f"Steps of Adam ({_users('steps')}). [200]")
@click.option("--learning-rate", type=float, help=f"Learning rate of Adam ({_users('learning_rate')}).")
@click.option("--start", metavar="START", help=f"Initialisation: noise or identity ({_users('start')}).")
@options.output("Permutation or element to write (.safetensors); of several checkpoints, a folder of them.", kind=None)
@click.option("--merged", metavar="OUT", help="Also write the mean of the permuted checkpoints.")
@options.as_json
def command(
    target: str,
    source: str,
    others: tuple[str, ...],
    method: str | None,
    spec_file: str | None,
    network: str | None,
    example_inputs: tuple[str, ...],
    task: str | None,
    data: Path | None,
    device: str,
    seed: int,
    output: str,
    merged: str | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Find the permutation that aligns SOURCE to TARGET, or those that bring all checkpoints into one basin.

    \b
    Examples:
      weightspace match a.safetensors b.safetensors --task digits-mlp -o b_to_a.safetensors
      weightspace match a.pt b.pt --task digits-mlp --method straight-through -o b_to_a.safetensors
      weightspace permute b.safetensors b_to_a.safetensors --task digits-mlp -o b_aligned.safetensors
      weightspace match a.pt b.pt c.pt --method merge-many --task digits-mlp -o permutations --merged merged.pt
    """
    from weightspace.suggestions import unknown

    method = method or ("merge-many" if others else "weight-matching")
    if method not in _ALL:
        raise unknown("matching method", method, _ALL)
    options.check_inputs(target, source, *others, spec_file)
    if task is None:
        options.check_effect(["data"] if method in _ON_DEVICE else ["data", "device"], "without --task")
    from weightspace import load_checkpoint
    from weightspace.matching import match
    from weightspace.symmetry import check_permutation_path

    if method in MATCHINGS:
        check_two(method, others, merged)
        check_permutation_path(output)
        options.check_writable(output, "file")
    if merged is not None:
        options.check_writable(merged, "checkpoint")
    for path in (output, merged):
        options.check_apart(path, target, source, *others, spec_file, network, task)
    found = networks.load_any_task(task, data, device=device, source=network, inputs=example_inputs)
    spec = networks.spec_of(spec_file, network, example_inputs, found, method=method)
    if method in MANY_MATCHINGS:
        paths = (target, source, *others)
        match_many(method, spec, paths, found, seed=seed, given=given, output=output, merged=merged, as_json=as_json)
        return
    given |= {"device": device} if method in _ON_DEVICE else {}
    a, b = load_checkpoint(target), load_checkpoint(source)
    with progress(method) as update:
        begin = time.perf_counter()
        matching = match(spec, a, b, method, task=found, seed=seed, on_progress=shown(update), **given)
        seconds = time.perf_counter() - begin
    matching.save(output)
    _report(matching, method, output, len(spec.groups), networks.name_of(found), seed, seconds, as_json=as_json)


def _report(
    matching: Matching | SymmetryMatching,
    method: str,
    output: str,
    groups: int,
    task: str | None,
    seed: int,
    seconds: float,
    *,
    as_json: bool,
) -> None:
    """Print the result of a matching."""
    if as_json:
        report = {
            "method": method,
            "seed": seed,
            "objective": list(matching.objective),
            "l2_reduction": matching.l2_reduction,
            "converged": matching.converged,
            "groups": groups,
            "seconds": seconds,
        }
        echo_report(report, output=output, files=[output], task=task)
        return
    echo(f"{MATCHINGS[method].objective}: {matching.objective[0]:.6g} → {matching.objective[-1]:.6g}")
    echo(f"distance reduced by {matching.l2_reduction:.1%}" + ("" if matching.converged else "; not converged"))
    echo_files([output])
