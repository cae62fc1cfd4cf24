"""``weightspace match``: the permutation that brings one network to another."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from weightspace.cli import options
from weightspace.cli.progress import Update, progress

from weightspace.matching.methods import MATCHINGS

if TYPE_CHECKING:
    from weightspace.matching import Sweep, Trial


def _table() -> str:
    """Return every method with what it does and where it is from, as the help shows it."""
    rows = [
        f"  {row.name}{'  (needs --task)' if row.needs_task else ''}\n    {row.summary}\n    {row.source}"
        for row in MATCHINGS.values()
    ]
    return "\b\nMethods:\n" + "\n".join(rows)


def _users(option: str) -> str:
    """Return the methods that have an option."""
    return ", ".join(row.name for row in MATCHINGS.values() if option in row.options)


@click.command("match", epilog=_table())
@click.argument("target")
@click.argument("source")
@click.option(
    "--method", default="weight-matching", show_default=True, metavar="METHOD", help="One of those listed below."
)
@options.spec_source
@options.task(required=False)
@options.seed("Whatever a method draws: order of groups and batches, noise.")
@click.option("--restarts", type=click.IntRange(min=0), help=f"{_users('restarts')}: further random starts. [0]")
@click.option(
    "--max-sweeps", type=click.IntRange(min=1), help=f"{_users('max_sweeps')}: passes over all groups, at most. [100]"
)
@click.option("--steps", type=click.IntRange(min=0), help=f"{_users('steps')}: of Adam. [200]")
@click.option("--learning-rate", type=float, help=f"{_users('learning_rate')}: of Adam.")
@click.option("--start", metavar="START", help=f"{_users('start')}: noise or identity.")
@options.output("Permutation to write (.safetensors).")
@options.as_json
def command(
    target: str,
    source: str,
    method: str,
    spec_file: str | None,
    network: str | None,
    input_shape: str | None,
    task: str | None,
    data: Path | None,
    seed: int,
    output: str,
    as_json: bool,
    **given: Any,
) -> None:
    """Find the permutation of SOURCE that brings it nearest to TARGET: by weights, activations or a loss.

    \b
    Examples:
      weightspace match a.safetensors b.safetensors --task digits-mlp -o b_to_a.safetensors
      weightspace match a.safetensors b.safetensors --task digits-mlp --method straight-through -o b_to_a.safetensors
      weightspace permute b.safetensors b_to_a.safetensors --task digits-mlp -o b_aligned.safetensors
    """
    from weightspace import load_checkpoint
    from weightspace.matching import run_matching

    found = options.load_any_task(task, data)
    spec = options.spec_of(spec_file, network, input_shape, found)
    a, b = load_checkpoint(target), load_checkpoint(source)
    begin = time.perf_counter()
    with progress(method) as update:
        matching = run_matching(method, spec, a, b, task=found, seed=seed, on_fact=_shown(update), **given)
    seconds = time.perf_counter() - begin
    matching.permutation.save(output)
    if as_json:
        report = {
            "output": output,
            "method": method,
            "seed": seed,
            "objective": list(matching.objective),
            "l2_reduction": matching.l2_reduction,
            "converged": matching.converged,
            "groups": len(spec.groups),
            "seconds": seconds,
        }
        click.echo(json.dumps(report))
        return
    click.echo(f"{MATCHINGS[method].objective}: {matching.objective[0]:.6g} → {matching.objective[-1]:.6g}")
    click.echo(f"distance reduced by {matching.l2_reduction:.1%}" + ("" if matching.converged else "; not converged"))
    click.echo(output)


def _shown(update: Update) -> Callable[[Sweep | Trial], None]:
    """Return what shows how far a method is."""
    from weightspace.matching import Trial

    def show(fact: Sweep | Trial) -> None:
        if isinstance(fact, Trial):
            update(fact.step, fact.steps, f"step {fact.step}/{fact.steps}, {fact.loss:.6g}, lowest {fact.best:.6g}")
        else:
            update(fact.number, 0, f"sweep {fact.number}, objective {fact.objective:.6g}")

    return show
