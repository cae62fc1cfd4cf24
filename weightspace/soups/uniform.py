"""The uniform soup: the mean of all ingredients."""

from __future__ import annotations

from collections.abc import Sequence

from weightspace.arguments import checked
from weightspace.checkpoints import StateDict
from weightspace.soups.ingredients import IngredientCheck, Source, ingredients_of
from weightspace.soups.running_mean import RunningMean
from weightspace.soups.scoring import Statistics, settled
from weightspace.tasks.protocol import Task


@checked
def uniform_soup(
    states_or_paths: Sequence[Source], task: Task | None = None, *, statistics: Statistics = "auto"
) -> StateDict:
    """Return the mean of all ingredients; that of copies is the copy, bit for bit.

    The ingredients are read one after the other: a float64 mean and one of them are in memory, however many there
    are.

    Args:
        states_or_paths: state dicts or checkpoints (paths, URLs), one or more, of the same names and shapes.
        task: measures BatchNorm's statistics anew, where the network has any and the task has training batches;
            without a task they are averaged as everything else.
        statistics: ``"reset"`` insists on that, ``"none"`` averages them; ``"auto"`` as said.

    Returns:
        New tensors in the dtype of the ingredients (promoted where they differ), accumulated in float64. Integer
        tensors are those that all agree on, of BatchNorm's counters the largest. Tensors tied in every ingredient
        stay tied.

    Raises:
        CheckpointError: an ingredient cannot be read, has other names or shapes than the first, or holds NaN or an
            infinity that is not a mask of all, in the same place.
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
    ingredients = ingredients_of(states_or_paths)
    for ingredient in ingredients:
        state = ingredient.load()
        checked.add(state, ingredient.name)
        mean.add(state, ingredient.name)
    return mean.state() if len(ingredients) == 1 else settled(task, mean.state(), statistics)
