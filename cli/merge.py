"""``weightspace merge``: several checkpoints into one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from weightspace.cli import options
from weightspace.cli.progress import progress

from weightspace import WeightspaceError

if TYPE_CHECKING:
    from weightspace.checkpoints import StateDict
    from weightspace.symmetry import PermutationSpec


@click.command("merge")
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINT…")
@click.option("-m", "--method", default="linear", show_default=True, help="How to merge.")
@click.option("--weights", metavar="W,…", help="One weight a checkpoint, as .6,.4; equal by default.")
@click.option("--align", is_flag=True, help="First permute every checkpoint towards the first (weight matching).")
@options.spec_source
@options.task(required=False)
@options.seed("Order of the groups in the matching.")
@options.output("OUT.safetensors is one file, OUT.pt a torch file, anything else a Hugging Face folder.")
@options.as_json
def command(
    checkpoints: tuple[str, ...],
    method: str,
    weights: str | None,
    align: bool,
    spec_file: str | None,
    network: str | None,
    input_shape: str | None,
    task: str | None,
    data: Path | None,
    seed: int,
    output: str,
    as_json: bool,
) -> None:
    """Merge CHECKPOINTs of one architecture into one.

    Networks that were trained apart need --align, with --network, --task or --spec to say what they are: the spec is
    derived and verified, the networks are matched, then merged. With --task, BatchNorm's statistics of the result
    are measured anew on the training data.

    \b
    Examples:
      weightspace merge a.safetensors b.safetensors --weights .6,.4 -o merged.safetensors
      weightspace merge a.safetensors b.safetensors --align --task digits-mlp -o merged.safetensors
      weightspace merge a.pt b.pt --align --network torchvision:resnet18,num_classes=10 -o merged
    """
    from weightspace import load_checkpoint, merge, save_checkpoint
    from weightspace.checkpoints import provenance
    from weightspace.connectivity import reset_statistics

    if not align and any((spec_file, network, input_shape)):
        raise WeightspaceError("--spec, --network and --input are for --align, which was not given.")
    factors = _weights(weights)
    found = options.load_any_task(task, data)
    states = [load_checkpoint(path) for path in checkpoints]
    parameters: dict[str, Any] = {"weights": factors}
    if align:
        spec = options.spec_of(spec_file, network, input_shape, found)
        states = _aligned(spec, states, seed)
        parameters |= {"align": "weight-matching", "seed": seed, "spec": spec.digest}
    merged = merge(states, method, weights=factors)
    if found is not None:
        merged = reset_statistics(found, merged)
        parameters["statistics"] = "reset"
    metadata = provenance(checkpoints, method, parameters)
    save_checkpoint(merged, output, metadata=metadata, companions_from=checkpoints[0])
    click.echo(json.dumps({"output": output, "method": method, **parameters}) if as_json else output)


def _aligned(spec: PermutationSpec, states: list[StateDict], seed: int) -> list[StateDict]:
    """Permute every network but the first towards the first."""
    from weightspace import permute, weight_matching

    aligned = states[:1]
    for number, source in enumerate(states[1:], start=2):
        with progress(f"matching checkpoint {number} to the first") as update:
            matching = weight_matching(spec, states[0], source, seed=seed)
            update(1, 1, f"distance reduced by {matching.l2_reduction:.1%}")
        aligned.append(permute(spec, matching.permutation, source))
    return aligned


def _weights(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        return [float(weight) for weight in text.split(",")]
    except ValueError:
        raise WeightspaceError(f"--weights are numbers with commas between, as .6,.4; found {text!r}.") from None
