"""``weightspace match``: the permutation that brings one network to another."""

from __future__ import annotations

import json
from pathlib import Path

import click
from weightspace.cli import options
from weightspace.cli.progress import progress


@click.command("match")
@click.argument("target")
@click.argument("source")
@options.spec_source
@options.task(required=False)
@options.seed("Order of the groups in each sweep.")
@click.option(
    "--max-sweeps",
    type=click.IntRange(min=1),
    default=100,
    show_default=True,
    help="Passes over all groups, at most.",
)
@options.output("Permutation to write (.safetensors).")
@options.as_json
def command(
    target: str,
    source: str,
    spec_file: str | None,
    network: str | None,
    input_shape: str | None,
    task: str | None,
    data: Path | None,
    seed: int,
    max_sweeps: int,
    output: str,
    as_json: bool,
) -> None:
    """Find the permutation of SOURCE that brings its weights nearest to TARGET (weight matching).

    \b
    Examples:
      weightspace match a.safetensors b.safetensors --task digits-mlp -o b_to_a.safetensors
      weightspace permute b.safetensors b_to_a.safetensors --task digits-mlp -o b_aligned.safetensors
    """
    from weightspace import load_checkpoint, weight_matching

    spec = options.spec_of(spec_file, network, input_shape, options.load_any_task(task, data))
    a, b = load_checkpoint(target), load_checkpoint(source)
    with progress("weight matching") as update:
        matching = weight_matching(
            spec,
            a,
            b,
            seed=seed,
            max_sweeps=max_sweeps,
            on_sweep=lambda at: update(at.number, max_sweeps, f"sweep {at.number}, objective {at.objective:.6g}"),
        )
    matching.permutation.save(output)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "output": output,
                    "method": "weight-matching",
                    "objective": list(matching.objective),
                    "l2_reduction": matching.l2_reduction,
                    "converged": matching.converged,
                    "groups": len(spec.groups),
                }
            )
        )
        return
    click.echo(f"objective {matching.objective[0]:.6g} → {matching.objective[-1]:.6g}")
    click.echo(f"distance reduced by {matching.l2_reduction:.1%}" + ("" if matching.converged else "; not converged"))
    click.echo(output)
