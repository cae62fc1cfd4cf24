"""``weightspace spec``: derive a network's permutation symmetries and verify them."""

from __future__ import annotations

from pathlib import Path

import click
from weightspace.cli import commands, networks, options
from weightspace.cli.printing import echo
from weightspace.cli.reports import echo_files, echo_report, files_of

from weightspace import SpecError, WeightspaceError


@commands.command("spec")
@click.argument("spec_file", metavar="[SPEC]", required=False)
@options.network
@options.task(required=False)
@options.output("Spec to write (YAML).", required=False, kind="spec")
@options.as_json
def command(
    spec_file: str | None,
    network: str | None,
    example_inputs: tuple[str, ...],
    task: str | None,
    data: Path | None,
    output: str | None,
    as_json: bool,
) -> None:
    """Derive a permutation spec from a network and verify it, or verify a SPEC file against a network.

    Verification randomises norms and biases, permutes every group of hidden units at random and compares the outputs.
    With -o, a SPEC edited by hand is written once it passes.

    \b
    Examples:
      weightspace spec --network torchvision:resnet50 -o resnet50.yaml
      weightspace spec edited.yaml --network model.py:build --input 1,3,32,32 -o mine.yaml
    """
    options.check_inputs(spec_file)
    if task is None:
        options.check_effect(["data"], "without --task")
    from weightspace import derive_spec

    options.check_apart(output, network, task, None if output == spec_file else spec_file)
    found = networks.load_any_task(task, data, source=network, inputs=example_inputs)
    built = networks.network_of(network, example_inputs, found)
    if spec_file is not None:
        spec = networks.load_any_spec(spec_file, built)
    elif built is None:
        raise WeightspaceError("The network is unknown. Give --network or --task, or a spec file to verify.")
    else:
        spec = derive_spec(built.module, built.example_args)
    if spec.verification is None:
        raise SpecError("The spec was not verified.")
    if output is not None:
        spec.save(output)
    if as_json:
        figures = {
            "groups": dict(spec.groups),
            "inside": dict(spec.outer),
            "frozen": list(spec.frozen),
            "error": spec.verification.error,
            "tolerance": spec.verification.tolerance,
            "digest": spec.digest,
        }
        echo_report(figures, output=output, files=files_of(output), task=networks.name_of(found))
        return
    for group, size in spec.groups.items():
        inside = f", for each unit of {spec.outer[group]}" if group in spec.outer else ""
        echo(f"{group}: {size} units{inside}")
    for note in spec.frozen:
        echo(f"frozen: {note}")
    echo(
        f"{len(spec.groups)} free groups in {len(spec.axes)} tensors; permuting all at random changes the outputs by "
        f"{spec.verification.error:.1e} (at most {spec.verification.tolerance:g})"
    )
    echo_files(files_of(output))
