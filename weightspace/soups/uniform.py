"""The uniform soup: the mean of all ingredients."""

from __future__ import annotations

from collections.abc import Sequence

from weightspace.arguments import checked
from weightspace.checkpoints import StateDict
from weightspace.soups.ingredients import IngredientCheck, Source, ingredients_of
from weightspace.soups.running_mean import RunningMean
from weightspace.soups.scoring import Scorer, Statistics, settled
from weightspace.tasks.protocol import Task


@checked
def uniform_soup(
    states_or_paths: Sequence[Source], task: Task | None = None, *, statistics: Statistics = "auto"
) -> StateDict:
    """Return the mean of all ingredients; the mean of copies equals the copy bit for bit.

    Ingredients are read one at a time; memory holds a float64 mean and one of them, regardless of their number.

    Args:
        states_or_paths: state dicts or checkpoints (paths, URLs), one or more, with the same names and shapes.
        task: task on whose training batches, if any, BatchNorm statistics are re-estimated; without a task, they are
            averaged like everything else.
        statistics: ``"auto"`` as above; ``"reset"`` requires re-estimation, ``"none"`` averages the statistics.

    Returns:
        New tensors in the dtype of the ingredients (promoted if they differ), accumulated in float64. Integer tensors
        must agree; of BatchNorm's counters, the largest is kept. Tensors tied in all ingredients stay tied.

    Raises:
        CheckpointError: an ingredient cannot be read, differs from the first in names or shapes, or holds NaN or an
            infinity that isn't at the same position in all of them (a mask).
        WeightspaceError: there are no ingredients, or integer tensors differ.

    Source:
        Wortsman et al. 2022, https://arxiv.org/abs/2203.05482, section 2.

    Example:
        >>> import torch
        >>> import weightspace as ws
        >>> ws.uniform_soup([{"w": torch.tensor([0.0])}, {"w": torch.tensor([1.0])}, {"w": torch.tensor([5.0])}])
        {'w': tensor([2.])}
    """
    mean, checked = RunningMean(), IngredientCheck()
    scorer = None if task is None else Scorer(task, statistics)
    ingredients = ingredients_of(states_or_paths, None if scorer is None else scorer.shapes)
    for ingredient in ingredients:
        state = ingredient.load()
        checked.add(state, ingredient.name)
        mean.add(state, ingredient.name)
    state = mean.state()
    if ingredients[1:]:
        state = settled(task, state, statistics) if scorer is None else scorer.settled(state)
    return ingredients[0].as_stored(state)
