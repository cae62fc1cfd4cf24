"""Shared parts of the soup scripts: cached fine-tunes, every recipe against the best single model, tables, scatter.

A *measure* is an accuracy: ``in distribution`` is the test split, ``shifted`` the mean over the task's shifts. Recipes
choose by the validation split and never see either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any, TypeVar

import torch
from recipe import BuiltInTask, trained_path
from torch import Tensor

import weightspace as ws
from weightspace.plots.picture import COLOURS, Figure, write_picture
from weightspace.tasks import ClassificationTask, blank_network, network_with

#: Measures of the table, with what they are called in it.
MEASURES = ("validation", "in distribution", "shifted")
#: Recipe -> accuracy in per cent (ImageNet, mean of five shifts): CLIP ViT-B/32, 72 fine-tunes.
#: Wortsman et al. 2022, https://arxiv.org/abs/2203.05482; that of the learned soup is not known here.
PAPER: Mapping[str, tuple[float, float]] = {
    "best single": (80.38, 47.83),
    "uniform soup": (79.97, 51.45),
    "greedy soup": (81.03, 50.75),
    "logit ensemble": (81.19, 50.77),
}
#: Recipes that make one network out of many, or run many.
RECIPES = ("best single", "uniform soup", "greedy soup", "learned soup", "logit ensemble")
#: Told apart in a scatter: recipe -> marker.
_MARKERS = {
    "start": "P",
    "best single": "D",
    "uniform soup": "o",
    "greedy soup": "*",
    "learned soup": "^",
    "logit ensemble": "s",
}

Result = TypeVar("Result")
#: Measure -> accuracy, from 0 to 1.
Scores = Mapping[str, float]


@dataclass(frozen=True)
class Pot:
    """Fine-tunes of one task, and their soups and ensemble.

    Attributes:
        start: the network that all fine-tunes started from.
        singles: label of a fine-tune -> its scores.
        recipes: label of a recipe -> its scores.
        greedy: labels of the greedy soup's ingredients, in their order.
        best: label of the best single model on validation data.
        oracle: label of the best single model on test data, which is not available for selection.
    """

    start: Scores
    singles: Mapping[str, Scores]
    recipes: Mapping[str, Scores]
    greedy: tuple[str, ...]
    best: str
    oracle: str


def fine_tune(task: ClassificationTask, seed: int, cache: Path) -> ws.StateDict:
    """Return the fine-tune of a task and a seed, cached separately for every network that it may start from."""
    return ws.load_checkpoint(fine_tune_path(task, seed, cache))


def fine_tune_path(task: BuiltInTask, seed: int, cache: Path) -> Path:
    """Return the file in which ``fine_tune`` keeps a network, after training it if it isn't there."""
    digest = hashlib.sha256()
    for name, tensor in sorted(blank_network(task).state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return trained_path(task, seed, cache=cache / digest.hexdigest()[:12])


def run_all(jobs: Sequence[tuple[Callable[..., Result], tuple[Any, ...]]], workers: int) -> list[Result]:
    """Call functions of modules, in ``workers`` new processes if it is above one; return results in order."""
    if workers == 1:
        return [function(*arguments) for function, arguments in jobs]
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
        return [future.result() for future in [pool.submit(function, *arguments) for function, arguments in jobs]]


@torch.inference_mode()
def logits_of(task: ClassificationTask, state: ws.StateDict, split: str) -> Tensor:
    """Return the logits of a network over a split, float64 ``(n, classes)``, in the order of the examples."""
    network = network_with(task, state)
    return torch.cat([network(inputs).double() for inputs, _ in task.batches(split, 0)])


def scores_of(
    task: ClassificationTask, logits: Callable[[str], Tensor], over_shifts: Callable[[Iterable[float]], float] = mean
) -> dict[str, float]:
    """Return the accuracies that logits, asked for by the name of a split, have on every measure and every shift."""

    def accuracy(split: str) -> float:
        return float((logits(split).argmax(1) == task.examples[split].labels).double().mean())

    shifts = {shift: accuracy(shift) for shift in task.shifts}
    return {
        "validation": accuracy("validation"),
        "in distribution": accuracy("test"),
        "shifted": over_shifts(shifts.values()),
        **shifts,
    }


def cook(
    task: ClassificationTask,
    start: ws.StateDict,
    fine_tunes: Mapping[str, ws.StateDict],
    over_shifts: Callable[[Iterable[float]], float] = mean,
) -> Pot:
    """Make every recipe out of fine-tunes and score it.

    Args:
        task: has validation data, by which recipes choose, and shifts.
        start: the network that the fine-tunes started from.
        fine_tunes: label -> weights.
        over_shifts: makes one number of the accuracies on the shifts.
    """
    labels, states = list(fine_tunes), list(fine_tunes.values())
    splits = ("validation", "test", *task.shifts)
    summed = {split: torch.zeros((), dtype=torch.float64) for split in splits}
    singles = {}
    for label, state in fine_tunes.items():
        found = {split: logits_of(task, state, split) for split in splits}
        singles[label] = scores_of(task, found.__getitem__, over_shifts)
        summed = {split: summed[split] + found[split] for split in splits}

    def scored(state: ws.StateDict) -> dict[str, float]:
        return scores_of(task, lambda split: logits_of(task, state, split), over_shifts)

    greedy = ws.greedy_soup(states, task)
    best = max(labels, key=lambda label: singles[label]["validation"])
    return Pot(
        start=scored(start),
        singles=singles,
        recipes={
            "best single": singles[best],
            "uniform soup": scored(ws.uniform_soup(states)),
            "greedy soup": scored(greedy.state),
            "learned soup": scored(ws.learned_soup(states, task).state),
            "logit ensemble": scores_of(task, summed.__getitem__, over_shifts),
        },
        greedy=tuple(labels[number] for number in greedy.ingredients),
        best=best,
        oracle=max(labels, key=lambda label: singles[label]["in distribution"]),
    )


# --- What is printed ---


def spread(values: Iterable[float]) -> str:
    """Return ``mean ± standard deviation`` of shares, in per cent."""
    listed = [100 * value for value in values]
    return f"{mean(listed):.2f} ± {stdev(listed):.2f}" if len(listed) > 1 else f"{listed[0]:.2f}"


def print_table(pots: Mapping[str, Pot], *, start: str, measures: Sequence[str], paper: bool = True) -> None:
    """Print the recipes over all splits, mean and standard deviation in per cent, beside the paper's numbers."""
    beside = ("paper: ImageNet", "paper: mean of 5 shifts") if paper else ()
    print(f"| {len(pots)} splits | {' | '.join((*measures, *beside))} |")
    print("|---" * (1 + len(measures) + len(beside)) + "|")
    rows: dict[str, list[Scores]] = {start: [pot.start for pot in pots.values()]}
    rows["mean single"] = [
        {measure: mean(one[measure] for one in pot.singles.values()) for measure in measures} for pot in pots.values()
    ]
    rows |= {recipe: [pot.recipes[recipe] for pot in pots.values()] for recipe in RECIPES}
    rows["oracle: best single on test"] = [pot.singles[pot.oracle] for pot in pots.values()]
    for label, found in rows.items():
        cells = [spread(one[measure] for one in found) for measure in measures]
        if paper:
            cells += [f"{value:.2f}" for value in PAPER.get(label, ())] or ["–", "–"]
        print(f"| {label} | {' | '.join(cells)} |")
    print(flush=True)


def verdicts(pots: Mapping[str, Pot]) -> list[str]:
    """Compare the greedy and the uniform soup with the best single model, split by split, in sentences."""
    said = []
    for recipe in ("greedy soup", "uniform soup", "learned soup"):
        for measure in MEASURES:
            gains = [
                100 * (pot.recipes[recipe][measure] - pot.recipes["best single"][measure]) for pot in pots.values()
            ]
            losses = sum(gain < 0 for gain in gains)
            listed = ", ".join(f"{gain:+.2f}" for gain in gains)
            ties = sum(gain == 0 for gain in gains)
            outcome = f"LOSES in {losses} of {len(gains)}" if losses else f"wins {len(gains) - ties}, ties {ties}"
            said.append(f"{recipe} − best single, {measure}: {listed} points: {outcome}")
    return said


def as_data(pots: Mapping[str, Pot]) -> dict[str, Any]:
    """Return the pots for a file of results."""
    return {label: {**vars(pot), "gains": _gains(pot)} for label, pot in pots.items()}


def _gains(pot: Pot) -> dict[str, dict[str, float]]:
    """Return by how many points every recipe exceeds the best single model, on each measure."""
    best = pot.recipes["best single"]
    return {
        recipe: {measure: 100 * (scores[measure] - best[measure]) for measure in MEASURES}
        for recipe, scores in pot.recipes.items()
    }


# --- What is drawn ---


def draw_scatter(
    pots: Mapping[str, Pot],
    path: Path,
    *,
    start: str | None,
    x: str = "in distribution",
    y: str = "mean over shifts",
) -> None:
    """Draw accuracy against accuracy under shift, one panel per split: fine-tunes small, recipes large.

    ``start`` is the label of the network that the fine-tunes started from; None leaves it out.
    """
    write_picture(path, lambda: _scatter(pots, start, x, y))


def _scatter(pots: Mapping[str, Pot], start: str | None, x: str, y: str) -> Figure:
    columns = min(5, len(pots))
    rows = -(-len(pots) // columns)
    figure = Figure(figsize=(3.1 * columns + 0.4, 3.0 * rows + 0.7), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat[len(pots) :]:
        axes.set_visible(False)
    for axes, (label, pot) in zip(panels.flat, pots.items(), strict=False):
        places = [(100 * one["in distribution"], 100 * one["shifted"]) for one in pot.singles.values()]
        axes.plot(*zip(*places, strict=True), "o", color="#9A9A9A", ms=4, mew=0, label="one fine-tune")
        for index, (recipe, marker) in enumerate(_MARKERS.items()):
            if recipe == "start" and start is None:
                continue
            scores = pot.start if recipe == "start" else pot.recipes[recipe]
            axes.plot(
                100 * scores["in distribution"],
                100 * scores["shifted"],
                marker,
                color=COLOURS[index % len(COLOURS)],
                fillstyle="none",
                ms=11 if marker == "*" else 8,
                mew=1.7,
                label=start if recipe == "start" else recipe,
            )
        axes.set_title(label, loc="left")
        axes.grid()
        axes.set_axisbelow(True)
    for axes in panels.flat[: len(pots)]:
        axes.set_xlabel(f"{x}, %")
    for axes in panels[:, 0]:
        axes.set_ylabel(f"{y}, %")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure
