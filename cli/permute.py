"""``weightspace permute``: permute the hidden units of a checkpoint."""

from __future__ import annotations

from pathlib import Path

import click
from weightspace.cli import commands, networks, options
from weightspace.cli.reports import echo_files, echo_report, files_of, note_flat


@commands.command("permute")
@click.argument("checkpoint")
@click.argument("permutation")
@options.spec_source
@options.task(required=False)
@click.option("--inverse", is_flag=True, help="Apply the inverse permutation.")
@options.output("Checkpoint to write (.safetensors, .pt, or a folder).")
@options.as_json
def command(
    checkpoint: str,
    permutation: str,
    spec_file: str | None,
    network: str | None,
    example_inputs: tuple[str, ...],
    task: str | None,
    data: Path | None,
    inverse: bool,
    output: str,
    as_json: bool,
) -> None:
    """Permute the hidden units of CHECKPOINT by PERMUTATION; its function stays the same.

    \b
    Example:
      weightspace permute b.safetensors b_to_a.safetensors --task digits-mlp -o b_aligned.safetensors
    """
    options.check_inputs(checkpoint, permutation, spec_file)
    if task is None:
        options.check_effect(["data"], "without --task")
    from weightspace import Permutation, WeightspaceError, load_checkpoint, permute, save_checkpoint
    from weightspace.checkpoints import provenance
    from weightspace.symmetry.permutation import is_permutation

    options.check_apart(output, checkpoint, permutation, spec_file, network, task)
    found = networks.load_any_task(task, data, source=network, inputs=example_inputs)
    spec = networks.spec_of(spec_file, network, example_inputs, found)
    if is_permutation(checkpoint) and not is_permutation(permutation):
        raise WeightspaceError(
            f"CHECKPOINT and PERMUTATION look swapped: {checkpoint} is a permutation and {permutation} isn't. "
            "Expected the checkpoint first."
        )
    moved = Permutation.load(permutation, spec)
    state = permute(spec, moved.inverse() if inverse else moved, load_checkpoint(checkpoint))
    metadata = provenance([checkpoint, permutation], "permute", {"inverse": inverse, "spec": spec.digest})
    save_checkpoint(state, output, metadata=metadata, companions_from=checkpoint)
    note_flat(output, checkpoint)
    files = files_of(output)
    if as_json:
        echo_report({"groups": len(spec.groups)}, output=output, files=files, task=networks.name_of(found))
    else:
        echo_files(files)
