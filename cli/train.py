"""``weightspace train``: train a network on a task from a seed."""

from __future__ import annotations

from pathlib import Path

import click
from weightspace.cli import commands, options
from weightspace.cli.printing import echo
from weightspace.cli.progress import progress
from weightspace.cli.reports import echo_files, echo_report, files_of


@commands.command("train")
@options.task()
@options.seed("Seed of the training; the weights are bit-reproducible for a fixed seed.")
@click.option(
    "--epochs",
    type=click.IntRange(min=0),
    help="Passes over the training data, instead of the task's default.",
)
@click.option("--learning-rate", type=float, metavar="RATE", help="Learning rate, instead of the task's default.")
@click.option(
    "--augmentation",
    metavar="NAME",
    help="Data augmentation: none, or flip, jitter or distort for images.",
)
@options.device("Device to train and score on")
@options.output("Checkpoint to write (.safetensors, .pt, or a folder).")
@options.as_json
def command(
    task: str,
    data: Path | None,
    seed: int,
    epochs: int | None,
    learning_rate: float | None,
    augmentation: str | None,
    device: str,
    output: str,
    as_json: bool,
) -> None:
    """Train a network on a task, to have something to match, merge and measure.

    A network with pretrained weights is fine-tuned; --epochs 0 writes the initial weights.

    \b
    Examples:
      weightspace train --task digits-mlp --seed 1 -o b.safetensors
      weightspace train --task fashion-clip --learning-rate 2e-3 --augmentation jitter -o fine-tuned.safetensors
    """
    from weightspace import load_task, save_checkpoint, train
    from weightspace.checkpoints import provenance
    from weightspace.tasks import placed, scores_of, variant

    options.check_apart(output, task)
    found = variant(load_task(task, data=data), learning_rate=learning_rate, augmentation=augmentation)
    found = placed(found, device=device)
    with progress(f"training {found.name}") as update:
        state = train(
            found,
            seed,
            epochs=epochs,
            on_progress=lambda at: update(at.index, at.total, f"epoch {at.index}/{at.total}, loss {at.value:.4f}"),
        )
    chosen = {"seed": seed, "epochs": epochs, "learning_rate": learning_rate, "augmentation": augmentation}
    save_checkpoint(state, output, metadata=provenance([], "train", {"task": found.name, **chosen}))
    module = found.network()
    module.load_state_dict(state)
    splits = ("validation", "test", *getattr(found, "shifts", ()))
    scores = {split: scores_of(found, module, split) for split in splits}
    if as_json:
        echo_report({"seed": seed, "scores": scores}, output=output, files=files_of(output), task=found.name)
        return
    for split, values in scores.items():
        echo(f"{split}: " + ", ".join(f"{name} {value:.4f}" for name, value in values.items()))
    echo_files(files_of(output))
