"""``weightspace spec``: derive the symmetries of a network and verify them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from weightspace.cli import commands, networks, options
from weightspace.cli.commands import Choice
from weightspace.cli.printing import echo
from weightspace.cli.reports import echo_files, echo_report, files_of

from weightspace import SpecError, WeightspaceError

if TYPE_CHECKING:
    from weightspace.symmetry import PermutationSpec, SymmetrySpec

#: Kind of a group -> its description.
_KINDS = {
    "permutation": "permuted",
    "signed": "permuted with signs",
    "orthogonal": "orthogonal",
    "phases": "a phase for each pair",
}


@commands.command("spec")
@click.argument("spec_file", metavar="[SPEC]", required=False)
@options.network
@options.task(required=False)
@click.option(
    "--symmetry",
    type=Choice(["permutations", "signed", "full"]),
    default="permutations",
    show_default=True,
    help="Symmetries to look for: permutations, with signs, or orthogonal maps after norms are folded.",
)
@options.output("Spec to write (YAML).", required=False, kind="spec")
@options.as_json
def command(
    spec_file: str | None,
    network: str | None,
    example_inputs: tuple[str, ...],
    task: str | None,
    data: Path | None,
    symmetry: str,
    output: str | None,
    as_json: bool,
) -> None:
    """Derive a spec of symmetries from a network and verify it, or verify a SPEC file against a network.

    Verification randomises norms and biases, moves every group of hidden units at random and compares the outputs.
    With -o, a SPEC edited by hand is written once it passes. Groups that allow less than --symmetry asks for are
    printed with the reason.

    \b
    Examples:
      weightspace spec --network torchvision:resnet50 -o resnet50.yaml
      weightspace spec --network timm:vit_tiny_patch16_224 --symmetry full -o vit.yaml
      weightspace spec edited.yaml --network model.py:build --input 1,3,32,32 -o mine.yaml
    """
    options.check_inputs(spec_file)
    if task is None:
        options.check_effect(["data"], "without --task")
    if spec_file is not None:
        options.check_effect(["symmetry"], "beside a SPEC file")
    from weightspace import derive_spec

    options.check_apart(output, network, task, None if output == spec_file else spec_file)
    found = networks.load_any_task(task, data, source=network, inputs=example_inputs)
    built = networks.network_of(network, example_inputs, found)
    if spec_file is not None:
        spec = networks.load_any_spec(spec_file, built)
    elif built is None:
        raise WeightspaceError("The network is unknown. Give --network or --task, or a spec file to verify.")
    else:
        spec = derive_spec(built.module, built.example_args, symmetry=symmetry)  # type: ignore[call-overload]
    if spec.verification is None:
        raise SpecError("The spec was not verified.")
    if output is not None:
        spec.save(output)
    if as_json:
        echo_report(_figures(spec), output=output, files=files_of(output), task=networks.name_of(found))
        return
    _print(spec)
    echo_files(files_of(output))


def _figures(spec: PermutationSpec | SymmetrySpec) -> dict[str, Any]:
    """Return the fields of a spec that ``--json`` prints."""
    from dataclasses import asdict

    from weightspace import SymmetrySpec

    figures = {
        "groups": dict(spec.groups),
        "inside": dict(spec.outer),
        "frozen": list(spec.frozen),
        "error": spec.verification and spec.verification.error,
        "tolerance": spec.verification and spec.verification.tolerance,
        "digest": spec.digest,
    }
    if isinstance(spec, SymmetrySpec):
        figures["kinds"] = dict(spec.kinds)
        figures["fixes_ones"] = sorted(spec.fixes_ones)
        figures["folds"] = [asdict(fold) for fold in spec.folds]
    return figures


def _print(spec: PermutationSpec | SymmetrySpec) -> None:
    """Print the groups of a spec, its folds, and what is lost."""
    from weightspace import SymmetrySpec

    kinds = spec.kinds if isinstance(spec, SymmetrySpec) else {}
    for group, size in spec.groups.items():
        kind = f", {_KINDS[kinds[group]]}" if group in kinds else ""
        ones = ", fixes ones" if isinstance(spec, SymmetrySpec) and group in spec.fixes_ones else ""
        inside = f", for each unit of {spec.outer[group]}" if group in spec.outer else ""
        echo(f"{group}: {size} units{kind}{ones}{inside}")
    for fold in spec.folds if isinstance(spec, SymmetrySpec) else ():
        kept = f"; {fold.shift} stays, divided by the gain" if fold.keeps_shift else ""
        names = " and ".join(name for name in (fold.gain, None if fold.keeps_shift else fold.shift) if name)
        echo(f"fold: {names or fold.shift} into {', '.join(reader.weight for reader in fold.readers)}{kept}")
    for note in spec.frozen:
        about_group = note.partition(": ")[0] in kinds
        echo(note if about_group else f"frozen: {note}")
    if spec.verification is not None:
        move = "moving" if isinstance(spec, SymmetrySpec) else "permuting"
        echo(
            f"{len(spec.groups)} free groups in {len(spec.axes)} tensors; {move} all at random changes the outputs by "
            f"{spec.verification.error:.1e} (at most {spec.verification.tolerance:g})"
        )
