"""Model Stock as a soup: the point on the line from the pretrained model to the mean that the angles call for."""

from __future__ import annotations

from collections.abc import Sequence

from weightspace.checkpoints import StateDict
from weightspace.errors import WeightspaceError
from weightspace.merging.in_memory import merge_states
from weightspace.merging.methods import METHODS
from weightspace.soups.ingredients import IngredientCheck, Source, ingredients_of
from weightspace.soups.scoring import Statistics, settled
from weightspace.tasks.protocol import Task


def model_stock_soup(
    states_or_paths: Sequence[Source], base: Source, task: Task | None = None, *, statistics: Statistics = "auto"
) -> StateDict:
    r"""Return ``t x̄ + (1 − t) b`` of every tensor, ``t = N cos θ / (1 + (N − 1) cos θ)``.

    ``cos θ`` is the mean cosine between the differences ``x_i − b`` of the fine-tunes from the pretrained model. Two
    fine-tunes come near the mean of many. All are open at a time, mapped from their files.

    Args:
        states_or_paths: fine-tunes, two or more, of the same names and shapes.
        base: the pretrained model ``b``.
        task: measures BatchNorm's statistics anew; see ``uniform_soup``, and so for ``statistics``.
        statistics: of BatchNorm.

    Raises:
        CheckpointError: a checkpoint cannot be read, has other names or shapes than the first, or holds NaN or
            infinity.
        WeightspaceError: there are fewer than two fine-tunes, or integer tensors differ.

    Source:
        Jang et al. 2024, https://arxiv.org/abs/2403.19522, equation 7.

    Example:
        >>> import torch
        >>> base, a, b = ({"w": torch.tensor(w)} for w in ([0.0, 0.0], [2.0, 0.0], [0.0, 2.0]))
        >>> model_stock_soup([a, b], base)["w"]  # at right angles, nothing is known but the base
        tensor([0., 0.])
    """
    (origin,) = ingredients_of([base])
    ingredients = ingredients_of(states_or_paths)
    if len(ingredients) < 2:
        raise WeightspaceError(
            f"Model Stock needs two fine-tunes or more, besides their base; found {len(ingredients)}."
        )
    start, *states = (one.mapped() for one in (origin, *ingredients))
    checked = IngredientCheck()
    for one, state in zip((origin, *ingredients), (start, *states), strict=True):
        checked.add(state, one.name)
    return settled(task, merge_states(states, METHODS["model_stock"], start), statistics)
