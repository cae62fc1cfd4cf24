"""Prediction of soup against ensemble, for pairs of fine-tunes, from the soup's curvature and the logits.

Fine-tunes of one digit classifier (an MLP 64-128-128-128-10, one epoch of pretraining), five epochs of Adam with rates
from 1e-4 to 3e-3, two seeds each; for every pair of them the difference of the test losses of soup and ensemble, as
equation (1) of the paper predicts it and as it is. One row per pretrained model. A rate of 1e-2 leaves the basin: the
rows "beyond" have it as well, and the equation fails there.

    python analyses/soups_against_ensembles.py
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from recipe import label_of, trained
from report import Gate, Row, script

import weightspace as ws
from weightspace.plots import draw_points, draw_predictions
from weightspace.soups import SoupAgainstEnsemble, agreement, gain, soup_against_ensemble
from weightspace.tasks import ClassificationTask, TrainConfig, network_with
from weightspace.zoo.architectures import mlp

RATES = (1e-4, 3e-4, 1e-3, 3e-3)
BEYOND = 1e-2
SEEDS, EPOCHS = 2, 5
TASK = replace(
    ws.load_task("digits-mlp"),  # type: ignore[type-var]
    name="digits-mlp-128",
    build=partial(mlp, 64, (128, 128, 128), 10),
    recipe=TrainConfig(epochs=1),
)
GATES = (
    Gate("The prediction goes with the truth", "correlation", ">", 0.7),
    Gate("… and has its sign", "sign", ">", 0.8),
)


def rows(sets: Sequence[range], cache: Path, *, task: ClassificationTask = TASK) -> Iterator[tuple[str, Row]]:
    """Measure all pairs of fine-tunes of models pretrained from these seeds, one per set."""
    for (seed,) in sets:
        within = predictions(task, fine_tunes(task, seed, RATES, cache))
        found = agreement(within)
        beyond = agreement(predictions(task, fine_tunes(task, seed, (*RATES, BEYOND), cache)))
        yield (
            label_of([seed]),
            {
                "correlation": found.correlation,
                "sign": found.sign,
                "pairs": float(found.pairs),
                "soup worse": sum(pair.difference > 0 for pair in within) / len(within),
                "correlation, beyond": beyond.correlation,
                "sign, beyond": beyond.sign,
            },
        )


def fine_tunes(task: ClassificationTask, seed: int, rates: Sequence[float], cache: Path) -> list[ws.StateDict]:
    """Return fine-tunes of a pretrained model: rates in their order, seeds within."""
    base = trained(task, seed, cache=cache)
    return [fine_tuned(task, base, rate, order) for rate in rates for order in range(SEEDS)]


def fine_tuned(task: ClassificationTask, base: ws.StateDict, rate: float, seed: int) -> ws.StateDict:
    """Return the model after some epochs of Adam; the seed decides the order of the data and the noise."""
    network = network_with(task, base).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    for epoch in range(EPOCHS):
        for batch in task.batches("train", 1000 * seed + epoch):
            optimizer.zero_grad()
            task.loss(network, batch).backward()
            optimizer.step()
    return {name: tensor.detach() for name, tensor in network.eval().state_dict().items()}


def predictions(task: ClassificationTask, states: Sequence[ws.StateDict]) -> list[SoupAgainstEnsemble]:
    """Return soup and ensemble of every pair."""
    return [soup_against_ensemble(a, b, task) for a, b in itertools.combinations(states, 2)]


def draw(seeds: range, cache: Path, folder: Path) -> None:
    """Draw a set: the predictions, and the gain of averaging against the angle."""
    states = fine_tunes(TASK, seeds[0], RATES, cache)
    base = trained(TASK, seeds[0], cache=cache)
    gains = [gain(base, a, b, TASK) for a, b in itertools.combinations(states, 2)]
    draw_predictions(
        predictions(TASK, states),
        folder / "soups_against_ensembles_predictions.png",
        colours=[one.angle for one in gains],
        label="angle (degrees)",
        title="soup against ensemble, digits",
    )
    draw_points(
        [one.angle for one in gains],
        [100 * one.gain for one in gains],
        folder / "soups_against_ensembles_angles.png",
        labels=("angle between the fine-tunes (degrees)", "gain of their mean (% of accuracy)"),
    )


if __name__ == "__main__":
    script("soups_against_ensembles", __doc__, task=TASK, rows=rows, gates=GATES, draw=draw, size=1)()
