"""Flatness of the loss around a soup, and angles between ingredients, which predict the gain of averaging."""

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

#: Buffers that aren't perturbed.
_STATISTICS = ("running_mean", "running_var")
#: Radii, as fractions of the norm of each tensor.
RADII = (0.0, 0.05, 0.1, 0.2, 0.4)


@dataclass(frozen=True)
class Flatness:
    """Loss around a network, in nats.

    Attributes:
        radii: fractions of the norm of each tensor.
        random: losses at the radii, per random direction.
        lines: loss curve from the network (0) to the ingredient (1), per ingredient.
    """

    radii: tuple[float, ...]
    random: tuple[tuple[float, ...], ...]
    lines: tuple[Curve, ...]


@dataclass(frozen=True)
class Gain:
    """Gain from averaging two fine-tunes.

    Attributes:
        angle: angle between their task vectors, in degrees.
        gain: objective of their mean minus the mean of their objectives, negated if lower is better, so that a positive
            gain is an improvement.
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
    """Return the loss along random directions from a network, and along the lines to its ingredients.

    Directions are Gaussian, with the norm of the parameter tensor in each tensor. BatchNorm statistics aren't
    perturbed; they are re-estimated as ``statistics`` says. Spectral norm's vectors follow the weights.

    Args:
        state: the central network, usually a soup.
        ingredients: usually those of the soup, or only the best one.
        task: task that scores the networks.
        directions: number of random directions.
        radii: distances along them, as fractions of the norms.
        points: number of points per line, including both ends.
        split: data for the losses.
        statistics: see ``greedy_soup``.
        seed: seed of the directions.

    Raises:
        CheckpointError: a checkpoint cannot be read, or doesn't match the task's network.
        WeightspaceError: the scores have no loss.

    Source:
        Wortsman et al. 2022, https://arxiv.org/abs/2203.05482, section 4; normalisation by tensor as in Li et al. 2018,
        https://arxiv.org/abs/1712.09913, section 4 (there by filter).
    """
    scorer = Scorer(task, statistics)
    centre, *others = ingredients_of([state, *ingredients], scorer.shapes)
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
    """Return the angle between two fine-tunes, and the gain of their mean over them.

    Args:
        pretrained: the model that both started from.
        a: the first fine-tune.
        b: the second fine-tune.
        task: task whose objective is compared.
        mode: ``"min"`` or ``"max"`` of the objective; see ``greedy_soup``.
        split: data to score on.

    Raises:
        CheckpointError: a checkpoint cannot be read, or doesn't match the task's network.

    Source:
        Wortsman et al. 2022, https://arxiv.org/abs/2203.05482, section 3.3.2.
    """
    direction = task_mode(task, mode)
    scorer = Scorer(task)
    start, first, second = ingredients_of([pretrained, a, b], scorer.shapes)
    check_ingredients((start, first, second), scorer.check)
    values = []
    for position in (0.0, 0.5, 1.0):
        line = OnLine(first, second, position)
        scorer.put(line.tensors(scorer.check), mixed=line.mixed)
        values.append(objective_value(task, scorer.scores(split), direction))
    return Gain(angle(start.load(), first.load(), second.load()), values[1] - (values[0] + values[2]) / 2)


def angle(pretrained: StateDict, a: StateDict, b: StateDict) -> float:
    """Return the angle between ``a − pretrained`` and ``b − pretrained``, over all float tensors, in degrees.

    BatchNorm statistics and spectral norm's vectors are excluded; for weight norm, the effective weights count.

    Raises:
        CheckpointError: names or shapes differ.
        WeightspaceError: a fine-tune equals the pretrained model.
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
        raise WeightspaceError("The angle is undefined: one of the fine-tunes equals the pretrained model.")
    return math.degrees(math.acos(max(-1.0, min(1.0, product / lengths))))


def _direction(weights: StateDict, scorer: Scorer, generator: torch.Generator) -> StateDict:
    """Return a random direction, with the norm of the parameter in each parameter."""
    direction = {}
    for name, _ in scorer.network.named_parameters():
        tensor = weights[name]
        if tensor.is_floating_point():
            drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            length = drawn.norm()
            direction[name] = (drawn * (tensor.double().norm() / length) if length else drawn).to(tensor)
    return direction
