"""``weightspace match``: the permutations that bring networks into one basin."""

from __future__ import annotations

import json
from pathlib import Path

import click
from weightspace.cli import options
from weightspace.cli.match_many import check_two, match_many
from weightspace.cli.progress import progress

from weightspace.matching.methods import MATCHINGS


@click.command("match")
@click.argument("target")
@click.argument("source")
@click.argument("others", nargs=-1)
@click.option(
    "--method",
    type=click.Choice(list(MATCHINGS)),
    help="weight-matching for two checkpoints (the default), the others for two or more (merge-many by default).",
)
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
@options.output("Permutation to write (.safetensors); of a method for several checkpoints a folder, one for each.")
@click.option("--merged", metavar="OUT", help="Also write the mean of the permuted checkpoints.")
@options.as_json
def command(
    target: str,
    source: str,
    others: tuple[str, ...],
    method: str | None,
    spec_file: str | None,
    network: str | None,
    input_shape: str | None,
    task: str | None,
    data: Path | None,
    seed: int,
    max_sweeps: int,
    output: str,
    merged: str | None,
    as_json: bool,
) -> None:
    """Find the permutation of SOURCE that brings it to TARGET, or those that bring all checkpoints into one basin.

    \b
    Examples:
      weightspace match a.safetensors b.safetensors --task digits-mlp -o b_to_a.safetensors
      weightspace permute b.safetensors b_to_a.safetensors --task digits-mlp -o b_aligned.safetensors
      weightspace match a.pt b.pt c.pt --method merge-many --task digits-mlp -o permutations --merged merged.pt
    """
    from weightspace import load_checkpoint, weight_matching

    method = method or ("merge-many" if others else "weight-matching")
    several = MATCHINGS[method].networks == "two or more"
    if not several:
        check_two(method, others, merged)
    found = options.load_any_task(task, data)
    spec = options.spec_of(spec_file, network, input_shape, found)
    if several:
        paths = (target, source, *others)
        match_many(method, spec, paths, found, seed=seed, output=output, merged=merged, as_json=as_json)
        return
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
