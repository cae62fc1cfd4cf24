"""Flatness of the loss around a soup, and distances of its ingredients, which predict the gain of averaging."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from weightspace.arithmetic.parametrizations import Coordinates
from weightspace.checkpoints import StateDict, check_compatible
from weightspace.checkpoints.measure import is_inexact
from weightspace.checkpoints.state_dict import tied_names
from weightspace.connectivity import Curve, loss_curve
from weightspace.connectivity.loss_curve import scored
from weightspace.errors import WeightspaceError
from weightspace.soups.candidates import OnLine
from weightspace.soups.ingredients import Source, check_ingredients, ingredients_of
from weightspace.soups.scoring import Scorer, Statistics
from weightspace.tasks.objectives import Mode, task_mode
from weightspace.tasks.protocol import Split, Task, objective_value

#: Buffers that are no directions to move in.
_STATISTICS = ("running_mean", "running_var")
#: Radii, as shares of the norm of every tensor.
RADII = (0.0, 0.05, 0.1, 0.2, 0.4)


@dataclass(frozen=True)
class Flatness:
    """Loss around a network, in nats.

    Attributes:
        radii: shares of the norm of every tensor.
        random: for every random direction the losses at the radii.
        lines: for every ingredient the curve from the network (0) to it (1).
    """

    radii: tuple[float, ...]
    random: tuple[tuple[float, ...], ...]
    lines: tuple[Curve, ...]


@dataclass(frozen=True)
class Gain:
    """What averaging two fine-tunes is good for.

    Attributes:
        angle: between the two, seen from the pretrained model, in degrees.
        gain: objective of their mean, less the mean of their objectives; turned around where less is better, so that
            a positive gain is an improvement.
    """

    angle: float
    gain: float


def flatness(
    state: Source,
    ingredients: Sequence[Source],
    task: Task,
    *,
    directions: int = 5,
    radii: Sequence[float] = RADII,
    points: int = 5,
    split: Split = "test",
    statistics: Statistics = "auto",
    seed: int = 0,
) -> Flatness:
    """Return the loss along random directions from a network, and on the lines to its ingredients.

    A direction is Gaussian, in every parameter tensor as long as that tensor. BatchNorm's statistics are not moved;
    they are measured anew where ``statistics`` says so. Spectral norm's vectors follow the weights.

    Args:
        state: usually a soup.
        ingredients: usually those of the soup, or the best alone.
        task: scores.
        directions: how many random ones.
        radii: how far along them, as shares of the norms.
        points: of every line, its two ends included.
        split: data of the losses.
        statistics: see ``greedy_soup``.
        seed: of the directions.

    Raises:
        CheckpointError: a checkpoint cannot be read, or does not belong to the task's network.
        WeightspaceError: the scores have no loss.

    Source:
        Wortsman et al. 2022, https://arxiv.org/abs/2203.05482, section 4; lengths by tensor as in Li et al. 2018,
        https://arxiv.org/abs/1712.09913, section 4 (there by filter).
    """
    centre, *others = ingredients_of([state, *ingredients])
    scorer = Scorer(task, statistics)
    check_ingredients((centre, *others), scorer.check)
    weights = centre.load()
    generator = torch.Generator().manual_seed(seed)
    coordinates = Coordinates([weights])
    random = []
    for _ in range(directions):
        direction = _direction(weights, scorer, generator)
        losses = []
        for radius in radii:
            moved = {name: tensor + radius * direction.get(name, 0) for name, tensor in weights.items()}
            moved.update((alias, moved[name]) for alias, name in scorer.aliases.items())
            moved.update(coordinates.following(moved))
            network = scorer.put(moved.items(), mixed=radius != 0)
            losses.append(scored(task, network, split)[0])
        random.append(tuple(losses))
    statistics = "reset" if scorer.resets else "none"
    lines = tuple(loss_curve(task, weights, one.load(), points, statistics=statistics, split=split) for one in others)
    return Flatness(tuple(map(float, radii)), tuple(random), lines)


def gain(
    pretrained: Source, a: Source, b: Source, task: Task, *, mode: Mode | None = None, split: Split = "test"
) -> Gain:
    """Return the angle between two fine-tunes, and what their mean gains over them.

    Args:
        pretrained: the model that both started from.
        a: a fine-tune.
        b: another.
        task: scores; its objective counts.
        mode: ``"min"`` or ``"max"`` of the objective; see ``greedy_soup``.
        split: data to score on.

    Raises:
        CheckpointError: a checkpoint cannot be read, or does not belong to the task's network.

    Source:
        Wortsman et al. 2022, https://arxiv.org/abs/2203.05482, section 3.3.2.
    """
    direction = task_mode(task, mode)
    start, first, second = ingredients_of([pretrained, a, b])
    scorer = Scorer(task)
    check_ingredients((start, first, second), scorer.check)
    values = []
    for position in (0.0, 0.5, 1.0):
        line = OnLine(first, second, position)
        scorer.put(line.tensors(scorer.check), mixed=line.mixed)
        values.append(objective_value(task, scorer.scores(split), direction))
    return Gain(angle(start.load(), first.load(), second.load()), values[1] - (values[0] + values[2]) / 2)


def angle(pretrained: StateDict, a: StateDict, b: StateDict) -> float:
    """Return the angle between ``a − pretrained`` and ``b − pretrained``, over all float tensors, in degrees.

    BatchNorm's statistics and spectral norm's vectors are left out; of weight norm the weights count.

    Raises:
        CheckpointError: names or shapes differ.
        WeightspaceError: a fine-tune is the pretrained model.
    """
    for state, name in ((a, "a"), (b, "b")):
        check_compatible(pretrained, state, names=("pretrained", name))
    product = lengths = 0.0
    squares = [0.0, 0.0]
    coordinates = Coordinates([pretrained, a, b])
    tied = dict(set.intersection(*(set(tied_names(state).items()) for state in (pretrained, a, b))))
    for name in coordinates.names:
        if name in tied:  # counted under its first name
            continue
        tensor = coordinates.of(pretrained, name)
        if is_inexact(tensor) and name.rpartition(".")[2] not in _STATISTICS:
            first, second = ((coordinates.of(state, name).double() - tensor.double()).flatten() for state in (a, b))
            product += float(first @ second)
            squares = [squares[0] + float(first @ first), squares[1] + float(second @ second)]
    lengths = math.sqrt(squares[0] * squares[1])
    if not lengths:
        raise WeightspaceError("There is no angle: one of the fine-tunes is the pretrained model.")
    return math.degrees(math.acos(max(-1.0, min(1.0, product / lengths))))


def _direction(weights: StateDict, scorer: Scorer, generator: torch.Generator) -> StateDict:
    """Return a random direction, in every parameter as long as that."""
    direction = {}
    for name, _ in scorer.network.named_parameters():
        tensor = weights[name]
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            length = drawn.norm()
            direction[name] = (drawn * (tensor.double().norm() / length) if length else drawn).to(tensor)
    return direction
